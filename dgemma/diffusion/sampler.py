"""How: start, step and finish of a canvas, as pure functions.

A step hands `sampling_inputs` to the vocabulary operation and puts its `HeadOutput` to use: accept
the most certain positions, give all others fresh noise, see whether the canvas is done. Nothing is
frozen: a position accepted now is decided afresh at the next step.

Any number of canvases may be stepped at once; each result is that of the canvas alone.
Knows nothing about the network, the cache, prompts or text.
Source: `transformers` 5.17 `generation_diffusion_gemma.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dgemma.device import widest
from dgemma.diffusion.canvas import FREE, Canvas, CanvasSpec, Commit
from dgemma.diffusion.random import Purpose, stream_keys, uniform_ids, uniforms
from dgemma.diffusion.schedule import Schedule, accept
from dgemma.kernels.controls import Controls
from dgemma.kernels.head_output import HeadLogprobs, HeadOutput
from dgemma.types import StopReason


def start(
    seed: int, index: int, spec: CanvasSpec, controls: Controls = FREE, attempt: int = 0
) -> Canvas:
    """A canvas of pure noise.

    Args:
        seed: of the request, 0 to 2**64 - 1.
        index: which canvas of the request, from 0.
        spec: what the canvas may hold, and where it lives.
        controls: what holds on it.
        attempt: which try of this canvas, from 0.
    """
    keys = stream_keys([seed], [index], [0], Purpose.START, spec.device, [attempt])
    ids = noise_ids(keys, spec.length, spec, [controls])[0]
    return Canvas(seed=seed, index=index, attempt=attempt, step=0, ids=ids, controls=controls)


def noise_ids(keys: Tensor, width: int, spec: CanvasSpec, controls: Sequence[Controls]) -> Tensor:
    """Uniform ids [B, width]; where a mask allows the one drawn, another that it does not allow.

    Noise says that nothing is known of a position. Where few ids are allowed, one of them would
    look like a decision: with 1,024 ids and 45 digits to be found, one start in three has one.
    There are two draws; where a mask allows both, as one of many ids does, the first one stays.
    """
    if all(c.masks is None for c in controls):
        return uniform_ids(keys, width, spec.vocab_size, spec.suppress_ids)
    both = uniform_ids(keys, 2 * width, spec.vocab_size, spec.suppress_ids)
    rows = []
    for asked, first, second in zip(controls, both[:, :width], both[:, width:], strict=True):
        masks = asked.masks
        swap = None if masks is None else masks.allows(first) & ~masks.allows(second)
        rows.append(first if swap is None else torch.where(swap, second, first))
    return torch.stack(rows)


def sampling_inputs(
    canvases: Sequence[Canvas], schedules: Sequence[Schedule]
) -> tuple[Tensor, Tensor]:
    """What the next step of B canvases asks of the vocabulary operation.

    Returns:
        fp32 [B*C] temperatures and fp32 [B*C] uniforms, canvas after canvas.
    """
    device, count = canvases[0].ids.device, len(canvases[0].ids)
    pairs = zip(canvases, schedules, strict=True)
    warmth = [schedule.temperature(canvas.step) for canvas, schedule in pairs]
    temperature = torch.tensor(warmth, dtype=torch.float32).to(device).repeat_interleave(count)
    return temperature, uniforms(_keys(canvases, Purpose.SAMPLE), count).flatten()


def likely_ids(canvases: Sequence[Canvas]) -> Tensor:
    """The ids that the next step of B canvases may well find again: int64 [B*C]."""
    return torch.cat([c.ids if c.argmax is None else c.argmax for c in canvases])


def step(canvas: Canvas, head_output: HeadOutput, schedule: Schedule, spec: CanvasSpec) -> Canvas:
    """One denoising step of one canvas; `head_output` has its C rows."""
    return step_all([canvas], head_output, [schedule], spec)[0]


def step_all(
    canvases: Sequence[Canvas],
    head_output: HeadOutput,
    schedules: Sequence[Schedule],
    spec: CanvasSpec,
) -> list[Canvas]:
    """One denoising step of B canvases: `propose`, a look at the verdicts, and `decide`."""
    proposal = propose(canvases, head_output, schedules, spec)
    return decide(canvases, proposal, proposal.verdicts.tolist(), schedules)


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """A step of B canvases of C positions before the host knows which of them are finished.

    Attributes:
        ids, argmax, entropy, accepted, soft: of the canvases after the step, [B, C] and [B, C, D].
        logprobs: of their B*C rows, if they are asked for.
        verdicts: fp64 [B, 3]: whether the argmax is that of the last step, the mean entropy,
            whether any position is free.
    """

    ids: Tensor
    argmax: Tensor
    entropy: Tensor
    accepted: Tensor
    soft: Tensor
    logprobs: HeadLogprobs | None
    verdicts: Tensor


def propose(
    canvases: Sequence[Canvas],
    head_output: HeadOutput,
    schedules: Sequence[Schedule],
    spec: CanvasSpec,
) -> Proposal:
    """The tensors of one denoising step of B canvases; the host waits for none of them.

    Args:
        canvases: unfinished ones.
        head_output: B*C rows, canvas after canvas, made with the numbers of `sampling_inputs`.
        schedules: one a canvas.
        spec: of the checkpoint.
    """
    assert not any(canvas.reason for canvas in canvases), "a finished canvas cannot be stepped"
    shape = (len(canvases), len(canvases[0].ids))
    device = head_output.argmax.device
    argmax, entropy = head_output.argmax.view(shape), head_output.entropy.view(shape)

    pins = _pins(canvases, shape[1])  # [B, C], -1 where free, or None
    sortable = entropy if pins is None else entropy.masked_fill(pins >= 0, torch.inf)
    bounds = torch.tensor([s.entropy_bound for s in schedules], dtype=widest(device)).to(device)
    accepted = accept(sortable, bounds)
    noise = noise_ids(
        _keys(canvases, Purpose.NOISE), shape[1], spec, [canvas.controls for canvas in canvases]
    )
    proposed = head_output.sample.view(shape)
    if any(s.greedy for s in schedules):
        greedy = torch.tensor([s.greedy for s in schedules]).to(device)
        proposed = torch.where(greedy[:, None], argmax, proposed)
    ids = torch.where(accepted, proposed, noise)
    if pins is not None:
        ids = torch.where(pins >= 0, pins, ids)
    return Proposal(
        ids=ids, argmax=argmax, entropy=entropy, accepted=accepted,
        soft=head_output.soft.view(*shape, -1), logprobs=head_output.logprobs,
        verdicts=_verdicts(canvases, argmax, entropy, pins, schedules, spec),
    )  # fmt: skip


def decide(
    canvases: Sequence[Canvas],
    proposal: Proposal,
    verdicts: Sequence[Sequence[float]],
    schedules: Sequence[Schedule],
) -> list[Canvas]:
    """The B canvases after a step.

    Where `reason` is set a canvas is finished; where `failed` is set its reading was not finite and
    only that request is lost.

    Args:
        verdicts: those of the proposal, on the host.
    """
    after, width = [], proposal.ids.shape[1]
    for b, (canvas, schedule) in enumerate(zip(canvases, schedules, strict=True)):
        repeats = canvas.repeats + 1 if verdicts[b][0] else 0
        reason: StopReason = ""
        if schedule.converged(repeats, verdicts[b][1]) or not verdicts[b][2]:
            reason = "converged"
        elif canvas.step + 1 >= (canvas.until or schedule.max_steps):
            reason = "step_cap"
        after.append(
            replace(
                canvas,
                step=canvas.step + 1,
                ids=proposal.ids[b],
                soft=proposal.soft[b],
                argmax=proposal.argmax[b],
                entropy=proposal.entropy[b],
                accepted=proposal.accepted[b],
                mean_entropy=verdicts[b][1],
                repeats=repeats,
                reason=reason,
                logprobs=_rows(proposal.logprobs, b, width),
            )
        )
    return after


def _pins(canvases: Sequence[Canvas], width: int) -> Tensor | None:
    """int64 [B, C] pinned ids, -1 where free; None where nothing is pinned."""
    if all(canvas.controls.pinned is None for canvas in canvases):
        return None
    free = torch.full((width,), -1, dtype=torch.int64, device=canvases[0].ids.device)
    return torch.stack([free if (p := c.controls.pinned) is None else p for c in canvases])


def _verdicts(
    canvases: Sequence[Canvas],
    argmax: Tensor,
    entropy: Tensor,
    pins: Tensor | None,
    schedules: Sequence[Schedule],
    spec: CanvasSpec,
) -> Tensor:
    """See `Proposal.verdicts`; pinned positions count in neither of the first two."""
    never = torch.full_like(argmax[0], -1)
    previous = torch.stack([never if c.argmax is None else c.argmax for c in canvases])
    same, mean = argmax == previous, entropy.mean(-1, dtype=widest(entropy.device))
    counted = None
    if any(s.ignore_tail for s in schedules):
        counted = _counted(argmax, schedules, spec)
        same = same | ~counted
        mean = entropy.where(counted, 0.0).mean(-1, dtype=mean.dtype)
    open_ = torch.ones_like(mean)
    if pins is not None:
        free = pins < 0
        open_ = free.any(-1).to(mean.dtype)
        same = same | ~free
        # A canvas without pins must keep the very bits that it has alone.
        summed = entropy.where(free if counted is None else free & counted, 0.0)
        mine = summed.sum(-1, dtype=mean.dtype) / free.sum(-1).clamp(min=1)
        mean = torch.where(free.all(-1), mean, mine)
    return torch.stack((same.all(-1).to(mean.dtype), mean, open_), -1)


def _rows(logprobs: HeadLogprobs | None, number: int, width: int) -> HeadLogprobs | None:
    """The log-probabilities of canvas `number`."""
    if logprobs is None:
        return None
    rows = slice(number * width, (number + 1) * width)
    return HeadLogprobs(logprobs.ids[rows], logprobs.tempered[rows], logprobs.plain[rows])


def _counted(argmax: Tensor, schedules: Sequence[Schedule], spec: CanvasSpec) -> Tensor:
    """bool [B, C]: the positions up to the first end id, or all where the tail is not ignored."""
    ends = torch.isin(argmax, torch.tensor(spec.end_ids, dtype=argmax.dtype, device=argmax.device))
    tail = ends.cumsum(-1) - ends.long() > 0
    ignore = torch.tensor([s.ignore_tail for s in schedules], device=argmax.device)
    return ~(tail & ignore[:, None])


def finish(canvas: Canvas, spec: CanvasSpec) -> Commit:
    """Commit a finished canvas: its argmax, up to the first end id, then padding.

    Where the commit has not `ended`, `canvas.argmax` is what must be encoded for the next canvas.
    """
    assert canvas.reason and canvas.argmax is not None, "only a finished canvas is committed"
    ids = canvas.argmax.tolist()
    end = next((p for p, token in enumerate(ids) if token in spec.end_ids), None)
    if end is None:
        return Commit(canvas_ids=tuple(ids), token_ids=tuple(ids), ended=False)
    padding = [spec.pad_id] * (len(ids) - end - 1)
    return Commit(
        canvas_ids=tuple(ids[: end + 1] + padding), token_ids=tuple(ids[:end]), ended=True
    )


def _keys(canvases: Sequence[Canvas], purpose: Purpose) -> Tensor:
    return stream_keys(
        [canvas.seed for canvas in canvases],
        [canvas.index for canvas in canvases],
        [canvas.step for canvas in canvases],
        purpose,
        canvases[0].ids.device,
        [canvas.attempt for canvas in canvases],
    )
