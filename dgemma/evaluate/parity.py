"""Parity with `transformers`: one step and one generation of both programs on the same files.

The reference draws from torch's global generator; for the comparison its two draws are replaced by
our counter-based ones. Knows the reference's interface. `transformers` is an optional dependency,
imported when the comparison runs.
Source of the reference's order of draws: `transformers` 5.17 `generation_diffusion_gemma.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from dgemma.diffusion.generate import generate
from dgemma.diffusion.random import Purpose, stream_keys, uniform_ids, uniforms
from dgemma.errors import MissingExtra
from dgemma.llm import LLM
from dgemma.types import RELEASED, SamplingParams
from dgemma.weights.files import read_json

CANVASES = 2
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}
"""Largest difference of logits, relative to their scale."""
TINY_VISION = {
    "model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 16, "head_dim": 16,
    "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
}  # fmt: skip
"""The reference insists on a vision part; a checkpoint without one gets this, unused."""


def reference_model(directory: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """The checkpoint loaded by `transformers` itself, eager attention and experts.

    Raises:
        MissingExtra: `transformers` is not installed.
    """
    try:
        from transformers import DiffusionGemmaConfig
        from transformers.models.diffusion_gemma.modeling_diffusion_gemma import (
            DiffusionGemmaForBlockDiffusion,
        )
    except ImportError as error:
        raise MissingExtra("parity needs transformers 5.17: pip install 'dgemma[check]'") from error
    values = read_json(directory / "config.json")
    if values.get("vision_config") is None:
        values["vision_config"] = dict(TINY_VISION)
    config = DiffusionGemmaConfig.from_dict(values)
    model: Any = DiffusionGemmaForBlockDiffusion.from_pretrained(
        str(directory), config=config, dtype=dtype, local_files_only=True,
        attn_implementation="eager", experts_implementation="eager",
    )  # fmt: skip
    return model.to(device).eval()


class Draws:
    """Stands in for `torch.randint` and `torch.multinomial` in the reference's loop.

    The reference draws once a canvas (its first noise) and twice a step (sample, then noise).
    """

    def __init__(self, seed: int, vocab_size: int) -> None:
        self.seed, self.vocab_size = seed, vocab_size
        self.canvas, self.step, self.sampled = -1, 0, False

    def _keys(self, purpose: Purpose, device: torch.device) -> Tensor:
        return stream_keys([self.seed], [self.canvas], [self.step], purpose, device)

    def randint(self, low: int, high: int, size: tuple[int, int], device: Any) -> Tensor:
        """Noise: START at a canvas's beginning, else NOISE of this step."""
        assert (low, high) == (0, self.vocab_size)
        if self.sampled:
            out = uniform_ids(self._keys(Purpose.NOISE, device), size[1], high)
            self.step, self.sampled = self.step + 1, False
            return out
        self.canvas, self.step = self.canvas + 1, 0
        return uniform_ids(self._keys(Purpose.START, device), size[1], high)

    def multinomial(self, probs: Tensor, num_samples: int) -> Tensor:
        """Inverse CDF in fp64 at our uniforms."""
        assert num_samples == 1
        self.sampled = True
        keys = uniforms(self._keys(Purpose.SAMPLE, probs.device), probs.shape[0])
        reached = probs.double().cumsum(-1)
        target = keys.flatten().double() * reached[:, -1]
        return torch.searchsorted(reached, target[:, None], right=True)


@contextmanager
def replaced_draws(draws: Draws) -> Iterator[None]:
    """Put `draws` in the place of torch's own."""
    with (
        mock.patch.object(torch, "randint", draws.randint),
        mock.patch.object(torch, "multinomial", draws.multinomial),
    ):
        yield


def reference_canvases(
    model: Any, prompt: list[int], params: SamplingParams, canvases: int, end_ids: tuple[int, ...]
) -> tuple[list[int], int]:
    """All committed ids of the reference's own `generate`, and its number of denoising steps."""
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
        DiffusionGemmaGenerationConfig,
        EntropyBoundSamplerConfig,
    )

    full = params.merged(RELEASED)
    assert full.seed is not None and full.entropy_bound is not None
    steps = 0
    forward = model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        return forward(*args, **kwargs)

    make: Any = DiffusionGemmaGenerationConfig
    config = make(
        max_new_tokens=canvases * model.config.canvas_length,
        max_denoising_steps=full.max_steps,
        sampler_config=EntropyBoundSamplerConfig(entropy_bound=full.entropy_bound),
        t_min=full.t_min,
        t_max=full.t_max,
        stability_threshold=full.stability_threshold,
        confidence_threshold=full.confidence_threshold,
        eos_token_id=list(end_ids) or None,
        pad_token_id=0,
    )
    ids = torch.tensor([prompt], device=model.device)
    model.forward = counted
    try:
        with replaced_draws(Draws(full.seed, model.config.text_config.vocab_size)):
            out = model.generate(ids, generation_config=config)
    finally:
        model.forward = forward
    return out.sequences[0, len(prompt) :].tolist(), steps


@torch.inference_mode()
def our_canvases(
    llm: LLM, prompt: list[int], params: SamplingParams, canvases: int
) -> tuple[list[int], int]:
    """The same by our reference loop, nothing suppressed."""
    model = llm.model
    spec = replace(llm.engine.spec, suppress_ids=())
    cache = model.new_cache(1, spec.context_length)
    made = generate(
        prompt,
        replace(params, max_tokens=canvases * spec.length),
        spec,
        lambda ids: model.encode(ids, cache),
        lambda ids, soft: model.denoise(ids, cache, soft),
        llm.engine.vocabulary.read,
    )
    ids = [i for canvas in made.canvases for i in canvas]
    return ids, sum(made.steps)


def compare(llm: LLM, prompt: str, seed: int) -> dict[str, Any]:
    """One step's logits and one generation by both programs.

    Returns:
        "step_difference" (relative to the largest logit), "tolerance", "same_steps",
        "same_tokens", "differing_tokens" and "passed". In 16 bit only the step decides, since
        rounding may turn a token.
    """
    model, dtype, device = llm.model, llm.choice.dtype, llm.choice.device
    reference = reference_model(llm.checkpoint.directory, dtype, device)
    ids = llm.prompt_ids(prompt) if llm.tokenizer is not None else [llm.config.bos_token_id or 0]
    generator = torch.Generator().manual_seed(seed)
    size = (1, llm.config.canvas_length)
    canvas = torch.randint(llm.config.vocab_size, size, generator=generator).to(device)
    with torch.inference_mode():
        cache = model.new_cache(1, len(ids) + 1 + llm.config.canvas_length)
        tokens = torch.tensor([ids], device=device)
        model.encode(tokens, cache)
        ours = model.logits(model.denoise(canvas, cache))
        theirs = reference(input_ids=tokens, decoder_input_ids=canvas).logits.float()
    difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    params = SamplingParams(seed=seed)
    mine, my_steps = our_canvases(llm, ids, params, CANVASES)
    other, other_steps = reference_canvases(
        reference, ids, params, CANVASES, llm.engine.spec.end_ids
    )
    differing = sum(a != b for a, b in zip(mine, other, strict=False)) + abs(len(mine) - len(other))
    step_holds = difference <= TOLERANCE[dtype]
    exact = dtype != torch.float32 or (differing == 0 and my_steps == other_steps)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "step_difference": difference,
        "tolerance": TOLERANCE[dtype],
        "same_steps": my_steps == other_steps,
        "same_tokens": differing == 0,
        "differing_tokens": differing,
        "passed": step_holds and exact,
    }
