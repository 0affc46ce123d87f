"""A packed matrix, or a stack of them, as raw tensors for a kernel; and which ones kernels decode.

A kernel takes 64 columns at a time. Where a byte holds two codes, it makes two products: one of all
low nibbles with their columns of x, one of all high ones. So codes are used in the order in which a
file has them. Knows nothing about files, and needs no GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

STEP = 64
"""Columns that a kernel takes at a time; it divides 704, 2112 and 2816."""


@dataclass(frozen=True, slots=True)
class PackedKind:
    """How the bytes of a row become numbers.

    Attributes:
        half: columns between the low and the high nibble of a byte: 1: pairs, "2i, 2i + 1";
            16: blocks of 32 whose first half is in the low nibbles; 0: a byte is one code.
        elements, size: columns and bytes of a block; (0, 0): codes and scales are apart.
    """

    half: int
    elements: int = 0
    size: int = 0


KINDS = {
    "int4": PackedKind(1),
    "int8": PackedKind(0),
    "signed int8": PackedKind(0),
    "e2m1": PackedKind(1),
    "e4m3": PackedKind(0),
    "Q4_0": PackedKind(16, 32, 18),
    "Q4_1": PackedKind(16, 32, 20),
    "Q5_0": PackedKind(16, 32, 22),
    "Q5_1": PackedKind(16, 32, 24),
    "Q8_0": PackedKind(0, 32, 34),
    "Q4_K": PackedKind(32, 256, 144),
    "Q5_K": PackedKind(32, 256, 176),
    "Q6_K": PackedKind(64, 256, 210),
    "MXFP4": PackedKind(16, 32, 17),
    "NVFP4": PackedKind(8, 64, 36),
}
"""By name. Blocks and their names are ggml's."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedMatrix:
    """Numbers with the shape [..., R, K].

    Attributes:
        kind: a name of `KINDS`.
        columns: K.
        codes: uint8 [..., R, bytes of a row], contiguous.
        scale: [..., R, G], float or uint8; None: blocks have their own.
        extra: what `EXTRA` says, contiguous; None: nothing.
        group: columns that share a scale; at least K: one for each row.
        scale_kind: "float", or what its bytes are: "e4m3", "e8m0"; "none": there is no scale.
        extra_kind: "none"; "bias": a sum after the scale, [..., R, G]; "zero": a difference before
            it, [..., R, G]; "outer": a factor of each row, [..., R, 1].
        offset: is taken from each code.
    """

    kind: str
    columns: int
    codes: Tensor
    scale: Tensor | None = None
    extra: Tensor | None = None
    group: int = 0
    scale_kind: str = "none"
    extra_kind: str = "none"
    offset: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers."""
        return (*self.codes.shape[:-1], self.columns)

    @property
    def half(self) -> int:
        """See `PackedKind`."""
        return KINDS[self.kind].half

    def constants(self) -> dict[str, int | str]:
        """What a kernel is compiled for, beside the width."""
        return {"KIND": self.kind, "GROUP": self.group or self.columns, "SCALE": self.scale_kind,
                "EXTRA": self.extra_kind, "OFFSET": self.offset}  # fmt: skip

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, scale, extra; the codes in the place of what is not there, which is not read."""
        scale = self.codes if self.scale is None else self.scale
        return self.codes, scale, self.codes if self.extra is None else self.extra


def kernels_decode(kind: str, columns: int, group: int = 0) -> bool:
    """Whether the kernels take a kind with rows and groups of so many columns."""
    form = KINDS.get(kind)
    if form is None or columns <= 0:
        return False
    if form.elements:
        return columns % form.elements == 0
    whole = columns % 2 == 0 or form.half == 0
    even = group % STEP == 0 or (group >= 16 and STEP % group == 0)
    return whole and (even or group >= columns)


def pairs_apart(x: Tensor) -> Tensor:
    """Rows with all even columns before all odd ones: [N, K] -> [N, K], K even."""
    x = x.contiguous()
    return x.view(x.shape[0], -1, 2).transpose(1, 2).reshape(x.shape)
