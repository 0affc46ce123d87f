"""nf4 of bitsandbytes, written here by the rules of its format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgemma.errors import CheckpointError
from dgemma.loading import load_model
from dgemma.quant.modules import PackedLinear
from dgemma.weights.schemes import bitsandbytes
from tests.support.packed_files import assert_loads_as, is_packed, random_state, unpacked, write
from tests.support.packing import packed_state
from tests.support.packing_ints import nf4

UP = "model.decoder.layers.1.mlp.up_proj.weight"
STATE = f"{UP}.quant_state.bitsandbytes__nf4"
SAID = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True,
                                "bnb_4bit_quant_type": "nf4"}}  # fmt: skip


def dense(name: str) -> bool:
    """What it packs: stacks of experts are not."""
    return is_packed(name) and "experts" not in name


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(3, 704), (5, 352), (2, 2112), (7, 24)])
def test_numbers(nested: bool, shape: tuple[int, int]) -> None:
    """The first number is the high half; blocks go on over rows of 352 and 24."""
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    parts, numbers = nf4(weight, nested=nested)
    stored = {f"{UP[:-7]}.{word}": part for word, part in parts.items()}
    assert torch.equal(unpacked(bitsandbytes.read_scheme, {}, stored)[UP], numbers)


@pytest.mark.parametrize("nested", [False, True])
def test_networks(tmp_path: Path, nested: bool) -> None:
    """Attention and MLP packed, experts plain, as such files are."""
    stored, wanted = packed_state(random_state(), lambda w: nf4(w, nested=nested), which=dense)
    model = assert_loads_as(write(tmp_path, stored, SAID), wanted)
    assert any(isinstance(module, PackedLinear) for module in model.modules())


def text(**change: Any) -> Tensor:
    """A state with a change, as bytes."""
    state = {"quant_type": "nf4", "blocksize": 64, "shape": [80, 96], "dtype": "float32",
             "nested_blocksize": 256, "nested_offset": 0.1}  # fmt: skip
    return as_bytes(json.dumps(state | change))


def as_bytes(found: str) -> Tensor:
    return torch.tensor(list(found.encode()), dtype=torch.uint8)


FAULTS: list[tuple[str, Tensor | None, str]] = [
    (STATE, None, f"no packed weight uses .*{UP}.absmax"),
    (UP, None, f"{STATE} is packed, but {UP} is not there"),
    (f"{UP}.absmax", None, "absmax is not there"),
    (f"{UP}.quant_map", None, "quant_map is not there"),
    (f"{UP}.nested_absmax", None, "nested_absmax is not there"),
    (f"{UP}.nested_quant_map", None, "nested_quant_map is not there"),
    (f"{UP}.absmax", torch.ones(120), "absmax is F32"),
    (f"{UP}.absmax", torch.ones(119).byte(), r"absmax is \[119\], but"),
    (f"{UP}.quant_map", torch.full((16,), float("nan")), "numbers that are not finite"),
    (f"{UP}.nested_absmax", torch.full((1,), float("nan")), "NaN or infinity"),
    (UP, torch.ones(3839, 1).byte(), r"weight is \[3839, 1\], but"),
    (STATE, torch.zeros(1 << 17, dtype=torch.uint8), "131,072 bytes of U8"),
    (STATE, torch.ones(4), "bytes of F32"),
    (STATE, as_bytes("[" * 60000), "no JSON"),
    (STATE, as_bytes("cos\nsystem\n"), "no JSON"),
    (STATE, as_bytes("[1]"), "no JSON object"),
    (STATE, text(shape=[80, 96, 1]), r"holds shape \[80, 96, 1\]"),
    (STATE, text(shape=[80, 1 << 60]), "the file is damaged"),
    (STATE, text(shape=[True, 96]), "the file is damaged"),
    (STATE, text(shape=[80, 128]), r"is \[3840, 1\], but"),
    (STATE, text(shape=[7680, 1]), "rows of 1 numbers do not fit"),
    (STATE, text(blocksize=0), "blocksize 0"),
    (STATE, text(blocksize=7), "do not fit blocks of 7"),
    (STATE, text(nested_blocksize=-1), "nested_blocksize -1"),
    (STATE, text(nested_offset=float("inf")), "nested_offset inf"),
    (STATE, text(nested_offset="1"), "nested_offset 1"),
    (f"{UP[:-7]}.SCB", torch.ones(80), "the 8-bit weights of bitsandbytes are not supported"),
]


@pytest.mark.parametrize(("name", "value", "match"), FAULTS)
def test_what_does_not_fit_is_named(
    tmp_path: Path, name: str, value: Tensor | None, match: str
) -> None:
    """One clear error each; what is written about a weight is read as JSON alone."""
    stored, _ = packed_state(
        random_state(), lambda w: nf4(w, nested=True), which=lambda n: "layers.1.mlp" in n
    )
    stored.pop(name, None)
    if value is not None:
        stored[name] = value
    with pytest.raises(CheckpointError, match=match):
        load_model(write(tmp_path, stored, SAID), device="cpu", dtype="float32")


@pytest.mark.parametrize("change", [{"blocksize": 1 << 39}, {"nested_blocksize": 1 << 39}])
def test_huge_blocks_take_no_memory(change: dict[str, Any]) -> None:
    """One scale for all: what is made of it is as long as the weight needs."""
    parts, _ = nf4(torch.randn(8, 64), nested=True, block=512)
    stored = {f"{UP[:-7]}.{word}": part for word, part in parts.items()}
    stored[STATE] = text(shape=[8, 64], **{"blocksize": 512} | change)
    assert unpacked(bitsandbytes.read_scheme, {}, stored)[UP].shape == (8, 64)
