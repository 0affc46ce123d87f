"""The check of a request against the model, and its defaults. (No torch.)"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import get_args

from dgemma.diffusion.learnt import LearntLimits
from dgemma.errors import ContextOverflow, InvalidRequest, bad_field, short
from dgemma.params import (
    END_ROOM,
    REFUSED_BY_AUTOREGRESSIVE,
    REFUSED_BY_EXACT,
    RELEASED,
    WIDTH_STEP,
    SamplingParams,
    canvas_width,
    refused,
)
from dgemma.request_parts import ThoughtIds
from dgemma.types import PAGE, Mode, Request

EARLY = ("restart_after", "race", "quality")
"""Defaults of a checkpoint that a request leaves out if it wants text before its canvas is done."""
UNRESTARTED = SamplingParams(restart_after=0)
READ_ONLY = SamplingParams(max_steps=1, stable_prefix=False)
"""How a canvas is read that is not committed."""


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """The model's limits on a request.

    Attributes:
        context: most positions.
        canvas: canvas length.
        vocab_size: ids are below it.
        bounded: whether the memory for keys and values bounds the context, not the model.
        pages: of keys and values in full layers.
        spare: pages of the sliding layers beyond those that one request may need.
        learnt: from the answers of this model.
    """

    context: int
    canvas: int
    vocab_size: int
    bounded: bool = False
    pages: int = 2**31
    spare: int = 2**31
    learnt: LearntLimits = field(default_factory=LearntLimits)

    def room(self, params: SamplingParams) -> int:
        """Most positions of a request, beside which each further canvas of a race needs pages.

        Raises:
            InvalidRequest: the memory does not suffice for the race.
        """
        race = params.race or 1
        if race == 1:
            return self.context
        width = canvas_width(params, self.canvas)
        more = (race - 1) * (-(-width // PAGE) + 1)
        if more > min(self.spare, self.pages - 1):
            raise bad_field(
                "race", f"of {race} canvases does not fit the memory for keys and values; ask for "
                "fewer, or load the model with more cache_bytes"
            )  # fmt: skip
        return min(self.context, (self.pages - more) * PAGE)


def resolve_request(
    request: Request, defaults: SamplingParams, limits: ModelLimits, seed: int,
    thought: ThoughtIds | None = None,
) -> Request:  # fmt: skip
    """The request with every default filled in, checked against the model.

    Args:
        defaults: the checkpoint's own sampler.
        seed: of a request that names none.
        thought: the markers of its thoughts, if it is a chat; None: as the request says.

    Raises:
        InvalidRequest: an empty prompt, an id outside the vocabulary, an unknown mode, a field
            that has no meaning in this mode, tools without a chat, a thinking budget without
            thoughts, a canvas wider than the model's, a learnt limit that nobody has learnt.
        ContextOverflow: no room for an answer.
    """
    if request.mode not in get_args(Mode):
        raise refused("mode", f"be one of {', '.join(get_args(Mode))}", request.mode)
    _check_prompt(request, limits)
    if request.tool_use is not None and not request.chat:
        raise bad_field("tool_use", "needs a chat (Request.chat): plain text has no calls")
    thought = thought or request.thought
    if thought is not None:
        _check_ids("thought", (thought.open_id, thought.close_id), limits)
    params, merged = request.params, list[SamplingParams]()
    if request.mode != "diffusion":
        _check_mode(request)
        if not (request.mode == "exact" and params.temperature):
            seed = 0  # nothing of the answer is drawn
    else:
        if request.canvas is not None and request.canvas.read_only:
            if params.stable_prefix:
                raise bad_field(
                    "stable_prefix",
                    "and read_only cannot be combined: nothing is committed; drop one of them",
                )
            params = replace(params, restart_after=0, race=1)
            merged.append(READ_ONLY)
        if params.stable_prefix:
            defaults = replace(defaults, **dict.fromkeys(EARLY))
        elif params.restart_after or (params.race or 1) > 1:
            merged.append(SamplingParams(stable_prefix=False))
        elif _outlasts(defaults, params):
            merged.append(UNRESTARTED)
        merged += [defaults, RELEASED]
    if params.thinking_budget is not None and thought is None:
        raise bad_field("thinking_budget", "needs a chat (Request.chat, or Request.thought)")
    params = params.merged(*merged, seed=seed)
    if params.restart_after == "auto":
        params = replace(params, restart_after=limits.learnt.resolve())
    if params.quality is not None:
        limits.learnt.check_careful()
    resolved = replace(request, params=params, thought=thought)
    _check_race(resolved, limits)
    return resolved


def _check_race(request: Request, limits: ModelLimits) -> None:
    params = request.params
    room = limits.room(params)
    if room == limits.context:
        return
    most = room - canvas_width(params, limits.canvas)
    if len(request.token_ids) > most:
        raise ContextOverflow(
            f"a prompt of {len(request.token_ids)} tokens leaves no room for a race of "
            f"{params.race}; shorten it to at most {max(0, most)}, ask for fewer canvases, or load "
            "the model with more cache_bytes",
            field="race",
        )


def _outlasts(defaults: SamplingParams, params: SamplingParams) -> bool:
    """Whether restarts that a checkpoint sets would take more steps than a request allows."""
    after = defaults.restart_after
    if params.restart_after is not None or params.max_steps is None or not isinstance(after, int):
        return False
    return after * (params.tries or defaults.tries or 2) > params.max_steps


def _check_prompt(request: Request, limits: ModelLimits) -> None:
    ids = request.token_ids
    if not ids:
        raise InvalidRequest("the prompt is empty; give at least one token", field="prompt")
    _check_ids("prompt", ids, limits)
    if request.mode == "score" and not 1 <= request.score_from < len(ids):
        raise InvalidRequest(
            f"score_from must be 1 to {len(ids) - 1}, the last token, got "
            f"{short(request.score_from)}"
        )
    if request.canvas is not None and request.mode != "diffusion":
        raise InvalidRequest(f"a canvas control has no meaning in mode {request.mode!r}")
    if request.edits and request.mode != "diffusion":
        why = f"have no meaning in mode {request.mode!r}, which has no canvas; leave them out"
        raise bad_field("edits", why)
    need = canvas_width(request.params, limits.canvas) if request.mode == "diffusion" else 1
    if len(ids) + need > limits.context:
        more = ", or load the model with more cache_bytes" if limits.bounded else ""
        whose = "context that cache_bytes allows" if limits.bounded else "model's context"
        raise ContextOverflow(
            f"a prompt of {len(ids)} tokens leaves no room for an answer of {need} in the {whose}, "
            f"which is {limits.context}; shorten it to at most {limits.context - need}"
            f"{_narrower(request, need, limits)}{more}",
            field="prompt",
        )


def _narrower(request: Request, need: int, limits: ModelLimits) -> str:
    """The narrower canvas that leaves room for a prompt, if there is one."""
    tokens = request.params.max_tokens or WIDTH_STEP - END_ROOM
    auto = SamplingParams(canvas_length="auto", max_tokens=tokens)
    room = limits.context - canvas_width(auto, limits.canvas)
    if (
        request.mode != "diffusion"
        or len(request.token_ids) > room
        or room <= limits.context - need
    ):
        return ""
    return f', or set canvas_length "auto" and max_tokens {tokens}, which fits up to {room}'


def _check_ids(name: str, ids: Iterable[int], limits: ModelLimits) -> None:
    wrong = next((i for i in ids if not 0 <= i < limits.vocab_size), None)
    if wrong is not None:
        raise bad_field(name, f"id {short(wrong)} is outside the vocabulary of {limits.vocab_size}")


KINDS = {
    "autoregressive": "autoregressive decoding, which is greedy",
    "exact": "the exact mode",
    "score": "scoring",
}
REFUSED = {
    "autoregressive": REFUSED_BY_AUTOREGRESSIVE,
    "exact": REFUSED_BY_EXACT,
    "score": (*REFUSED_BY_AUTOREGRESSIVE, "stop", "max_tokens"),
}


def _check_mode(request: Request) -> None:
    """Refuse fields that only steer denoising."""
    mode, params = request.mode, request.params
    kind = KINDS[mode]
    if request.tool_use is not None and (request.tool_use.binding or mode == "score"):
        why = "; leave it out" if mode == "score" else "; leave out strict tools and required calls"
        raise bad_field("tool_use", f"has no meaning for {kind}{why}")
    for name in REFUSED[mode]:
        if mode == "score" and name == "logprobs" and params.logprobs == 0:
            continue  # it reports them anyway
        if getattr(params, name) is not None:
            raise bad_field(name, f"has no meaning for {kind}; leave it out")
