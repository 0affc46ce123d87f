"""What is planned for every packed layout, before anything is read, is what loading makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dgemma.errors import CheckpointError, InvalidRequest
from dgemma.loading import load_model
from dgemma.weights.files import open_checkpoint
from tests.support.hostile_packed import LAYOUTS, make_packed, model_in
from tests.support.weight_parts import weight_bytes


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint of each layout."""
    directory = tmp_path_factory.mktemp("packed")
    make_packed(directory)
    return directory


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_without_numbers_are_those_with_numbers(packed: Path, layout: str) -> None:
    """A check of a layout that reads numbers where there are none: a plan of int4 broke so."""
    source = open_checkpoint(model_in(packed / layout)).source
    names = [name for name, info in source.tensors.items() if info.format is not None]
    assert names
    for name in names:
        like, real = source.packed_like(name).parts, source.packed(name).parts
        kinds = {part: (tensor.shape, tensor.dtype) for part, tensor in real.items()}
        assert {part: (tensor.shape, tensor.dtype) for part, tensor in like.items()} == kinds


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_budget_for_every_layout(packed: Path, layout: str, dtype: str) -> None:
    """`--memory` with each kind of file: the plan has the bytes, or its error names the file."""
    path = model_in(packed / layout)
    found = load_model(path, device="cpu", dtype=dtype, memory="900MB")
    assert found.plan is not None and weight_bytes(found.model) == found.plan.weights
    with pytest.raises(InvalidRequest, match=f"^{path} does not fit a memory of 0.00 MB"):
        load_model(path, device="cpu", memory="1KB")


def test_a_name_without_end(tmp_path: Path) -> None:
    """Messages repeat the names of tensors: one of 100,000 letters is refused before that."""
    make_packed(tmp_path)
    path = tmp_path / "fp8-blocks"
    weights = load_file(path / "model.safetensors")
    name = "model.decoder.layers.0.experts.3.down_proj.weight"
    weights["x" * 100_000] = weights.pop(name)
    save_file(weights, path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert "xxx..., which is not the name of a weight" in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("layout", "word"),
    [("nf4", "quant_map"), ("nf4", "absmax"), ("int4", "weight_shape"), ("gptq", "g_idx"),
     ("int4-ordered", "weight_g_idx"), ("int8", "weight_scale"), ("mlx", "scales")],
)  # fmt: skip
def test_dimensions_of_one_count_for_nothing(tmp_path: Path, layout: str, word: str) -> None:
    """A part of another number of dimensions is let through by its check, and then broke."""
    make_packed(tmp_path)
    path = tmp_path / layout
    whole = open_checkpoint(path).source
    wanted = {
        name: whole.packed(name).dequantise()
        for name, info in whole.tensors.items()
        if info.format is not None
    }
    weights = load_file(path / "model.safetensors")
    more = {n: t[None] if n.endswith(f".{word}") else t for n, t in weights.items()}
    (path / "model.safetensors").unlink()  # the other is mapped
    save_file(more, path / "model.safetensors")
    source = open_checkpoint(path).source
    assert all(torch.equal(source.packed(n).dequantise(), t) for n, t in wanted.items())
