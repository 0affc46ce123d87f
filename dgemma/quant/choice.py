"""How packed weights compute: chosen once, before the weights are there, with a reason."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from typing import Any

import torch
from torch import Tensor

from dgemma.kernels.experts import ExpertsKernel, experts_grouped, experts_sparse
from dgemma.kernels.int4 import Int4Matrix, int4_bytes
from dgemma.kernels.int8 import (
    Int8Matrix,
    Weights8,
    experts_8bit,
    has_int8,
    int8_bytes,
    linear_8bit,
    quantise_channels,
)
from dgemma.quant.cuda import (
    decodes,
    experts_packed,
    linear_float8,
    linear_packed,
    multiplies_float8,
)
from dgemma.quant.float8 import Float8
from dgemma.quant.packed import Format, Groups, Packed, has_four_bits

ROOM_FOR_INT8 = 1.5
"""Free bytes for each number from which 4-bit weights become int8. A third is for everything else.
"""


@dataclass(frozen=True, slots=True)
class PackedKernel:
    """One way to compute with packed weights.

    `W` is what `prepare` makes of a matrix or a stack. It takes the place of the packed numbers, so
    it keeps of them only what it needs.

    Attributes:
        name: for `kernels` of a network.
        prepare: called once for each `Packed`, on the device, when all of it is there: -> W.
        linear: rows x [N, K] and W of a matrix -> [N, R] in the dtype of x.
        experts: x, index and weight as in `ExpertsKernel`, W of gate_up and of down -> [N, D].
        nbytes: from a `Packed`, which may be on the meta device, to the bytes of its W; None: W is
            the packed numbers themselves.
    """

    name: str
    prepare: Callable[[Packed], Any]
    linear: Callable[[Tensor, Any], Tensor]
    experts: Callable[[Tensor, Tensor, Tensor, Any, Any], Tensor]
    nbytes: Callable[[Packed], int] | None = None


def choose_packed(
    part: str, formats: Collection[Format], columns: Collection[int], device: torch.device,
    dtype: torch.dtype, room: float,
) -> tuple[PackedKernel, str]:  # fmt: skip
    """The kernel for a module, and the reason as text.

    Args:
        part: "linear" or "experts".
        formats, columns: of all weights of the module.
        device: of weights and rows.
        dtype: of the rows. In fp32 numbers are unpacked and nothing is rounded.
        room: free bytes for each number of the network.
    """
    names = ", ".join(dict.fromkeys(form.name for form in formats))
    if dtype == torch.float32:
        return EXACT, f"{names}: fp32 rounds nothing, so it is unpacked for each product"
    if device.type == "cuda" and find_spec("triton") is not None and all(map(decodes, formats)):
        eight = part == "linear" and dtype == torch.bfloat16 and set(formats) == {Float8()}
        if eight and multiplies_float8(device):
            return FLOAT8, f"{names}: products of 8-bit floats, which rows are rounded to; {device}"
        return TRITON, f"{names}: unpacked inside the product; {device}"
    fast, machine = has_int8(device)
    if not fast:
        return UNPACKED, f"{names}: no kernel for it, unpacked for each product; {machine}"
    four = all(map(has_four_bits, formats)) and not any(k % 2 for k in columns)
    if part == "linear" or not four:
        return INT8, f"{names}, rounded to int8 per channel at load; rows of 8 bit; {machine}"
    if room >= ROOM_FOR_INT8:
        why = f"{room:.1f} bytes are free for each number, and int8 is faster than 4 bits"
        return INT8, f"{names}, rounded to int8 per channel at load: {why}; {machine}"
    why = f"{room:.1f} bytes are free for each number, and int8 wants {ROOM_FOR_INT8}"
    return INT4, f"{names}, kept in 4 bits, unpacked to int8 for each product: {why}; {machine}"


def as_it_is(packed: Packed) -> Packed:
    """A `prepare` for kernels that read the file's own parts."""
    return packed


def linear_unpacked(x: Tensor, packed: Packed) -> Tensor:
    """See `Packed.linear`."""
    return packed.linear(x)


class Unpacking:
    """A packed stack in the place of a plain one: `stack[expert]` is unpacked when asked for."""

    def __init__(self, packed: Packed, dtype: torch.dtype) -> None:
        self.packed, self.dtype, self.shape = packed, dtype, packed.shape

    def __getitem__(self, expert: int) -> Tensor:
        """The numbers of one matrix, [R, K]."""
        return self.packed[expert].dequantise(self.dtype)


def _unpacking(kernel: ExpertsKernel) -> Callable[..., Tensor]:
    """Experts that are unpacked one by one for a kernel of plain weights."""

    def experts(
        x: Tensor, index: Tensor, weight: Tensor, gate_up: Packed, down: Packed
    ) -> Tensor:  # [N, D] -> [N, D]
        stacks = Unpacking(gate_up, x.dtype), Unpacking(down, x.dtype)
        return kernel(x, index, weight, *stacks)  # type: ignore[arg-type]

    return experts


EXACT = PackedKernel("exact", as_it_is, linear_unpacked, _unpacking(experts_sparse))
FLOAT8 = PackedKernel("float8", as_it_is, linear_float8, experts_packed)
TRITON = PackedKernel("triton", as_it_is, linear_packed, experts_packed)
UNPACKED = PackedKernel("unpacked", as_it_is, linear_unpacked, _unpacking(experts_grouped))


def _each(make: Callable[[Packed], Weights8]) -> Callable[[Packed], Weights8 | list[Weights8]]:
    """A `prepare` that takes the matrices of a stack one by one: little is unpacked at a time."""

    def prepare(packed: Packed) -> Weights8 | list[Weights8]:
        if len(packed.shape) == 2:
            return make(packed)
        return [make(packed[number]) for number in range(packed.shape[0])]

    return prepare


def _int8(packed: Packed) -> Int8Matrix:
    rows, columns = packed.shape
    return quantise_channels(lambda low, high: packed[low:high].dequantise(), (rows, columns))


def _groups(packed: Packed) -> Groups:
    assert has_four_bits(packed.format)
    return packed.format.groups(packed.parts, packed.columns)


def _int4(packed: Packed) -> Int4Matrix:
    return Int4Matrix(*_groups(packed))


def _int8_size(packed: Packed) -> int:
    *lead, rows, columns = packed.shape
    return prod(lead) * int8_bytes(rows, columns)


def _int4_size(packed: Packed) -> int:
    *lead, rows, columns = packed.shape
    group = _groups(packed).group
    return prod(lead) * int4_bytes(rows, columns, group)


INT8 = PackedKernel("int8", _each(_int8), linear_8bit, experts_8bit, _int8_size)
INT4 = PackedKernel("int4", _each(_int4), linear_8bit, experts_8bit, _int4_size)
