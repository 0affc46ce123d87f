"""Integers in groups against the formula, number by number."""

from __future__ import annotations

import pytest
import torch

from dgemma.quant.affine import bit_stream
from dgemma.quant.integers import Integers
from dgemma.quant.packed import Packed, joined, stacked
from dgemma.quant.table4 import Table4
from tests.support.packing_ints import NF4, rows_of_words

GENERATOR = torch.Generator().manual_seed(2)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("columns", [1, 45, 352, 704, 2112])
def test_streams_of_any_length(bits: int, columns: int) -> None:
    """Words are filled up at the end; 7 bits too."""
    codes = torch.randint(0, 2**bits, (2, columns), generator=GENERATOR)
    found = bit_stream(rows_of_words(codes, bits).view(torch.uint8), bits)[:, :columns]
    assert torch.equal(found.long(), codes)


@pytest.mark.parametrize("zero", [None, 8, 0])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("columns", "group"), [(704, 128), (352, 0), (2112, 32)])
def test_integers(zero: int | None, ordered: bool, columns: int, group: int) -> None:
    """w = scale (code - zero), the last group cut short; rounded once."""
    count = -(-columns // (group or columns))
    codes = torch.randint(0, 16, (3, columns), generator=GENERATOR)
    scale = torch.randn(3, count, generator=GENERATOR)
    zeros = torch.randint(0, 17, (3, count), generator=GENERATOR)
    index = torch.randint(0, count, (columns,), generator=GENERATOR)
    if not ordered:
        index = torch.arange(columns) // (group or columns)
    stream = rows_of_words(codes, 4).view(torch.uint8)
    parts = {"codes": stream, "scale": scale, "zero": zeros.to(torch.uint8)}
    parts["order"] = index.to(torch.uint8).expand(3, columns)
    found = Integers(4, group, zero, ordered).unpack(parts, columns)
    for k in range(columns):
        less = zeros[:, index[k]] if zero is None else zero
        assert torch.equal(found[:, k], (codes[:, k] - less) * scale[:, index[k]])


def test_an_order_costs_a_row_not_a_matrix() -> None:
    """The order of columns is one row for all; joined, stacked, cut and copied it stays one."""
    order = torch.arange(64, dtype=torch.uint8).flip(0) // 16

    def piece(seed: int) -> Packed:
        codes = torch.randint(0, 256, (8, 64), generator=torch.Generator().manual_seed(seed))
        parts = {"codes": codes.to(torch.uint8), "scale": torch.rand(8, 4)}
        return Packed(Integers(8, 16, 128, True), 64, parts | {"order": order.expand(8, 64)})

    def held(packed: Packed) -> int:
        return packed.parts["order"].untyped_storage().nbytes()

    pair = [piece(1), piece(2)]
    rows, stack = joined(pair), stacked(pair)
    assert torch.equal(rows.dequantise(), torch.cat([p.dequantise() for p in pair]))
    assert torch.equal(stack.dequantise(), torch.stack([p.dequantise() for p in pair]))
    assert torch.equal(stack[1][2:5].dequantise(), pair[1].dequantise()[2:5])
    assert torch.equal(stack.clone().dequantise(), stack.dequantise())
    assert [held(rows), held(stack), held(stack.clone())] == [64, 128, 128]


def test_orders_that_differ_are_joined() -> None:
    """gate and up of one expert may be in different orders."""
    codes = torch.randint(0, 256, (4, 32), dtype=torch.uint8, generator=GENERATOR)
    pieces = []
    for order in (torch.arange(32) // 8, torch.arange(32).flip(0) // 8):
        parts = {"codes": codes, "scale": torch.rand(4, 4), "order": order.byte().expand(4, 32)}
        pieces.append(Packed(Integers(8, 8, 128, True), 32, parts))
    right = torch.cat([piece.dequantise() for piece in pieces])
    assert torch.equal(joined(pieces).dequantise(), right)


@pytest.mark.parametrize(("columns", "group"), [(704, 64), (352, 32), (2112, 64)])
def test_a_table(columns: int, group: int) -> None:
    """nf4: the code looks its number up."""
    codes = torch.randint(0, 16, (3, columns), generator=GENERATOR)
    scale = torch.rand(3, columns // group, generator=GENERATOR)
    parts = {"codes": rows_of_words(codes, 4).view(torch.uint8), "scale": scale}
    found = Table4("nf4", group, NF4).unpack(parts, columns)
    right = torch.tensor(NF4)[codes] * scale.repeat_interleave(group, -1)
    assert torch.equal(found, right)
