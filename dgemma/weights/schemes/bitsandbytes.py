"""bitsandbytes in 4 bit: a table of 16 numbers and a scale for each run of them.

Source: its config and headers; checked against the package, see the log. What it writes about each
weight is JSON in a tensor of bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgemma.errors import CheckpointError
from dgemma.files.read import parse_json
from dgemma.quant.packed import Packed
from dgemma.quant.table4 import Table4
from dgemma.weights.packed import Group, Read
from dgemma.weights.schemes.parts import Stored, need

STATE = ".quant_state.bitsandbytes__"
KINDS = ("nf4", "fp4")
MOST_BYTES = 1 << 16
"""Of a state: it has a dozen entries."""
LEAST_GROUP = 8


@dataclass(frozen=True, slots=True)
class State:
    """What is written about a weight.

    Attributes:
        rows, columns: of the matrix.
        block: numbers that share a scale, counted on over the rows.
        inner: scales that share one of their own; 0: they are not packed.
        offset: added to them.
    """

    rows: int
    columns: int
    block: int
    inner: int
    offset: float

    @property
    def group(self) -> int:
        """Columns that share a scale: blocks are cut where rows end."""
        return math.gcd(self.columns, self.block)


def read_scheme(config: Mapping[str, Any], tensors: Stored, read: Read) -> dict[str, Group]:
    """See `Scheme`."""
    if eight := next((name for name in tensors if name.endswith(".SCB")), None):
        raise CheckpointError(
            f"{eight}: the 8-bit weights of bitsandbytes are not supported, those of 4 bit are; "
            "take them, or the BF16 checkpoint"
        )
    groups = {}
    for kind in KINDS:
        for state in (name for name in tensors if name.endswith(STATE + kind)):
            name = state.removesuffix(STATE + kind)
            groups[name] = _group(tensors, name, state, kind, read)
    return groups


def _group(tensors: Stored, name: str, state_name: str, kind: str, read: Read) -> Group:
    state = _state(tensors, state_name, read)
    rows, columns, block, inner = state.rows, state.columns, state.block, state.inner
    count = rows * columns
    blocks = math.ceil(count / block)
    absmax, table, coarse, fine = (
        f"{name}.{word}" for word in ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
    )
    need(tensors, name, state_name, ("U8",), [(count // 2,)])
    need(tensors, table, name, ("F32",), [(16,)])
    need(tensors, absmax, name, ("U8",) if inner else ("F32",), [(blocks,)])
    stored = [name, state_name, absmax, table]
    if inner:
        need(tensors, coarse, name, ("F32",), [(math.ceil(blocks / inner),)])
        need(tensors, fine, name, ("F32",), [(256,)])
        stored += [coarse, fine]
    numbers = tuple(read(table).flatten().tolist())
    if not all(map(math.isfinite, numbers)):
        raise _damaged(table, "numbers that are not finite")
    form = Table4(kind, state.group, numbers)

    def build(read: Read) -> Packed:
        scale = read(absmax).flatten()
        if inner:
            outer = read(coarse).flatten()[torch.arange(blocks) // inner]
            scale = read(fine).flatten()[scale.long()] * outer + state.offset
        scale = scale[torch.arange(0, count, state.group) // block]
        codes = low_first(read(name).view(rows, columns // 2))
        return Packed(form, columns, {"codes": codes, "scale": scale.view(rows, -1)})

    return Group(form, (rows, columns), tuple(stored), build)


def low_first(codes: Tensor) -> Tensor:
    """Bytes whose first number is the high half, turned: uint8 [..., B] -> [..., B]."""
    return (codes >> 4) | (codes << 4)


def _state(tensors: Stored, name: str, read: Read) -> State:
    info = tensors[name]
    if info.dtype != "U8" or info.nbytes > MOST_BYTES:
        raise _damaged(name, f"{info.nbytes:,} bytes of {info.dtype}")
    try:
        found = parse_json(bytes(read(name).flatten().tolist()).decode())
    except (ValueError, RecursionError) as error:
        raise _damaged(name, "no JSON") from error
    if not isinstance(found, dict):
        raise _damaged(name, "no JSON object")
    shape, block, inner, offset = (
        found.get(key, default)
        for key, default in (("shape", 0), ("blocksize", 0), ("nested_blocksize", 0),
                             ("nested_offset", 0.0))
    )  # fmt: skip
    whole = [*shape, block] if isinstance(shape, list) else []
    if (
        len(whole) != 3
        or not all(type(n) is int and 0 < n < 1 << 40 for n in whole)
        or not (type(inner) is int and 0 <= inner < 1 << 40)
        or not (type(offset) in (int, float) and math.isfinite(offset))
    ):
        raise _damaged(
            name,
            f"shape {str(shape)[:80]}, blocksize {str(block)[:40]}, nested_blocksize "
            f"{str(inner)[:40]}, nested_offset {str(offset)[:40]}",
        )
    state = State(whole[0], whole[1], whole[2], inner, float(offset))
    if state.columns % 2 or state.group < min(LEAST_GROUP, state.columns):
        raise CheckpointError(
            f"{name}: rows of {state.columns} numbers do not fit blocks of {state.block}; take the "
            "BF16 checkpoint"
        )
    return state


def _damaged(name: str, what: str) -> CheckpointError:
    return CheckpointError(f"{name} holds {what}; the file is damaged: take it again")
