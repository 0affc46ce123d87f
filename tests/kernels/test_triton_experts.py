"""The Triton experts against the plain ones: in Triton's interpreter, and on CUDA."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dgemma.errors import InvalidRequest
from dgemma.kernels.experts import experts_sparse
from tests.support.interpreter import DEVICE, here, rarely, usable

pytest.importorskip("triton", reason="the kernels need the triton package")
from dgemma.kernels import experts_triton as kernels
from dgemma.kernels.experts_triton import (
    TILES_16_BIT,
    TILES_32_BIT,
    ExpertTiles,
    candidates,
    most_blocks,
    plan_blocks,
)
from dgemma.kernels.experts_triton import experts_triton as run

pytestmark = pytest.mark.slow
LOOSE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def routed(rows: int, experts: int, top: int, seed: int = 0) -> Tensor:
    """int64 [rows, top]: different experts for each row, in no order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, experts, generator=generator).argsort(1)[:, :top].contiguous()


def given(
    index: Tensor, width: int, inner: int, experts: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Arguments with values of about one everywhere."""
    g = torch.Generator().manual_seed(width + inner)
    rows, top = index.shape
    x = torch.randn(rows, width, generator=g)
    weight = torch.rand(rows, top, generator=g) + 0.05
    weight = weight / weight.sum(1, keepdim=True)
    gate_up = torch.randn(experts, 2 * inner, width, generator=g) * width**-0.5
    down = torch.randn(experts, width, inner, generator=g) * inner**-0.5
    x, gate_up, down = (t.to(DEVICE, dtype) for t in (x, gate_up, down))
    return x, index.to(DEVICE), weight.to(DEVICE), gate_up, down


def compare(index: Tensor, width: int, inner: int, experts: int, dtype: torch.dtype) -> Tensor:
    arguments = given(index, width, inner, experts, usable(dtype))
    got = run(*arguments)
    assert got.dtype == dtype and got.is_contiguous()
    torch.testing.assert_close(
        got, experts_sparse(*arguments), atol=LOOSE[dtype], rtol=LOOSE[dtype]
    )
    return got


dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])


@here
@pytest.mark.parametrize("dtype", [rarely(torch.float32), torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "width", "inner", "experts", "top"),
    [
        (1, 40, 24, 6, 3),  # one row, most experts without rows
        (1, 64, 64, 1, 1),  # a dense MLP
        (7, 72, 40, 5, 5),  # every expert for every row; no power of two anywhere
        (17, 66, 70, 10, 8),  # the released top 8; sizes just above a block
        (75, 64, 66, 3, 2),  # several blocks of an expert, the last one cut short
        (200, 24, 16, 2, 1),  # the blocks of a prefill
    ],
)
def test_equal_to_the_plain_experts(
    rows: int, width: int, inner: int, experts: int, top: int, dtype: torch.dtype
) -> None:
    """Ragged sizes against every block size there is."""
    assert compare(routed(rows, experts, top), width, inner, experts, dtype).isfinite().all()


@here
@dtypes
@pytest.mark.parametrize("rows", [16, 33])
@pytest.mark.parametrize("expert", [0, 6])
def test_all_rows_to_one_expert(rows: int, expert: int, dtype: torch.dtype) -> None:
    """The first or the last expert takes all; the others' blocks must not be begun."""
    assert compare(torch.full((rows, 1), expert), 40, 24, 7, dtype).isfinite().all()


@here
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_released_widths(dtype: torch.dtype) -> None:
    """Hidden 2816 and expert width 704, few rows and experts."""
    assert compare(torch.tensor([[1]]), 2816, 704, 2, dtype).isfinite().all()


@here
def test_same_bits_twice_and_in_any_order_of_experts() -> None:
    """The sum runs in ascending expert order: no atomics, and the router's order is no matter."""
    arguments = given(routed(20, 9, 4), 48, 32, 9, torch.float32)
    x, index, weight, gate_up, down = arguments
    got = run(*arguments)
    assert torch.equal(got, run(*arguments))
    turned = run(x, index.flip(1), weight.flip(1), gate_up, down)
    assert torch.equal(got, turned)


@here
def test_an_expert_named_twice_counts_twice() -> None:
    """Two assignments of a row to one expert must not overwrite each other."""
    assert compare(torch.tensor([[2, 2, 0], [1, 2, 1]]), 24, 16, 3, torch.float32).isfinite().all()


@here
def test_strided_rows_and_no_rows() -> None:
    """Views that are not contiguous are read rightly; nothing in, nothing out."""
    x, index, weight, gate_up, down = given(routed(6, 4, 2), 24, 16, 4, torch.float32)
    want = run(x, index, weight, gate_up, down)
    wide = torch.cat((x, x + 1), 1)[:, :24]
    turned = index.T.contiguous().T, weight.T.contiguous().T
    assert torch.equal(run(wide, *turned, gate_up, down), want)
    assert run(x[:0], index[:0], weight[:0], gate_up, down).shape == (0, 24)


@here
@pytest.mark.parametrize("rows", [1, 5, 16])
@pytest.mark.parametrize("experts", [1, 3, 70])
def test_the_plan_covers_every_assignment_once(experts: int, rows: int) -> None:
    """Against a plain loop; the bound on blocks holds and empty blocks come last."""
    for count in (1, 40):
        index = torch.randint(experts, (count, 2), generator=torch.Generator().manual_seed(count))
        order, plan = plan_blocks(index.to(DEVICE), experts, rows)
        want, flat = [], index.flatten().tolist()
        start = 0
        for expert in range(experts):
            end = start + flat.count(expert)
            want += [[expert, low, min(low + rows, end)] for low in range(start, end, rows)]
            start = end
        total = plan.shape[1]
        assert len(want) <= total == most_blocks(2 * count, experts, rows)
        assert plan.T[: len(want)].tolist() == want
        assert (plan[0, len(want) :] == -1).all()
        grouped = [flat[place] for place in order.tolist()]
        assert sorted(order.tolist()) == list(range(2 * count)) and grouped == sorted(flat)


@here
@pytest.mark.parametrize("tiles", sorted({*TILES_16_BIT, *TILES_32_BIT}, key=str))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_block_size(
    tiles: ExpertTiles, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that only a device with little room takes, or another number of rows."""
    monkeypatch.setattr(kernels, "candidates", lambda *_: (tiles,))
    assert compare(routed(37, 3, 2), 72, 70, 3, dtype).isfinite().all()


def test_blocks_follow_the_rows() -> None:
    """A canvas with the blocks of a prefill reads weights for rows that are not there."""
    first = {rows: candidates(rows * 8, 128, torch.bfloat16)[0].rows for rows in (1, 256, 8192)}
    assert first == {1: 16, 256: 32, 8192: 128}
    for rows in (1, 256, 1024, 8192):
        for dtype in (torch.float32, torch.bfloat16):
            found = candidates(rows * 8, 128, dtype)
            assert len(found) >= 2, "nothing smaller to fall back to"
            sizes = [kernels.shared_bytes(tiles, dtype) for tiles in found]
            assert sizes[-1] == min(sizes) <= 32 * 1024


def test_refusals() -> None:
    """What would be computed wrongly in silence is refused."""
    x, index, weight = torch.zeros(3, 8), torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 2)
    gate_up, down = torch.zeros(4, 12, 8), torch.zeros(4, 8, 6)
    bad = [
        (x.half(), index, weight, gate_up, down),
        (x[:2], index, weight, gate_up, down),
        (x, index, weight[:, :1], gate_up, down),
        (x, index, weight, gate_up[:, :10], down),
        (x, index, weight, gate_up, down[:, :7]),
        (x.clone().requires_grad_(), index, weight, gate_up, down),
    ]
    for arguments in bad:
        with pytest.raises(InvalidRequest):
            kernels.experts_triton(*arguments)
