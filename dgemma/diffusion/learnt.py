"""Limits that a model has learnt: when a canvas is begun anew, and which are unlikely. (No torch.)

Knows counts of steps. Knows nothing about canvases, requests in flight, or files.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from dgemma.errors import bad_field
from dgemma.params import RELEASED, SamplingParams

SHARE = 0.95
"""Part of the converged canvases that must have converged at a limit."""
MOST_STEPS = 512
"""Longer canvases count as if they had taken so many."""
MEMORY = 4096
"""Canvases after which all counts are halved, so that the past fades."""
ENOUGH = 50
"""Canvases from which a server takes a limit of its own."""
PLAIN = RELEASED.merged(SamplingParams(ignore_tail=False, temperature=1.0))
"""What a request and a checkpoint that say nothing stand for."""
OWN = (
    "entropy_bound", "t_min", "t_max", "confidence_threshold", "stability_threshold",
    "ignore_tail", "temperature",
)  # fmt: skip
"""Fields by which a canvas converges sooner or later."""
UNLIMITED = 16
"""Of so many requests that ask for a learnt limit one gets none, so that there is always a canvas
to learn from: those that are begun anew are cut off at the limit, which would fall and fall."""


class StepCounts:
    """How many steps canvases took to converge; older ones count less."""

    def __init__(self, steps: Iterable[int] = ()) -> None:
        self._counts = [0] * (MOST_STEPS + 1)
        self.total = 0
        for one in steps:
            self.add(one)

    def add(self, steps: int) -> None:
        """Count a canvas that converged after so many steps."""
        self._counts[min(steps, MOST_STEPS)] += 1
        self.total += 1
        if self.total >= MEMORY:
            self._counts = [count // 2 for count in self._counts]
            self.total = sum(self._counts)

    def limit(self) -> int:
        """The fewest steps after which `SHARE` of the canvases have converged; at least 1."""
        seen = 0
        for steps, count in enumerate(self._counts):
            seen += count
            if seen >= SHARE * self.total:
                return max(1, steps)
        raise AssertionError("the counts add up to their total")


class LearntLimits:
    """What a model's calibration says, and what its own answers have taught since.

    Attributes:
        calibrated: `restart_after` of the calibration; None: it has none.
        least_logprob: mean log-probability by the encoder, in nats, below which a canvas is
            unlikely (`quality="careful"`); None: there is no calibration.
        learning: whether answers change the limit of requests that ask for "auto".
    """

    def __init__(self) -> None:
        self.calibrated: int | None = None
        self.least_logprob: float | None = None
        self.learning = False
        self._counts = StepCounts()
        self._asked = 0
        self._lock = threading.Lock()

    def take(
        self, calibrated: int | None, least_logprob: float | None, *, learning: bool = False
    ) -> None:
        """Take the limits of a calibration, and whether to learn from answers."""
        self.calibrated, self.least_logprob = calibrated, least_logprob
        self.learning = learning

    @property
    def restart_after(self) -> int | None:
        """The limit as it is now, 0: none yet; None: nobody has learnt one, or will."""
        if not self.learning:
            return self.calibrated
        with self._lock:
            if self._counts.total >= ENOUGH:
                return self._counts.limit()
        return self.calibrated or 0

    @property
    def counted(self) -> int:
        """Canvases that the limit is learnt from, the older ones in part."""
        return self._counts.total

    def resolve(self) -> int:
        """The steps that "auto" stands for in a request's `restart_after`.

        Raises:
            InvalidRequest: there is no calibration.
        """
        found = self.restart_after
        if found is None:
            raise bad_field(
                "restart_after", '"auto" needs a calibration of this model; make one with: '
                "dgemma calibrate MODEL, or give a number",
            )  # fmt: skip
        if self.learning:
            with self._lock:
                self._asked += 1
                if self._asked % UNLIMITED == 0:
                    return 0
        return found

    def check_careful(self) -> None:
        """Refuse `quality="careful"` where nothing is known of what is unlikely.

        Raises:
            InvalidRequest: there is no calibration.
        """
        if self.least_logprob is None:
            raise bad_field(
                "quality", '"careful" needs a calibration of this model; make one with: '
                "dgemma calibrate MODEL, or leave it out",
            )  # fmt: skip

    def learn(
        self, params: SamplingParams, converged: Iterable[int], defaults: SamplingParams
    ) -> None:
        """Count the canvases of a request that has ended, unless something could cut them short.

        Args:
            params: of the request, every default filled in.
            converged: steps of each of its canvases that converged.
            defaults: the checkpoint's own; a request with fewer steps than these is not counted,
                nor one that converges by other rules.
        """
        once = not params.restart_after and (params.race or 1) == 1 and params.quality is None
        own = all(_first(n, params, PLAIN) == _first(n, defaults, PLAIN) for n in OWN)
        steps, most = (_first("max_steps", of, PLAIN) for of in (params, defaults))
        if self.learning and once and own and steps >= most:
            with self._lock:
                for steps in converged:
                    self._counts.add(steps)


def _first(name: str, *sources: SamplingParams) -> Any:
    """The first value that is set."""
    return next((v for of in sources if (v := getattr(of, name)) is not None), None)
