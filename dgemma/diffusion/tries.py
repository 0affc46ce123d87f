"""Restarts and races: which tries of a canvas go on, which are set aside, and which one counts.

    round    `race` canvases side by side, alike but for their noise; the first to converge counts
    restart  a round in which none has converged after `restart_after` steps is set aside, and the
             next one begins with fresh noise, `tries` rounds at most
    resume   after the last round the best canvas goes on from where it was set aside, for the steps
             that all tries together have left of `max_steps`; if there are none, it is finished

A try that comes to the argmax of an earlier one has nothing new to say: it is set aside at once.
When a quarter of the tries have done so (one of four, two of eight), the restarts end. The best has
the least mean entropy. A first canvas that begins with an end id is an empty answer; where restarts
are asked for, it is set aside like one that does not converge, and is the best only among its like.

Whoever makes the steps calls `advance` after each. Nothing is begun anew once a canvas is resumed
or repaired (`Canvas.until`). Knows nothing about networks, grammars or engines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from dgemma.diffusion.canvas import Canvas, CanvasSpec
from dgemma.diffusion.schedule import Schedule

Begin = Callable[[int], Canvas]
"""From the number of an attempt to its canvas before the first step."""


@dataclass(frozen=True, slots=True, eq=False)
class Try:
    """A canvas after a step, and the hidden states [C, D] that the step was decided by."""

    canvas: Canvas
    hidden: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tries:
    """All tries of one canvas, between two steps.

    Attributes:
        running: those that make the next step, in the order of their attempts; none once one is
            `finished`.
        begun: how many were begun.
        steps: passes so far in which any of them took part.
        best: of those set aside.
        seen: the argmax canvases of those set aside.
        twins: how many of them came to one that was seen before.
        finished: the one that counts, with its reason.
        shown: the one that leads after the last step, as it was before and after it; with a reason
            if it is the finished one.
    """

    running: tuple[Canvas, ...]
    begun: int = 1
    steps: int = 0
    best: Try | None = None
    seen: frozenset[tuple[int, ...]] = frozenset()
    twins: int = 0
    finished: Try | None = None
    shown: tuple[Canvas, ...] = ()

    @property
    def discarded(self) -> int:
        """Passes of tries that were thrown away, once one is finished."""
        return 0 if self.finished is None else self.steps - self.finished.canvas.made


def first_tries(schedule: Schedule, begin: Begin) -> Tries:
    """The first round of a canvas."""
    return Tries(running=tuple(map(begin, range(schedule.race))), begun=schedule.race)


def next_tries(schedule: Schedule, begin: Begin, begun: int) -> Tries:
    """A further round after a canvas that was finished, but is not to be kept.

    Args:
        begun: how many tries were begun before.
    """
    count = begun + schedule.race
    return Tries(running=tuple(map(begin, range(begun, count))), begun=count)


def alone(canvas: Canvas) -> Tries:
    """A canvas that was finished and goes on, to be repaired; it is not begun anew."""
    return Tries(running=(canvas,), steps=canvas.made)


def advance(
    tries: Tries, after: Sequence[Try], schedule: Schedule, spec: CanvasSpec, begin: Begin
) -> Tries:
    """The tries after a step: one is finished, they go on, or others begin.

    Args:
        after: the running canvases after the step, none of them failed.
        begin: makes the canvases of the next round.
    """
    steps = tries.steps + 1
    poor = {one for one in after if _is_poor(one.canvas, schedule, spec, tries.seen)}
    won = [one for one in after if one.canvas.reason == "converged" and one not in poor]
    if won:
        first = min(won, key=_rank)
        return replace(
            tries, running=(), steps=steps, finished=first, shown=_shown(tries, first.canvas)
        )
    aside = [one for one in after if one.canvas.reason or one in poor]
    best, seen, twins = tries.best, tries.seen, tries.twins
    for one in aside:
        if best is None or _rank(one) < _rank(best):
            best = replace(one, hidden=one.hidden.clone())  # not those of a whole batch
        if one in poor and one.canvas.reason != "converged":  # empty ones are all alike
            ids = _argmax(one.canvas)
            twins, seen = twins + (ids in seen), seen | {ids}
    tries = replace(
        tries,
        running=tuple(one.canvas for one in after if one not in aside),
        steps=steps,
        best=best,
        seen=seen,
        twins=twins,
        shown=_shown(tries, replace(min(after, key=_rank).canvas, reason="")),
    )
    if tries.running:
        return tries
    count = tries.begun + schedule.race
    if (
        poor.issuperset(aside)
        and 4 * twins < schedule.tries
        and count <= schedule.tries * schedule.race
    ):
        return replace(tries, running=tuple(map(begin, range(tries.begun, count))), begun=count)
    assert best is not None
    return _resume(tries, best, schedule)


def _resume(tries: Tries, best: Try, schedule: Schedule) -> Tries:
    """After the last round: the best goes on, or is finished as it is."""
    canvas = best.canvas
    room = schedule.max_steps - canvas.begun - tries.steps
    if not canvas.reason and room > 0:
        return replace(tries, running=(replace(canvas, until=canvas.step + room),), best=None)
    done = replace(canvas, reason=canvas.reason or "step_cap")
    before, shown = tries.shown
    shown = done if shown.attempt == done.attempt else shown
    return replace(tries, best=None, finished=replace(best, canvas=done), shown=(before, shown))


def _shown(tries: Tries, after: Canvas) -> tuple[Canvas, Canvas]:
    """A canvas before and after the step."""
    return next(c for c in tries.running if c.attempt == after.attempt), after


def _rank(one: Try) -> tuple[bool, float, int]:
    """The least is the best; of those set aside only an empty one has converged."""
    canvas = one.canvas
    return canvas.reason == "converged", canvas.mean_entropy, canvas.attempt


def _argmax(canvas: Canvas) -> tuple[int, ...]:
    assert canvas.argmax is not None
    return tuple(canvas.argmax.tolist())


def _is_poor(
    canvas: Canvas, schedule: Schedule, spec: CanvasSpec, seen: frozenset[tuple[int, ...]]
) -> bool:
    """Whether a canvas is to be begun anew, as often as that is allowed."""
    if not schedule.restart_after or canvas.until is not None:
        return False
    if canvas.reason != "converged":
        return canvas.made >= schedule.restart_after or bool(seen and _argmax(canvas) in seen)
    if canvas.index:
        return False
    assert canvas.argmax is not None
    pins = canvas.controls.pinned
    return int(canvas.argmax[0]) in spec.end_ids and (pins is None or int(pins[0]) < 0)
