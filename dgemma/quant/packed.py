"""A matrix, or a stack of them, as a file packs it: codes, scales, and the rule that joins them.

Every format of every file becomes this one type, without a second copy in memory. Knows nothing
about files or networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from dgemma.kernels.linear import rows_linear

EIGHT_BIT_FLOATS = (torch.float8_e4m3fn, torch.float8_e8m0fnu)
Parts = Mapping[str, Tensor]
"""The tensors of a packed matrix by their names. Each is [..., R, *]: a row of the matrix has its
own codes and scales, so rows and experts are cut out of all parts alike. What holds for all rows is
one row in memory, seen as many (`expand`)."""


class Groups(NamedTuple):
    """Codes of at most 4 bits: w = scale * code + bias, or scale * e2m1(code) without a bias.

    Attributes:
        codes: uint8 [..., R, K], from 0 to 15.
        scale, bias: fp32 [..., R, G]; the last group may be cut short.
        group: columns that share them.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None
    group: int


class Format(Protocol):
    """How numbers are packed. Two formats that are equal unpack alike.

    A format whose scales lie among its codes also has `finite(parts) -> bool`: whether they are
    all numbers.
    """

    @property
    def name(self) -> str:
        """For messages and reasons: "Q4_K", "int4 in groups of 32"."""

    def unpack(self, parts: Parts, columns: int) -> Tensor:
        """The numbers, fp32 [..., R, K], rounded nowhere.

        Args:
            parts: codes and scales, each [..., R, *].
            columns: K. The last group or byte may hold more than that.
        """


@runtime_checkable
class GroupedFormat(Format, Protocol):
    """A format that may have codes of at most 4 bits."""

    @property
    def four_bits(self) -> bool:
        """Whether it has."""

    def groups(self, parts: Parts, columns: int) -> Groups:
        """The same numbers as `unpack`, where `four_bits` is true."""


def has_four_bits(form: Format) -> TypeGuard[GroupedFormat]:
    """Whether a format gives its numbers as codes of at most 4 bits, by `groups`."""
    return isinstance(form, GroupedFormat) and form.four_bits


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """Packed numbers with the shape [..., R, K].

    Attributes:
        format: how.
        columns: K.
        parts: see `Parts`.
    """

    format: Format
    columns: int
    parts: Parts

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers."""
        return (*next(iter(self.parts.values())).shape[:-1], self.columns)

    @property
    def nbytes(self) -> int:
        """Of all parts."""
        return sum(part.nbytes for part in self.parts.values())

    def __getitem__(self, index: Any) -> Packed:
        """Some matrices or rows, cut out of all dimensions but the last."""
        return replace(self, parts={name: part[index] for name, part in self.parts.items()})

    def to(self, device: torch.device | str) -> Packed:
        """The same on a device."""
        parts = self.fit(torch.device(device).type).parts
        parts = {n: _changed(part, lambda p: p.to(device)) for n, part in parts.items()}
        return replace(self, parts=parts)

    def fit(self, kind: str) -> Packed:
        """The same in dtypes that a kind of device has.

        Metal has no 8-bit floats: there codes are kept as bytes, and scales, whose every number
        bf16 has too, in bf16.
        """
        if kind != "mps":
            return self
        parts = {
            name: part if part.dtype not in EIGHT_BIT_FLOATS
            else part.view(torch.uint8) if name == "codes" else part.to(torch.bfloat16)
            for name, part in self.parts.items()
        }  # fmt: skip
        return replace(self, parts=parts)

    def clone(self) -> Packed:
        """A copy of all parts."""
        parts = {n: _changed(part, torch.Tensor.clone) for n, part in self.parts.items()}
        return replace(self, parts=parts)

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The numbers, computed in fp32 and then rounded to `dtype`: [..., R, K]."""
        return self.format.unpack(self.parts, self.columns).to(dtype)

    def linear(self, x: Tensor) -> Tensor:
        """`x @ W.T` with unpacked numbers: [N, K] -> [N, R] in the dtype of `x`."""
        return rows_linear(x, self.dequantise(x.dtype))


def stacked(pieces: Sequence[Packed]) -> Packed:
    """Matrices of one shape as a stack: the first dimension counts them."""
    first = pieces[0]
    parts = {}
    for name, part in first.parts.items():
        found = _of_one_dtype([p.parts[name] for p in pieces])
        if all(map(_is_one_row, found)):
            rows = torch.stack([matrix[..., :1, :] for matrix in found])
            parts[name] = rows.expand(-1, *part.shape)
        else:
            parts[name] = torch.stack(found)
    return replace(first, parts=parts)


def joined(pieces: Sequence[Packed]) -> Packed:
    """The rows of several matrices, one after the other."""
    first = pieces[0]
    if len(pieces) == 1:
        return first
    parts = {}
    for name, part in first.parts.items():
        found = _of_one_dtype([p.parts[name] for p in pieces])
        head = found[0][..., :1, :]
        if all(_is_one_row(p) and torch.equal(p[..., :1, :], head) for p in found):
            rows = sum(matrix.shape[-2] for matrix in found)
            parts[name] = head.expand(*part.shape[:-2], rows, part.shape[-1])
        else:
            parts[name] = torch.cat(found, -2)
    return replace(first, parts=parts)


def _of_one_dtype(found: list[Tensor]) -> list[Tensor]:
    """Parts that can be joined: scales of which some are exponents alone become fp32."""
    if len({part.dtype for part in found}) == 1:
        return found
    return [part.float() if part.is_floating_point() else part for part in found]


def _is_one_row(part: Tensor) -> bool:
    """Whether all rows are the same memory."""
    return part.dim() > 1 and part.stride(-2) == 0


def _changed(part: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """A part after a change of its memory: one row stays one."""
    if _is_one_row(part):
        return change(part[..., :1, :]).expand(part.shape)
    return change(part)
