"""The reference: one request from prompt to answer. Read this file first.

The network and the head are arguments, and so is the grammar of a constrained answer.
Users run the engine instead; the engine, its kernels and every quantised path are tested against
this loop: same seed, same tokens. Knows nothing about batches, cached keys, text or stop strings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from dgemma.diffusion.canvas import Canvas, CanvasSpec, Commit, Generation, trace_step
from dgemma.diffusion.constrained import ConstrainedAnswer
from dgemma.diffusion.control import EMPTY_PREFIX, begin, controls_for
from dgemma.diffusion.edits import edited_tries
from dgemma.diffusion.sampler import finish, sampling_inputs, step
from dgemma.diffusion.schedule import Schedule
from dgemma.diffusion.stable import pin_prefix
from dgemma.diffusion.thought import budget_exceeded
from dgemma.diffusion.tries import Try, advance, alone, first_tries
from dgemma.errors import EngineError
from dgemma.kernels.controls import Controls
from dgemma.kernels.head import Head
from dgemma.kernels.head_output import HeadOutput
from dgemma.matcher import run_search
from dgemma.params import SamplingParams
from dgemma.request_parts import ThoughtIds
from dgemma.types import CanvasControl, CanvasEdit, TraceStep

Encode = Callable[[Tensor], Tensor]  # ids [1, T] -> hidden [1, T, D]; appends to the context
Predict = Callable[[Tensor, Tensor | None], Tensor]  # ids [B, C], soft [B, C, D] -> [B, C, D]
Read = Callable[[Tensor, Tensor, Tensor, Controls], HeadOutput]  # hidden [N, D], t [N], keys [N]


@torch.no_grad()
def generate(
    prompt: Sequence[int], params: SamplingParams, spec: CanvasSpec,
    encode: Encode, predict: Predict, read: Read,
    thought: ThoughtIds | None = None, control: CanvasControl | None = None,
    constrained: ConstrainedAnswer | None = None, head: Head | None = None,
    edits: Sequence[CanvasEdit] = (),
) -> Generation:  # fmt: skip
    """Canvas after canvas until an end id, `max_tokens` or the end of the context.

    Fields of `params` that are None take the released values, but the seed must be set.
    `thought` is needed for a thinking budget; `control` holds on the first canvas; `constrained`
    keeps the answer in its grammar and needs the whole `head`, as do `stable_prefix` and `edits` of
    canvases between two steps. See `CanvasSpec` for `spec`.

    Raises:
        InvalidRequest: the prompt is empty, or leaves no room for a canvas (`ContextOverflow`).
        EngineError: the network returned numbers that are not finite.
    """
    spec = spec.narrowed(params)
    spec.check_room(prompt, spec.length)
    assert params.seed is not None and (thought or params.thinking_budget is None)
    schedule, limit = Schedule.of(params), params.max_tokens or spec.context_length
    assert head or not (schedule.stable_prefix or edits)
    pending, answer = list(prompt), list[int]()  # ids to encode next, ids of the answer so far
    commits, trace, discarded = list[Commit](), list[TraceStep](), 0
    while len(answer) < limit and not (commits and commits[-1].ended):
        if thought and budget_exceeded(answer, thought, params.thinking_budget):
            answer.append(thought.close_id)
            pending.append(thought.close_id)
        left = spec.context_length - len(prompt) - len(answer)
        if left < spec.length:
            break
        encode(torch.tensor([pending], device=spec.device))
        frame = constrained.prefix(spec.length, control) if constrained else EMPTY_PREFIX
        controls = controls_for(params, spec, control, len(answer), frame)
        fresh = partial(begin, params.seed, len(commits), spec, schedule, controls, control)
        tries, commit = first_tries(schedule, fresh), None
        while commit is None:
            if edits and head:
                tries = edited_tries(tries, edits, schedule, spec, head.embed)
            after = [denoise(c, schedule, spec, predict, read, head) for c in tries.running]
            tries = advance(tries, after, schedule, spec, fresh)
            before, shown = tries.shown
            trace.append(trace_step(before, shown, schedule))
            if tries.finished is None:
                continue
            discarded += tries.discarded
            canvas, hidden = tries.finished.canvas, tries.finished.hidden
            room = min(limit - len(answer), left // spec.length * spec.length)
            resolved: Canvas | Commit = finish(canvas, spec)
            if constrained and head:
                resolved = run_search(constrained.resolve(canvas, hidden, head, spec, room))
            if isinstance(resolved, Canvas):
                tries = alone(resolved)  # to be repaired
            else:
                commit = resolved
        commits.append(commit)
        pending, control = list(commits[-1].token_ids), None
        answer += pending
    ended = bool(commits) and commits[-1].ended and len(answer) <= limit
    return Generation(
        token_ids=tuple(answer[:limit]),
        finish_reason="stop" if ended else "length",
        canvases=tuple(commit.canvas_ids for commit in commits),
        steps=tuple(sum(t.canvas == c for t in trace) for c in range(len(commits))),
        trace=tuple(trace),
        discarded_steps=discarded,
    )


def denoise(
    canvas: Canvas, schedule: Schedule, spec: CanvasSpec, predict: Predict, read: Read,
    head: Head | None = None,
) -> Try:  # fmt: skip
    """One step: the network looks at the canvas, the vocabulary is read, the sampler decides."""
    controls = replace(canvas.controls, suppress_ids=spec.suppress_ids)
    soft = None if canvas.soft is None else canvas.soft[None]
    hidden = predict(canvas.ids[None], soft)[0]  # [C, D]
    head_output = read(hidden, *sampling_inputs([canvas], [schedule]), controls)
    after = step(canvas, head_output, schedule, spec)
    if after.failed:
        raise EngineError(f"canvas {canvas.index}, step {canvas.step}: not finite")
    if head:
        after = pin_prefix(canvas, after, schedule, spec, head.embed)
    return Try(after, hidden)
