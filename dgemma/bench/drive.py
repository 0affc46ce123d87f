"""Runs requests step by step on the engine that users run, and times every step.

All requests have prompts of one length, so they encode together and denoise together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dgemma.bench.clock import now_ms
from dgemma.bench.report import Report
from dgemma.bench.stats import median
from dgemma.errors import EngineError, InvalidRequest
from dgemma.kernels.attention import choose_path
from dgemma.llm import LLM, load
from dgemma.loading import load_model
from dgemma.model.config import ModelConfig
from dgemma.params import SamplingParams
from dgemma.tasks import TASKS, make_example
from dgemma.types import Output, Request

Around = Callable[[int], Any]
"""From a denoising step's number to a context manager that is entered around it."""


@dataclass(frozen=True)
class Timeline:
    """The times of a run.

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
        """The cost of the prompt: the time of the first frame beyond that of a step without it."""
        return max(0.0, self.first_frame_ms - median(self.steady_ms))

    @property
    def steady_ms(self) -> list[float]:
        """The steps without the first of the canvas (the first of all if there is no other)."""
        return self.step_ms[1:] or self.step_ms


@dataclass(frozen=True)
class Where:
    """Which model is measured, and where and how it runs; see `dgemma.llm.load`.

    Attributes:
        threads: None: torch's own choice.
        command: the command that asks for the measurement.
        attention: the path; see `dgemma.llm.load`.
    """

    model: str
    device: str
    dtype: str
    threads: int | None
    strict: bool
    command: str = ""
    attention: str = "auto"

    def open(self) -> LLM:
        """Load it."""
        self.set_threads()
        return load(
            self.model, device=self.device, dtype=self.dtype, strict=self.strict,
            attention=self.attention,
        )  # fmt: skip

    def set_threads(self) -> None:
        """Give this process the number of threads."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def resolved(self) -> tuple[Path, str, str]:
        """The model, and the device and dtype that loading would choose; no weights are read."""
        found = load_model(
            self.model, device=self.device, dtype=self.dtype, strict=self.strict, weights=False
        )
        place, number = str(found.choice.device), str(found.choice.dtype)
        return found.checkpoint.path, place, number.removeprefix("torch.")

    def subject(self, config: ModelConfig, device: object, dtype: object) -> dict[str, str]:
        """The model, its sizes, device, dtype and attention path, for a report."""
        full = config.layer_types.count("full_attention")
        return {
            "model": self.model,
            "sizes": (
                f"hidden {config.hidden_size}, {config.num_layers} layers ({full} full), "
                f"{config.num_experts} experts x {config.moe_intermediate_size} top "
                f"{config.top_k_experts}, vocabulary {config.vocab_size:,}, "
                f"canvas {config.canvas_length}, window {config.sliding_window}"
            ),
            "device": str(device),
            "dtype": str(dtype).removeprefix("torch."),
            "attention": choose_path(torch.device(str(device)), path=self.attention)[0],
        }

    def report(self, title: str, llm: LLM, *found: Any) -> Report:
        """A report on a loaded model; `found` are its tables, values and notes."""
        about = self.subject(llm.config, llm.choice.device, llm.choice.dtype)
        return Report(title, self.command, about, *found)


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


def example_ids(llm: LLM, number: int) -> tuple[int, ...]:
    """A held-out example under the chat template; random ids where the model has none."""
    if llm.template is None:
        return prompt_ids(llm.config, 64, number)
    example = make_example(TASKS[number % len(TASKS)], "heldout", 1, number)
    return tuple(llm.chat_ids(example.messages, list(example.tools) or None, False))


def finished(output: Output) -> Output:
    """The output of a request that was not broken off by a fault.

    Raises:
        EngineError: it was.
    """
    if output.error:
        raise EngineError(f"the run failed: {output.error}")
    return output


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
        outputs = [finished(event.output) for stream in streams for event in stream if event.output]
    finally:
        for stream in streams:
            stream.close()
    # One step more or less would mean that a pass was taken for the wrong phase.
    assert [output.usage.steps for output in outputs] == [steps] * len(prompts)
    return Timeline(encode_ms, step_ms)
