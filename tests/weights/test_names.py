"""The name table against the module tree and the files of `transformers`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from dgemma.model.config import ModelConfig
from dgemma.model.transformer import DiffusionGemma
from dgemma.weights import names


@pytest.mark.oracle
def test_released_size_one_to_one(
    released: ModelConfig,
    released_tensors: dict[str, tuple[int, ...]],
    meta_model: Callable[[ModelConfig], DiffusionGemma],
) -> None:
    """On the meta device, at the size of the 26B checkpoint: every tensor of `transformers` has
    one of ours with the same shape and the other way round, vision included.

    The counts are those published for the release: 1,047 tensors, 51.6476 GB in bf16. A tensor
    that one side lacks, a swapped pair of shapes or a layer off by one all show here.
    """
    theirs = released_tensors
    assert len(theirs) == 1047
    assert round(sum(2 * torch.Size(s).numel() for s in theirs.values()) / 1e9, 4) == 51.6476
    ours = {names.to_ours(name): shape for name, shape in theirs.items()}
    assert None not in ours
    assert len(ours) == len(theirs)
    assert {names.to_checkpoint(name or "") for name in ours} == set(theirs)
    text = {name: shape for name, shape in ours.items() if not names.is_vision(name or "")}
    assert text == {k: tuple(v.shape) for k, v in meta_model(released).state_dict().items()}


@pytest.mark.oracle
def test_written_is_what_is_in_the_file(
    tmp_path: Path,
    config: ModelConfig,
    reference_model: Callable[..., Any],
    written: Callable[[Any], dict[str, tuple[int, ...]]],
) -> None:
    """The fixture models the ties; here a real save of a tiny model proves it, with the
    clipped linears of the vision part switched on."""
    model = reference_model(config)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        held = {name: tuple(file.get_slice(name).get_shape()) for name in file.offset_keys()}
    assert held == written(model)
    assert all(names.to_ours(name) for name in held)


def test_table_is_two_way() -> None:
    """A name used twice on one side would lose a tensor."""
    table = names.TEXT + names.VISION
    assert len({theirs for theirs, _ in table}) == len({ours for _, ours in table}) == len(table)
    for theirs, ours in table:
        assert names.to_ours(theirs.replace("N", "12")) == ours.replace("N", "12")
        assert names.to_checkpoint(ours.replace("N", "12")) == theirs.replace("N", "12")


def test_unknown_names_are_unknown() -> None:
    """Near misses must not be taken: they are reported as unexpected."""
    for name in (
        "model.decoder.layers.0.layer_scalar.weight",
        "model.decoder.layers.01.layer_scalar",
        "model.decoder.layers.N.layer_scalar",
        "model.encoder.language_model.layers.0.input_layernorm.weight",
        "model.encoder.vision_tower.surprise",
        "lm_head.weight",
        "",
    ):
        assert names.to_ours(name) is None
