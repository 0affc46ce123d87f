"""The exact mode: the answer of decoding token by token, in fewer passes, by drafts on a canvas.

One set of weights drafts and checks. A draft is a canvas after a few denoising steps. The encode
mode then reads the drafted ids in one causal pass and chooses an id after each of them, as decoding
token by token would. The ids that it would have chosen too are kept, with their keys and values.
The first id that it would not have chosen is replaced by its own choice, and the rest is dropped.

    pass 1       encodes the last token, which gives the next one, and makes the first step of a
                 draft that begins at that next one
    passes 2..n  the next steps; the token that is known already is pinned at the first position
    pass n + 1   reads the known token and the drafted ids after it

With a temperature the choice is a draw from the distribution of the encode mode, by a random number
that belongs to the position of the answer. A drafted id is accepted if it is the one drawn: with
the probability p(id); where it is not, the drawn id is distributed as p without the drafted one.
That is the rule of speculative sampling for a draft that proposes one id a position. As no number
depends on the drafts, the tokens do not either.
Knows nothing about batches, cached keys, text or stop strings.
Source: speculative sampling, https://arxiv.org/abs/2302.01318.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dgemma.device import wide
from dgemma.diffusion.canvas import Canvas, CanvasSpec, Generation
from dgemma.diffusion.draft_policy import FIRST_DRAFT, DraftPolicy
from dgemma.diffusion.generate import Encode, Predict, denoise
from dgemma.diffusion.random import Purpose, stream_keys, uniforms
from dgemma.diffusion.sampler import start
from dgemma.diffusion.schedule import Schedule
from dgemma.diffusion.stable import Embed
from dgemma.errors import EngineError, InvalidRequest
from dgemma.kernels.controls import Controls
from dgemma.kernels.head import Head
from dgemma.params import REFUSED_BY_EXACT, SamplingParams

Truncate = Callable[[int], None]
"""Takes the last so many tokens out of the context."""

DOUBT = 4.0
"""Nats of summed entropy up to which the tokens of a draft are proposed."""

SETTLED = 0.1
"""The same for a draft that is read before its steps are made."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """The part of a proposal that the encode mode agrees with.

    Attributes:
        count: proposed ids, from the first one on, that it chose too; no end id is among them.
        token: its choice after them: a token of the answer, an end id, or -1: not finite.
    """

    count: int
    token: int


def accepted(
    proposed: Sequence[int], choices: Sequence[int], end_ids: Collection[int]
) -> Acceptance:
    """The longest beginning of a proposal that the encode mode would have written itself.

    Args:
        proposed: n ids.
        choices: the n + 1 ids that the encode mode chose: before the first one, and after each.
        end_ids: ids that end an answer.
    """
    count = 0
    while count < len(proposed) and proposed[count] == choices[count] not in end_ids:
        count += 1
    return Acceptance(count, choices[count])


def token_uniforms(seeds: Sequence[int], positions: Sequence[int], device: torch.device) -> Tensor:
    """The random number of each token of an answer: fp32 [N] in [0, 1).

    Args:
        seeds: of the requests, one a token.
        positions: of the tokens in their answers, from 0.
    """
    keys = stream_keys(seeds, positions, [0] * len(seeds), Purpose.TOKEN, device)
    return uniforms(keys, 1)[:, 0]


def begin_draft(seed: int, number: int, policy: DraftPolicy, spec: CanvasSpec) -> Canvas:
    """Draft `number` of a request before its first step; it has a `reason` when it is to be read.

    Its first position is that of the token that the pass of its first step gives.
    """
    return replace(start(seed, number, spec), until=policy.steps)


def hold_token(
    draft: Canvas, token: int, policy: DraftPolicy, spec: CanvasSpec, embed: Embed
) -> Canvas:
    """A draft after a step, with the known token pinned at its first position.

    A draft that is already sure of all that may be proposed gets a `reason`: it is read at once.
    """
    assert draft.argmax is not None and draft.soft is not None
    if draft.failed or draft.reason:
        return draft
    if int(draft.argmax[0]) == token and _settled(draft, policy, spec):
        return replace(draft, reason="converged")
    held = torch.full_like(draft.argmax, -1)
    held[0] = token
    first = held >= 0
    return replace(
        draft,
        ids=torch.where(first, held, draft.ids),
        soft=torch.where(first[:, None], embed(held.clamp(min=0)), draft.soft),
        controls=replace(draft.controls, pinned=held),
    )


def proposal(draft: Canvas, policy: DraftPolicy, spec: CanvasSpec) -> list[int]:
    """The ids after the known token that a draft proposes, up to its first end id.

    It proposes the tokens that are sure together: as many as have a summed entropy of at most
    `DOUBT`, but not more than the policy's width.
    """
    return _written(draft, spec)[: min(_sure(draft, DOUBT), policy.width)]


def _settled(draft: Canvas, policy: DraftPolicy, spec: CanvasSpec) -> bool:
    return _sure(draft, SETTLED) >= min(len(_written(draft, spec)), policy.width)


def _written(draft: Canvas, spec: CanvasSpec) -> list[int]:
    """The ids of a draft after the known token, before its first end id."""
    assert draft.argmax is not None
    ids: list[int] = draft.argmax[1:].tolist()
    return ids[: next((p for p, token in enumerate(ids) if token in spec.end_ids), len(ids))]


def _sure(draft: Canvas, nats: float) -> int:
    """How many positions after the known token have a summed entropy of at most so much."""
    assert draft.entropy is not None
    return int((wide(draft.entropy[1:]).cumsum(-1) <= nats).sum())


@torch.no_grad()
def speculate(
    prompt: Sequence[int],
    params: SamplingParams,
    spec: CanvasSpec,
    encode: Encode,
    truncate: Truncate,
    predict: Predict,
    head: Head,
    schedule: Schedule,
    policy: DraftPolicy = FIRST_DRAFT,
) -> Generation:
    """The reference of the exact mode: `autoregress` with drafts.

    Args:
        prompt: token ids.
        params: as the user gave them; a seed draws the noise of the drafts, and the tokens where
            there is a temperature. None of both is 0. `stop` strings are the caller's.
        spec: of the checkpoint; a draft is a canvas of its length.
        encode, predict: the two modes of the network.
        truncate: takes tokens out of the context that a reading has put there.
        head: chooses the tokens and reads the drafts.
        schedule: of the drafts; their number of steps is the policy's.
        policy: of the first draft.

    Returns:
        A `Generation` without canvases. `steps` is one number, the passes of the network: tokens
        without a draft, steps and readings. The first step of a draft shares the pass that encodes
        the token before it.

    Raises:
        InvalidRequest: a field of `REFUSED_BY_EXACT` is set, or the prompt is empty or too long.
        EngineError: the network returned numbers that are not finite.
    """
    for name in REFUSED_BY_EXACT:  # it would have to ignore them
        if getattr(params, name) is not None:
            raise InvalidRequest(f"{name} has no meaning for the exact mode; leave it out")
    spec.check_room(prompt, 1)
    seed, temperature = params.seed or 0, params.temperature or 0.0
    limit = min(params.max_tokens or spec.context_length, spec.context_length - len(prompt))
    pending, answer = list(prompt), list[int]()  # ids to encode next, ids of the answer so far
    passes, drafts, ended = 0, 0, False

    def read(ids: Sequence[int], proposed: Sequence[int]) -> Acceptance:
        """Encode ids; what the encode mode says to those proposed, which are the last ones."""
        hidden = encode(torch.tensor([ids], device=spec.device))[0, -len(proposed) - 1 :]
        choices = choose(head, hidden, seed, len(answer), temperature, spec).tolist()
        found = accepted(proposed, choices, spec.end_ids)
        if found.token < 0:
            raise EngineError(f"token {len(answer) + found.count}: not finite")
        return found

    while not ended and len(answer) < limit:
        draft = None
        room = spec.context_length - len(prompt) - len(answer)
        found = read(pending, ())
        passes += 1
        if policy.drafts and room >= spec.length:
            draft = begin_draft(seed, drafts, policy, spec)
            draft = denoise(draft, schedule, spec, predict, head.read).canvas
            drafts += 1
        ended, pending = found.token in spec.end_ids, [found.token]
        answer += [] if ended else pending
        if ended or len(answer) == limit:
            break
        if draft is None:
            policy = policy.waited()
            continue
        draft = hold_token(draft, found.token, policy, spec, head.embed)
        while not draft.reason:
            draft = denoise(draft, schedule, spec, predict, head.read).canvas
            draft = hold_token(draft, found.token, policy, spec, head.embed)
            passes += 1
        proposed = proposal(draft, policy, spec)[: limit - len(answer) - 1]
        found = read([*pending, *proposed], proposed)
        passes += 1
        truncate(len(proposed) - found.count)
        policy = policy.next(len(proposed), found.count, draft.step + 1)
        ended, pending = found.token in spec.end_ids, [found.token]
        answer += proposed[: found.count] + ([] if ended else pending)
    return Generation(
        token_ids=tuple(answer), finish_reason="stop" if ended else "length", steps=(passes,)
    )


def choose(
    head: Head, hidden: Tensor, seed: int, first: int, temperature: float, spec: CanvasSpec
) -> Tensor:
    """The choices of the encode mode for consecutive tokens of an answer.

    Args:
        hidden: [N, D], of the tokens before them.
        first: the position of the first one in the answer, from 0.
        temperature: of the draw; 0: the likeliest id.

    Returns:
        int64 [N] ids; -1: not finite.
    """
    controls = Controls(suppress_ids=spec.suppress_ids)
    if not temperature:
        return head.greedy(hidden, controls)
    count = len(hidden)
    keys = token_uniforms([seed] * count, range(first, first + count), hidden.device)
    return head.draw(hidden, torch.full_like(keys, temperature), keys, controls)
