"""Products with `Packed` weights by the kernels for CUDA, and which formats they decode.

Translates formats into the raw tensors of `kernels.packed_matrix`; nothing is copied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgemma.errors import InvalidRequest
from dgemma.kernels.cuda import cuda_kernels
from dgemma.kernels.packed_matrix import KINDS, PackedMatrix, kernels_decode
from dgemma.quant.affine import Affine
from dgemma.quant.float4 import Float4
from dgemma.quant.float8 import Float8
from dgemma.quant.gguf_blocks import GgufFormat
from dgemma.quant.packed import Format, Packed

_BYTES = {torch.float8_e4m3fn: "e4m3", torch.float8_e8m0fnu: "e8m0"}


def _kind(form: Format) -> tuple[str, int]:
    """The kernels' name of a format, and its group; "" if they have none."""
    match form:
        case Affine(bits=4 | 8 as bits, group=group):
            return f"int{bits}", group
        case Float4(group=group):
            return "e2m1", group
        case Float8(group=group):
            return "e4m3", group
        case GgufFormat(name=name) if name in KINDS:
            return name, 0
    return "", 0


def decodes(form: Format, columns: int) -> bool:
    """Whether the kernels decode a format with rows of so many columns."""
    kind, group = _kind(form)
    return kernels_decode(kind, columns, group)


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
    codes = parts["blocks" if "blocks" in parts else "codes"].view(torch.uint8).contiguous()
    scale, scale_kind = None if "blocks" in parts else parts["scale"], "float"
    if scale is not None and scale.dtype in _BYTES:
        scale, scale_kind = scale.view(torch.uint8), _BYTES[scale.dtype]
    extras = {"bias": parts.get("bias"), "zero": parts.get("zero"),
              "outer": parts.get("scale" if "blocks" in parts else "outer")}  # fmt: skip
    extra_kind, extra = next(((k, t) for k, t in extras.items() if t is not None), ("none", None))
    return PackedMatrix(
        kind,
        packed.columns,
        codes,
        None if scale is None else scale.contiguous(),
        None if extra is None else extra.contiguous(),
        group,
        scale_kind,
        extra_kind,
    )


def experts_packed(
    x: Tensor, index: Tensor, weight: Tensor, gate_up: Packed, down: Packed
) -> Tensor:
    """See `kernels.experts_packed_triton`."""
    return cuda_kernels().experts_packed(x, index, weight, matrix(gate_up), matrix(down))


def linear_packed(x: Tensor, packed: Packed) -> Tensor:
    """`x @ W.T`: [N, K] -> [N, R]. See `kernels.experts_packed_triton`."""
    return cuda_kernels().linear_packed(x, matrix(packed))
