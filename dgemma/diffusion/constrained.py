"""Keeps an answer within a grammar, canvas by canvas: prefix, projection, repair.

    prefix     ids that the grammar forces at a canvas's start are pinned before its first step
    project    a finished canvas is walked left to right; where its token is not allowed, the most
               likely one that is takes its place
    repair     before that counts, the canvas is pinned up to the first such place and denoised a
               few steps more, so that the text after it can adapt; at most twice
    close      where the room runs short, the shortest way to an end replaces the last tokens

All of this is a `Search`, which an engine resumes piece by piece beside the passes of others.
The grammar is a `Matcher`, an argument: a walk over ids. Must not know how grammars are made, text,
networks or engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dgemma.diffusion.canvas import Canvas, CanvasSpec, Commit
from dgemma.diffusion.control import CanvasPrefix, barred, is_set
from dgemma.errors import EngineError, InvalidRequest
from dgemma.kernels.head import Head
from dgemma.matcher import MASK_STEPS, Matcher, Search, accept_in_pieces
from dgemma.types import CanvasControl, Constraint

ROUNDS, STEPS = 2, 3
"""How often a finished canvas is denoised again, and for how many steps at most."""

SHORT = 8
"""Tokens that are taken back at a time where only the last call is to be closed, and at first where
an end is short."""

ROWS = 16
"""Positions whose logits are made at a time."""

Logits = Callable[[int], Tensor]
"""From a position to its fp32 [V] logits."""


@dataclass(slots=True, eq=False)
class Projection:
    """The result of a projection.

    Attributes:
        ids: the canvas, within the grammar up to `length`.
        length: tokens of the answer among them.
        ended: whether the answer ends there.
        changed: positions that differ from the canvas.
        closed: tokens that were put in because the room ran short.
        stuck: after `length` neither a token nor an end is allowed.
    """

    ids: list[int]
    length: int = 0
    ended: bool = False
    changed: list[int] = field(default_factory=list)
    closed: int = 0
    stuck: bool = False


class ConstrainedAnswer:
    """Keeps one request's answer in its grammar; its matcher is where the last commit ended."""

    def __init__(self, matcher: Matcher, mode: str) -> None:
        """
        Args:
            matcher: at the beginning of the grammar; nobody else may move it.
            mode: for the report; under "bad_words" and "strict_tools" a text may end anywhere,
                so that it is cut where the room ends, like any other.
        """
        self._matcher = matcher
        self._whole = mode != "bad_words"
        self._open = mode == "strict_tools"
        self._mode = mode
        self._round = 0  # of this canvas
        self._lost = False  # no way to an end was found from here
        self._shaky: set[int] = set()  # what the projections before the last one changed
        self._report = Constraint(mode=mode)
        self._earlier = self._report  # before the last commit

    @property
    def report(self) -> Constraint:
        """What it took so far."""
        return self._report

    def check(self, control: CanvasControl) -> None:
        """Refuse pinned ids that the grammar does not begin with.

        Raises:
            InvalidRequest: they are not the first positions, or not a beginning of a text; or
                there are masks, which would contradict it.
        """
        if control.masks and self._whole:
            raise InvalidRequest(
                f"{self._mode} and masks of allowed ids cannot be combined; drop one of the two"
            )
        count = len(control.pinned)
        if sorted(control.pinned) != list(range(count)):
            raise InvalidRequest(
                f"with {self._mode}, only the beginning of an answer can be pinned; pin positions "
                "from 0 on, or drop one of the two"
            )
        taken = self._matcher.accept(control.ids[:count])
        self._matcher.undo(taken)
        if taken < count:
            raise InvalidRequest(
                f"the pinned text is not what {self._mode} allows: token {taken} of it cannot "
                "stand there; change the text or the constraint"
            )

    def force(self, ids: Sequence[int]) -> None:
        """Take ids that were committed without a canvas (the end of a thought)."""
        if self._matcher.accept(ids) < len(ids):
            raise EngineError(f"{self._mode} does not allow what was put into the answer")

    def take_back(self, count: int) -> None:
        """Be as before the last commit, which had so many ids before its end."""
        self._matcher.undo(count)
        self._report = self._earlier

    def take_again(self, ids: Sequence[int], report: Constraint) -> None:
        """Commit ids that were taken back, and the report of then."""
        if self._matcher.accept(ids) < len(ids):
            raise EngineError(f"{self._mode} does not allow what it has allowed before")
        self._report = report

    def prefix(self, width: int, control: CanvasControl | None = None) -> CanvasPrefix:
        """The forced beginning of the next canvas, its pinned ids included."""
        pinned = control.ids[: len(control.pinned)] if control else ()
        matcher = self._matcher
        taken = matcher.accept(pinned)
        forced = matcher.forced()[: width - len(pinned)]
        taken += matcher.accept(forced)
        first = None if matcher.finished else matcher.allowed()
        if first is not None and matcher.accepting:
            first = None  # an end id may stand here as well
        matcher.undo(taken)
        return CanvasPrefix((*pinned, *forced), first, matcher.alphabet())

    def resolve(
        self, canvas: Canvas, hidden: Tensor, head: Head, spec: CanvasSpec, room: int
    ) -> Search[Canvas | Commit]:
        """What becomes of a finished canvas: denoised further, or committed.

        Args:
            hidden: [C, D] of its last step.
            room: tokens that the answer may still have.
        """
        assert canvas.argmax is not None
        logits = _logits_of(canvas, hidden, head, spec, masked=not self._whole)
        projection = yield from self._project(canvas.argmax.tolist(), logits, spec)
        rounds = self._round
        if (
            projection.changed
            and projection.changed[0] < projection.length
            and rounds < ROUNDS
            and not projection.stuck
        ):
            pins = self._stem(projection)
            self._round += 1
            self._shaky |= set(projection.changed)
            return reopened(canvas, pins, head)
        if self._whole:
            yield from self._close(projection, room)
        _pad(projection, spec)
        self._round = 0
        report, fallbacks = self._report, len(projection.changed)
        self._earlier = report
        self._report = replace(
            report,
            rounds=report.rounds + rounds,
            repaired=report.repaired + len(self._shaky - set(projection.changed)),
            fallbacks=report.fallbacks + fallbacks,
            closed=report.closed + projection.closed,
            complete=projection.ended,
        )
        self._shaky = set()
        return Commit(
            canvas_ids=tuple(projection.ids),
            token_ids=tuple(projection.ids[: projection.length]),
            ended=projection.ended,
        )

    def _project(self, ids: list[int], logits: Logits, spec: CanvasSpec) -> Search[Projection]:
        """Walk the canvas; the matcher is then after its last token."""
        matcher, projection = self._matcher, Projection(ids)
        at = 0
        while at < len(ids):
            end = next((p for p in range(at, len(ids)) if ids[p] in spec.end_ids), len(ids))
            at += yield from accept_in_pieces(matcher, ids[at:end])
            if at == len(ids):
                break
            if matcher.accepting and (ids[at] in spec.end_ids or matcher.finished):
                projection.ended = True
                break
            token = self._choose(logits(at), spec)
            yield MASK_STEPS
            if token is None:
                projection.stuck = True
                break
            if token in spec.end_ids:
                ids[at], projection.ended = token, True
                projection.changed.append(at)
                break
            taken = matcher.accept([token])
            if not taken:
                raise EngineError(f"{self._mode}: the grammar refused id {token} that it allowed")
            ids[at] = token
            projection.changed.append(at)
            at += 1
        projection.length = at
        if at == len(ids) and matcher.finished:
            projection.ended = True
        return projection

    def _choose(self, logits: Tensor, spec: CanvasSpec) -> int | None:
        """The most likely id that the grammar allows here; None: there is no such id."""
        matcher = self._matcher
        words = matcher.allowed()
        allowed = barred(logits, words)
        if matcher.accepting:
            ends = torch.tensor(spec.end_ids, device=logits.device)
            allowed[ends] = logits[ends]
        token = int(allowed.argmax())
        if not is_set(words, token) and not (matcher.accepting and token in spec.end_ids):
            return None
        return token

    def _stem(self, projection: Projection) -> list[int]:
        """The canvas up to its first change and what that forces; the matcher is set back."""
        matcher, first = self._matcher, projection.changed[0]
        matcher.undo(projection.length)
        stem = projection.ids[: min(first + 1, projection.length)]
        taken = matcher.accept(stem)
        forced = matcher.forced()[: len(projection.ids) - len(stem)]
        matcher.undo(taken)
        return stem + forced

    def _close(self, projection: Projection, room: int) -> Search[None]:
        """See that the answer can still end within the room; the matcher goes along."""
        matcher, at = self._matcher, projection.length
        steps = self._steps_back(max(1, at - room))
        if at <= room and not projection.stuck:
            if projection.ended:
                return
            if (yield from matcher.can_complete(room - at)):
                projection.ended, self._lost = at == room and not self._open, False
                return  # the next canvas will be looked at again
            if self._lost and room - at >= len(projection.ids):
                return  # as before this canvas, and there is room for another
        projection.ended, path = False, None
        while path is None:
            if not at:  # there is no way to end in time: it will be cut off
                self._lost = True
                if projection.stuck:
                    raise EngineError(f"{self._mode}: found no text from here on; loosen it")
                yield from accept_in_pieces(matcher, projection.ids[: projection.length])
                return
            step = min(next(steps), at)
            matcher.undo(step)
            at -= step
            path = yield from matcher.completion(max(0, room - at))
        if self._open and not path:  # nothing is begun there that could be closed: it is cut
            matcher.accept(projection.ids[at : projection.length])
            return
        put = path[: len(projection.ids) - at]
        matcher.accept(put)
        projection.ids[at : at + len(put)] = put
        projection.closed, projection.length = len(put), at + len(put)
        projection.changed = [p for p in projection.changed if p < at]
        projection.ended = len(put) == len(path)

    def _steps_back(self, first: int) -> Iterator[int]:
        """How many tokens are taken back before each search for an end."""
        yield first
        step = SHORT if self._open or self._mode == "structure" else 2 * first
        while True:
            yield step
            step *= 1 if self._open else 2


def _pad(projection: Projection, spec: CanvasSpec) -> None:
    """After the end of the answer: an end id, then padding."""
    if not projection.ended or projection.length == len(projection.ids):
        return
    if projection.closed or projection.ids[projection.length] not in spec.end_ids:
        projection.ids[projection.length] = spec.end_ids[0]
    rest = len(projection.ids) - projection.length - 1
    projection.ids[projection.length + 1 :] = [spec.pad_id] * rest


def _logits_of(
    canvas: Canvas, hidden: Tensor, head: Head, spec: CanvasSpec, *, masked: bool
) -> Logits:
    """The logits of any position, with bias; masks made from a grammar allow more than it does."""
    controls = replace(
        canvas.controls,
        masks=canvas.controls.masks if masked else None,
        pinned=None,
        filters=None,
        score_ids=None,
        suppress_ids=spec.suppress_ids,
    )
    made: dict[int, Tensor] = {}

    def logits(position: int) -> Tensor:
        low = position // ROWS * ROWS
        if low not in made:
            rows = torch.arange(low, min(low + ROWS, len(hidden)), device=hidden.device)
            made[low] = head.logits(hidden[rows], controls.rows(rows))
        return made[low][position - low]

    return logits


def reopened(canvas: Canvas, pins: Sequence[int], head: Head) -> Canvas:
    """A finished canvas with more of it pinned, for a few steps more; the rest is its argmax."""
    assert canvas.argmax is not None and canvas.soft is not None
    held = torch.full_like(canvas.argmax, -1)
    held[: len(pins)] = torch.tensor(pins, device=held.device)
    free = held < 0
    soft = torch.where(free[:, None], canvas.soft, head.embed(held.clamp(min=0)))
    return replace(
        canvas,
        ids=torch.where(free, canvas.argmax, held),
        soft=soft,
        repeats=0,
        reason="",
        until=canvas.step + STEPS,
        controls=replace(canvas.controls, pinned=held),
    )
