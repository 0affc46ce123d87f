"""The ways of attention against the reference, and their choice."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from dgemma.errors import InvalidRequest
from dgemma.kernels import attention
from dgemma.kernels.attention import ATTENTION, choose_attention, choose_path, grouped


def given(length: int, heads: int, kv_heads: int, total: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(length + total)
    q = torch.randn(length, heads, 16, generator=g)
    held = torch.randn(2, kv_heads, total + 5, 16, generator=g)
    return q, held[0, :, 5:], held[1, :, 5:]


def definition(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """fp64, head by head."""
    out = torch.empty_like(q, dtype=torch.float64)
    for head in range(q.shape[1]):
        shared = head // (q.shape[1] // keys.shape[0])
        scores = q[:, head].double() @ keys[shared].double().T
        if mask is not None:
            scores[~mask] = -torch.inf
        out[:, head] = scores.softmax(-1) @ values[shared].double()
    return out


@pytest.mark.parametrize("kernel", sorted(ATTENTION))
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "total"), [(1, 4, 4, 1), (9, 6, 2, 40), (33, 8, 1, 33)]
)
def test_equal_to_the_definition(
    kernel: str,
    masked: bool,
    length: int,
    heads: int,
    kv_heads: int,
    total: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Heads folded in another order, a mask of another query, a block of queries left out."""
    monkeypatch.setattr(attention, "SCORES", heads * total * 4)
    q, keys, values = given(length, heads, kv_heads, total)
    mask = torch.ones(length, total).tril(total - length).bool() if masked else None
    got = grouped(q, keys, values, mask, kernel)
    expected = definition(q, keys, values, mask)
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", sorted(ATTENTION))
@pytest.mark.parametrize("length", [1, 7])
def test_a_mask_of_the_last_keys(kernel: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask of the queries' own keys alone is laid over the first keys, or over all."""
    monkeypatch.setattr(attention, "SCORES", 1)
    monkeypatch.setattr(attention, "FEWEST", 3)
    q, keys, values = given(length, 4, 2, 40)
    own = torch.ones(length, length).tril().bool()
    whole = torch.ones(length, 40).tril(40 - length).bool()
    got = grouped(q, keys, values, own, kernel)
    torch.testing.assert_close(got, grouped(q, keys, values, whole, kernel), atol=0, rtol=0)
    expected = definition(q, keys, values, whole)
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)


def test_16_bit_products_round_as_the_reference() -> None:
    """The softmax is fp32 inside: the same bits as the oracle's eager attention, or nearly."""
    q, keys, values = (x.bfloat16() for x in given(33, 8, 2, 200))
    a, b = (grouped(q, keys, values, None, kernel) for kernel in ("plain", "products"))
    assert (a == b).float().mean() > 0.99


def test_the_choice_has_a_reason() -> None:
    """fp32 on a CPU promises equal bits in any batch, which `products` does not."""
    cpu = torch.device("cpu")
    assert choose_attention(torch.float32, cpu)[0] == "sdpa"
    assert choose_attention(torch.bfloat16, cpu)[0] == "products"
    assert choose_attention(torch.float32, cpu, path="paged")[0] == "gathered"
    on_cuda = "triton" if find_spec("triton") else "gathered"
    for dtype in (torch.float32, torch.bfloat16):
        assert choose_attention(dtype, torch.device("cuda"))[0] == on_cuda
        assert choose_attention(dtype, torch.device("cuda"), path="reference")[0] == "sdpa"
    cuda = torch.device("cuda")
    assert choose_path(cpu) == ("reference", "auto: on a CPU")
    assert choose_path(cuda) == ("paged", "auto: on CUDA")
    assert choose_path(cuda, grad=True) == ("reference", "gradients are wanted")
    assert choose_path(cpu, path="paged") == ("paged", "asked for")
    with pytest.raises(InvalidRequest, match="reference"):
        choose_attention(torch.float32, cpu, path="flash")
    with pytest.raises(InvalidRequest, match="no gradients"):
        choose_attention(torch.float32, cpu, grad=True, path="paged")
