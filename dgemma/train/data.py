"""From examples to training batches: prompt and response ids, blocks, targets.

A response is the answer (after a thought or a tool call, if there is one) and the id that
ends the turn; the rest of its last canvas is filled with EOS, scored like the rest. A truncated
response would get no fill, but these tasks have none. Every batch is a pure function of recipe,
step and part, so training resumes exactly. Knows nothing about noise or losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dgemma.tasks.example import Example
from dgemma.text.calls import format_call
from dgemma.text.chat import ChatTemplate
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import ToolCall

Ids = NDArray[np.int64]
PAD_TO = 128
"""Padding is coarse, so that a compiled objective sees few shapes."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One example as ids: the prompt, and the response up to and including its end id.

    Attributes:
        open: positions of the response that noise may hit; None: all of the canvas.
    """

    prompt: list[int]
    response: list[int]
    open: tuple[int, ...] | None = None


def to_sample(example: Example, tokenizer: Tokenizer, template: ChatTemplate) -> Sample:
    """Render an example with the chat template; the response is in Gemma's own turn format."""
    prompt = template.encode(
        list(example.messages),
        tools=list(example.tools) or None,
        thinking=example.thinking is not None,
    )
    response: list[int] = []
    if example.thinking is not None:
        opening = tokenizer.encode("<|channel>thought\n", control=True)
        closing = tokenizer.encode("\n<channel|>", control=True)
        response += opening + tokenizer.encode(example.thinking) + closing
    if example.tool_call is not None:
        arguments = example.tool_call["arguments"]
        assert isinstance(arguments, dict)
        call = ToolCall(name=str(example.tool_call["name"]), arguments=arguments)
        text = f"<|tool_call>{format_call(call)}<tool_call|><|tool_response>"
        response += tokenizer.encode(text, control=True)
    else:
        response += tokenizer.encode(example.answer)
        response += tokenizer.encode("<turn|>", control=True)
    return Sample(prompt, response)


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """Right-padded rows for one objective.

    Attributes:
        ids: [B, S] clean tokens that are encoded; the prompt alone where `score_encoder` is False.
        prompt_lengths: [B].
        lengths: [B] real tokens of `ids`.
        targets: [B, blocks, C] clean canvases, EOS-filled.
        blocks: [B] how many canvases each response has.
        score_encoder: whether the response is encoded too, for the next-token loss.
        noise_power: see `noise.corrupt`; None: the plan's.
        canvases: noisy canvases of each row; None: as many as the plan says.
        open: bool [B, blocks, C], the positions that noise may hit; None: all.
    """

    ids: Ids
    prompt_lengths: Ids
    lengths: Ids
    targets: Ids
    blocks: Ids
    score_encoder: bool
    noise_power: float | None = None
    canvases: int | None = None
    open: NDArray[np.bool_] | None = None


def make_batch(
    samples: list[Sample], canvas: int, eos: int, pad: int, score_encoder: bool
) -> TrainingBatch:
    """Join samples. Rows are padded to a multiple of `PAD_TO` unless equally long."""
    rows = [s.prompt + s.response if score_encoder else s.prompt for s in samples]
    if not score_encoder:
        # Blocks after the first are read from the encoder, so they must have been encoded.
        assert all(len(s.response) <= canvas for s in samples)
    longest = max(len(r) for r in rows)
    width = longest if len({len(r) for r in rows}) == 1 else -(-longest // PAD_TO) * PAD_TO
    counts = [-(-len(s.response) // canvas) for s in samples]
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    targets = np.full((len(rows), max(counts) * canvas), eos, dtype=np.int64)
    for i, (row, sample) in enumerate(zip(rows, samples, strict=True)):
        ids[i, : len(row)] = row
        targets[i, : len(sample.response)] = sample.response
    scored = None
    if any(sample.open is not None for sample in samples):
        scored = np.ones(targets.shape, dtype=np.bool_)
        for i, sample in enumerate(samples):
            if sample.open is not None:
                scored[i] = False
                scored[i, list(sample.open)] = True
    return TrainingBatch(
        open=None if scored is None else scored.reshape(len(rows), -1, canvas),
        ids=ids,
        prompt_lengths=np.array([len(s.prompt) for s in samples]),
        lengths=np.array([len(r) for r in rows]),
        targets=targets.reshape(len(rows), -1, canvas),
        blocks=np.array(counts),
        score_encoder=score_encoder,
    )


BatchMaker = Callable[[int], list[TrainingBatch]]
"""From a step to the batches of that step; picklable, so that a worker process may run it."""
