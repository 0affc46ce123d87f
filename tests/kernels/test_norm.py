"""The norm in blocks against torch's own: bit for bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dgemma.kernels import norm
from dgemma.kernels.norm import rms_norm

SHAPES = [(1, 8), (7, 512), (33, 2816), (5, 3, 256)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scaled", [True, False])
def test_equals_torch(
    dtype: torch.dtype, shape: tuple[int, ...], scaled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block border that is off by one; a sum in 16 bit; the weight applied before rounding."""
    monkeypatch.setattr(norm, "BLOCK_ELEMENTS", 4 * shape[-1])
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(shape, generator=generator) * 30).to(dtype)
    weight = torch.randn(shape[-1], generator=generator).to(dtype) if scaled else None
    before = x.clone()
    assert torch.equal(rms_norm(x, weight, 1e-6), F.rms_norm(x, x.shape[-1:], weight, 1e-6))
    assert torch.equal(x, before), "the input was overwritten"
    part = x.transpose(0, 1)  # not contiguous
    if part.dim() == 3:
        expected = F.rms_norm(part, part.shape[-1:], weight, 1e-6)
        assert torch.equal(rms_norm(part, weight, 1e-6), expected)


def test_not_finite_stays_not_finite() -> None:
    """A fault in the network is normed away."""
    x = torch.ones(3, 16, dtype=torch.bfloat16)
    x[1, 2] = torch.nan
    out = rms_norm(x, None, 1e-6)
    assert out[1].isnan().all() and out[[0, 2]].isfinite().all()


@pytest.mark.parametrize("of", ["x", "weight"])
def test_gradients_flow(of: str) -> None:
    """Scratch memory in a graph: training would learn from overwritten numbers."""
    x, weight = torch.randn(4, 8, dtype=torch.bfloat16), torch.ones(8, dtype=torch.bfloat16)
    wanted = {"x": x, "weight": weight}[of].requires_grad_()
    rms_norm(x, weight, 1e-6).sum().backward()
    assert wanted.grad is not None and wanted.grad.isfinite().all()
