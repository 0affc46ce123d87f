"""The tensors beside a packed weight: their names, and checks before anything is read."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from dgemma.errors import CheckpointError
from dgemma.quant.float4 import Float4
from dgemma.quant.float8 import Float8
from dgemma.quant.packed import Packed
from dgemma.weights.packed import Group, Read
from dgemma.weights.source import StoredTensor, few

Stored = Mapping[str, StoredTensor]
Block = tuple[int, int]
"""Rows and columns that share a scale; 0: all of them. A row's scale is (1, 0)."""

FLOATS = ("F32", "BF16", "F16")
EXPONENTS = ("U8", "F8_E8M0")
ACTIVATIONS = ("input_scale", "activation_scale", "input_global_scale", "output_scale",
               "input_activation_scale", "output_activation_scale")  # fmt: skip
"""Scales for products in 8 or 4 bit. Activations stay in 16 bit here, which is more exact, so their
values, missing or zero ones too, change nothing."""
CACHE = ("k_scale", "v_scale", "q_scale", "k_proj.output_scale", "v_proj.output_scale")
"""Scales for an 8-bit cache; ours has 16."""
SCALES = ("scale", "scales", "scale_inv", "scale_2", "zero_point", "zeros", "qzeros", "biases",
          "amax", "absmax", "g_idx", "qweight", "weight_packed", "weight_shape", "quant_map",
          "bitsandbytes__nf4", "bitsandbytes__fp4")  # fmt: skip
"""The last words of tensors that mean nothing without the others of a packed weight."""


def is_scale(name: str) -> bool:
    """Whether a tensor's name says that it belongs to a packed weight."""
    return name.endswith(SCALES)


def beside(name: str, word: str) -> str:
    """The tensor `word` of the module of a weight: `X.weight` has `X.word`, a bare `X` `X_word`."""
    module = name.removesuffix(".weight")
    return f"{module}_{word}" if module == name else f"{module}.{word}"


def first_of(tensors: Stored, names: Sequence[str]) -> str:
    """The first that is there; the first of all if none is."""
    return next((name for name in names if name in tensors), names[0])


def activations(tensors: Stored, name: str) -> tuple[str, ...]:
    """The scales of activations beside a weight."""
    found = (beside(name, word) for word in ACTIVATIONS)
    return tuple(scale for scale in found if scale in tensors and not scale.endswith(CACHE))


def matrix_shape(tensors: Stored, name: str) -> tuple[int, ...]:
    """The stored shape of codes: a matrix or a stack of them.

    Raises:
        CheckpointError: it is neither.
    """
    shape = tensors[name].shape
    if len(shape) not in (2, 3) or 0 in shape:
        raise CheckpointError(
            f"{name} is packed and has the shape {list(shape)}, which is neither a matrix nor a "
            "stack of them; take the files again, or the BF16 checkpoint"
        )
    return shape


def need(
    tensors: Stored, name: str, owner: str, dtypes: Sequence[str],
    shapes: Iterable[Sequence[int]],
) -> tuple[int, ...]:  # fmt: skip
    """Check the part `name` of `owner`: it is there, with one of the dtypes and shapes.

    Dimensions of one count for nothing: a row's scales may be [R] or [R, 1].

    Returns:
        The one of `shapes` that it has.

    Raises:
        CheckpointError: names it.
    """
    info = tensors.get(name)
    if info is None:
        raise CheckpointError(f"{owner} is packed, but {name} is not there; restore the file")
    if info.dtype not in dtypes:
        raise CheckpointError(
            f"{name} is {info.dtype}; beside {owner} it must be {' or '.join(dtypes)}: take the "
            "files again, or the BF16 checkpoint"
        )
    wanted = list(dict.fromkeys(tuple(shape) for shape in shapes))
    for shape in wanted:
        if [n for n in shape if n != 1] == [n for n in info.shape if n != 1]:
            return shape
    raise CheckpointError(
        f"{name} is {list(info.shape)}, but {owner} and the config want "
        f"{few([str(list(shape)) for shape in wanted])}; both must come from one checkpoint"
    )


def as_bytes(words: Tensor) -> Tensor:
    """Words of 32 bit as bytes, the lowest first: [..., W] -> uint8 [..., 4 W]."""
    assert sys.byteorder == "little"
    if words.stride(-1) != 1:  # turned; `contiguous` leaves a single word as it is
        words = words.clone(memory_format=torch.contiguous_format)
    return words.view(torch.uint8)


def float_scale(tensors: Stored, name: str, read: Read) -> Tensor:
    """Scales as they are stored; bytes are exponents."""
    scale = read(name)
    return scale.view(torch.float8_e8m0fnu) if tensors[name].dtype in EXPONENTS else scale


def scale_counts(
    tensors: Stored, name: str, owner: str, blocks: Sequence[Block], dtypes: Sequence[str] = FLOATS
) -> tuple[tuple[int, ...], int, int]:
    """How many scales a matrix has, and how many rows and columns (0: all of them) share one.

    Args:
        name: of the scales.
        owner: of the matrix.
        blocks: what may share a scale; the first that fits counts.
    """
    *lead, rows, columns = tensors[owner].shape
    counts: dict[tuple[int, ...], Block] = {}
    for high, wide in blocks:
        count = (*lead, math.ceil(rows / (high or rows)), math.ceil(columns / (wide or columns)))
        counts.setdefault(count, (high, wide))
    count = need(tensors, name, owner, dtypes, counts)
    high, wide = counts[count]
    return count, min(high or rows, rows), wide if wide < columns else 0


def for_rows(scale: Tensor, high: int, rows: int) -> Tensor:
    """A scale of `high` rows each, for every row: [..., B, G] -> [..., R, G]."""
    return scale.repeat_interleave(high, -2)[..., :rows, :].contiguous()


def group_order(name: str, index: Tensor, group: int, groups: int) -> Tensor:
    """The group of each column (act-order), which a file may leave open: all -1.

    Returns:
        uint8 or int16 [K].

    Raises:
        CheckpointError: there is no such group.
    """
    index, kind = index.flatten(), torch.uint8 if groups <= 256 else torch.int16
    if index.is_meta:
        return index.to(kind)
    if bool((index == -1).all()):
        index = torch.arange(index.shape[-1]) // (group or index.shape[-1])
    if int(index.min()) < 0 or int(index.max()) >= groups:
        raise CheckpointError(
            f"{name} names groups from {int(index.min())} to {int(index.max())}, but there are "
            f"{groups}; the file is damaged: take it again"
        )
    return index.to(kind)


def float8_group(
    tensors: Stored, name: str, scales: Sequence[str], blocks: Sequence[Block]
) -> Group:
    """e4m3 codes times scales.

    Args:
        name: of the codes.
        scales: what the tensor of scales may be called.
        blocks: what may share a scale; the first that fits counts.
    """
    *lead, rows, columns = shape = matrix_shape(tensors, name)
    scale_name = first_of(tensors, scales)
    count, high, wide = scale_counts(tensors, scale_name, name, blocks, (*FLOATS, *EXPONENTS))
    form = Float8(wide)

    def build(read: Read) -> Packed:
        scale = float_scale(tensors, scale_name, read).view(count)
        if scale.dtype != torch.float8_e8m0fnu:
            scale = scale.to(torch.float32)
        return Packed(form, columns, {"codes": read(name), "scale": for_rows(scale, high, rows)})

    return Group(form, shape, (name, scale_name, *activations(tensors, name)), build)


def float4_group(
    tensors: Stored, name: str, codes: str, group: int, outer: str | None, *, inverse: bool
) -> Group:
    """e2m1 codes, two a byte, times scales, times or divided by one number for each matrix.

    Args:
        name: of the plain weight.
        codes: of the bytes, [..., R, K/2].
        group: columns that share a scale.
        outer: of that number; None: there is none, and the scales are exponents.
        inverse: it divides.
    """
    *lead, rows, width = matrix_shape(tensors, codes)
    columns, form = 2 * width, Float4(group)
    scale_name = beside(name, "weight_scale")
    dtypes = EXPONENTS if outer is None else ("F8_E4M3",)
    need(tensors, scale_name, codes, dtypes, [(*lead, rows, math.ceil(columns / group))])
    stored = (codes, scale_name, *activations(tensors, name))
    single = () if outer is None else need(tensors, outer, codes, FLOATS, [(*lead, 1, 1), (1, 1)])

    def build(read: Read) -> Packed:
        scale = float_scale(tensors, scale_name, read)
        parts = {"codes": read(codes), "scale": scale.view(*lead, rows, -1)}
        if outer is not None:
            number = read(outer).to(torch.float32).view(single)
            number = number.reciprocal() if inverse else number
            parts["outer"] = number.expand(*lead, rows, 1).contiguous()
        return Packed(form, columns, parts)

    return Group(form, (*lead, rows, columns), stored if outer is None else (*stored, outer), build)
