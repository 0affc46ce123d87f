"""What matrices are multiplied with, counted column by column."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgemma.model.config import AttentionShape, ModelConfig
from dgemma.model.layers import Experts, Linear
from dgemma.quant.activations import LEAST, PRIOR, Activations

CONFIG = ModelConfig(
    vocab_size=8, hidden_size=6, intermediate_size=4, moe_intermediate_size=5, num_experts=3,
    top_k_experts=2, num_attention_heads=1, layer_types=("full_attention",),
    sliding=AttentionShape(head_dim=4, num_key_value_heads=1, rope_theta=1e4),
    full=AttentionShape(head_dim=4, num_key_value_heads=1, rope_theta=1e4),
    sliding_window=4, max_position_embeddings=64, canvas_length=4,
)  # fmt: skip


def scaled(squares: Tensor) -> Tensor:
    squares = squares.sqrt()
    return (squares / squares.mean(-1, keepdim=True)).clamp(min=LEAST)


def test_linear() -> None:
    """Squares of the last batch alone, or of the outputs; a hook that stays."""
    model = nn.ModuleDict({"q_proj": Linear(6, 2), "unused": Linear(6, 2)})
    first, second = torch.randn(5, 6), torch.randn(3, 6)
    first[:, 2] = second[:, 2] = 0
    seen = Activations(model)
    with torch.inference_mode():
        model["q_proj"](first)
        model["q_proj"](second)
        seen.close()
        model["q_proj"](100 * first)
    found = seen.importance("q_proj.weight")
    assert found is not None and found[2] == LEAST
    torch.testing.assert_close(found, scaled(torch.cat((first, second)).square().mean(0)))
    assert seen.importance("unused.weight") is None


def test_experts() -> None:
    """Rows given to the wrong expert, or not weighed as its result is."""
    torch.manual_seed(0)
    experts = Experts(CONFIG)
    for stack in experts.parameters():
        nn.init.normal_(stack)
    x, weight = torch.randn(4, 6), torch.rand(4, 2)
    index = torch.tensor([[0, 1], [1, 0], [0, 1], [1, 0]])  # never the third
    seen = Activations(nn.ModuleDict({"experts": experts}))
    experts(x, index, weight)
    wide, inner, counts = torch.zeros(3, 6), torch.zeros(3, 5), torch.zeros(3)
    for row, pair in enumerate(index.tolist()):
        for slot, expert in enumerate(pair):
            gate, up = (experts.gate_up_proj[expert] @ x[row]).detach().chunk(2)
            share = weight[row, slot].square()
            wide[expert] += share * x[row].square()
            inner[expert] += share * (F.gelu(gate, approximate="tanh") * up).square()
            counts[expert] += share
    for name, sums in (("gate_up_proj", wide), ("down_proj", inner)):
        found = seen.importance(f"experts.{name}")
        mean = sums.sum(0) / counts.sum()
        wanted = (sums + PRIOR * mean) / (counts + PRIOR)[:, None]
        assert found is not None
        torch.testing.assert_close(found, scaled(wanted))
        torch.testing.assert_close(found[2], scaled(mean))
