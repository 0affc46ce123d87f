"""The end of a canvas: it is committed, or first proposed to the encoder, which reads it.

Works on one sequence at a time. It must not know passes, the other sequences, or threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from dgemma.diffusion.canvas import Canvas, CanvasSpec, Commit
from dgemma.diffusion.constrained import ConstrainedAnswer
from dgemma.diffusion.draft_policy import FIRST_DRAFT, DraftPolicy
from dgemma.diffusion.schedule import Schedule
from dgemma.diffusion.scores import token_scores
from dgemma.diffusion.thought import budget_exceeded
from dgemma.diffusion.tries import Begin, Tries, alone, next_tries
from dgemma.engine.sequence import Sequence
from dgemma.kernels.head import Head
from dgemma.types import Constraint, TokenScore, Verdict


@dataclass(frozen=True, slots=True, eq=False)
class FinishedCanvas:
    """A canvas that waits for its verdict.

    Attributes:
        hidden: [C, D] of its last step.
        constraint: how it was kept in its grammar.
        verdict: once it is read.
    """

    canvas: Canvas
    hidden: Tensor
    commit: Commit
    constraint: Constraint | None = None
    verdict: Verdict | None = None

    @property
    def mean(self) -> float:
        """Mean log-probability of its tokens by the encoder."""
        assert self.verdict is not None
        return self.verdict.mean


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """The encoder's opinion of n proposed ids.

    Attributes:
        choices: its own ids at their places and at the one after them, n + 1; in the exact mode
            without that at the first place.
        logprobs: of the proposed ids, n, for a verdict.
        hidden: [n, D], after each of them.
    """

    choices: tuple[int, ...]
    logprobs: tuple[float, ...]
    hidden: Tensor


@dataclass(slots=True, eq=False)
class CanvasState:
    """The sampler's part of a sequence: `Sequence.state`.

    Attributes:
        spec: of the canvases.
        head: for decisions on single positions.
        constrained: keeps the answer in its grammar.
        tries: the canvases being denoised, all of one number; None between two.
        tail: [D], of the encoder after the last token of the context, if readings need it.
        finished: the canvas that the encoder reads before it is committed.
        begun: how many tries of the present canvas were begun.
        unlikely: those of them that the encoder has read and found unlikely.
        least_logprob: mean log-probability below which it does so; None: it finds none unlikely.
        policy, drafts, known: of the exact mode: the shape of the next draft, how many there were,
            and the token that the present one begins with.
    """

    spec: CanvasSpec
    schedule: Schedule
    head: Head
    constrained: ConstrainedAnswer | None = None
    tries: Tries | None = None
    tail: Tensor | None = None
    finished: FinishedCanvas | None = None
    begun: int = 0
    unlikely: list[FinishedCanvas] = field(default_factory=list)
    least_logprob: float | None = None
    policy: DraftPolicy = FIRST_DRAFT
    drafts: int = 0
    known: int | None = None

    @property
    def rows(self) -> int:
        """Canvases of the next step."""
        return self.schedule.race if self.tries is None else len(self.tries.running) or 1

    @property
    def canvas(self) -> Canvas | None:
        """The canvas being denoised, of several the first; None between two."""
        return self.tries.running[0] if self.tries and self.tries.running else None

    @canvas.setter
    def canvas(self, canvas: Canvas | None) -> None:
        self.tries = None if canvas is None else alone(canvas)


def commit_canvas(
    seq: Sequence, canvas: Canvas, hidden: Tensor, commit: Commit, verdict: Verdict | None = None
) -> None:
    """Commit a finished canvas."""
    state: CanvasState = seq.state
    state.canvas, state.begun, state.unlikely = None, 0, []
    ids = list(commit.token_ids)
    seq.scores += scores_of(seq, canvas, ids[seq.emitted :], hidden)
    steps = canvas.step - canvas.begun
    seq.events.put(seq.commit(ids, commit.ended, steps, canvas.reason, verdict, canvas.attempt))
    go_on(seq, ids)


def end_canvas(seq: Sequence, canvas: Canvas, hidden: Tensor, commit: Commit) -> None:
    """Commit a finished canvas, at once or when the encoder has read it."""
    if not seq.read_first:
        commit_canvas(seq, canvas, hidden, commit)
        return
    state: CanvasState = seq.state
    state.canvas = None
    state.finished = FinishedCanvas(canvas, hidden.clone(), commit, seq.constraint)
    count = len(commit.token_ids)
    seq.proposed = list(commit.canvas_ids[: count + commit.ended])


def take_reading(seq: Sequence, reading: Reading, next_canvas: Callable[[Sequence], Begin]) -> int:
    """Commit the canvas that the encoder has read, or begin another try of it.

    Args:
        next_canvas: what makes the tries of the next canvas.

    Returns:
        How many of the ids that were read are encoded for good.
    """
    state: CanvasState = seq.state
    assert state.finished is not None
    done = replace(state.finished, verdict=_verdict(seq, state.finished, reading))
    state.finished, seq.proposed = None, []
    chosen = _chosen(seq, done)
    if chosen is None:
        seq.restarts += 1
        state.tries = next_tries(state.schedule, next_canvas(seq), state.begun)
        return 0
    ids = list(chosen.commit.token_ids)
    if chosen.canvas is done.canvas and ids:
        state.tail = reading.hidden[len(ids) - 1].clone()
    before = len(seq.context)
    commit_canvas(seq, chosen.canvas, chosen.hidden, chosen.commit, chosen.verdict)
    if chosen.canvas is not done.canvas:
        return 0  # it is encoded once more
    kept = min(len(ids), len(seq.context) - before)
    if kept:
        seq.borders.append(seq.encoded + kept)
    return kept


def _verdict(seq: Sequence, done: FinishedCanvas, reading: Reading) -> Verdict:
    """Of the ids that count."""
    ids = list(done.commit.token_ids)
    asked = seq.emitted + len(seq.pending_ids(ids))
    count = len(seq.proposed) if asked == len(ids) else asked
    return Verdict(
        logprobs=reading.logprobs[:count],
        disagreements=tuple(
            place for place in range(count) if reading.choices[place] != seq.proposed[place]
        ),
        steps=done.canvas.made,
        converged=done.canvas.reason == "converged",
    )


def _chosen(seq: Sequence, done: FinishedCanvas) -> FinishedCanvas | None:
    """The try of a canvas that is committed now; None: another one is to begin."""
    state: CanvasState = seq.state
    if state.least_logprob is None or done.mean >= state.least_logprob:
        return done
    known = any(other.commit == done.commit for other in state.unlikely)
    state.unlikely.append(done)
    seq.discarded_steps += done.canvas.made
    last = known or state.begun + state.schedule.race > state.schedule.tries * state.schedule.race
    if state.constrained is not None:
        state.constrained.take_back(len(done.commit.token_ids))
        seq.constraint = state.constrained.report
    if not last:
        return None
    best = max(state.unlikely, key=lambda one: one.mean)  # of equals the first
    seq.discarded_steps -= best.canvas.made
    if state.constrained is not None:
        assert best.constraint is not None
        state.constrained.take_again(best.commit.token_ids, best.constraint)
        seq.constraint = best.constraint
    assert best.verdict is not None
    verdict = replace(best.verdict, below=1)
    return replace(best, verdict=verdict)


def commit_prefix(seq: Sequence, canvas: Canvas, hidden: Tensor) -> None:
    """Commit the first ids of a canvas that goes on, which can no longer change.

    There is no end id among them: a canvas that is settled up to an end id is finished.
    """
    assert canvas.argmax is not None
    fresh = seq.pending_ids(canvas.argmax[: canvas.stable].tolist())
    if fresh:
        seq.scores += scores_of(seq, canvas, fresh, hidden)
        seq.events.put(seq.commit_prefix(fresh, canvas.step - canvas.begun))


def scores_of(seq: Sequence, canvas: Canvas, ids: list[int], hidden: Tensor) -> list[TokenScore]:
    """Scores of the ids after the emitted ones, if the request asks for them."""
    if not canvas.controls.logprobs:
        return []
    state: CanvasState = seq.state
    params = seq.request.params
    asked, likeliest = len(params.logprob_token_ids or ()), params.logprobs or 0
    return token_scores(canvas, ids, asked, hidden, state.head, seq.emitted, likeliest)


def go_on(seq: Sequence, ids: list[int]) -> None:
    """Close a thought that has outgrown its budget, and queue the ids to encode next.

    Called without ids before the first canvas: a budget of no thought at all closes the prompt's
    own thought.
    """
    if seq.output is not None:
        return
    state: CanvasState = seq.state
    thought, budget = seq.request.thought, seq.request.params.thinking_budget
    if thought is not None and budget_exceeded(seq.committed, thought, budget):
        if state.constrained is not None:
            state.constrained.force([thought.close_id])
        seq.events.put(seq.close_thought(thought.close_id))
        ids = [*ids, thought.close_id]
    seq.extend(ids)
