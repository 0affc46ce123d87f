"""Parity with `transformers`: one step and one generation of both programs on the same files.

The reference draws from torch's global generator; for the comparison its two draws are replaced by
our counter-based ones. Knows the reference's interface. `transformers` is an optional dependency,
imported when the comparison runs.
Source of the reference's order of draws: `transformers` 5.17 `generation_diffusion_gemma.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from dgemma.diffusion.canvas import Generation
from dgemma.diffusion.generate import generate
from dgemma.diffusion.random import Purpose, stream_keys, uniform_ids, uniforms
from dgemma.diffusion.schedule import Schedule
from dgemma.errors import MissingExtra
from dgemma.llm import LLM
from dgemma.params import SamplingParams
from dgemma.weights.files import read_json

CANVASES = 2
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}
"""Largest difference of logits, relative to their scale."""
TINY_VISION = {
    "model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 16, "head_dim": 16,
    "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
}  # fmt: skip
"""The reference insists on a vision part; a checkpoint without one gets this, unused."""
EAGER: dict[str, Any] = {"attn_implementation": "eager", "experts_implementation": "eager"}


def reference_model(
    directory: Any, dtype: torch.dtype, device: torch.device, *, eager: bool = True
) -> Any:
    """The checkpoint loaded by `transformers` itself.

    Args:
        eager: with plain attention and experts, or with the kernels that it chooses itself.

    Raises:
        MissingExtra: `transformers` is not installed.
    """
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
    kernels = EAGER if eager else {}
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
) -> ReferenceRun:
    """The reference's own `generate` on prompts [B, T] with our draws for `seeds`, one a row."""
    draws, streamer = Draws(seeds, model.config.text_config.vocab_size), _Drafts()
    inputs: list[Tensor] = []
    forward = model.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
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
) -> Generation:
    """The same by our reference loop, nothing suppressed; `end_ids` None: the checkpoint's."""
    model, spec = llm.model, replace(llm.engine.spec, suppress_ids=())
    if end_ids is not None:
        spec = replace(spec, end_ids=tuple(end_ids))
    cache = model.new_cache(1, spec.context_length)
    return generate(
        prompt,
        replace(params, max_tokens=canvases * spec.length).merged(llm.defaults),
        spec,
        lambda ids: model.encode(ids, cache),
        lambda ids, soft: model.denoise(ids, cache, soft),
        model.head.read,
    )


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
        ours = model.head.logits(model.denoise(canvas, cache))
        theirs = reference(input_ids=tokens, decoder_input_ids=canvas).logits.float()
    difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    params = SamplingParams(seed=seed).merged(llm.defaults)
    made = our_generate(llm, ids, params, canvases=CANVASES)
    run = reference_generate(
        reference, tokens, [seed], Schedule.of(params), canvases=CANVASES,
        end_ids=llm.engine.spec.end_ids, pad_id=llm.engine.spec.pad_id,
    )  # fmt: skip
    mine, other = [i for canvas in made.canvases for i in canvas], run.ids[0].tolist()
    differing = sum(a != b for a, b in zip(mine, other, strict=False)) + abs(len(mine) - len(other))
    step_holds = difference <= TOLERANCE[dtype]
    exact = dtype != torch.float32 or (differing == 0 and made.steps == run.steps)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "step_difference": difference,
        "tolerance": TOLERANCE[dtype],
        "same_steps": made.steps == run.steps,
        "same_tokens": differing == 0,
        "differing_tokens": differing,
        "passed": step_holds and exact,
    }
