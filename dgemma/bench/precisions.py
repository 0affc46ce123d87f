"""The precisions that files of the released model have: which format each weight is in.

Source: `docs/released-weights.md` and the headers of the files named there. Embedding and routers
are in 16 bit in all of them here: packed ones are unpacked when they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from dgemma.model.config import ModelConfig
from dgemma.quant.affine import Affine
from dgemma.quant.float4 import Float4
from dgemma.quant.float8 import Float8
from dgemma.quant.gguf_blocks import Q4_K, Q5_0, Q6_K, Q8_0, GgufFormat
from dgemma.quant.integers import Integers
from dgemma.quant.packed import Format, Packed

Mix = Mapping[Format, float]
"""Formats and their shares of the weights of a class; empty: 16 bit."""


@dataclass(frozen=True, slots=True)
class Precision:
    """One kind of file.

    Attributes:
        name: short.
        file: where it is found.
        attention: its matrices.
        dense_up, dense_down: of the MLPs, "up" is gate and up.
        expert_up, expert_down: of the experts.
        conditioning: whether the self-conditioning is packed as the MLPs are.
        eight_bit: whether cards that can multiply its attention and MLPs in 8 bit.
    """

    name: str
    file: str = ""
    attention: Mix = field(default_factory=dict)
    dense_up: Mix = field(default_factory=dict)
    dense_down: Mix = field(default_factory=dict)
    expert_up: Mix = field(default_factory=dict)
    expert_down: Mix = field(default_factory=dict)
    conditioning: bool = False
    eight_bit: bool = False


def _all(
    name: str, file: str, form: Format, *, conditioning: bool = False, eight_bit: bool = False
) -> Precision:
    """Attention, MLPs and experts in one format."""
    mix = {form: 1.0}
    return Precision(name, file, mix, mix, mix, mix, mix, conditioning, eight_bit)


_DOWN: Mix = {Q8_0: 14 / 30, Q5_0: 16 / 30}
_FOUR: Mix = {Affine(4, 64): 1.0}
BF16 = Precision("bf16", "the released files")
PRECISIONS = (
    BF16,
    _all("FP8", "RedHat's FP8-dynamic", Float8(), eight_bit=True),
    _all("8-bit", "MLX 8 bit, groups of 64", Affine(8, 64), conditioning=True),
    # 13 of the 25 sliding layers have their values in Q6_K: 75 of 1,110 million weights.
    Precision("Q4_K_M", "GGUF Q4_K_M", {Q4_K: 0.932, Q6_K: 0.068}, {Q4_K: 1.0}, _DOWN,
              {Q4_K: 1.0}, _DOWN, conditioning=True),
    Precision("NVFP4", "NVIDIA's NVFP4", expert_up={Float4(16): 1.0},
              expert_down={Float4(16): 1.0}),
    Precision("int4", "AWQ-INT4 of compressed-tensors", attention={Integers(4, 32, 8): 1.0},
              expert_up={Integers(4, 32, 8): 1.0}, expert_down={Integers(4, 32, 8): 1.0}),
    Precision("MLX 4-bit", "MLX 4 bit, the rest in 8", {Affine(8, 64): 1.0}, {Affine(8, 64): 1.0},
              {Affine(8, 64): 1.0}, _FOUR, _FOUR, conditioning=True),
)  # fmt: skip


def empty_packed(form: Format, *lead: int, columns: int) -> Packed:
    """[*lead, columns] without memory, with parts as files have them."""

    def part(width: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(*lead, width, dtype=dtype, device="meta")

    parts: dict[str, torch.Tensor]
    match form:
        case GgufFormat(elements=elements, size=size):
            parts = {"blocks": part(columns // elements * size, torch.uint8)}
        case Float8():
            parts = {"codes": part(columns, torch.float8_e4m3fn), "scale": part(1, torch.float32)}
        case Float4(group=group):
            parts = {"codes": part(columns // 2, torch.uint8),
                     "scale": part(-(-columns // group), torch.float8_e4m3fn),
                     "outer": part(1, torch.float32)}  # fmt: skip
        case Affine(bits=bits, group=group) | Integers(bits=bits, group=group):
            numbers = part(-(-columns // group), torch.bfloat16)
            parts = {"codes": part(columns * bits // 8, torch.uint8), "scale": numbers}
            if isinstance(form, Affine):
                parts["bias"] = numbers.clone()
        case _:
            raise AssertionError(form)
    return Packed(form, columns, parts)


def weight_bytes(mix: Mix, columns: int) -> float:
    """Bytes of a weight in the mean, in rows of so many columns."""
    if not mix:
        return 2.0
    return sum(
        share * sum(part.nbytes for part in empty_packed(form, 1, columns=columns).parts.values())
        for form, share in mix.items()
    ) / columns  # fmt: skip


def held_bytes(config: ModelConfig, precision: Precision, parameters: int) -> float:
    """Bytes of all weights.

    Args:
        parameters: how many there are.
    """
    width, inner, dense = (
        config.hidden_size, config.moe_intermediate_size, config.intermediate_size,
    )  # fmt: skip
    experts = config.num_layers * config.num_experts * width * inner
    mlps = (config.num_layers + precision.conditioning) * width * dense
    saved = experts * (6 - 2 * weight_bytes(precision.expert_up, width)
                       - weight_bytes(precision.expert_down, inner))  # fmt: skip
    saved += mlps * (6 - 2 * weight_bytes(precision.dense_up, width)
                     - weight_bytes(precision.dense_down, dense))  # fmt: skip
    heads = sum(attention_weights(config, layer) for layer in range(config.num_layers))
    saved += heads * (2 - weight_bytes(precision.attention, width))
    return 2 * parameters - saved


def attention_weights(config: ModelConfig, layer: int) -> int:
    """Numbers in the matrices of a layer's attention."""
    shape, full = config.attention(layer), config.layer_types[layer] == "full_attention"
    groups = (1 if full else 2) * shape.num_key_value_heads
    return config.hidden_size * shape.head_dim * (2 * config.num_attention_heads + groups)
