"""Runs requests step by step on the engine that users run, and times every step.

Knows which steps encode and which denoise: all requests have prompts of one length, so they are in
one phase together. Knows nothing about reports or about other programs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dgemma.bench.clock import now_ms
from dgemma.bench.stats import median
from dgemma.device import choose
from dgemma.errors import EngineError, InvalidRequest
from dgemma.llm import LLM, load
from dgemma.model.config import LayerType, ModelConfig
from dgemma.model.size import measure
from dgemma.params import SamplingParams
from dgemma.types import Request
from dgemma.weights.files import find_model, open_checkpoint

Around = Callable[[int], Any]
"""From a denoising step's number to a context manager that is entered around it."""


@dataclass(frozen=True)
class Timeline:
    """What a run took.

    Attributes:
        encode_ms: the passes that only encode; the last piece of a prompt goes with the first step.
        step_ms: of each pass with a denoising step; the first has no belief to take in, the last
            commits.
    """

    encode_ms: float
    step_ms: list[float]

    @property
    def first_frame_ms(self) -> float:
        """From nothing to the end of the first step."""
        return self.encode_ms + self.step_ms[0]

    @property
    def prefill_ms(self) -> float:
        """What the prompt cost: the time of the first frame beyond that of a step without it."""
        return max(0.0, self.first_frame_ms - median(self.steady_ms))

    @property
    def steady_ms(self) -> list[float]:
        """The steps without the first of the canvas (the first of all where there is no other)."""
        return self.step_ms[1:] or self.step_ms


def open_llm(model: str, device: str, dtype: str, threads: int | None, strict: bool) -> LLM:
    """Load a model with a number of threads (None: torch's own)."""
    if threads is not None:
        torch.set_num_threads(threads)
    return load(model, device=device, dtype=dtype, strict=strict)


def resolved(model: str, device: str, dtype: str, strict: bool) -> tuple[Path, str, str]:
    """Directory, device and dtype that loading would choose; no weights are read."""
    directory, _ = find_model(model)
    checkpoint = open_checkpoint(directory, strict=strict)
    choice = choose(device, dtype, measure(checkpoint.config).parameters, checkpoint.dtype)
    return directory, str(choice.device), str(choice.dtype).removeprefix("torch.")


def prompt_ids(config: ModelConfig, length: int, seed: int = 0) -> tuple[int, ...]:
    """Random ids, never an image's, a beginning's or an end's.

    Raises:
        InvalidRequest: the context has no room for them and a canvas.
    """
    most = config.max_position_embeddings - config.canvas_length
    if not 1 <= length <= most:
        raise InvalidRequest(f"a prompt of {length} tokens: this model takes 1 to {most}")
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, config.vocab_size, (length,), generator=generator)
    ids[ids == (-1 if config.image_token_id is None else config.image_token_id)] = 3
    return tuple(ids.tolist())


def run(
    llm: LLM, prompts: Sequence[Sequence[int]], steps: int, around: Around | None = None
) -> Timeline:
    """One canvas for each prompt, all of its steps, no early stop.

    Args:
        llm: idle.
        prompts: of one length.
        steps: denoising steps.
        around: see `Around`.

    Raises:
        EngineError: a request failed.
    """
    assert len({len(prompt) for prompt in prompts}) == 1
    engine, device = llm.engine, llm.choice.device
    params = SamplingParams(
        seed=0, max_steps=steps, confidence_threshold=0.0, max_tokens=engine.spec.length
    )
    engine.forget()  # a prompt that was measured before must be encoded again
    streams = [engine.submit(Request(token_ids=tuple(p), params=params)) for p in prompts]
    try:
        start = now_ms(device)
        for _ in range(-(-len(prompts[0]) // engine.chunk) - 1):
            engine.step()
        encode_ms = now_ms(device) - start
        step_ms = []
        for number in range(steps):
            with ExitStack() as stack:
                if around is not None:
                    stack.enter_context(around(number))
                start = now_ms(device)
                engine.step()
                step_ms.append(now_ms(device) - start)
        outputs = [event.output for stream in streams for event in stream if event.output]
    finally:
        for stream in streams:
            stream.close()
    for output in outputs:
        if output.error:
            raise EngineError(f"the run failed: {output.error}")
    # One step more or less would mean that phases are not what this file takes them for.
    assert [output.usage.steps for output in outputs] == [steps] * len(prompts)
    return Timeline(encode_ms, step_ms)


def kinds(model: Any) -> dict[LayerType, nn.Module]:
    """The last layer of each kind that a network has."""
    return dict(zip(model.config.layer_types, model.layers, strict=True))


def stacked(llm: LLM, layer_types: Sequence[LayerType]) -> LLM:
    """The model with other layers: those of its own, each as often as asked for, weights shared.

    Raises:
        InvalidRequest: it has no layer of a kind.
    """
    have = kinds(llm.model)
    model = copy.copy(llm.model)
    model._modules = dict(llm.model._modules)
    layers = []
    for number, kind in enumerate(layer_types):
        if kind not in have:
            raise InvalidRequest(f"the model has no {kind} layer to be repeated")
        layer = copy.copy(have[kind])
        attention: Any = copy.copy(layer.attention)
        attention.layer = number
        layer._modules = {**layer._modules, "attention": attention}
        layers.append(layer)
    model.layers = nn.ModuleList(layers)
    model.config = replace(llm.config, layer_types=tuple(layer_types))
    return _with_model(llm, model)


def narrowed(llm: LLM, canvas: int) -> LLM:
    """The model with canvases of another length.

    Raises:
        InvalidRequest: it is not positive, or wider than the context.
    """
    if not 1 <= canvas < llm.config.max_position_embeddings:
        raise InvalidRequest(f"a canvas of {canvas} tokens: the model has no room for it")
    model = copy.copy(llm.model)
    model.config = replace(llm.config, canvas_length=canvas)
    return _with_model(llm, model)


def _with_model(llm: LLM, model: Any) -> LLM:
    checkpoint = replace(llm.checkpoint, config=model.config)
    return LLM(model, checkpoint, llm.choice, llm.tokenizer, llm.template)
