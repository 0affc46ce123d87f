"""One way from a name to a model, for answers, training and measurements."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dgemma.loading import load_model, save_model
from dgemma.train.forward import encode

pytestmark = pytest.mark.model


def test_everything_but_the_weights() -> None:
    """What only asks which kernels a run takes must not read 52 GB."""
    found = load_model("nano", device="cpu", weights=False)
    assert all(parameter.is_meta for parameter in found.model.parameters())
    assert found.choice.dtype == torch.float32 and found.tokenizer and found.template
    full = load_model("nano", device="cpu")
    assert full.model.kernels == found.model.kernels
    assert not any(p.is_meta or p.requires_grad for p in full.model.parameters())


def test_weights_to_be_trained_have_gradients() -> None:
    """In bf16 the kernels of a run have no backward: training asks for others."""
    loaded = load_model("nano", device="cpu", dtype="bfloat16", grad=True)
    assert loaded.model.kernels != load_model("nano", dtype="bfloat16", weights=False).model.kernels
    encode(loaded.model, torch.arange(3, 19)[None]).hidden.float().sum().backward()
    learnt = {name for name, p in loaded.model.named_parameters() if p.grad is not None}
    assert learnt >= {"embed.weight", "layers.0.experts.down_proj", "layers.5.input_norm.weight"}


def test_saved_and_loaded_again(tmp_path: Path) -> None:
    """Config, sampler, tokenizer, template, card and every number."""
    loaded = load_model("nano", device="cpu")
    again = load_model(save_model(loaded.model, loaded.checkpoint, tmp_path / "m"), device="cpu")
    assert again.checkpoint.generation == loaded.checkpoint.generation
    assert again.tokenizer and again.template and (tmp_path / "m" / "README.md").exists()
    state = again.model.state_dict()
    assert all(torch.equal(value, state[n]) for n, value in loaded.model.state_dict().items())
