"""Types that the `gguf` package unpacks: with it, and without it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy
import pytest
import torch

from dgemma.errors import CheckpointError, MissingExtra
from dgemma.files.gguf import TYPES
from dgemma.loading import load_model
from dgemma.quant.gguf_blocks import FORMATS
from dgemma.quant.gguf_package import LIBRARY
from dgemma.weights.files import load_config
from tests.support.gguf_checkpoint import CONFIG, all_of, keys_of, raw, tensors_of, write
from tests.support.gguf_files import Tensor
from tests.support.packed_files import assert_loads_as, random_state

STATE = random_state(CONFIG)
STACK, NAME = "layers.0.experts.gate_up_proj", "blk.0.ffn_gate_up_exps.weight"


def file_of(path: Path, number: int, blocks: torch.Tensor) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file whose first experts are of another type; what the others mean."""
    tensors, meant = tensors_of(STATE, all_of("Q8_0"))
    dims = list(reversed(STATE[STACK].shape))
    own = Tensor(NAME, dims, number, raw(blocks))
    return write(path, keys_of(CONFIG), [t if t.name != NAME else own for t in tensors]), meant


def random_blocks(number: int) -> torch.Tensor:
    """Random codes and small scales: uint8 [E, R, bytes]."""
    size = TYPES[number][2]
    generator = torch.Generator().manual_seed(number)
    blocks = torch.randint(0, 256, (4, 128, size), generator=generator, dtype=torch.uint8)
    for at, _ in LIBRARY[number].places:
        blocks[..., at] = 0x20 if number in (34, 35) else 0x08  # a scale of 0.01, or of 1e-4
    if number == 29:  # IQ1_M: the highest four bits of four words are the scale
        blocks[..., 49:56:2] &= 0x0F
        blocks[..., 55] |= 0x10
    return blocks


def test_every_type_is_known() -> None:
    """Each type that files may have is unpacked by us, by the package, or needs no unpacking."""
    plain = {"F32", "F16", "F64", "BF16", "I8", "I16", "I32", "I64"}
    packed = {number: name for number, (name, _, _) in TYPES.items() if name not in plain}
    ours = {number: form.name for number, form in FORMATS.items()}
    assert packed == ours | {number: form.name for number, form in LIBRARY.items()}
    assert all(form.size == TYPES[number][2] for number, form in LIBRARY.items())


@pytest.mark.parametrize("number", LIBRARY, ids=[form.name for form in LIBRARY.values()])
def test_against_the_package(tmp_path: Path, number: int) -> None:
    """The numbers are the package's own, each expert's in its place."""
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed: the extra [gguf]")
    quants = pytest.importorskip("gguf.quants")
    blocks = random_blocks(number)
    path, meant = file_of(tmp_path / "m.gguf", number, blocks)
    kind = gguf.GGMLQuantizationType(number)
    whole = quants.dequantize(blocks.view(4 * 128, -1).numpy(), kind)
    meant[STACK] = torch.from_numpy(whole).view(4, 128, 256)
    assert 1e-4 < float(meant[STACK].abs().mean()) < 1
    assert_loads_as(path, meant, CONFIG)


def test_with_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One matrix after the other is given to it: its memory is a multiple of its argument."""
    seen = []

    def dequantize(blocks: numpy.ndarray, kind: str) -> numpy.ndarray:
        seen.append((blocks.shape, blocks.dtype, kind))
        return numpy.repeat(blocks[:, :1].astype(numpy.float32) / 1000, 256, 1)

    package, quants = ModuleType("gguf"), ModuleType("gguf.quants")
    package.GGMLQuantizationType = lambda number: f"type {number}"  # type: ignore[attr-defined]
    quants.dequantize, package.quants = dequantize, quants  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gguf", package)
    monkeypatch.setitem(sys.modules, "gguf.quants", quants)
    blocks = random_blocks(23)
    path, meant = file_of(tmp_path / "m.gguf", 23, blocks)
    meant[STACK] = (blocks[..., :1].float() / 1000).expand(4, 128, 256)
    assert_loads_as(path, meant, CONFIG)
    assert set(seen) == {((128, 136), numpy.dtype("uint8"), "type 23")}


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install, before any weight is loaded; the sizes are shown all the same."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    path, _ = file_of(tmp_path / "m.gguf", 16, random_blocks(16))
    assert load_config(path).num_experts == 4
    with pytest.raises(MissingExtra, match=r"pip install 'dgemma\[gguf\]', or take a file in"):
        load_model(path, device="cpu")


@pytest.mark.parametrize("number", [10, 11, 18, 34, 35])
def test_scales_that_are_not_finite(tmp_path: Path, number: int) -> None:
    """They are seen without the package."""
    blocks = random_blocks(number)
    blocks[3, 127, LIBRARY[number].places[-1][0]] = 0x7C
    assert not LIBRARY[number].finite({"blocks": blocks})
    assert LIBRARY[number].finite({"blocks": random_blocks(number)})
    with pytest.raises((CheckpointError, MissingExtra)):
        load_model(file_of(tmp_path / "m.gguf", number, blocks)[0], device="cpu")
