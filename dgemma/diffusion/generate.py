"""The reference: one request from prompt to answer. Read this file first.

The network and the vocabulary operation are handed in. Users run the engine instead; the engine,
its kernels and every quantised path are tested against this loop: same seed, same tokens.
Knows nothing about batches, cached keys, text or stop strings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dgemma.diffusion.canvas import Canvas, CanvasSpec, Commit, Generation, trace_step
from dgemma.diffusion.sampler import finish, questions, start, step
from dgemma.diffusion.schedule import Schedule
from dgemma.diffusion.thought import budget_exceeded
from dgemma.errors import EngineError
from dgemma.kernels.controls import Controls
from dgemma.kernels.reading import Reading
from dgemma.types import SamplingParams, ThoughtIds, TraceStep

Encode = Callable[[Tensor], Tensor]  # ids [1, T] -> hidden [1, T, D]; appends to the context
Predict = Callable[[Tensor, Tensor | None], Tensor]  # ids [B, C], soft [B, C, D] -> [B, C, D]
Read = Callable[[Tensor, Tensor, Tensor, Controls], Reading]  # hidden [N, D], t [N], keys [N]


@torch.no_grad()
def generate(
    prompt: Sequence[int],
    params: SamplingParams,
    spec: CanvasSpec,
    encode: Encode,
    predict: Predict,
    read: Read,
    thought: ThoughtIds | None = None,
) -> Generation:
    """Canvas after canvas until an end id, `max_tokens` or the end of the context.

    Fields of `params` that are None take the released values, but the seed must be set.
    `thought` is needed for a thinking budget; see `CanvasSpec` for `spec`.

    Raises:
        InvalidRequest: the prompt is empty, or leaves no room for a canvas (`ContextOverflow`).
        EngineError: the network returned numbers that are not finite.
    """
    spec = spec.narrowed(params)
    spec.check_room(prompt, spec.length)
    assert params.seed is not None and (thought or params.thinking_budget is None)
    schedule, limit = Schedule.of(params), params.max_tokens or spec.context_length
    pending, answer = list(prompt), list[int]()  # ids to encode next, ids of the answer so far
    commits, trace = list[Commit](), list[TraceStep]()
    while len(answer) < limit and not (commits and commits[-1].ended):
        if thought and budget_exceeded(answer, thought, params.thinking_budget):
            answer.append(thought.close_id)
            pending.append(thought.close_id)
        if len(prompt) + len(answer) + spec.length > spec.context_length:
            break
        encode(torch.tensor([pending], device=spec.device))
        canvas = start(params.seed, len(commits), spec)
        while not canvas.reason:
            before, canvas = canvas, denoise(canvas, schedule, spec, predict, read)
            trace.append(trace_step(before, canvas, schedule))
        commits.append(finish(canvas, spec))
        pending = list(commits[-1].token_ids)
        answer += pending
    return Generation.of(answer, limit, commits, trace)


def denoise(
    canvas: Canvas, schedule: Schedule, spec: CanvasSpec, predict: Predict, read: Read
) -> Canvas:
    """One step: the network looks at the canvas, the vocabulary is read, the sampler decides."""
    controls = Controls(suppress_ids=spec.suppress_ids)
    soft = None if canvas.soft is None else canvas.soft[None]
    hidden = predict(canvas.ids[None], soft)[0]  # [C, D]
    reading = read(hidden, *questions([canvas], [schedule]), controls)
    after = step(canvas, reading, schedule, spec)
    if after.failed:
        raise EngineError(f"canvas {canvas.index}, step {canvas.step}: not finite")
    return after
