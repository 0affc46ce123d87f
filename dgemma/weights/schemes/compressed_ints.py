"""Integers of compressed-tensors: `pack-quantized` and `int-quantized`.

Source: its `quantization_config` and headers; checked against the package, see the log.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dgemma.errors import CheckpointError
from dgemma.quant.affine import bit_stream
from dgemma.quant.integers import Integers
from dgemma.quant.packed import Packed
from dgemma.weights.packed import Group, Read
from dgemma.weights.schemes.parts import (
    FLOATS,
    Block,
    Stored,
    activations,
    as_bytes,
    beside,
    for_rows,
    group_order,
    matrix_shape,
    need,
    scale_counts,
)

INDEX = ("I64", "I32")


class Columns:
    """How many columns packed matrices have, which their headers do not say: words are filled up.

    One `weight_shape` of each kind of matrix is read; the others are compared with it when their
    weights are.
    """

    def __init__(self, tensors: Stored, read: Read) -> None:
        self.tensors, self.read_one = tensors, read
        self.known: dict[tuple[tuple[int, ...], ...], int] = {}

    def of(self, plain: str, kind: tuple[tuple[int, ...], ...]) -> int:
        """Those of a weight; `kind` has the shapes of its parts."""
        if kind not in self.known:
            name = f"{plain}_shape"
            need(self.tensors, name, plain, INDEX, [(2,), (3,)])
            self.known[kind] = int(self.read_one(name).flatten()[-1])
        return self.known[kind]


def packed_group(
    tensors: Stored, plain: str, rules: Sequence[Mapping[str, Any]], columns_of: Columns
) -> Group:
    """`pack-quantized`: a little-endian bit stream along each row, in words of 32 bit.

    Args:
        plain: the weight.
        rules: what the config says of it; the first that fits the files counts.
    """
    codes, scale, shape, zero, order = (
        beside(plain, f"weight_{word}")
        for word in ("packed", "scale", "shape", "zero_point", "g_idx")
    )
    *lead, rows, words = matrix_shape(tensors, codes)
    need(tensors, shape, codes, INDEX, [(2 + len(lead),), (2,)])
    columns = columns_of.of(plain, (tensors[codes].shape, getattr(tensors.get(scale), "shape", ())))
    bits, group, symmetric = _rule(plain, rules, words, columns)
    groups = math.ceil(columns / group) if group else 1
    need(tensors, scale, codes, FLOATS, [(*lead, rows, groups)])
    stored = [codes, scale, shape]
    if not symmetric:
        packed_zeros = (*lead, math.ceil(rows * bits / 32), groups)
        need(tensors, zero, codes, ("I32",), [packed_zeros])
        stored.append(zero)
    elif zero in tensors:
        raise CheckpointError(
            f"{zero} is there, but the config says that {plain} is symmetric; restore config.json, "
            "or take the files again"
        )
    if order in tensors:
        need(tensors, order, codes, INDEX, [(columns,)])
        stored.append(order)
    middle = 1 << (bits - 1) if symmetric else None
    form = Integers(bits, group, middle, ordered=order in tensors)

    def build(read: Read) -> Packed:
        given = read(shape).flatten()
        if not given.is_meta and given.tolist()[-2:] != [rows, columns]:
            raise CheckpointError(
                f"{shape} says {given.tolist()}, but the files and the config want "
                f"{[*lead, rows, columns]}; take the files again"
            )
        width = math.ceil(columns * bits / 8)
        parts = {"codes": as_bytes(read(codes))[..., :width]}
        parts["scale"] = read(scale).view(*lead, rows, groups)
        if not symmetric:
            parts["zero"] = zeros_across(read(zero).view(packed_zeros), bits, rows)
        if order in tensors:
            wide = (*lead, rows, columns)
            parts["order"] = group_order(order, read(order), group, groups).expand(wide)
        return Packed(form, columns, parts)

    return Group(form, (*lead, rows, columns), (*stored, *activations(tensors, plain)), build)


def zeros_across(words: Tensor, bits: int, rows: int) -> Tensor:
    """Zero points that are packed across the rows: [..., W, G] -> uint8 [..., R, G]."""
    codes = bit_stream(as_bytes(words.transpose(-1, -2)), bits)
    return codes[..., :rows].to(torch.uint8).transpose(-1, -2).contiguous()


def _rule(
    plain: str, rules: Sequence[Mapping[str, Any]], words: int, columns: int
) -> tuple[int, int, bool]:
    """Bits, group (0: all of a row) and whether codes are symmetric: the first rule that fits."""
    for rule in rules:
        bits, size, strategy = rule.get("num_bits"), rule.get("group_size"), rule.get("strategy")
        if type(bits) is not int or not 2 <= bits <= 8 or math.ceil(columns * bits / 32) != words:
            continue
        symmetric = rule.get("symmetric", True) is not False
        if strategy == "channel" or (strategy is None and size in (None, -1)):
            return bits, 0, symmetric
        if strategy in ("group", None) and type(size) is int and size > 0:
            return bits, size if size < columns else 0, symmetric
    said = ", ".join(
        f"{str(r.get('num_bits'))[:20]} bits by {str(r.get('strategy'))[:20]} of "
        f"{str(r.get('group_size'))[:20]}" for r in rules[:3]
    )  # fmt: skip
    raise CheckpointError(
        f"{plain} has {columns} columns in {words} words of 32 bit, and no rule of "
        f"quantization_config fits ({said or 'there is none'}); 2 to 8 bits in groups or by "
        "channel are read: restore config.json, or take the BF16 checkpoint"
    )


def int8_group(tensors: Stored, name: str, blocks: Sequence[Block]) -> Group:
    """`int-quantized`: signed codes of 8 bit times scales."""
    *lead, rows, columns = shape = matrix_shape(tensors, name)
    scale, zero = beside(name, "weight_scale"), beside(name, "weight_zero_point")
    count, high, wide = scale_counts(tensors, scale, name, blocks)
    stored = [name, scale]
    if zero in tensors:
        need(tensors, zero, name, ("I8",), [count])
        stored.append(zero)
    form = Integers(8, wide, None if zero in tensors else 0)

    def build(read: Read) -> Packed:
        parts = {"codes": read(name), "scale": for_rows(read(scale).view(count), high, rows)}
        if zero in tensors:
            parts["zero"] = for_rows(read(zero).view(count), high, rows)
        return Packed(form, columns, parts)

    return Group(form, shape, (*stored, *activations(tensors, name)), build)
