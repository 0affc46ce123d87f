"""Texts with slots of any length, window by window, on canvases of a fixed width.

A text that fits goes on one canvas. Else the text before a slot follows the prompt, as the
beginning of the answer, but for a short tail; the text after the canvas is shown in the message.
Slots that share a canvas are written together, later ones see what was written before them.
Knows texts, slots and prompts; knows nothing about lengths or steps.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import replace

from dgemma.compose.borders import begun, ended
from dgemma.compose.layout import Gap, Slot, Window
from dgemma.compose.length import Trial
from dgemma.compose.plan import Place, Plan, Settled, full_width, seed_of
from dgemma.compose.write import Writer, Written
from dgemma.errors import InvalidRequest
from dgemma.frontend import REFERENCE_SHARE, ModelFacts
from dgemma.params import WIDTH_STEP, SamplingParams
from dgemma.text.token_table import token_table_of
from dgemma.types import CanvasControl, Output, Request

TAIL = 32
"""Most tokens of the text before a slot that stay on a canvas which cannot hold all of it."""
LEAST_WIDTH = 8
ELSEWHERE = " [...] "
"""Stands for a slot that is not written yet, in text that is shown for reference."""

Message = Callable[[str], str]
"""From the text that follows the canvas ("" if there is none) to the user's message."""


class Windows:
    """Writes the slots between texts.

    Attributes:
        writer: what runs the requests; it keeps their outputs.
        seed: of all requests.
    """

    def __init__(
        self, facts: ModelFacts, params: SamplingParams, message: Message, *,
        search: bool = True, strength: float = 1.0, trim: bool = False,
    ) -> None:  # fmt: skip
        """
        Args:
            trim: blanks at the end of a slot may be cut off in the end.

        Raises:
            InvalidRequest: the canvas is too narrow to hold text around a slot.
        """
        self.facts, self.message, self.strength = facts, message, strength
        self.width = full_width(params, facts.canvas)
        if self.width < LEAST_WIDTH:
            raise InvalidRequest(
                f"a canvas of {self.width} tokens cannot hold text around a hole; set "
                f"canvas_length to at least {LEAST_WIDTH}",
                field="canvas_length",
            )
        self.auto = params.canvas_length == "auto"
        self.tokens = token_table_of(facts.tokenizer)
        self.seed = seed_of(params)
        params = replace(params, seed=self.seed, canvas_length=self.width)
        self.writer = Writer(facts, self.tokens, params, search)
        self.trim = trim
        self._texts: dict[int, str] = {}  # of each part, so far
        self._told: dict[int, int] = {}  # how many characters of it are settled

    def write(self, texts: Sequence[str], slots: Sequence[Slot]) -> Plan[list[Written]]:
        """Write every slot; `texts` are before, between and after them.

        Raises:
            ContextOverflow: the message alone is too long.
            EngineError: a request failed.
        """
        assert len(texts) == len(slots) + 1
        before, done = texts[0], list[Written]()
        while len(done) < len(slots):
            rest, after = slots[len(done) :], texts[len(done) + 1 :]
            before = self.facts.ending(before, self.facts.context + TAIL)
            ids = self.facts.tokenizer.encode(before)
            window = self._open(ids, rest, after)
            alone = len(window.gaps) == 1 and rest[0].long
            if alone and rest[0].most > window.room((0,)):
                results = [(yield from self._long(ids, window, rest, after))]
            else:
                results = yield from self.writer.write(window)
                for slot, written in zip(rest, results, strict=False):
                    yield from self._tell(slot.part, written.text, self.writer.taken)
            for written, text in zip(results, after, strict=False):
                before += written.text + text
            done += results
        return done

    def _tell(self, part: int, text: str, taken: int | None) -> Plan[None]:
        """A part's text goes on like this; blanks that may be cut off are held back."""
        whole = self._texts[part] = self._texts.get(part, "") + text
        told = self._told.get(part, 0)
        self._told[part] = max(told, len(whole.rstrip(" ") if self.trim else whole))
        yield Settled(part=part, text=whole[told : self._told[part]], taken=taken)

    def end(self, texts: Sequence[str]) -> Plan[None]:
        """The parts' texts in the end; each begins with all that was said of it."""
        for part, text in enumerate(texts):
            if rest := text[self._told.get(part, 0) :]:
                yield Settled(part=part, text=rest)

    def _open(
        self, before: list[int], slots: Sequence[Slot], after: Sequence[str], alone: bool = False
    ) -> Window:  # fmt: skip
        """The canvas of the next slots: all of them if they fit, else as many as do.

        Args:
            alone: the first slot has it for itself.
        """
        width = self.width
        ids = self._encoded(after)
        wants = [slot.want for slot in slots]
        room = width - len(before) - sum(wants)  # a healed token only changes sides
        if sum(map(len, ids)) < room and not (alone and len(slots) > 1):
            return self._opened(before, 0, slots, ids, True, "")
        tail = min(len(before), TAIL, width // 4)
        wants[0] = min(wants[0], width - tail - min(len(ids[0]) + 1, width // 4))
        count, room = 1, width - tail - wants[0]
        while count < len(slots) and not alone:
            less = room - len(ids[count - 1]) - wants[count]
            if less < 0 or less < min(len(ids[count]) + 1, width // 4):
                break
            count, room = count + 1, less
        behind = ids[count - 1]
        whole = count == len(slots) and len(behind) < room
        kept = behind if whole else behind[:room]
        beyond = [self.facts.tokenizer.decode(behind[len(kept) :]), *after[count:]]
        reference = "" if whole else self._reference(beyond, slots[count:])
        some = [replace(slots[0], want=wants[0]), *slots[1:count]]
        return self._opened(
            before, len(before) - tail, some, [*ids[: count - 1], kept], whole, reference
        )

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of the texts, no further than a canvas and the reference after it can hold."""
        found, size = list[list[int]](), 0
        for text in texts:
            most = self.width + self.facts.context // REFERENCE_SHARE
            found.append(self.facts.tokenizer.encode(self.facts.beginning(text, most)))
            size += len(found[-1])
            if size > self.width:
                break
        return found

    def _opened(
        self, before: list[int], cut: int, slots: Sequence[Slot], after: Sequence[list[int]],
        whole: bool, reference: str,
    ) -> Window:  # fmt: skip
        """Heal the borders and put the prompt together."""
        texts = [before[cut:], *after]
        gaps = []
        for number, slot in enumerate(slots):
            left = right = b""
            if slot.allowed is None:
                if left := begun(self.tokens, texts[number]):
                    texts[number] = texts[number][:-1]
                if right := ended(self.tokens, texts[number + 1]):
                    texts[number + 1] = texts[number + 1][1:]
            seeds = self._seeds(left, slot.old, right) if slot.old else ()
            gaps.append(Gap(slot=slot, left=left, right=right, seeds=seeds))
        window = Window(
            prompt=self.facts.prompt(self.message(reference), before[:cut], self.width),
            tail=tuple(texts[0]), gaps=tuple(gaps), texts=tuple(map(tuple, texts[1:])),
            width=self.width, strength=self.strength,
            end=(self.facts.end_id, self.facts.fill_id) if whole else None,
        )  # fmt: skip
        if self.auto and whole:
            taken = window.pinned + sum(gap.positions(gap.slot.want) for gap in gaps)
            window = replace(window, width=min(self.width, -(-taken // WIDTH_STEP) * WIDTH_STEP))
        return window

    def _seeds(self, left: bytes, old: str, right: bytes) -> tuple[int, ...]:
        try:
            text = left.decode("utf-8") + old + right.decode("utf-8")
        except UnicodeDecodeError:  # the neighbour's token is not a whole character
            text = old
        return tuple(self.facts.tokenizer.encode(text))

    def _reference(self, texts: Sequence[str], slots: Sequence[Slot]) -> str:
        """The texts that follow, with the present texts of their slots."""
        olds = [ELSEWHERE if slot.old is None else slot.old for slot in slots]
        rest = "".join(o + t for o, t in zip(olds, texts[1:], strict=True))
        return self.facts.reference(texts[0] + rest)

    # -- slots of several canvases -------------------------------------------------------------

    def _long(
        self, before: list[int], window: Window, slots: Sequence[Slot], after: Sequence[str]
    ) -> Plan[Written]:
        """The first slot, on several canvases: free ones, then one with the text after it.

        With a search one canvas is tried first, and is enough unless its greatest length is best.
        """
        slot, trials = slots[0], tuple[Trial, ...]()
        if self.writer.search and slot.least <= window.room((0,)):
            (written,) = yield from self.writer.write(window)
            trials = written.trials
            if not (trials and trials[-1].chosen):
                yield from self._tell(slot.part, written.text, self.writer.taken)
                return written
            self.writer.outputs.pop()
        ids: list[int] = []
        values: list[float] = []
        ended, told = False, ""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while True:
            left = slot.most - len(ids)
            own = replace(slot, want=left)
            window = self._open([*before, *ids], [own, *slots[1:]], after, alone=True)
            room = window.room((0,))
            if ended or left <= room:
                break
            end = self.writer.search and len(ids) >= slot.least
            count = min(self.width, left - (room + 1) // 2)
            output = yield from self._free([*before, *ids], slots, after, count, end)
            ids += output.token_ids[:count]
            values += [score.logprob for score in output.scores[:count]]
            ended = len(output.token_ids) < count
            fresh = b"".join(map(self.facts.tokenizer.token_bytes, output.token_ids[:count]))
            text = decoder.decode(fresh)
            told += text
            yield from self._tell(slot.part, text, None)
        gap = window.gaps[0]
        last = replace(gap.slot, least=max(0, slot.least - len(ids)), most=left)
        window = replace(window, gaps=(replace(gap, slot=last),))
        (written,) = yield from self.writer.write(window)
        begun = b"".join(map(self.facts.tokenizer.token_bytes, ids))
        whole = Written(
            raw=begun + written.raw, token_ids=(*ids, *written.token_ids),
            logprobs=(*values, *written.logprobs), trials=trials or written.trials,
        )  # fmt: skip
        yield from self._tell(slot.part, whole.text[len(told) :], self.writer.taken)
        return whole

    def _free(
        self, before: list[int], slots: Sequence[Slot], after: Sequence[str], count: int, end: bool
    ) -> Plan[Output]:  # fmt: skip
        """A canvas of text with nothing pinned; the end is allowed or not."""
        reference = self._reference(after, slots[1:])
        ids = self.tokens.text_ids
        if end:
            ids = tuple(sorted((*ids, self.facts.end_id)))
        params = replace(
            self.writer.params, max_tokens=count, logprobs=self.writer.params.logprobs or 0
        )
        prompt = self.facts.prompt(self.message(reference), before, self.width)
        control = CanvasControl(allowed=(ids,), masks=(0,) * count)
        (output,) = yield from self.writer.run(
            [Request(token_ids=prompt, params=params, canvas=control)],
            [[Place(part=slots[0].part, start=0, stop=count)]],
        )
        self.writer.outputs.append(output)
        return output
