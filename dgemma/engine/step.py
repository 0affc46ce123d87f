"""The effect of a pass on a sequence: begin a canvas, take in a step, commit, emit.

Works on one sequence at a time. It must not know the others, their order, or threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from dgemma.diffusion.canvas import Canvas, states, trace_step
from dgemma.diffusion.constrained import ConstrainedAnswer
from dgemma.diffusion.control import EMPTY_PREFIX, begin, check_control, controls_for
from dgemma.diffusion.edits import check_edits, edited_tries
from dgemma.diffusion.sampler import finish
from dgemma.diffusion.tries import Begin, Try, advance, alone, first_tries
from dgemma.engine.commit import (
    CanvasState,
    Reading,
    commit_prefix,
    end_canvas,
    go_on,
    scores_of,
    take_reading,
)
from dgemma.engine.drafting import first_draft, take_draft, take_draft_reading, take_token
from dgemma.engine.plan import Scheduled
from dgemma.engine.sequence import Sequence
from dgemma.errors import bad_field
from dgemma.matcher import Search
from dgemma.model.cache import Segment
from dgemma.types import ENTROPY_PER_NAT, CanvasControl, Event, TokenScore

NOT_FINITE = (
    "the network gave numbers that are not finite; try another dtype, or check the weights with "
    "`dgemma check`"
)


@dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """The result of a pass for one sequence.

    Attributes:
        canvases: after a denoising step: one, or those of a race.
        hidden: [C, D] of that step, for each of them.
        token: the next token of an autoregressive answer; None: nothing to choose.
        finite: whether the encoded keys and values are.
        scores: of the tokens after the encoded ones, if the request asks for them.
        tail: [D] of the last encoded token, where the sequence needs it.
        reading: of the proposed ids, if these were encoded.
    """

    canvases: tuple[Canvas, ...] = ()
    hidden: tuple[Tensor, ...] = ()
    token: int | None = None
    finite: bool = True
    scores: tuple[float, ...] = ()
    tail: Tensor | None = None
    reading: Reading | None = None


def segments(scheduled: Scheduled) -> list[Segment]:
    """The input of a sequence to a pass: ids to encode, its canvases, or both in this order.

    A canvas that is there already when ids are encoded was begun before a preemption.
    """
    seq = scheduled.sequence
    state: CanvasState = seq.state
    table, done, out = seq.block_table, seq.encoded, list[Segment]()
    assert table is not None
    end = done + scheduled.count
    if scheduled.reading:
        out.append(Segment(seq.proposed, done, done, table.full, table.sliding))
    elif scheduled.count:
        ids, borders = seq.context[done:end], seq.borders
        out.append(Segment(ids, done, done, table.full, table.sliding, borders=borders))
    if scheduled.denoise:
        if state.tries is None:
            exact = seq.request.mode == "exact"
            state.tries = (
                alone(first_draft(seq)) if exact else first_tries(state.schedule, next_canvas(seq))
            )
        if seq.request.edits:  # a pass that is begun again makes them again, to the same effect
            own = seq.request.edits, state.schedule, state.spec, state.head.embed
            state.tries = edited_tries(state.tries, *own)
        for row, canvas in enumerate(state.tries.running):
            out.append(Segment(canvas.ids, end, end, *table.row(row), True, canvas.soft))
    return out


def next_canvas(seq: Sequence) -> Begin:
    """What makes the tries of the next canvas.

    Raises:
        InvalidRequest: its controls contradict each other.
    """
    state: CanvasState = seq.state
    spec, params, control, prefix = state.spec, seq.request.params, _control(seq), EMPTY_PREFIX
    if state.constrained is not None:
        prefix = state.constrained.prefix(spec.length, control)
    shown = seq.request.alternatives
    controls = controls_for(params, spec, control, len(seq.committed), prefix, shown)
    return partial(begin, seq.seed, seq.canvases, spec, state.schedule, controls, control)


def check_first(seq: Sequence) -> None:
    """Refuse what the first canvas cannot honour.

    Raises:
        InvalidRequest: its controls, or any canvas's edits, do not fit the model, the grammar or
            one another.
    """
    state, control, edits = seq.state, seq.request.canvas, seq.request.edits
    if control is not None:
        check_control(control, state.spec)
        if state.constrained is not None:
            state.constrained.check(control)
    first = next_canvas(seq)(0)
    if not edits:
        return
    if state.constrained is not None:
        mode = state.constrained.report.mode
        raise bad_field("edits", f"and {mode} cannot be combined; drop one of the two")
    most = -(-seq.room // seq.width)
    check_edits(edits, seq.request.params, control, state.spec, state.schedule, most, first.begun)


def _control(seq: Sequence) -> CanvasControl | None:
    """The caller's control of the canvas that is next or runs."""
    return None if seq.canvases else seq.request.canvas


def apply(scheduled: Scheduled, result: StepResult) -> int:
    """Take in the result of a pass; the scheduler has recorded the encoded tokens already.

    Returns:
        How many of the ids that were only proposed are now the context's, encoded.
    """
    seq = scheduled.sequence
    exact = seq.request.mode == "exact"
    if result.reading is not None:
        seq.steps += exact
        if exact:
            return take_draft_reading(seq, result.reading)
        return take_reading(seq, result.reading, next_canvas)
    steps = seq.steps
    if scheduled.count:
        _take_encoded(seq, result, scheduled.count)
    if result.canvases and seq.output is None:
        after = [Try(*pair) for pair in zip(result.canvases, result.hidden, strict=True)]
        _take_step(seq, after)
    if exact and seq.steps > steps:
        seq.steps = steps + 1  # one pass may give a token and the first step of a draft
    return 0


def _take_encoded(seq: Sequence, result: StepResult, count: int) -> None:
    scoring = seq.request.mode == "score"
    if scoring:
        first = seq.request.score_from
        at = max(0, seq.encoded - count + 1 - first)
        scores = zip(seq.context[first + at :], result.scores, strict=False)
        seq.scores[at:] = [TokenScore(token_id=i, logprob=v) for i, v in scores]
    if result.tail is not None:
        seq.state.tail = result.tail
    if seq.encoded == len(seq.context):
        if not seq.borders or seq.borders[-1] < seq.encoded:
            seq.borders.append(seq.encoded)
        if scoring:
            seq.finish("stop")
    if result.token is not None:
        _take_token(seq, result.token)


def _take_token(seq: Sequence, token: int) -> None:
    """Commit the next token of an answer that is written token by token."""
    state: CanvasState = seq.state
    if state.known is not None:
        return  # encoded again, after a preemption
    seq.steps += 1
    if seq.request.mode == "exact":
        take_token(seq, token)
        return
    ended = token in state.spec.end_ids
    ids = [] if ended else [token]
    seq.events.put(seq.commit(ids, ended, 1))
    go_on(seq, ids)


def _take_step(seq: Sequence, after: list[Try]) -> None:
    """Take in one denoising step; a finished canvas is resolved."""
    state: CanvasState = seq.state
    before = state.tries
    assert before is not None
    first = before.running[0]
    if any(one.canvas.failed for one in after):
        seq.finish("error", f"canvas {first.index}, step {first.step}: {NOT_FINITE}")
        return
    seq.steps += 1
    spec, schedule = state.spec, state.schedule
    if seq.request.mode == "exact":
        old, shown, tries = first, after[0].canvas, None
    else:
        anew = partial(begin, seq.seed, first.index, spec, schedule, first.controls, _control(seq))
        tries = advance(before, after, schedule, spec, anew)
        seq.restarts += tries.begun > before.begun
        state.tries, state.begun = replace(tries, finished=None), max(state.begun, tries.begun)
        old, shown = tries.shown
    if seq.request.trace:
        seq.trace.append(trace_step(old, shown, schedule))
    if seq.request.frames:
        seq.events.put(_frame(seq, old, shown))
    if tries is None:
        take_draft(seq, shown)
    elif tries.finished is not None:
        seq.discarded_steps += tries.discarded
        resolve_canvas(seq, tries.finished.canvas, tries.finished.hidden)
    elif shown.stable:
        commit_prefix(seq, shown, after[0].hidden)


def _frame(seq: Sequence, before: Canvas, after: Canvas) -> Event:
    assert after.argmax is not None and after.entropy is not None
    entropy = (after.entropy * ENTROPY_PER_NAT).round().clamp(max=255)
    ids = after.argmax.tolist()
    return Event(
        type="frame",
        index=seq.request.index,
        canvas=before.index,
        attempt=before.attempt,
        step=before.step,
        ids=tuple(ids),
        deltas=seq.draft(ids, seq.state.spec.end_ids),
        temperature=seq.state.schedule.temperature(before.step),
        accepted=states(after),
        entropy=bytes(entropy.to(torch.uint8).tolist()),
        alternatives=_alternatives(after, seq.request.alternatives),
    )


def _alternatives(after: Canvas, count: int) -> tuple[tuple[tuple[int, float], ...], ...]:
    """See `Event.alternatives`."""
    if not count or after.logprobs is None:
        return ()
    first = after.logprobs.ids.shape[1] - after.controls.alternatives
    rows = (part[:, first : first + count].tolist() for part in
            (after.logprobs.ids, after.logprobs.tempered))  # fmt: skip
    return tuple(
        tuple(pair for pair in zip(*row, strict=True) if pair[1] > -math.inf)
        for row in zip(*rows, strict=True)
    )


def resolve_canvas(seq: Sequence, canvas: Canvas, hidden: Tensor) -> None:
    """Commit a finished canvas; under a grammar, begin the search that decides on it."""
    state: CanvasState = seq.state
    control = _control(seq)
    if control is not None and control.read_only:
        assert canvas.argmax is not None
        seq.committed = canvas.argmax.tolist()
        seq.scores = scores_of(seq, canvas, seq.committed, hidden)
        seq.finish("stop")
        return
    if state.constrained is None:
        end_canvas(seq, canvas, hidden, finish(canvas, state.spec))
    else:  # a clone: it must not keep the hidden states of all others
        seq.search = _resolve(seq, canvas, hidden.clone(), state.constrained)


def _resolve(
    seq: Sequence, canvas: Canvas, hidden: Tensor, constrained: ConstrainedAnswer
) -> Search[None]:
    """Commit a finished canvas, or denoise it further so that it fits its grammar."""
    state: CanvasState = seq.state
    resolved = yield from constrained.resolve(canvas, hidden, state.head, state.spec, seq.room)
    seq.constraint = constrained.report
    if isinstance(resolved, Canvas):
        state.canvas = resolved
    else:
        end_canvas(seq, canvas, hidden, resolved)
