"""Drives a plan without a network: pins and masks are obeyed, everything else is chance.

What the engine must do with `Request.canvas`, in thirty lines. A test may say what the "model"
believes; what it was asked stays in `Driver.rounds`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from dgemma.compose.plan import Plan, Settled
from dgemma.constrain.cache import GrammarCache
from dgemma.frontend import ModelFacts
from dgemma.params import canvas_width
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import CanvasControl, Output, Request, TokenScore, Usage, Verdict

T = TypeVar("T")
Belief = Callable[[Request, Sequence[int]], Sequence[float]]
"""From a request and its canvas to the log-probability of each position."""


def facts_of(tokenizer: Tokenizer, canvas: int = 32, context: int = 512) -> ModelFacts:
    """Facts of a model whose chat prompt is BOS, the message, and one token for the turn."""
    end = tokenizer.id_of("<turn|>")
    scheduled = tokenizer.id_of("<|turn>")
    assert end is not None and scheduled is not None
    return ModelFacts(
        tokenizer=tokenizer, canvas=canvas, context=context, end_id=end,
        end_ids=(tokenizer.eos_id, end), fill_id=tokenizer.eos_id,
        ask=lambda text: [*tokenizer.encode(text, bos=True), scheduled],
        constraint=GrammarCache(tokenizer, (tokenizer.eos_id, end)).matcher_for,
    )  # fmt: skip


def fits(length: int) -> Belief:
    """A model that doubts what is pinned unless the holes have that many positions in all."""

    def belief(request: Request, ids: Sequence[int]) -> list[float]:
        assert request.canvas is not None
        held = set(request.canvas.pinned)
        doubt = abs(sum(mask >= 0 for mask in request.canvas.masks) - length)
        return [-0.1 - doubt * (at in held) for at in range(len(ids))]

    return belief


@dataclass
class Driver:
    """Runs the requests of a plan.

    Attributes:
        facts: of the model.
        belief: log-probabilities; None: chance.
        prefer: ids that stand wherever they may and nothing is pinned.
        fail: number of the request that ends with an error.
        rounds: all requests, by round.
        settled: the text that was told to be final.
    """

    facts: ModelFacts
    seed: int = 0
    belief: Belief | None = None
    prefer: frozenset[int] = frozenset()
    fail: int | None = None
    rounds: list[list[Request]] = field(default_factory=list)
    settled: list[Settled] = field(default_factory=list)

    def drive(self, plan: Plan[T]) -> T:
        """What the plan returns."""
        outputs: Sequence[Output] | None = None
        while True:
            try:
                step = next(plan) if outputs is None else plan.send(outputs)
            except StopIteration as stop:
                result: T = stop.value
                return result
            outputs = ()
            if isinstance(step, Settled):
                self.settled.append(step)
                continue
            requests = step.requests
            assert requests, "a plan that has nothing to ask must not yield a round"
            assert not step.places or len(step.places) == len(requests)
            self.rounds.append(list(requests))
            before = sum(map(len, self.rounds[:-1]))
            outputs = [self.output(r, before + n) for n, r in enumerate(requests)]

    @property
    def asked(self) -> list[Request]:
        """All requests."""
        return [request for requests in self.rounds for request in requests]

    def text(self, request: Request) -> str:
        """The prompt as text."""
        return self.facts.tokenizer.decode(request.token_ids)

    def output(self, request: Request, count: int) -> Output:
        """The output of the request of that number."""
        if self.fail == count:
            return Output(finish_reason="error", error="the numbers were not finite")
        draw = random.Random(f"{self.seed} {request.params.seed} {count}")
        usage = Usage(prompt_tokens=len(request.token_ids), canvases=1, steps=1)
        if request.mode == "score":
            ids = request.token_ids[request.score_from :]
            assert ids
            return Output(scores=self._scores(request, ids, draw), usage=usage)
        width = canvas_width(request.params, self.facts.canvas)
        assert len(request.token_ids) + width <= self.facts.context
        control = request.canvas or CanvasControl()
        canvas = [self._stands(control, at, draw) for at in range(width)]
        assert max(len(control.ids), len(control.masks)) <= width
        if control.read_only:
            scores = self._scores(request, canvas, draw)
            return Output(token_ids=tuple(canvas), scores=scores, usage=usage)
        most = request.params.max_tokens
        ids, ended = canvas, False
        while True:
            cut = next((n for n, i in enumerate(ids) if i in self.facts.end_ids), None)
            if cut is not None and (most is None or cut <= most):
                ids, ended = ids[:cut], True
            if ended or (most is not None and len(ids) >= most):
                break
            ids = [*ids, *(self._stands(CanvasControl(), at, draw) for at in range(width))]
        ids = ids[:most]
        verdict = None
        if request.params.verdict:
            verdict = Verdict(logprobs=tuple(-8 * draw.random() for _ in [*ids, *[0] * ended]))
        return Output(
            text=self.facts.tokenizer.decode(ids), token_ids=tuple(ids), usage=usage,
            finish_reason="stop" if ended else "length",
            scores=self._scores(request, ids, draw) if request.params.logprobs is not None else (),
            prompt_ids=request.token_ids, seed=request.params.seed or 0, verdict=verdict,
        )  # fmt: skip

    def _stands(self, control: CanvasControl, at: int, draw: random.Random) -> int:
        """What stands at a position in the end."""
        given = control.ids[at] if at < len(control.ids) else -1
        mask = control.masks[at] if at < len(control.masks) else -1
        if at in control.pinned or (given >= 0 and draw.random() >= control.strength):
            return given
        ids = control.allowed[mask] if mask >= 0 else range(self._size)
        liked = self.prefer.intersection(ids)
        return draw.choice(sorted(liked)) if liked else draw.choice(ids)

    @property
    def _size(self) -> int:
        return self.facts.tokenizer.vocab_size

    def _scores(
        self, request: Request, ids: Sequence[int], draw: random.Random
    ) -> tuple[TokenScore, ...]:
        if self.belief is not None:
            values = list(self.belief(request, ids))
        else:
            values = [-8 * draw.random() for _ in ids]
        asked = request.params.logprob_token_ids or ()
        return tuple(
            TokenScore(
                token_id=i, logprob=value, asked=tuple(-1 - 8 * draw.random() for _ in asked)
            )
            for i, value in zip(ids, values, strict=True)
        )
