"""Writes integers in the layouts of quantisers, number by number, apart from our readers.

Rows become one long Python integer each, whose bytes are the file's. A writer takes a matrix, fp32
[N, K], and gives what `packing.packed_state` wants: tensors by the words behind a module's name,
and the numbers that they mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tests.support.packing import Parts

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
"""Quantiles of a normal distribution (QLoRA, 2023)."""


@dataclass
class Quantised:
    """Codes and zeros int64, scales [N, G], the group of each column [K], and the numbers."""

    codes: Tensor
    scale: Tensor
    zero: Tensor
    index: Tensor
    numbers: Tensor


def quantise(
    weight: Tensor, bits: int, group: int, *, symmetric: bool, mixed: bool = False,
    kind: torch.dtype = torch.float16, least_zero: int = 0,
) -> Quantised:  # fmt: skip
    """Group by group.

    Args:
        group: columns; 0: all.
        mixed: columns are in groups at random.
        least_zero: zero points are this to this + 2^bits - 1.
    """
    rows, columns = weight.shape
    index = torch.arange(columns) // (group or columns)
    if mixed:
        index = index[torch.randperm(columns, generator=torch.Generator().manual_seed(columns))]
    count, top = math.ceil(columns / (group or columns)), 2**bits - 1
    scale, zero = torch.ones(rows, count, dtype=kind), torch.zeros(rows, count, dtype=torch.int64)
    codes, numbers = torch.zeros(rows, columns, dtype=torch.int64), torch.zeros(rows, columns)
    for g in range(count):
        mine = (index == g).nonzero().flatten()
        part = weight[:, mine]
        if symmetric:
            scale[:, g] = (part.abs().amax(1) / (2 ** (bits - 1) - 0.5)).to(kind)
            zero[:, g] = 2 ** (bits - 1)
        else:
            low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
            scale[:, g] = ((high - low) / top).to(kind)
            zero[:, g] = (-low / scale[:, g].float()).round().clamp(0, top) + least_zero
        wide = scale[:, g].float()[:, None]
        codes[:, mine] = ((part / wide).round().long() + zero[:, g, None]).clamp(0, top)
        numbers[:, mine] = (codes[:, mine] - zero[:, g, None]).float() * wide
    return Quantised(codes, scale, zero, index, numbers)


def rows_of_words(codes: Tensor, bits: int) -> Tensor:
    """A stream of bits for each row, the lowest first, filled up to words: int32 [N, W]."""
    width = 4 * math.ceil(codes.shape[1] * bits / 32)
    out = []
    for row in codes.tolist():
        whole = sum(code << (bits * place) for place, code in enumerate(row))
        out.append(np.frombuffer(whole.to_bytes(width, "little"), dtype="<i4").copy())
    return torch.from_numpy(np.stack(out))


def pack_quantized(
    weight: Tensor, bits: int, group: int, *, symmetric: bool = True, mixed: bool = False
) -> Parts:
    """compressed-tensors."""
    if weight.dim() == 3:
        return stacked(weight, lambda w: pack_quantized(w, bits, group, symmetric=symmetric))
    found = quantise(weight, bits, group, symmetric=symmetric, mixed=mixed, kind=torch.bfloat16)
    parts = {
        "weight_packed": rows_of_words(found.codes, bits),
        "weight_scale": found.scale,
        "weight_shape": torch.tensor(weight.shape),
    }
    if not symmetric:
        parts["weight_zero_point"] = rows_of_words(found.zero.T, bits).T.contiguous()
    if mixed:
        parts["weight_g_idx"] = found.index.int()
    return parts, found.numbers


def stacked(weight: Tensor, pack: Callable[[Tensor], Parts]) -> Parts:
    """Every part of every matrix; the shape is that of all."""
    done = [pack(matrix) for matrix in weight]
    parts = {word: torch.stack([found[word] for found, _ in done]) for word in done[0][0]}
    if "weight_shape" in parts:
        parts["weight_shape"] = torch.tensor(weight.shape)
    return parts, torch.stack([numbers for _, numbers in done])


def int_quantized(weight: Tensor, group: int, *, symmetric: bool = True) -> Parts:
    """compressed-tensors, 8 bit with a sign."""
    if weight.dim() == 3:
        return stacked(weight, lambda w: int_quantized(w, group, symmetric=symmetric))
    found = quantise(weight, 8, group, symmetric=symmetric, kind=torch.bfloat16)
    parts = {"weight": (found.codes - 128).to(torch.int8), "weight_scale": found.scale}
    if not symmetric:
        parts["weight_zero_point"] = (found.zero - 128).to(torch.int8)
    return parts, found.numbers


def gptq(weight: Tensor, bits: int, group: int, *, version: int = 1, mixed: bool = False) -> Parts:
    """GPTQ: everything turned; the first version stores zero points less one."""
    found = quantise(weight, bits, group, symmetric=False, mixed=mixed, least_zero=2 - version)
    parts = {
        "qweight": rows_of_words(found.codes, bits).T.contiguous(),
        "qzeros": rows_of_words(found.zero.T - (2 - version), bits),
        "scales": found.scale.T.contiguous(),
        "g_idx": found.index.int(),
    }
    return parts, found.numbers


def awq(weight: Tensor, group: int) -> Parts:
    """AWQ (gemm): columns of the turned matrix in words, out of order."""
    found = quantise(weight, 4, group, symmetric=False)

    def words(codes: Tensor) -> Tensor:
        out = torch.zeros(codes.shape[0], codes.shape[1] // 8, dtype=torch.int64)
        for nibble, place in enumerate(AWQ_ORDER):
            out |= codes[:, place::8] << (4 * nibble)
        return torch.where(out >= 2**31, out - 2**32, out).int()

    parts = {"qweight": words(found.codes.T), "qzeros": words(found.zero.T)}
    return parts | {"scales": found.scale.T.contiguous()}, found.numbers


def nf4(weight: Tensor, *, nested: bool, block: int = 64, table: Sequence[float] = NF4) -> Parts:
    """bitsandbytes, blocks counted on over the rows."""
    flat, values = weight.flatten(), torch.tensor(table)
    runs = torch.split(flat, block)
    absmax = torch.stack([run.abs().amax() for run in runs])
    state = {"quant_type": "nf4", "blocksize": block, "dtype": "float32",
             "shape": list(weight.shape)}  # fmt: skip
    parts = {"weight.quant_map": values}
    if nested:
        offset = absmax.mean()
        fine = torch.linspace(-1, 1, 256)
        coarse = torch.stack([run.abs().amax() for run in torch.split(absmax - offset, 256)])
        wide = coarse.repeat_interleave(256)[: len(absmax)]
        found = ((absmax - offset) / wide).unsqueeze(1).sub(fine).abs().argmin(1)
        parts |= {"weight.absmax": found.to(torch.uint8), "weight.nested_absmax": coarse}
        parts["weight.nested_quant_map"] = fine
        state |= {"nested_blocksize": 256, "nested_dtype": "float32",
                  "nested_offset": offset.item()}  # fmt: skip
        absmax = fine[found] * wide + offset
    else:
        parts["weight.absmax"] = absmax
    codes, numbers = [], []
    for run, most in zip(runs, absmax, strict=True):
        found = (run / most).unsqueeze(1).sub(values).abs().argmin(1)
        codes.append(found)
        numbers.append(values[found] * most)
    first, second = torch.cat(codes).view(-1, 2).unbind(1)
    parts["weight"] = (first * 16 + second).to(torch.uint8).view(-1, 1)
    text = json.dumps(state).encode()
    parts["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
    return parts, torch.cat(numbers).view(weight.shape)


def gemma(weight: Tensor, bits: int) -> Parts:
    """Gemma's own: a scale a row, and scales of activations."""
    found = quantise(weight, bits, 0, symmetric=True, kind=torch.float32)
    if bits == 8:
        codes = (found.codes - 128).to(torch.int8)
    else:
        width = weight.shape[1] * bits // 8
        codes = rows_of_words(found.codes, bits).view(torch.uint8)[:, :width].contiguous()
    parts = {"weight": codes, "weight_scale": found.scale}
    parts["input_activation_scale"] = torch.tensor(0.0)
    return parts | {"output_activation_scale": torch.tensor(0.3)}, found.numbers
