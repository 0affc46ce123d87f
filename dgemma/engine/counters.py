"""The engine's counters, as plain numbers. It must not know who exports them. (No torch.)"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Literal

from dgemma.engine.scheduler import Scheduler
from dgemma.types import FinishReason

Part = Literal["schedule", "forward", "vocabulary", "apply"]


@dataclass(slots=True, kw_only=True)
class Counters:
    """The state of an engine, and its work since it was made.

    Attributes:
        waiting, running: requests.
        restart_after: the steps that "auto" stands for now; 0: none, or nobody has learnt it.
        pages_full, pages_full_used, pages_full_cached: pages of the full layers: all, those of
            running requests, those that are kept for later requests.
        pages_sliding, pages_sliding_free: pages of the sliding layers.
        prefix_hit_tokens: tokens that were not encoded, since their keys were there.
        encoded_tokens: those that were, prompts and committed canvases alike.
        preemptions: how often a request was preempted, for want of pages or for another owner.
        passes: forwards, those that failed too; `steps`: denoising steps of all requests.
        restarts: how often a canvas of a finished request was begun anew; a race counts as one.
        committed_tokens: of all answers.
        schedule_s, forward_s, vocabulary_s, apply_s: seconds spent in the parts of a step, as
            the host sees them.
        ended_stop, ended_length, ended_cancelled, ended_error: finished requests, by the engine's
            own reason.
    """

    waiting: int = 0
    running: int = 0
    restart_after: int = 0
    pages_full: int = 0
    pages_full_used: int = 0
    pages_full_cached: int = 0
    pages_sliding: int = 0
    pages_sliding_free: int = 0
    prefix_hit_tokens: int = 0
    encoded_tokens: int = 0
    preemptions: int = 0
    passes: int = 0
    steps: int = 0
    restarts: int = 0
    committed_tokens: int = 0
    schedule_s: float = 0.0
    forward_s: float = 0.0
    vocabulary_s: float = 0.0
    apply_s: float = 0.0
    ended_stop: int = 0
    ended_length: int = 0
    ended_cancelled: int = 0
    ended_error: int = 0

    @property
    def tokens_per_step(self) -> float:
        """Committed tokens per denoising step; 0.0 before the first."""
        return self.committed_tokens / self.steps if self.steps else 0.0

    def beside(self, scheduler: Scheduler) -> Counters:
        """The same with the state and the counts of the scheduler that runs now."""
        pages = scheduler.pages
        return replace(
            self,
            waiting=scheduler.waiting,
            running=len(scheduler.running),
            pages_full=pages.full.count,
            pages_full_used=pages.full.count - pages.available,
            pages_full_cached=pages.cached,
            pages_sliding=pages.sliding.count,
            pages_sliding_free=pages.sliding.free,
            prefix_hit_tokens=self.prefix_hit_tokens + pages.hit_tokens,
            preemptions=self.preemptions + scheduler.preemptions,
        )

    @staticmethod
    def now() -> float:
        """Seconds on a clock that only moves forward."""
        return time.perf_counter()

    def add_time(self, part: Part, begin: float) -> None:
        """Add the time since `begin`."""
        name = f"{part}_s"
        setattr(self, name, getattr(self, name) + (self.now() - begin))

    def add_end(self, reason: FinishReason, restarts: int) -> None:
        """Count a finished request, and how often its canvases were begun anew."""
        self.restarts += restarts
        name = f"ended_{reason}"
        setattr(self, name, getattr(self, name) + 1)
