"""Every part has its kernel from loading on, and says which and why."""

from __future__ import annotations

import pytest
import torch

from dgemma.kernels.attention import choose_attention, choose_path
from dgemma.kernels.experts import EXPERTS, choose_experts
from dgemma.kernels.head import choose_head
from dgemma.model.transformer import DiffusionGemma
from tests.support.oracle import tiny_pair

pytestmark = pytest.mark.oracle

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grad", [False, True])
def test_kernels_are_chosen_before_there_are_weights(dtype: torch.dtype, grad: bool) -> None:
    """`dgemma doctor` must print what a run takes, and a forward must not choose again: a fresh
    network has gradients, a loaded one the kernels of its device and dtype."""
    sizes = {"num_experts": 128, "moe_intermediate_size": 16}
    config = tiny_pair(0, **sizes)[1].config
    with torch.device("meta"):
        model = DiffusionGemma(config)
    fresh = {part: name for part, name, _ in model.kernels}
    assert fresh == {
        "experts": "sparse", "head": "rows",
        "attention path": "reference", "attention kernel": "sdpa",
        "cache": "float32",
    }  # fmt: skip
    model.choose_kernels(CPU, dtype, grad=grad, room=0)
    assert model.kernels == (
        ("experts", *choose_experts(128, 16, dtype, CPU, grad)),
        ("head", *choose_head(config.vocab_size, CPU)),
        ("attention path", *choose_path(CPU, grad)),
        ("attention kernel", *choose_attention(dtype, CPU, grad)),
        ("cache", str(dtype).removeprefix("torch."), "auto: as the model"),
    )
    chosen = EXPERTS[model.kernels[0][1]]
    assert all(layer.experts.kernel is chosen for layer in model.layers)
    assert next(model.parameters()).is_meta


def test_the_head_for_cuda_streams_on_cuda() -> None:
    """The width of a tile and the kernels are those of the device of the run, not of the weights,
    which are on the meta device when they are chosen."""
    pytest.importorskip("triton", reason="the kernels need the triton package")
    _, model = tiny_pair(0, vocab_size=5000)
    assert model.head.kernel == "tiles" and model.head.tiles.cuda is None
    on_cpu = model.head.tiles.tile_elements
    model.choose_kernels(torch.device("cuda"), torch.bfloat16)
    assert model.head.kernel == "triton" and model.head.tiles.cuda is not None
    assert model.head.tiles.tile_elements > on_cpu
