"""Parity with `transformers`: one step and one generation of both programs on the same files.

The reference draws from torch's global generator; for the comparison its two draws are replaced by
our counter-based ones. Knows the reference's interface. `transformers` is an optional dependency,
imported when the comparison runs.
Source of the reference's order of draws: `transformers` 5.17 `generation_diffusion_gemma.py`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from dgemma.diffusion.canvas import Generation
from dgemma.diffusion.generate import generate
from dgemma.diffusion.random import Purpose, stream_keys, uniform_ids, uniforms
from dgemma.diffusion.schedule import Schedule
from dgemma.errors import CheckpointError, MissingExtra
from dgemma.llm import LLM
from dgemma.model.config import ModelConfig
from dgemma.params import SamplingParams
from dgemma.weights.files import read_json

TINY_VISION = {
    "model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 16, "head_dim": 16,
    "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
}  # fmt: skip
"""The reference insists on a vision part; a checkpoint without one gets this, unused."""
EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}
GATHERED_BYTES = 10**9
"""Its batched experts copy the weights of every token's experts: up to this size they are used."""


@contextmanager
def quiet() -> Iterator[None]:
    """No tables, bars and warnings of `transformers`: what it says of a checkpoint is not ours."""
    try:
        from transformers.utils import logging as theirs
    except ImportError as error:
        raise MissingExtra("transformers 5.17 is needed: pip install 'dgemma[check]'") from error
    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.CRITICAL)
    theirs.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()  # type: ignore[no-untyped-call]


def other_kernels(config: ModelConfig, prompt: int) -> list[dict[str, str]]:
    """Kernels of the reference that compute the same as `EAGER` and round otherwise."""
    gathered = 3 * config.hidden_size * config.moe_intermediate_size * config.top_k_experts
    gathered *= 4 * max(prompt, config.canvas_length)
    experts = ["eager"] if gathered > GATHERED_BYTES else ["eager", "batched_mm"]
    found = [(a, e) for a in ("sdpa", "eager") for e in experts]
    names = ("attn_implementation", "experts_implementation")
    return [dict(zip(names, pair, strict=True)) for pair in found if pair != ("eager", "eager")]


def use_kernels(model: Any, kernels: dict[str, str]) -> None:
    """Switch a model of the reference to other kernels; the weights stay."""
    model.set_attn_implementation(kernels["attn_implementation"])
    model.set_experts_implementation(kernels["experts_implementation"])


def check_comparable(path: Path) -> None:
    """
    Raises:
        CheckpointError: the reference cannot read this checkpoint.
    """
    if path.is_file():
        raise CheckpointError(
            f"{path} is a GGUF file, which transformers does not read for this model; compare the "
            "16-bit checkpoint that it was made from"
        )


def reference_model(
    directory: Any, dtype: torch.dtype, device: torch.device, *, eager: bool = True
) -> Any:
    """The checkpoint loaded by `transformers` itself.

    Args:
        eager: with plain attention and experts, or with the kernels that it chooses itself.

    Raises:
        MissingExtra: `transformers` is not installed.
        CheckpointError: see `check_comparable`.
    """
    check_comparable(directory)
    try:
        from transformers import DiffusionGemmaConfig
        from transformers.models.diffusion_gemma.modeling_diffusion_gemma import (
            DiffusionGemmaForBlockDiffusion,
        )
    except ImportError as error:
        raise MissingExtra("transformers 5.17 is needed: pip install 'dgemma[check]'") from error
    values = read_json(directory / "config.json")
    if values.get("vision_config") is None:
        values["vision_config"] = dict(TINY_VISION)
    config = DiffusionGemmaConfig.from_dict(values)
    kernels: dict[str, Any] = {**EAGER} if eager else {}
    model: Any = DiffusionGemmaForBlockDiffusion.from_pretrained(
        str(directory), config=config, dtype=dtype, local_files_only=True, **kernels
    )
    return model.to(device).eval()


class Draws:
    """Stands in for torch's global generator in the reference's loop, in its order of draws.

    The reference draws once a canvas (its first noise) and twice a step (sample, then noise), for
    all rows of the batch at once.
    """

    def __init__(self, seeds: Sequence[int], vocab_size: int) -> None:
        self.seeds, self.vocab_size = list(seeds), vocab_size
        self.canvas, self.step, self.sampled = -1, 0, False

    def _keys(self, purpose: Purpose, device: torch.device) -> Tensor:
        rows = len(self.seeds)
        return stream_keys(self.seeds, [self.canvas] * rows, [self.step] * rows, purpose, device)

    def randint(self, low: int, high: int, size: tuple[int, int], device: Any) -> Tensor:
        """Noise: START at a canvas's beginning, else NOISE of this step."""
        assert (low, high, size[0]) == (0, self.vocab_size, len(self.seeds))
        if self.sampled:
            out = uniform_ids(self._keys(Purpose.NOISE, device), size[1], high)
            self.step, self.sampled = self.step + 1, False
            return out
        self.canvas, self.step = self.canvas + 1, 0
        return uniform_ids(self._keys(Purpose.START, device), size[1], high)

    def multinomial(self, probs: Tensor, num_samples: int) -> Tensor:
        """Plain inverse CDF in fp64, written without the blocks of `kernels/head`."""
        assert num_samples == 1 and not self.sampled
        self.sampled = True
        keys = uniforms(self._keys(Purpose.SAMPLE, probs.device), len(probs) // len(self.seeds))
        reached = probs.double().cumsum(-1)
        target = keys.flatten().double() * reached[:, -1]
        return torch.searchsorted(reached, target[:, None], right=True)


class _Drafts:
    """A streamer that keeps the draft of every step."""

    def __init__(self) -> None:
        self.drafts: list[list[Tensor]] = [[]]

    def put(self, value: Tensor) -> None:
        self.drafts.append([])

    def put_draft(self, value: Tensor) -> None:
        self.drafts[-1].append(value)

    def end(self) -> None:
        pass


@dataclass
class ReferenceRun:
    """What the reference's loop did.

    Attributes:
        ids: [B, canvases * C], the whole committed canvases.
        read: for each canvas, the canvases [B, C] its network read, step after step.
        drafts: likewise the argmax canvases after each step.
    """

    ids: Tensor
    read: list[list[Tensor]] = field(default_factory=list)
    drafts: list[list[Tensor]] = field(default_factory=list)

    @property
    def steps(self) -> tuple[int, ...]:
        """Denoising steps of each canvas."""
        return tuple(len(drafts) for drafts in self.drafts)


def reference_config(schedule: Schedule, max_new_tokens: int, **more: Any) -> Any:
    """The generation config of the reference for a schedule of ours."""
    from transformers.models.diffusion_gemma import generation_diffusion_gemma as reference

    make: Any = reference.DiffusionGemmaGenerationConfig
    return make(
        max_new_tokens=max_new_tokens,
        max_denoising_steps=schedule.max_steps,
        sampler_config=reference.EntropyBoundSamplerConfig(entropy_bound=schedule.entropy_bound),
        t_min=schedule.t_min,
        t_max=schedule.t_max,
        stability_threshold=schedule.stability_threshold,
        confidence_threshold=schedule.confidence_threshold,
        **more,
    )


def reference_generate(
    model: Any,
    prompt: Tensor,
    seeds: Sequence[int],
    schedule: Schedule,
    *,
    canvases: int,
    end_ids: Sequence[int],
    pad_id: int = 0,
    on_step: Callable[[int], None] = lambda done: None,
) -> ReferenceRun:
    """The reference's own `generate` on prompts [B, T] with our draws for `seeds`, one a row.

    `on_step` is called with the number of steps so far, before each.
    """
    draws, streamer = Draws(seeds, model.config.text_config.vocab_size), _Drafts()
    inputs: list[Tensor] = []
    forward, begun = model.forward, count()

    def watched(*args: Any, **kwargs: Any) -> Any:
        on_step(next(begun))
        inputs.append(kwargs["decoder_input_ids"].clone())
        return forward(*args, **kwargs)

    config = reference_config(
        schedule,
        canvases * model.config.canvas_length,
        # None would fall back to the checkpoint's end ids; this one is in no canvas.
        eos_token_id=list(end_ids) or [draws.vocab_size],
        pad_token_id=pad_id,
    )
    with (
        mock.patch.object(torch, "randint", draws.randint),
        mock.patch.object(torch, "multinomial", draws.multinomial),
        mock.patch.object(model, "forward", watched),
        # Without a compiled sampler it does nothing but import torch's compiler, for seconds.
        mock.patch.object(torch.compiler, "cudagraph_mark_step_begin", lambda: None),
    ):
        out = model.generate(prompt, generation_config=config, streamer=streamer)
    run = ReferenceRun(out.sequences[:, prompt.shape[1] :])
    run.drafts = [part for part in streamer.drafts if part]
    for part in run.drafts:
        run.read.append(inputs[: len(part)])
        inputs = inputs[len(part) :]
    assert not inputs, "a forward without a draft: the reference's loop is not the one we know"
    return run


@torch.inference_mode()
def our_generate(
    llm: LLM,
    prompt: Sequence[int],
    params: SamplingParams,
    *,
    canvases: int,
    end_ids: Sequence[int] | None = None,
    on_step: Callable[[int], None] = lambda done: None,
) -> Generation:
    """The same by our reference loop, nothing suppressed; `end_ids` None: the checkpoint's."""
    model, spec = llm.model, replace(llm.engine.spec, suppress_ids=())
    if end_ids is not None:
        spec = replace(spec, end_ids=tuple(end_ids))
    cache, begun = model.new_cache(1, spec.context_length), count()

    def denoise(ids: Tensor, soft: Tensor | None) -> Tensor:
        on_step(next(begun))
        return model.denoise(ids, cache, soft)

    return generate(
        prompt,
        replace(params, max_tokens=canvases * spec.length).merged(llm.defaults),
        spec,
        lambda ids: model.encode(ids, cache),
        denoise,
        model.head.read,
    )
