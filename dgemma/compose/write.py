"""Writes the slots of one window: finds their lengths, then denoises the best to the end.

Knows how candidates are read, judged and run. Knows nothing about windows beyond this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dgemma.compose.layout import Placed, Window
from dgemma.compose.length import KEPT, Trial, between, grid, judge, mean, nearby
from dgemma.compose.plan import MOST_TOGETHER, Place, Plan, check_whole, run
from dgemma.frontend import ModelFacts
from dgemma.params import SamplingParams
from dgemma.text.token_table import TokenTable
from dgemma.types import Output, Request

Lengths = tuple[int, ...]
AT_ONCE = 6
"""Slots whose lengths are looked for in one round; each gets its share of `MOST_TOGETHER`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A slot as it was written.

    Attributes:
        raw: the bytes of its text, without those of healed borders.
        token_ids: those of healed borders included.
        logprobs: of these tokens, at the step that wrote them.
        trials: the lengths that were looked at.
    """

    raw: bytes = b""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    trials: tuple[Trial, ...] = ()

    @property
    def text(self) -> str:
        """The text; bytes that are not UTF-8 become U+FFFD."""
        return self.raw.decode("utf-8", "replace")


@dataclass
class Writer:
    """Writes windows one after another and keeps their outputs.

    Attributes:
        params: of the final requests: width and seed are set, lengths are not.
        search: whether lengths are looked for; else each slot has as many tokens as it may.
        outputs: of the requests that wrote the text.
        spent: of all requests.
        taken: the request of the last round whose text was taken; None: none was needed.
    """

    facts: ModelFacts
    tokens: TokenTable
    params: SamplingParams
    search: bool = True
    outputs: list[Output] = field(default_factory=list)
    spent: list[Output] = field(default_factory=list)
    taken: int | None = None

    def run(
        self, requests: Sequence[Request], places: Sequence[Sequence[Place]] = (), *,
        choice: bool = False,
    ) -> Plan[list[Output]]:  # fmt: skip
        """Run requests and keep what they cost."""
        outputs = yield from run(requests, places, choice=choice)
        self.spent += outputs
        return outputs

    def write(self, window: Window) -> Plan[list[Written]]:
        """Write the slots of a window.

        Raises:
            EngineError: a request failed.
        """
        search = LengthSearch(self, window)
        found = yield from search.run()
        if not any(found[0].free):
            self.taken = None
            return [Written() for _ in window.gaps]
        outputs = yield from self.run(
            [self._final(placed, window) for placed in found], list(map(window.places, found)),
            choice=True,
        )  # fmt: skip
        finals: list[list[tuple[float, ...]]] = []
        scores: list[float] = []
        for placed, output in zip(found, outputs, strict=True):
            check_whole(output, placed.content)
            finals.append([tuple(output.scores[at].logprob for at in free) for free in placed.free])
            judged = judge(output.scores, placed.free, placed.content - 1)
            scores.append(mean([score for _, score in judged]))
        chosen = self.taken = search.choose(found, scores)
        output = outputs[chosen]
        self.outputs.append(output)
        trials = search.trials(found, finals, chosen)
        written = []
        for slot, gap in enumerate(window.gaps):
            ids = tuple(output.token_ids[at] for at in found[chosen].free[slot])
            written.append(Written(
                raw=gap.raw(self.tokens, ids), token_ids=ids, logprobs=finals[chosen][slot],
                trials=trials[slot],
            ))  # fmt: skip
        return written

    def _final(self, placed: Placed, window: Window) -> Request:
        params = replace(
            self.params, max_tokens=max(1, placed.content), canvas_length=window.width,
            logprobs=self.params.logprobs or 0,
        )  # fmt: skip
        return Request(token_ids=window.prompt, params=params, canvas=placed.control)

    def reading(self, placed: Placed, window: Window) -> Request:
        """One step that commits nothing."""
        final = self._final(placed, window)
        params = replace(final.params, max_steps=1, logprobs=0, logprob_token_ids=None)
        return replace(final, params=params, canvas=replace(placed.control, read_only=True))


class LengthSearch:
    """Looks for the lengths of a window's slots."""

    def __init__(self, writer: Writer, window: Window) -> None:
        self.writer, self.window = writer, window
        self.most = self._most()
        self.read: dict[Lengths, list[tuple[float, float]]] = {}  # of each slot: reading, score
        # of each slot, by the lengths tried for it: the score, and among equals the reading
        self.worth: list[dict[int, tuple[float, float]]] = [{} for _ in window.gaps]

    def run(self) -> Plan[list[Placed]]:
        """The best candidates, placed, the best first; a single one if there is no choice."""
        gaps = self.window.gaps
        lengths = [self._first(slot) for slot in range(len(gaps))]
        tries = [self._tries(slot, MOST_TOGETHER) for slot in range(len(gaps))]
        open_slots = [slot for slot in range(len(gaps)) if len(tries[slot]) > 1]
        for slot in range(len(gaps)):
            if slot not in open_slots and tries[slot]:
                lengths[slot] = tries[slot][0]
        lengths = self._fitted(lengths)
        for first in range(0, len(open_slots), AT_ONCE):
            group = open_slots[first : first + AT_ONCE]
            share = MOST_TOGETHER // len(group)
            tried = {slot: self._tries(slot, share) for slot in group}
            yield from self._round(lengths, tried)
            finer = {slot: self._finer(slot, share) for slot in group}
            yield from self._round(lengths, finer)
            for slot in group:
                lengths[slot] = self._ranked(slot, lengths)[0]
            lengths = self._fitted(lengths)
        placed = [p for c in self._finalists(lengths, open_slots) if (p := self._place(c))]
        assert placed, "the first candidate always fits"
        return placed

    def _most(self) -> list[int]:
        """The greatest length of each slot on this canvas."""
        window = self.window
        if len(window.gaps) > 1:
            return [min(gap.slot.most, gap.slot.want) for gap in window.gaps]
        return [min(window.gaps[0].slot.most, window.room((0,)))]

    def _first(self, slot: int) -> int:
        gap = self.window.gaps[slot]
        least = gap.slot.least if gap.slot.least > 1 else min([gap.slot.least, *gap.lengths()])
        return min(max(least, gap.held if gap.slot.old else gap.slot.guess), self.most[slot])

    def _tries(self, slot: int, count: int) -> list[int]:
        gap, most = self.window.gaps[slot], self.most[slot]
        if not self.writer.search:
            return [most]
        few = gap.lengths()
        if gap.slot.old:
            return list(dict.fromkeys(few + nearby(gap.held, gap.slot.least, most)))
        least = max(1, gap.slot.least)
        return few + (grid(least, most, count - len(few)) if most >= least else [])

    def _finer(self, slot: int, count: int) -> list[int]:
        if self.window.gaps[slot].slot.old:
            return []
        worth = self.worth[slot]
        best = max(worth, key=worth.__getitem__, default=1)
        return between(worth, best, count) if best >= 1 else []

    def _place(self, lengths: Sequence[int]) -> Placed | None:
        return self.window.place(self.writer.tokens, lengths)

    def _fitted(self, lengths: list[int]) -> list[int]:
        """The same, the longest shortened until they fit."""
        lengths = [*lengths]
        while self.window.room(lengths) < 0:
            longest = max(range(len(lengths)), key=lambda slot: lengths[slot])
            assert lengths[longest] > 0, "a window has room for the least of each slot"
            lengths[longest] -= 1
        return lengths

    def _round(self, lengths: list[int], tries: dict[int, list[int]]) -> Plan[None]:
        """Read every try of every slot, the other slots as they are."""
        tried = [
            (slot, number, (*lengths[:slot], number, *lengths[slot + 1 :]))
            for slot, numbers in tries.items() for number in numbers
        ]  # fmt: skip
        fresh = {c: p for _, _, c in tried if c not in self.read and (p := self._place(c))}
        requests = [self.writer.reading(placed, self.window) for placed in fresh.values()]
        outputs = yield from self.writer.run(requests)
        for (candidate, placed), output in zip(fresh.items(), outputs, strict=True):
            self.read[candidate] = judge(output.scores, placed.free, placed.content)
        for slot, number, candidate in tried:
            if candidate in self.read:
                reading, score = self.read[candidate][slot]
                self.worth[slot][number] = score, reading

    def _ranked(self, slot: int, lengths: list[int]) -> list[int]:
        """The lengths tried for a slot, the best first; the one it has if none could be tried."""
        worth = self.worth[slot]
        return sorted(sorted(worth), key=worth.__getitem__, reverse=True) or [lengths[slot]]

    def _finalists(self, lengths: list[int], open_slots: Sequence[int]) -> list[list[int]]:
        """The best lengths, and those that differ where the choice was closest."""
        ranked = {slot: self._ranked(slot, lengths) for slot in open_slots}
        if len(open_slots) == 1:
            slot = open_slots[0]
            return [[*lengths[:slot], n, *lengths[slot + 1 :]] for n in ranked[slot][:KEPT]]
        close = [slot for slot in open_slots if len(ranked[slot]) > 1]
        close.sort(key=lambda s: self.worth[s][ranked[s][0]][0] - self.worth[s][ranked[s][1]][0])
        out = [lengths]
        for slot in close[: KEPT - 1]:
            out.append([*lengths[:slot], ranked[slot][1], *lengths[slot + 1 :]])
        return out

    def choose(self, found: list[Placed], finals: Sequence[float]) -> int:
        """Which of the candidates is taken, the earlier of equals.

        Args:
            finals: the score that `judge` gives each when it is written to the end.
        """
        every = all(placed.lengths in self.read for placed in found)

        def worth(number: int) -> float:
            first = self.read[found[number].lengths] if every else []
            return finals[number] + mean([score for _, score in first])

        return max(range(len(found)), key=lambda number: (worth(number), -number))

    def trials(
        self, found: list[Placed], finals: list[list[tuple[float, ...]]], chosen: int
    ) -> list[tuple[Trial, ...]]:
        """The table of each slot, by length."""
        tables: list[tuple[Trial, ...]] = []
        for slot, worth in enumerate(self.worth):
            final = {p.lengths[slot]: mean(f[slot]) for p, f in zip(found, finals, strict=True)}
            best = found[chosen].lengths[slot]
            final[best] = mean(finals[chosen][slot])
            tables.append(tuple(
                Trial(tokens=n, reading=reading, score=score, final=final.get(n), chosen=n == best)
                for n, (score, reading) in sorted(worth.items())
            ))  # fmt: skip
        return tables
