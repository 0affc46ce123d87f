"""The Triton attention against a plain softmax: in Triton's interpreter, and on CUDA."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from dgemma.errors import InvalidRequest

pytest.importorskip("triton", reason="the kernels need the triton package")
from dgemma.kernels import attention_triton
from dgemma.kernels.attention_triton import attend, block_sizes, count_spans

pytestmark = pytest.mark.slow
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
here = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(),
    reason="no CUDA; test_in_the_interpreter.py runs these on the CPU",
)
LOOSE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def usable(dtype: torch.dtype) -> torch.dtype:
    if INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("bf16 products are wrong in Triton's interpreter")
    return dtype


def given(
    length: int, total: int, heads: int, kv_heads: int, width: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """q, and keys and values as views into a larger buffer whose other places are NaN."""
    generator = torch.Generator().manual_seed(1000 * length + total)
    buffer = torch.full((2, kv_heads, total + 7, width), float("nan"))
    buffer[:, :, 3 : 3 + total] = torch.randn(2, kv_heads, total, width, generator=generator)
    q = torch.randn(length, heads, width, generator=generator) * 2 * width**-0.5
    keys, values = buffer.to(DEVICE, dtype)[:, :, 3 : 3 + total]
    return q.to(DEVICE, dtype), keys, values


def reference(q: Tensor, keys: Tensor, values: Tensor, window: int | None, causal: bool) -> Tensor:
    """The same in fp64, with a mask, straight from the definition."""
    group = q.shape[1] // keys.shape[0]
    k, v = (x.double().repeat_interleave(group, 0) for x in (keys, values))  # [H, S, hd]
    scores = q.double().transpose(0, 1) @ k.transpose(1, 2)
    if causal:
        key = torch.arange(keys.shape[1], device=q.device)[None, :]
        own = key[0, keys.shape[1] - q.shape[0] :, None]
        hidden = key > own
        if window is not None:
            hidden |= key < own - window + 1
        scores = scores.masked_fill(hidden, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(0, 1)


def compare(
    shape: tuple[int, int, int, int, int], window: int | None, causal: bool, dtype: torch.dtype
) -> Tensor:
    q, keys, values = given(*shape, usable(dtype))
    got = attend(q, keys, values, window, causal)
    assert got.dtype == dtype and got.shape == q.shape and got.is_contiguous()
    want = reference(q, keys, values, window, causal)
    torch.testing.assert_close(got.double(), want, atol=LOOSE[dtype], rtol=LOOSE[dtype])
    return got


dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])


@here
@dtypes
@pytest.mark.parametrize(("length", "total"), [(1, 1), (1, 50), (19, 19), (20, 83), (33, 64)])
@pytest.mark.parametrize("window", [None, 0])
@pytest.mark.parametrize("causal", [False, True])
def test_equal_to_the_plain_softmax(
    length: int, total: int, window: int | None, causal: bool, dtype: torch.dtype
) -> None:
    """Ragged lengths, one query, no prefix; NaN beside the keys shows a read out of bounds."""
    if window is not None:
        window, causal = 9, True
    assert compare((length, total, 4, 2, 24), window, causal, dtype).isfinite().all()


@here
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [1, 2, 31, 32, 33, 64, 65, 90, 91])
def test_window_borders(window: int, dtype: torch.dtype) -> None:
    """One key too many or too few, at borders of the blocks and of the keys there are."""
    assert compare((40, 90, 2, 1, 16), window, True, dtype).isfinite().all()


@here
@dtypes
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(16, 8, 256), (16, 2, 512)])
@pytest.mark.parametrize(("window", "causal"), [(None, False), (30, True)])
def test_the_released_heads(
    heads: int, kv_heads: int, width: int, window: int | None, causal: bool, dtype: torch.dtype
) -> None:
    """The sizes that the model has, with the blocks chosen for them."""
    assert (
        compare((9, 75, heads, kv_heads, width), window if width == 256 else None, causal, dtype)
        .isfinite()
        .all()
    )


@here
@dtypes
@pytest.mark.parametrize("fill", [1, 128])
@pytest.mark.parametrize(("window", "causal"), [(None, False), (None, True), (100, True)])
def test_spans_do_not_matter(
    fill: int, window: int | None, causal: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys in one span and in many; some spans lie wholly behind a query or before its window."""
    monkeypatch.setattr(attention_triton, "FILL", fill)
    assert compare((40, 260, 2, 1, 16), window, causal, dtype).isfinite().all()
    assert compare((1, 260, 2, 1, 16), window, causal, dtype).isfinite().all()


@here
def test_large_scores_stay_finite() -> None:
    """The running maximum: exponentials of the scores themselves overflow."""
    q, keys, values = given(6, 100, 2, 1, 16, torch.float32)
    got = attend(q * 400, keys, values, None, False)
    want = reference(q * 400, keys, values, None, False)
    torch.testing.assert_close(got.double(), want, atol=1e-3, rtol=1e-3)


def test_blocks_fit_in_shared_memory() -> None:
    """By the documented estimate; what the compiler takes is seen on a GPU only."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for width in (64, 256, 512):
            for rows in (1, 16, 17, 2048):
                size = block_sizes(rows, width, dtype)
                held = (size.rows + 2 * size.stages * size.keys) * width + size.rows * size.keys
                assert held * dtype.itemsize <= 227 * 1024
    assert count_spans(64, 20) == 2 and count_spans(2, 20) == 5 and count_spans(500, 20) == 1


def test_refusals() -> None:
    """What would be computed wrongly in silence is refused."""
    q, keys = torch.zeros(4, 4, 8), torch.zeros(2, 6, 8)
    bad = [
        (q.half(), keys, keys, None, False),
        (q, keys[:, :0], keys[:, :0], None, False),
        (q, keys[:, :3], keys[:, :3], None, True),
        (q[:, :3], keys, keys, None, False),
        (q, keys, keys[:, :5], None, False),
        (q, keys, keys, 4, False),
        (q, keys, keys, 0, True),
        (q, keys.mT.contiguous().mT, keys, None, True),
        (q.requires_grad_(), keys, keys, None, False),
    ]
    for arguments in bad:
        with pytest.raises(InvalidRequest):
            attend(*arguments)
