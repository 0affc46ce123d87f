"""One request in the engine: its ids and counts, its place in the schedule, its events.

It must not know tensors (no torch): the canvas is an opaque `state`, see `dgemma.engine.step`.

    encode -> denoise -> (commit) encode -> denoise -> ... -> done      diffusion
    encode -> encode  -> ...                               -> done      autoregressive
    encode -> denoise -> read -> encode -> denoise -> ...  -> done      exact
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal

from dgemma.engine.block_table import BlockTable, Prefix
from dgemma.errors import DGemmaError
from dgemma.events import EventQueue
from dgemma.interfaces import Reader
from dgemma.matcher import Search
from dgemma.types import (
    Constraint,
    Delta,
    Event,
    Field,
    FinishReason,
    Output,
    Request,
    StopReason,
    TokenScore,
    TraceStep,
    Usage,
    Verdict,
)


@dataclass(slots=True, eq=False)
class Sequence:
    """A live request.

    Attributes:
        request: resolved, see `resolve_request`.
        width: positions that the next canvas takes (or the next token).
        context_length: most positions.
        drafting: whether the exact mode makes a draft.
        reader: of the answer's text; it may end the request.
        state: the sampler's part, a `CanvasState`; its `rows` alone is looked at here.
        common: how many tokens of the context, from its first, share their keys with all owners.
        thought_closed: see `Output`.
        context: ids to encode before the next canvas (or the next token) can begin: the prompt,
            then all that was committed.
        encoded: how many of them are encoded.
        proposed: ids after them that the encoder reads next, before they are committed.
        borders: lengths at which an encoding ended; a later encoding of the same ids is cut there.
        committed: the answer's ids so far, without end ids.
        emitted: how many of them are on the canvas that runs.
        canvases, steps: finished canvases, denoising steps (or autoregressive passes) so far.
        discarded_steps: those of tries that were thrown away.
        restarts: how often a canvas was begun anew.
        converged: steps of each canvas that converged.
        scores: of the committed tokens, if the request asks for them.
        constraint: how the answer was kept in its grammar.
        verdicts: of the committed canvases, if the request asks for them.
        search: decides on its finished canvas; until it has ended, no pass takes the sequence.
        done: the last event, once the request has ended.
        number: order of arrival, from 0.
        arrived: when it was submitted, in seconds on the engine's clock; None: when it was queued.
        since: when it began to wait.
        level: its priority, raised by the time it had waited when it was admitted.
        begun: length of its context when it was admitted last.
        block_table: its pages while it runs, else None.
        last: number of the pass in which it last took part.
        ticket: which of its places in the queue is the valid one.
        known: how many ids have a field in the events so far.
        faults: how often in a row a pass of it alone ran out of memory.
    """

    request: Request
    width: int
    context_length: int
    reader: Reader = field(default_factory=Reader)
    state: Any = None
    common: int = 0
    thought_closed: bool = False
    events: EventQueue = field(default_factory=EventQueue)

    context: list[int] = field(default_factory=list)
    encoded: int = 0
    proposed: list[int] = field(default_factory=list)
    drafting: bool = False
    borders: list[int] = field(default_factory=list)
    committed: list[int] = field(default_factory=list)
    emitted: int = 0
    canvases: int = 0
    steps: int = 0
    discarded_steps: int = 0
    restarts: int = 0
    trace: list[TraceStep] = field(default_factory=list)
    converged: list[int] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    constraint: Constraint | None = None
    verdicts: list[Verdict] = field(default_factory=list)
    search: Search[None] | None = None
    done: Event | None = None

    number: int = 0
    arrived: float | None = None
    since: float = 0.0
    level: int = 0
    begun: int = 0
    block_table: BlockTable | None = None
    last: int = -1
    ticket: int = 0
    waiting: bool = False
    known: int = 0
    faults: int = 0

    def __post_init__(self) -> None:
        self.context += self.request.token_ids

    # -- for the scheduler ---------------------------------------------------------------------

    @property
    def priority(self) -> int:
        """Of the request, without ageing."""
        return self.request.priority

    @property
    def owner(self) -> str:
        """Whose request it is."""
        return self.request.owner

    @property
    def rank(self) -> tuple[int, int]:
        """The sequence with the greatest is preempted first."""
        return -self.priority, self.number

    @property
    def positions(self) -> int:
        """Positions that the context and the canvas after it take."""
        return len(self.context) + self.width

    @property
    def rows(self) -> int:
        """Canvases of the next step: several in a race."""
        return 1 if self.state is None or not self.denoises else int(self.state.rows)

    @property
    def prefix(self) -> Prefix:
        """The context and all that its keys and values depend on."""
        return Prefix(self.context, self.owner, self.request.contents, self.common)

    @property
    def reuse(self) -> int:
        """How many of the context's first tokens may come from an earlier request's pages."""
        return self.request.score_from - 1 if self.request.mode == "score" else len(self.context)

    @property
    def denoises(self) -> bool:
        """Whether a canvas makes a step once the context is encoded."""
        return (self.request.mode == "diffusion" or self.drafting) and not self.proposed

    @property
    def read_first(self) -> bool:
        """Whether the encoder reads what is to be committed."""
        return bool(self.request.params.verdict or self.request.params.quality)

    @property
    def output(self) -> Output | None:
        """The finished answer, once the request has ended."""
        return None if self.done is None else self.done.output

    # -- the answer ----------------------------------------------------------------------------

    @property
    def seed(self) -> int:
        """The request's seed, given or drawn."""
        assert self.request.params.seed is not None
        return self.request.params.seed

    @property
    def room(self) -> int:
        """Tokens that the answer may still have, the canvas that is next or runs included."""
        whole = (self.context_length - len(self.context)) // self.width * self.width
        most = self.request.params.max_tokens
        return whole if most is None else min(whole, most - len(self.committed))

    def report_status(self, state: Literal["queued", "encoding"]) -> None:
        """Emit a "status" event before the first step, if the request asks for it."""
        if self.request.status and not self.steps:
            self.events.put(
                Event(type="status", index=self.request.index, step=self.encoded, state=state)
            )

    def pending_ids(self, ids: list[int]) -> list[int]:
        """Of the first ids of the running canvas, those not yet emitted, within `max_tokens`."""
        most = self.request.params.max_tokens
        room = None if most is None else most - len(self.committed)
        return ids[self.emitted :][:room]

    def draft(self, ids: list[int], end_ids: Collection[int]) -> tuple[Delta, ...]:
        """What the ids of the canvas that runs would still add to the answer."""
        own = takewhile(lambda token_id: token_id not in end_ids, ids[self.emitted :])
        return self.reader.draft([*own])

    def commit(
        self, ids: list[int], ended: bool, steps: int, reason: StopReason = "",
        verdict: Verdict | None = None, attempt: int = 0,
    ) -> Event:  # fmt: skip
        """Add a finished canvas: its ids before the first end id, whether one was there, its steps.

        Without an end the answer goes on, unless `max_tokens` or the context is used up. Scores of
        the ids, if the request asks for them, are there already.
        """
        most = self.request.params.max_tokens
        cut = self.pending_ids(ids)
        beyond = self.emitted + len(cut) < len(ids)
        self.emitted = 0
        self.canvases += 1
        if reason == "converged":
            self.converged.append(steps)
        event = self._commit(
            cut, steps, self.canvases - 1, reason=reason, verdict=verdict, attempt=attempt
        )
        full = most is not None and len(self.committed) >= most
        if beyond or (full and not ended):
            self.finish("length")
        elif ended:
            self.finish("stop")
        return event

    def commit_prefix(self, ids: list[int], steps: int) -> Event:
        """Add ids that follow the emitted ones, of a canvas that goes on after so many steps."""
        self.emitted += len(ids)
        return self._commit(ids, steps, self.canvases, whole=False)

    def _commit(
        self, ids: list[int], steps: int, canvas: int, *, whole: bool = True,
        reason: StopReason = "", verdict: Verdict | None = None, attempt: int = 0,
    ) -> Event:  # fmt: skip
        first = len(self.committed)
        if verdict is not None:
            self.verdicts.append(verdict)
        self.committed += ids
        deltas, fault = tuple[Delta, ...](), ""
        try:
            deltas = self.reader.push(ids)
        except Exception as error:  # this request's alone
            fault = _message(error)
        event = Event(
            type="commit", index=self.request.index, canvas=canvas, attempt=attempt, step=steps,
            ids=tuple(ids), deltas=deltas, fields=self._new_fields(), whole=whole, reason=reason,
            scores=tuple(self.scores[first : len(self.committed)]), verdict=verdict,
        )  # fmt: skip
        if fault:
            self.finish("error", fault)
        elif self.reader.stopped_by is not None:
            self.canvases += not whole  # it ends with the answer
            self.finish("stop")
        return event

    def _new_fields(self) -> tuple[Field, ...]:
        """The fields of ids that have become known since the last event."""
        found = tuple(self.reader.fields[self.known :])
        self.known += len(found)
        return found

    def close_thought(self, close_id: int) -> Event:
        """Put the end of a thought into the answer."""
        params = self.request.params
        if params.logprobs is not None or params.logprob_token_ids is not None:
            self.scores.append(TokenScore(token_id=close_id, logprob=0.0))
        return self._commit([close_id], 0, self.canvases)

    def extend(self, ids: list[int]) -> None:
        """Encode these ids next and then begin another canvas, if the context has room for one."""
        if self.positions + len(ids) > self.context_length:
            self.finish("length")
        else:
            self.context += ids

    def finish(self, reason: FinishReason, error: str | None = None) -> None:
        """End the request; only the first call counts."""
        if self.done is not None:
            return
        reader, tail = self.reader, tuple[Delta, ...]()
        try:
            tail = reader.finish()
        except Exception as fault:
            reason, error = "error", error or _message(fault)
        diffusion = self.request.mode == "diffusion"
        kept = len(self.committed) if reader.stopped_by is None else reader.kept
        fields = self._new_fields()
        output = Output(
            text=reader.text,
            token_ids=tuple(self.committed[:kept]),
            seed=self.seed,
            restart_after=int(self.request.params.restart_after or 0),
            finish_reason=reason,
            stopped_by=reader.stopped_by,
            usage=Usage(
                prompt_tokens=len(self.request.token_ids),
                completion_tokens=kept,
                thought_tokens=reader.fields[:kept].count("thinking"),
                canvases=self.canvases if diffusion else 0,
                steps=self.steps,
                discarded_steps=self.discarded_steps,
            ),
            thinking=reader.thinking or None,
            tool_calls=tuple(reader.tool_calls),
            invalid_tool_calls=tuple(reader.invalid_tool_calls),
            error=error,
            trace=tuple(self.trace),
            scores=tuple(self.scores[:kept] if diffusion else self.scores),
            constraint=self.constraint,
            verdict=Verdict.joined(self.verdicts) if self.verdicts else None,
            prompt_ids=self.request.token_ids,
            thought_closed=self.thought_closed,
            index=self.request.index,
        )
        self.done = Event(
            type="done", index=self.request.index, deltas=tail, fields=fields, output=output
        )


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, DGemmaError) else f"{type(error).__name__}: {error}"
