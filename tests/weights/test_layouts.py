"""Files that hold our tensors in other ways: experts one by one, gate and up apart, packed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dgemma.errors import CheckpointError
from dgemma.model.config import ModelConfig
from dgemma.model.hf_config import write_config
from dgemma.model.transformer import DiffusionGemma
from dgemma.weights.files import open_checkpoint
from dgemma.weights.load import load_weights
from dgemma.weights.names import SPLIT, layouts, to_checkpoint
from dgemma.weights.safetensors import Safetensors
from tests.support.packed import in_file, packed_state, swap

MetaModel = Callable[[ModelConfig], DiffusionGemma]
RandomModel = Callable[..., DiffusionGemma]
WAYS = range(1 + len(SPLIT) // 2)
"""The released one, and those of `SPLIT`, which has two stacks."""
EXPERT = "model.decoder.layers.1.experts.2.gate_proj.weight"
STACK = "model.decoder.layers.1.experts.gate_up_proj"


def write(directory: Path, config: ModelConfig, tensors: dict[str, Tensor]) -> Path:
    """A checkpoint of these very tensors."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(write_config(config)))
    content = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(content, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.fault("Q 16")
def test_every_way_gives_the_same_network(
    tmp_path: Path, config: ModelConfig, meta_model: MetaModel, random_model: RandomModel, way: int,
    mapped: bool, dtype: torch.dtype | None,
) -> None:  # fmt: skip
    """Gate and up swapped, an expert in another's place, a half written twice: the shapes are the
    same, so that only the numbers show it."""
    plain = random_model(config)
    tensors = in_file(plain.state_dict(), way)
    assert (EXPERT in tensors) == (way == 1)
    model = meta_model(config)
    load_weights(
        model, open_checkpoint(write(tmp_path / "m", config, tensors)), mapped=mapped, dtype=dtype
    )
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value.to(dtype or value.dtype)), name


@pytest.mark.fault("Q 16")
def test_names_of_experts_as_they_are_published() -> None:
    """Written out, not computed: the names in the headers of the published files, gate first."""
    one, two = (f"model.decoder.layers.7.experts.{e}" for e in (0, 1))
    ways = layouts("layers.7.experts.gate_up_proj", (2, 6, 4))
    assert ways[0] == {"model.decoder.layers.7.experts.gate_up_proj": ()}
    assert ways[1] == {
        f"{one}.gate_proj.weight": (0, slice(0, 3)),
        f"{one}.up_proj.weight": (0, slice(3, 6)),
        f"{two}.gate_proj.weight": (1, slice(0, 3)),
        f"{two}.up_proj.weight": (1, slice(3, 6)),
    }
    packed = layouts("layers.7.experts.down_proj.weight_scale", (2, 4, 1))[1]
    assert list(packed) == [f"{one}.down_proj.weight_scale", f"{two}.down_proj.weight_scale"]
    query = to_checkpoint("layers.7.attention.q_proj.weight_packed")
    assert query == "model.decoder.layers.7.self_attn.q_proj.weight_packed"
    with pytest.raises(KeyError):
        to_checkpoint("layers.7.surprise.weight_packed")


@pytest.mark.fault("Q 8")
def test_one_report_of_experts_that_do_not_fit(
    tmp_path: Path, config: ModelConfig, meta_model: MetaModel, random_model: RandomModel
) -> None:
    """A lost expert must not stay as it was in memory, and a stack that is there twice is no tie:
    every tensor is used once, or named. Experts with the same trouble share a line."""
    tensors = in_file(random_model(config).state_dict(), 1)
    for number in (0, 2):
        del tensors[EXPERT.replace("experts.2", f"experts.{number}")]
    tensors[EXPERT.replace("layers.1", "layers.3")] = torch.ones(15, 32)
    tensors[EXPERT.replace("experts.2", "experts.4")] = torch.ones(16, 32)
    tensors[STACK] = torch.ones(4, 32, 32)
    with pytest.raises(CheckpointError) as caught:
        load_weights(meta_model(config), open_checkpoint(write(tmp_path / "m", config, tensors)))
    lines = [line.strip() for line in str(caught.value).splitlines()][1:-1]
    stem = "model.decoder.layers"
    assert lines == [
        f"missing: {stem}.1.experts.0,2.gate_proj.weight",
        f"unexpected: {stem}.1.experts.4.gate_proj.weight",
        f"unexpected: {STACK}",
        f"mis-shaped: {stem}.3.experts.2.gate_proj.weight is [15, 32], the config wants [16, 32]",
    ]


@pytest.mark.parametrize("name", [EXPERT, STACK])
def test_a_part_that_is_not_finite(
    tmp_path: Path, config: ModelConfig, meta_model: MetaModel, random_model: RandomModel, name: str
) -> None:
    """Named as in the file, whichever part of a tensor of ours it becomes."""
    tensors = in_file(random_model(config).state_dict(), int(name == EXPERT))
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[-1] = torch.nan
    with pytest.raises(CheckpointError, match=f"{name} holds NaN"):
        load_weights(meta_model(config), open_checkpoint(write(tmp_path / "m", config, tensors)))


@pytest.mark.parametrize("key", ["quantization_config", "quantization"])
def test_unknown_formats_are_refused_before_anything_is_read(
    tmp_path: Path, config: ModelConfig, meta_model: MetaModel, random_model: RandomModel, key: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """By the name of the format, and not by the names of thousands of tensors."""
    directory = write(tmp_path / "m", config, in_file(random_model(config).state_dict(), 1))
    path = directory / "config.json"
    values = json.loads(path.read_text()) | {key: {"quant_method": "quip"}}
    path.write_text(json.dumps(values))
    monkeypatch.setattr(Safetensors, "read", lambda *_, **__: pytest.fail("a tensor was read"))
    with pytest.raises(CheckpointError, match="quip weights"):
        load_weights(meta_model(config), open_checkpoint(directory))


@pytest.mark.parametrize("way", [0, 1])
def test_packed_modules_take_their_own_tensors(
    tmp_path: Path, config: ModelConfig, meta_model: MetaModel, random_model: RandomModel, way: int
) -> None:
    """What is in the place of a module says what is read for it: codes keep their type, scales
    follow the dtype of the run, and the experts' come from one tensor each or from one of all."""
    plain = random_model(config)
    model = meta_model(config)
    with torch.device("meta"):
        swapped = swap(model)
    packed, _ = packed_state(plain.state_dict(), swapped)
    file = in_file(packed, way)
    assert ("model.decoder.layers.0.experts.3.up_proj.weight_scale" in file) == (way == 1)
    directory = write(tmp_path / "m", config, file)
    load_weights(model, open_checkpoint(directory), dtype=torch.bfloat16)
    state: dict[str, Any] = model.state_dict()
    codes = state["layers.0.experts.gate_up_proj.weight_packed"]
    assert codes.dtype == torch.int8 and state["embed.weight_scale"].dtype == torch.bfloat16
    assert state.keys() == packed.keys()
    for name, value in state.items():
        assert torch.equal(value, packed[name].to(value.dtype)), name


def test_packed_modules_miss_a_scale(
    tmp_path: Path, config: ModelConfig, meta_model: MetaModel, random_model: RandomModel
) -> None:
    """A scale that is not there would stay uninitialised, and codes of another type be read
    as these: both are named."""
    model = meta_model(config)
    with torch.device("meta"):
        swapped = swap(model)
    packed, _ = packed_state(random_model(config).state_dict(), swapped)
    file = in_file(packed, 1)
    query = "model.decoder.layers.0.self_attn.q_proj"
    del file[f"{query}.weight_scale"]
    file[f"{query}.weight_packed"] = file[f"{query}.weight_packed"].to(torch.uint8)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, open_checkpoint(write(tmp_path / "m", config, file)))
    lines = [line.strip() for line in str(caught.value).splitlines()][1:-1]
    assert lines == [
        f"missing: {query}.weight_scale",
        f"of the wrong type: {query}.weight_packed is U8, the network wants torch.int8",
    ]
