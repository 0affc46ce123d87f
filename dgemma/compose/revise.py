"""Works on a whole text again: only its uncertain tokens, or the tokens that break a grammar.

Knows outputs and their scores. Knows nothing about spans or holes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dgemma.compose.drafts import best_of as rank
from dgemma.compose.drafts import counted, drafts
from dgemma.compose.plan import (
    Place,
    Plan,
    check_facts,
    check_whole,
    full_width,
    refuse,
    run,
    seed_of,
    share,
    total,
)
from dgemma.errors import InvalidRequest
from dgemma.frontend import ModelFacts
from dgemma.params import CONSTRAINT_FIELDS, REFUSED_BY_EDIT, SamplingParams, canvas_width
from dgemma.text.answer import AnswerReader
from dgemma.text.parse import MarkerIds, thought_is_open
from dgemma.text.token_table import token_table_of
from dgemma.types import CanvasControl, Constraint, Output, Request, TokenScore

BELOW = 0.5
REPAIR = "Repair the text."
REPAIR_STRENGTH = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Revised:
    """An output some of whose tokens were denoised again.

    Attributes:
        output: like the old one, with the new ids, text, scores and the usage of the revision.
        shaky: positions in `token_ids` that were denoised again.
        changed: those of them that hold another token now.
    """

    output: Output
    shaky: tuple[int, ...]
    changed: tuple[int, ...]


def revise(
    facts: ModelFacts, output: Output, below: float = BELOW, params: SamplingParams | None = None
) -> Plan[Revised]:
    """Denoise again the tokens of which the model is not sure; all others stay as they are.

    Args:
        facts: of the model.
        output: an earlier answer with its prompt. Where it has no scores, one step over each
            canvas reads them; the probability is that of a token among all the others.
        below: tokens less probable than that are shaky. Control tokens never are.
        params: how to draw.

    Raises:
        InvalidRequest: the output has no prompt, was constrained or cut at a stop text,
            or `below` is not a probability.
        EngineError: a request failed.
    """
    check_facts(facts)
    params = SamplingParams.of(params)
    refuse(params, (*REFUSED_BY_EDIT, "max_tokens"), "sure tokens stay where they are")
    why = "only parts are written anew; a request of mode 'score' reads the whole"
    refuse(params, ("verdict",), why)
    share("below", below)
    if not isinstance(output, Output):
        raise InvalidRequest(f"revise takes one Output, got {type(output).__name__}")
    if output.constraint is not None:
        raise InvalidRequest(
            f"the output is constrained ({output.constraint.mode}), and a revised one would "
            "leave it; ask for it again with another seed"
        )
    if output.stopped_by is not None:
        raise InvalidRequest(
            f"the output was cut at {output.stopped_by!r}, which may be within a token; ask for it "
            "without stop"
        )
    if not output.prompt_ids:
        raise InvalidRequest("the output has no prompt_ids; revise what generate or chat returned")
    if output.finish_reason in ("error", "cancelled"):
        raise InvalidRequest(f"the output ended by {output.finish_reason}; ask for it again")
    width = full_width(params, facts.canvas)
    work = _Revision(facts, output, replace(params, seed=seed_of(params), canvas_length=width))
    return (yield from work.run(width, below))


class _Revision:
    def __init__(self, facts: ModelFacts, output: Output, params: SamplingParams) -> None:
        self.facts, self.output, self.params = facts, output, params
        self.ids = list(output.token_ids)
        self.prompt = self._prompt()
        self.spent: list[Output] = []

    def _prompt(self) -> tuple[int, ...]:
        """The answer's prompt; its thought is closed, unless the answer itself begins with one."""
        old, turn = self.output, self.facts.turn
        thought = turn is not None and old.token_ids[:1] == turn.empty[:1]
        return old.prompt_ids if thought else self.facts.closed(old.prompt_ids)

    def run(self, width: int, below: float) -> Plan[Revised]:
        """Canvas by canvas; later ones see the new tokens of earlier ones."""
        scores = list(self.output.scores)
        if len(scores) != len(self.ids):
            scores = yield from self._read(width)
        special = self.facts.tokenizer.special_ids
        shaky = [
            at for at, score in enumerate(scores)
            if math.exp(score.logprob) < below and self.ids[at] not in special
        ]  # fmt: skip
        for first in range(0, len(self.ids), width):
            some = [at - first for at in shaky if first <= at < first + width]
            if some:
                yield from self._denoise(first, width, some, scores)
        old = self.output
        changed = tuple(at for at in shaky if self.ids[at] != old.token_ids[at])
        text, thinking, calls = old.text, old.thinking, old.tool_calls
        invalid = old.invalid_tool_calls
        if changed:
            reader = self._reader()
            reader.push(self.ids)
            reader.finish()
            text, calls = reader.text, tuple(reader.tool_calls)
            invalid = tuple(reader.invalid_tool_calls)
            thinking = reader.thinking if old.thinking is not None else None
        done = replace(
            old, token_ids=tuple(self.ids), text=text, thinking=thinking, tool_calls=calls,
            invalid_tool_calls=invalid, scores=tuple(scores), usage=total(self.spent), trace=(),
            verdict=None if changed else old.verdict, seed=self.params.seed or 0,
            prompt_ids=self.prompt, thought_closed=self.facts.is_closed(self.prompt),
        )  # fmt: skip
        return Revised(output=done, shaky=tuple(shaky), changed=changed)

    def _control(self, first: int, width: int, shaky: Sequence[int]) -> CanvasControl:
        """The canvas of the ids from `first` on, noise where they are shaky."""
        own = self.ids[first : first + width]
        ids = [-1 if at in shaky else i for at, i in enumerate(own)]
        if self.output.finish_reason == "stop" and len(ids) < width:
            ids.append(self.facts.end_id)
            ids += [self.facts.fill_id] * (width - len(ids))
        masks = tuple(0 if i < 0 else -1 for i in ids)
        allowed = (token_table_of(self.facts.tokenizer).text_ids,) if shaky else ()
        pinned = tuple(at for at, i in enumerate(ids) if i >= 0)
        return CanvasControl(
            ids=tuple(ids), pinned=pinned, allowed=allowed, masks=masks if shaky else ()
        )

    def _request(self, first: int, params: SamplingParams, control: CanvasControl) -> Request:
        prompt = (*self.prompt, *self.ids[:first])
        return Request(token_ids=prompt, params=params, canvas=control)

    def _read(self, width: int) -> Plan[list[TokenScore]]:
        """The model's own probability of every token, all others being given."""
        params = replace(self.params, max_steps=1, logprobs=0)
        firsts = range(0, len(self.ids), width)
        outputs = yield from run([
            self._request(first, params, replace(self._control(first, width, ()), read_only=True))
            for first in firsts
        ])  # fmt: skip
        self.spent += outputs
        return [score for o in outputs for score in o.scores][: len(self.ids)]

    def _denoise(
        self, first: int, width: int, shaky: Sequence[int], scores: list[TokenScore]
    ) -> Plan[None]:
        count = min(width, len(self.ids) - first)
        params = replace(self.params, max_tokens=count, logprobs=self.params.logprobs or 0)
        request = self._request(first, params, self._control(first, width, shaky))
        (output,) = yield from run([request], [[Place(start=0, stop=count)]])
        self.spent.append(output)
        check_whole(output, count)
        self.ids[first : first + count] = output.token_ids[:count]
        for at in shaky:
            scores[first + at] = output.scores[at]

    def _reader(self) -> AnswerReader:
        """Reads ids as the old output's text was read: as a chat's answer, or as plain text."""
        tokenizer, old = self.facts.tokenizer, self.output
        chat = old.thinking is not None or bool(old.tool_calls)
        chat = chat or tokenizer.decode(old.token_ids) != old.text
        is_open = chat and thought_is_open(MarkerIds.of(tokenizer), old.prompt_ids)
        tools = {call.name for call in old.tool_calls}
        return AnswerReader(tokenizer, chat=chat, thought_open=is_open, tools=tools)


def repair(
    facts: ModelFacts, text: str, params: SamplingParams, strength: float = REPAIR_STRENGTH,
    best_of: int = 1,
) -> Plan[Output]:  # fmt: skip
    """A text changed as little as possible so that it fits the constraint of `params`.

    A text that fits comes back as it is, without a step. Of another, as much of its beginning as
    the grammar accepts is pinned; the rest of the canvas begins with the rest of the text, lightly
    noised, and the grammar decides which tokens change. Of a text longer than a canvas the first
    canvas begins so; the others are written from the user's message alone.

    Args:
        facts: of the model.
        text: a nearly right one; the user's message has it as well.
        params: with a constraint of the whole answer, such as `json_schema`. Without `max_tokens`
            there may be twice as many as the text has, and a canvas at least.
        strength: how much of the rest gives way to noise, 0 to 1.
        best_of: repair it so often, with seeds seed, seed + 1, ...; of the texts that fit, the one
            that the encoder finds likeliest comes back.

    Raises:
        InvalidRequest: no constraint, a strength out of range, or `best_of` below 1.
        EngineError: the request failed.
    """
    check_facts(facts)
    params = SamplingParams.of(params)
    found = facts.constraint(params) if params.constraint_field else None
    if found is None:
        raise InvalidRequest(
            f"repair needs a constraint in its params; set one of {CONSTRAINT_FIELDS}"
        )
    share("strength", strength)
    counted(best_of, "best_of")
    width = canvas_width(params, facts.canvas)
    ids = facts.tokenizer.encode(text)
    most = params.max_tokens or max(width, 2 * len(ids))
    params = replace(params, max_tokens=most)
    prompt = facts.prompt(f"{REPAIR}\n\n{facts.reference(text)}", (), width)
    matcher, mode = found
    taken = matcher.accept(ids)
    if taken == len(ids) <= most and matcher.accepting:
        return Output(
            text=text, token_ids=tuple(ids), seed=seed_of(params), prompt_ids=prompt,
            constraint=Constraint(mode=mode, complete=True),
            thought_closed=facts.is_closed(prompt),
        )  # fmt: skip
    ids = [*ids, facts.end_id, *[facts.fill_id] * width][:width]
    pinned = tuple(range(min(taken, width)))
    control = CanvasControl(ids=tuple(ids), pinned=pinned, strength=strength)
    requests = drafts([prompt], params, best_of, canvas=control)
    if best_of == 1:
        (output,) = yield from run(requests, [[Place(start=0, stop=width)]])
        return output
    ranked = yield from rank(facts, requests)
    fits = (one for one in ranked if one.output.constraint and one.output.constraint.complete)
    return next(fits, ranked[0]).output
