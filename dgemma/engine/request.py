"""One request's life inside the engine: what is pending, what is committed, how it ends.

Knows ids and counts. Knows nothing about tensors (no torch), text or other requests.

    encode -> denoise -> (commit) encode -> denoise -> ... -> done      diffusion
    encode -> encode  -> ...                               -> done      autoregressive
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dgemma.errors import ContextOverflow, InvalidRequest
from dgemma.params import REFUSED_BY_AUTOREGRESSIVE, RELEASED, SamplingParams, canvas_width
from dgemma.types import (
    Constraint,
    Event,
    FinishReason,
    Output,
    Request,
    StopReason,
    TokenScore,
    TraceStep,
    Usage,
)


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What the engine must know of the model.

    Attributes:
        context: most positions.
        canvas: canvas length.
        vocab_size: ids are below it.
        bounded: whether it is the memory for keys and values that bounds the context, not the
            model.
    """

    context: int
    canvas: int
    vocab_size: int
    bounded: bool = False


def resolve(request: Request, defaults: SamplingParams, limits: ModelLimits, seed: int) -> Request:
    """The request with every default filled in, checked against the model.

    Args:
        defaults: the checkpoint's own sampler.
        seed: taken where the request names none.

    Raises:
        InvalidRequest: an empty prompt, an id outside the vocabulary, a diffusion field on an
            autoregressive request, a thinking budget without `thought`, a canvas wider than
            the model's.
        ContextOverflow: no room for an answer.
    """
    ids, params = request.token_ids, request.params
    if not ids:
        raise InvalidRequest("the prompt is empty; give at least one token", field="prompt")
    wrong = next((i for i in ids if not 0 <= i < limits.vocab_size), None)
    if wrong is not None:
        raise InvalidRequest(
            f"prompt id {wrong} is outside the vocabulary of {limits.vocab_size}", field="prompt"
        )
    if request.mode == "score" and not 1 <= request.score_from < len(ids):
        raise InvalidRequest(
            f"score_from must be 1 to {len(ids) - 1}, the last token, got {request.score_from}"
        )
    if request.canvas is not None and request.mode != "diffusion":
        raise InvalidRequest(f"a canvas control has no meaning in mode {request.mode!r}")
    need = canvas_width(params, limits.canvas) if request.mode == "diffusion" else 1
    if len(ids) + need > limits.context:
        more = ", or load the model with more cache_bytes" if limits.bounded else ""
        whose = "context that cache_bytes allows" if limits.bounded else "model's context"
        raise ContextOverflow(
            f"a prompt of {len(ids)} tokens leaves no room for an answer of {need} in the {whose}, "
            f"which is {limits.context}; shorten it to at most {limits.context - need}{more}",
            field="prompt",
        )
    if request.mode != "diffusion":
        what = {"autoregressive": "autoregressive decoding, which is greedy"}
        for name in REFUSED_BY_AUTOREGRESSIVE:
            if request.mode == "score" and name == "logprobs" and params.logprobs == 0:
                continue  # that is what it does
            if getattr(params, name) is not None:
                raise InvalidRequest(
                    f"{name} has no meaning for {what.get(request.mode, 'scoring')}; leave it out",
                    field=name,
                )
    else:
        if request.canvas is not None and request.canvas.read_only:
            if params.stable_prefix:
                raise InvalidRequest(
                    "stable_prefix and read_only cannot be combined: nothing is committed; drop "
                    "one of them",
                    field="stable_prefix",
                )
            params = params.merged(SamplingParams(max_steps=1, stable_prefix=False))
        params = params.merged(defaults).merged(RELEASED)
    if params.thinking_budget is not None and request.thought is None:
        raise InvalidRequest(
            "thinking_budget needs a chat prompt (Request.thought is not set)",
            field="thinking_budget",
        )
    drawn = seed if request.mode == "diffusion" else 0
    return replace(request, params=params.merged(SamplingParams(seed=drawn)))


@dataclass(slots=True)
class Progress:
    """Where a request stands.

    Attributes:
        request: resolved.
        context: ids that must be encoded before the next canvas (or the next token) can begin:
            the prompt, then all that was committed.
        encoded: how many of them are.
        borders: where an encoding ended; one that is done again is cut there.
        committed: the answer's ids so far, without end ids.
        emitted: how many of them stand on the canvas that runs.
        canvases, steps: finished canvases, denoising steps (or model passes of the twin) so far.
        scores: of the committed tokens, where they are asked for.
        constraint: what it took to keep the answer in its language.
    """

    request: Request
    limits: ModelLimits
    context: list[int] = field(default_factory=list)
    encoded: int = 0
    borders: list[int] = field(default_factory=list)
    committed: list[int] = field(default_factory=list)
    emitted: int = 0
    canvases: int = 0
    steps: int = 0
    trace: list[TraceStep] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    constraint: Constraint | None = None
    output: Output | None = None

    def __post_init__(self) -> None:
        self.context += self.request.token_ids

    @property
    def seed(self) -> int:
        """The request's seed, given or drawn."""
        assert self.request.params.seed is not None
        return self.request.params.seed

    @property
    def width(self) -> int:
        """Positions that the next canvas takes (or the next token)."""
        return self.limits.canvas if self.request.mode == "diffusion" else 1

    @property
    def room(self) -> int:
        """Tokens that the answer may still have, from the canvas on that is next or runs."""
        whole = (self.limits.context - len(self.context)) // self.width * self.width
        most = self.request.params.max_tokens
        return whole if most is None else min(whole, most - len(self.committed))

    @property
    def reuse(self) -> int:
        """How many of the context's first tokens may be taken from an earlier request's pages."""
        return self.request.score_from - 1 if self.request.mode == "score" else len(self.context)

    def encoded_all(self) -> None:
        """The context is encoded as far as it goes now."""
        if not self.borders or self.borders[-1] < self.encoded:
            self.borders.append(self.encoded)

    def commit(self, ids: list[int], ended: bool, steps: int, reason: StopReason = "") -> Event:
        """Add a finished canvas: its ids before the first end id, whether one was there, its steps.

        Without an end the answer goes on, unless `max_tokens` or the context is used up. Scores of
        the ids, where they are asked for, are there already.
        """
        room = self.request.params.max_tokens
        cut = self.pending_ids(ids)
        beyond = self.emitted + len(cut) < len(ids)
        event = self._commit(cut, steps, reason=reason)
        self.emitted = 0
        self.canvases += 1
        full = room is not None and len(self.committed) >= room
        if beyond or (full and not ended):
            self.finish("length")
        elif ended:
            self.finish("stop")
        return event

    def pending_ids(self, ids: Sequence[int]) -> list[int]:
        """What of the first ids of the running canvas is still to be told, within `max_tokens`."""
        room = self.request.params.max_tokens
        return list(ids[self.emitted :][: None if room is None else room - len(self.committed)])

    def commit_prefix(self, ids: list[int], steps: int) -> Event:
        """Add ids that follow those told, of a canvas that goes on after so many steps."""
        self.emitted += len(ids)
        return self._commit(ids, steps, whole=False)

    def _commit(
        self, ids: list[int], steps: int, *, whole: bool = True, reason: StopReason = ""
    ) -> Event:
        first = len(self.committed)
        self.committed += ids
        return Event(
            type="commit", index=self.request.index, canvas=self.canvases, step=steps,
            ids=tuple(ids), whole=whole, reason=reason,
            scores=tuple(self.scores[first : len(self.committed)]),
        )  # fmt: skip

    def close_thought(self, close_id: int) -> Event:
        """Put the end of a thought into the answer."""
        params = self.request.params
        if params.logprobs is not None or params.logprob_token_ids is not None:
            self.scores.append(TokenScore(token_id=close_id, logprob=0.0))
        return self._commit([close_id], 0)

    def go_on(self, ids: list[int]) -> None:
        """Encode these ids next and then begin another canvas, if the context has room for one."""
        if len(self.context) + len(ids) + self.width > self.limits.context:
            self.finish("length")
        else:
            self.context += ids

    def finish(self, reason: FinishReason, error: str | None = None) -> None:
        """End the request; only the first call counts."""
        if self.output is None:
            self.output = Output(
                token_ids=tuple(self.committed),
                seed=self.seed,
                finish_reason=reason,
                usage=Usage(
                    prompt_tokens=len(self.request.token_ids),
                    completion_tokens=len(self.committed),
                    canvases=self.canvases if self.request.mode == "diffusion" else 0,
                    steps=self.steps,
                ),
                error=error,
                trace=tuple(self.trace),
                scores=tuple(self.scores[: len(self.committed)])
                if self.request.mode == "diffusion"
                else tuple(self.scores),
                constraint=self.constraint,
                prompt_ids=self.request.token_ids,
                index=self.request.index,
            )
