"""The fast ways of the experts against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dgemma.kernels import experts
from dgemma.kernels.experts import EXPERTS, Prepacked, choose_experts, experts_sparse
from tests.support.oracle import tiny_pair

WIDTH, INNER, COUNT = 24, 16, 12


def routed(rows: int, top_k: int, seed: int = 0) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    weight, index = torch.rand(rows, COUNT, generator=g).topk(top_k, dim=-1)
    gate_up = torch.randn(COUNT, 2 * INNER, WIDTH, generator=g) * WIDTH**-0.5
    down = torch.randn(COUNT, WIDTH, INNER, generator=g) * INNER**-0.5
    return torch.randn(rows, WIDTH, generator=g), index, weight, gate_up, down


@pytest.mark.parametrize("kernel", ("dense", "grouped"))
@pytest.mark.parametrize(("rows", "top_k"), [(1, 1), (1, 8), (5, 3), (70, 8), (300, COUNT)])
def test_equal_to_the_reference(kernel: str, rows: int, top_k: int) -> None:
    """Experts without rows, with one row, with all; weights of another slot; twice, for scratch.

    Seen to fail with `place` built without the inverse permutation.
    """
    for seed in (0, 1):
        given = routed(rows, top_k, seed)
        torch.testing.assert_close(
            EXPERTS[kernel](*given), experts_sparse(*given), atol=2e-5, rtol=2e-5
        )


def test_16_bit_is_no_further_from_fp32_than_the_reference() -> None:
    """The grouped way adds in fp32 and rounds once; the reference rounds at every expert."""
    given = routed(300, 8)
    truth = experts_sparse(*given)
    half = [x.bfloat16() if x.is_floating_point() else x for x in given]
    half[2] = given[2]
    errors = {
        name: float((EXPERTS[name](*half).float() - truth).norm() / truth.norm())
        for name in ("sparse", "grouped")
    }
    assert errors["grouped"] <= errors["sparse"] * 1.02 and errors["grouped"] < 0.02


def test_the_choice_has_a_reason() -> None:
    """Grouped rows of an expert round by their number, so fp32 must not take that way."""
    cpu = torch.device("cpu")
    assert choose_experts(8, 24, torch.float32, cpu)[0] == "dense"
    assert choose_experts(128, 704, torch.float32, cpu)[0] == "sparse"
    assert choose_experts(128, 704, torch.bfloat16, cpu)[0] == "grouped"
    assert choose_experts(128, 704, torch.bfloat16, cpu, grad=True)[0] == "sparse"


@pytest.mark.oracle
def test_gradients_still_flow() -> None:
    """The ways that write in place would raise, or cut the graph, where a gradient is wanted."""
    theirs, model = tiny_pair(0, num_experts=128, moe_intermediate_size=16)
    model = model.bfloat16().requires_grad_(True)
    cache = model.new_cache(1, 64)
    model.encode(torch.tensor([[5, 6, 7]]), cache).float().sum().backward()
    layer = model.layers[0]
    assert (
        layer.experts.down_proj.grad is not None and layer.attention.q_proj.weight.grad is not None
    )


def test_prepacked_matrices_give_the_grouped_way() -> None:
    """In bf16 the same numbers, with free memory alone, and only after the weights are there."""
    if choose_experts(128, 704, torch.bfloat16, torch.device("cpu"), room=9)[0] != "prepacked":
        pytest.skip("oneDNN has no bf16 here")
    given = [x.bfloat16() if x.is_floating_point() else x for x in routed(70, 8)]
    given[2] = given[2].float()
    packed = [*given[:3], Prepacked(given[3]), Prepacked(given[4])]
    right = EXPERTS["grouped"](*given)
    torch.testing.assert_close(EXPERTS["prepacked"](*packed), right, atol=1e-2, rtol=1e-2)


def test_prepacking_needs_memory_and_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of all experts must not push a machine into swapping."""
    monkeypatch.setattr(experts, "_packs_bf16", lambda device: True)
    cpu = torch.device("cpu")
    name, why = choose_experts(128, 704, torch.bfloat16, cpu, room=2.9)
    assert name == "grouped" and "2.9 bytes are free" in why
    assert choose_experts(128, 704, torch.bfloat16, cpu, room=3.1)[0] == "prepacked"
    assert choose_experts(128, 704, torch.float16, cpu, room=3.1)[0] == "grouped"
    assert choose_experts(128, 704, torch.float32, cpu, room=3.1)[0] == "sparse"
    assert choose_experts(128, 704, torch.bfloat16, cpu, grad=True, room=3.1)[0] == "sparse"
