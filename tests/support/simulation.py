"""A simulated engine: carries out what the scheduler plans, without a model or tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dgemma.engine.pages import Pages
from dgemma.engine.request import ModelLimits, resolve_request
from dgemma.engine.scheduler import Scheduler
from dgemma.engine.sequence import Sequence
from dgemma.params import SamplingParams
from dgemma.types import PAGE, Request

LIMITS = ModelLimits(context=4096, canvas=PAGE, vocab_size=1000)


def scheduler(full: int = 400, sliding: int = 200, **values: Any) -> Scheduler:
    """A window of two pages."""
    options = {"chunk": 2 * PAGE} | values
    return Scheduler(Pages(full, sliding, 2 * PAGE + 1), **options)


def sequence(prompt: int = 10, first: int = 3, **values: Any) -> Sequence:
    """A request of that many prompt tokens, all of them `first`."""
    request = Request(token_ids=(first,) * prompt, params=SamplingParams(seed=1), **values)
    return Sequence(resolve_request(request, SamplingParams(), LIMITS, 9), PAGE, LIMITS.context)


class Simulation:
    """Carries out what the scheduler plans: three denoising steps a canvas, no model."""

    def __init__(
        self, scheduler: Scheduler, canvases: Callable[[Sequence], int] = lambda _: 1
    ) -> None:
        self.scheduler = scheduler
        self.canvases = canvases
        self.now = 0.0
        self.ended: dict[Sequence, str] = {}
        self.sizes: list[int] = []

    def add(self, new: Sequence) -> Sequence:
        self.scheduler.check_waiting(new.owner)
        older = self.scheduler.add(new, self.now)
        if older is not None:
            self.end(older, "cancelled")
        return new

    def end(self, seq: Sequence, reason: str) -> None:
        assert seq not in self.ended
        self.ended[seq] = reason
        self.scheduler.remove(seq)

    def step(self, seconds: float = 1.0) -> list[Sequence]:
        """One pass; the sequences that took part."""
        plan = self.scheduler.plan(self.now)
        for seq, why in plan.failed.items():
            self.end(seq, why)
        for scheduled in plan.scheduled:
            if scheduled.count:
                self.scheduler.encoded(scheduled.sequence, scheduled.count)
            if scheduled.denoise:
                self.denoise(scheduled.sequence)
        self.sizes = [scheduled.size for scheduled in plan.scheduled]
        self.now += seconds
        return [scheduled.sequence for scheduled in plan.scheduled]

    def denoise(self, seq: Sequence) -> None:
        assert seq.encoded == len(seq.context), "a canvas before its context"
        seq.steps += 1
        if seq.steps % 3 == 0:
            if seq.steps // 3 >= self.canvases(seq):
                self.end(seq, "done")
            else:
                seq.context += [7] * seq.width

    def run(self, most: int = 10_000) -> None:
        """To the end of all sequences."""
        for _ in range(most):
            if not len(self.scheduler):
                return
            self.step()
        raise AssertionError("it does not end")
