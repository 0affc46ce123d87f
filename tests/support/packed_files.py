"""Checkpoints in the layouts of other programs, and the check that all of them share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dgemma.loading import load_model
from dgemma.model.config import AttentionShape, ModelConfig
from dgemma.model.hf_config import write_config
from dgemma.model.transformer import DiffusionGemma
from dgemma.weights.names import to_checkpoint
from dgemma.weights.packed import Scheme
from dgemma.weights.source import DTYPES, StoredTensor

CONFIG = ModelConfig(
    vocab_size=128,
    hidden_size=96,
    intermediate_size=80,
    moe_intermediate_size=48,
    num_experts=4,
    top_k_experts=4,  # all, so that no tie of the router can change which are computed
    num_attention_heads=4,
    layer_types=("sliding_attention", "full_attention"),
    sliding=AttentionShape(head_dim=16, num_key_value_heads=2, rope_theta=1e4),
    full=AttentionShape(
        head_dim=32, num_key_value_heads=1, rope_theta=1e6, partial_rotary_factor=0.25
    ),
    sliding_window=16,
    max_position_embeddings=512,
    canvas_length=8,
    vision=None,
)
"""Both kinds of layers; no width is a multiple of 256 or 128, as in the released model."""
NEVER_PACKED = ("norm", "router", "scalar", "self_conditioning", "embed")


def random_state(config: ModelConfig = CONFIG, seed: int = 0) -> dict[str, Tensor]:
    """Our tensors in fp32, all of them random."""
    model = DiffusionGemma(config)
    model.reset_parameters(seed)
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator) * 0.1 + (value.dim() < 2)
        for name, value in model.state_dict().items()
    }


def is_packed(name: str) -> bool:
    """Whether quantisers pack a tensor of ours: attention, MLP and experts."""
    return not any(word in name for word in NEVER_PACKED)


def modules_of(state: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
    """The linear modules that a quantiser sees, experts one by one, gate and up apart.

    Returns:
        Their names in the files (without `.weight`), our name and the matrix.
    """
    out = {}
    for name, value in filter(lambda item: is_packed(item[0]), state.items()):
        theirs = to_checkpoint(name)
        if value.dim() == 2:
            out[theirs.removesuffix(".weight")] = (name, value)
        for expert, matrix in enumerate(value if value.dim() == 3 else ()):
            base = theirs.rpartition(".")[0] + f".{expert}."
            if theirs.endswith("gate_up_proj"):
                gate, up = matrix.chunk(2)
                out |= {f"{base}gate_proj": (name, gate), f"{base}up_proj": (name, up)}
            else:
                out[f"{base}down_proj"] = (name, matrix)
    return out


def rest_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that stay plain, by their names in the files."""
    return {to_checkpoint(name): value for name, value in state.items() if not is_packed(name)}


def unpacked_state(state: Mapping[str, Tensor], numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors after packing.

    Args:
        numbers: what the codes of each module mean, by the names of `modules_of`.
    """
    pieces: dict[str, list[Tensor]] = {}
    for module, (name, _) in modules_of(state).items():
        pieces.setdefault(name, []).append(numbers[module])
    out = dict(state)
    for name, found in pieces.items():
        shape = state[name].shape
        out[name] = torch.cat([piece.view(-1, shape[-1]) for piece in found]).view(shape)
    return out


def write(
    directory: Path, tensors: Mapping[str, Tensor], extra: Mapping[str, Any],
    config: ModelConfig = CONFIG,
) -> Path:  # fmt: skip
    """A checkpoint of these very tensors; `extra` is added to its config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(write_config(config) | dict(extra)))
    save_file({n: t.contiguous() for n, t in tensors.items()}, directory / "model.safetensors")
    return directory


def unpacked(
    scheme: Scheme, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The numbers of all groups that a scheme finds, without any file."""
    words = {dtype: word for word, dtype in (DTYPES | {"F8_E4M3": torch.float8_e4m3fn}).items()}
    stored = {
        name: StoredTensor(words[value.dtype], tuple(value.shape), value.nbytes)
        for name, value in tensors.items()
    }
    found = {}
    for name, group in scheme(config, stored, tensors.__getitem__).items():
        packed = group.build(tensors.__getitem__)
        assert packed.format == group.format and packed.shape == group.shape
        found[name] = packed.dequantise()
    return found


@torch.no_grad()
def outputs(model: DiffusionGemma) -> list[Tensor]:
    """Hidden states of both modes and the logits, with a belief to take in."""
    vocab = model.config.vocab_size
    prompt, canvas = torch.arange(3, 40)[None] % vocab, torch.arange(50, 58)[None] % vocab
    cache = model.new_cache(1, 200)
    encoded = model.encode(prompt, cache)
    logits = model.head.logits(model.denoise(canvas, cache))
    again = model.denoise(canvas, cache, model.head.soft_embedding(logits / 0.6))
    return [encoded, logits, again]


def plain_model(state: Mapping[str, Tensor], config: ModelConfig = CONFIG) -> DiffusionGemma:
    """A network of these numbers, without any packing."""
    model = DiffusionGemma(config)
    model.load_state_dict(dict(state))
    model.choose_kernels(torch.device("cpu"), torch.float32)
    return model.eval()


def assert_loads_as(
    path: Path, wanted: Mapping[str, Tensor], config: ModelConfig = CONFIG
) -> DiffusionGemma:
    """A packed checkpoint computes what the numbers of its codes do, within 2e-5 of the scale."""
    loaded = load_model(path, device="cpu", dtype="float32").model
    assert loaded.config == replace(config, extra=loaded.config.extra)
    for got, right in zip(outputs(loaded), outputs(plain_model(wanted, config)), strict=True):
        assert (got - right).abs().max() <= 2e-5 * right.abs().max()
    return loaded
