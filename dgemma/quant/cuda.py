"""Products with `Packed` weights on CUDA, and which formats have a kernel there.

Translates formats into the raw tensors of `kernels.packed_matrix`; nothing is copied.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma.errors import InvalidRequest
from dgemma.kernels.cuda import cuda_kernels
from dgemma.kernels.packed_matrix import KINDS, PackedMatrix, kernels_decode
from dgemma.quant.affine import Affine
from dgemma.quant.float4 import Float4
from dgemma.quant.float8 import Float8
from dgemma.quant.gguf_blocks import GgufFormat
from dgemma.quant.integers import Integers
from dgemma.quant.packed import Format, Packed

SCALED_FROM = (8, 9)
"""Compute capability from which cards multiply 8-bit floats."""

_BYTES = {torch.float8_e4m3fn: "e4m3", torch.float8_e8m0fnu: "e8m0"}


def _kind(form: Format) -> tuple[str, int]:
    """The kernels' name of a format, and its group; "" if they have none."""
    match form:
        case Affine(bits=4 | 8 as bits, group=group):
            return f"int{bits}", group
        case Integers(bits=4 | 8 as bits, group=group, ordered=False):
            return f"int{bits}", group
        case Float4(group=group):
            return "e2m1", group
        case Float8(group=group):
            return "e4m3", group
        case GgufFormat(name=name) if name in KINDS:
            return name, 0
    return "", 0


def decodes(form: Format, columns: int | None = None) -> bool:
    """Whether the kernels decode a format with rows of so many columns; None: of whole blocks."""
    kind, group = _kind(form)
    return kernels_decode(kind, 512 * (group or 1) if columns is None else columns, group)


def matrix(packed: Packed) -> PackedMatrix:
    """The raw tensors of a packed matrix or stack.

    Raises:
        InvalidRequest: the kernels do not decode its format.
    """
    (kind, group), parts = _kind(packed.format), packed.parts
    if not kernels_decode(kind, packed.columns, group):
        raise InvalidRequest(
            f"no kernel for {packed.format.name} with rows of {packed.columns}; unpack the weight"
        )
    if "blocks" in parts:
        raw = PackedMatrix(kind, packed.columns, parts["blocks"].contiguous())
        return _with(raw, "outer", parts.get("scale"))
    codes, scale = parts["codes"], parts["scale"]
    signed = codes.dtype == torch.int8
    zero = getattr(packed.format, "zero", 0)
    raw = PackedMatrix(
        "signed int8" if signed else kind,
        packed.columns,
        codes.view(torch.uint8).contiguous(),
        scale.view(torch.uint8 if scale.dtype in _BYTES else scale.dtype).contiguous(),
        group=group,
        scale_kind=_BYTES.get(scale.dtype, "float"),
        offset=(zero or 0) + 128 * signed,
    )
    for word in ("bias", "zero", "outer"):
        raw = _with(raw, word, parts.get(word))
    return raw


def _with(raw: PackedMatrix, kind: str, extra: Tensor | None) -> PackedMatrix:
    return raw if extra is None else replace(raw, extra=extra.contiguous(), extra_kind=kind)


def experts_packed(
    x: Tensor, index: Tensor, weight: Tensor, gate_up: Packed, down: Packed
) -> Tensor:
    """See `kernels.experts_packed_triton`."""
    return cuda_kernels().experts_packed(x, index, weight, matrix(gate_up), matrix(down))


def linear_packed(x: Tensor, packed: Packed) -> Tensor:
    """`x @ W.T`: [N, K] -> [N, R]. See `kernels.experts_packed_triton`."""
    return cuda_kernels().linear_packed(x, matrix(packed))


def linear_float8(x: Tensor, packed: Packed) -> Tensor:
    """In 8 bit where sizes allow it, else as `linear_packed`: [N, K] -> [N, R]."""
    return (linear_scaled if fits_scaled(x, packed) else linear_packed)(x, packed)


@cache
def multiplies_float8(device: torch.device) -> bool:
    """Whether a card multiplies 8-bit floats."""
    return torch.cuda.get_device_capability(device) >= SCALED_FROM


def fits_scaled(x: Tensor, packed: Packed) -> bool:
    """Whether `linear_scaled` takes these: e4m3, a scale for each row, sizes that 16 divides."""
    rows, columns = packed.shape[-2:]
    whole = packed.format == Float8() and packed.parts["scale"].dtype == torch.float32
    return whole and x.dtype == torch.bfloat16 and rows % 16 == columns % 16 == 0


def linear_scaled(x: Tensor, packed: Packed) -> Tensor:
    """`x @ W.T` of 8-bit floats, x rounded to them with a scale for each row: [N, K] -> [N, R].

    As compressed-tensors' "dynamic, token" asks for. Rounding x costs about 2.6 % of a product.
    """
    if not x.shape[0]:
        return x.new_empty(0, packed.shape[0])
    most = x.abs().amax(1, keepdim=True).to(torch.float32)
    scale = (most / torch.finfo(torch.float8_e4m3fn).max).clamp(min=1e-12)
    rounded = (x.to(torch.float32) / scale).to(torch.float8_e4m3fn)
    by_row = F.ScalingType.RowWise
    return F.scaled_mm(
        rounded, packed.parts["codes"].T, scale, by_row, packed.parts["scale"].T.contiguous(),
        by_row, output_dtype=x.dtype,
    )  # fmt: skip
