"""GPTQ, AWQ and AutoRound, written here by the rules of their layouts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgemma.errors import CheckpointError
from dgemma.loading import load_model
from dgemma.quant.modules import PackedExperts, PackedLinear
from dgemma.weights.packed import Scheme
from dgemma.weights.schemes import SCHEMES, qweight
from tests.support.packed_files import CONFIG, assert_loads_as, random_state, unpacked, write
from tests.support.packing import Pack, Parts, mixed_state, packed_state
from tests.support.packing_ints import awq, gptq, rows_of_words

UP = "model.decoder.layers.1.experts.2.up_proj"
SIZES = replace(CONFIG, hidden_size=128, intermediate_size=192, moe_intermediate_size=64)


def config(method: str, group: int = 32, **more: Any) -> dict[str, Any]:
    """What config.json says."""
    said = {"quant_method": method, "bits": 4, "group_size": group or -1, **more}
    return {"quantization_config": said}


def second(weight: Tensor) -> Parts:
    return gptq(weight, 4, 32, version=2)


def no_index(weight: Tensor) -> Parts:
    """As AutoRound writes it."""
    parts, numbers = gptq(weight, 4, 32)
    return {word: part for word, part in parts.items() if word != "g_idx"}, numbers


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(
    ("rows", "columns", "group"), [(32, 704, 128), (64, 352, 32), (32, 2112, 0), (96, 64, 16)]
)
def test_gptq_numbers(
    bits: int, version: int, mixed: bool, rows: int, columns: int, group: int
) -> None:
    """Bit for bit. Zero points of the first version go to 2^bits; 704 has a last group of 64."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(bits))
    parts, numbers = gptq(weight, bits, group, version=version, mixed=mixed)
    said = config("gptq", group, checkpoint_format=["gptq", "gptq_v2"][version - 1], desc_act=mixed)
    stored = {f"{UP}.{word}": part for word, part in parts.items()}
    found = unpacked(qweight.read_gptq, said["quantization_config"], stored)
    assert torch.equal(found[f"{UP}.weight"], numbers)


@pytest.mark.parametrize(("rows", "columns", "group"), [(16, 704, 128), (8, 352, 32), (24, 45, 0)])
def test_awq_numbers(rows: int, columns: int, group: int) -> None:
    """Bit for bit; an odd number of columns too, for AWQ packs along the rows."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    parts, numbers = awq(weight, group)
    stored = {f"{UP}.{word}": part for word, part in parts.items()}
    said = config("awq", group)["quantization_config"]
    assert torch.equal(unpacked(qweight.read_awq, said, stored)[f"{UP}.weight"], numbers)


@pytest.mark.parametrize(
    ("pack", "said"),
    [
        (lambda w: gptq(w, 4, 32), config("gptq", desc_act=False)),
        (second, config("gptq", checkpoint_format="gptq_v2")),
        (lambda w: gptq(w, 8, 0, mixed=False), config("gptq", 0)),
        (lambda w: gptq(w, 4, 16, mixed=True), config("gptq", 16, desc_act=True)),
        (lambda w: awq(w, 32), config("awq", version="gemm", modules_to_not_convert=["lm_head"])),
        (no_index, config("auto-round", packing_format="auto_round:auto_gptq", sym=True)),
        (second, config("auto-round", packing_format="auto_round:gptqmodel")),
        (lambda w: awq(w, 32), config("auto-round", packing_format="auto_round:auto_awq")),
        (no_index, config("intel/auto-round")),
    ],
    ids=["gptq", "v2", "int8", "act-order", "awq", "auto-gptq", "auto-v2", "auto-awq", "intel"],
)
def test_networks(tmp_path: Path, pack: Pack, said: dict[str, Any]) -> None:
    """Experts one by one, attention and MLP; the table and routers plain."""
    stored, wanted = packed_state(random_state(), pack)
    kinds = {type(m) for m in assert_loads_as(write(tmp_path, stored, said), wanted).modules()}
    assert {PackedLinear, PackedExperts} <= kinds


@pytest.mark.parametrize("key", ["dynamic", "extra_config"])
def test_modules_have_rules_of_their_own(tmp_path: Path, key: str) -> None:
    """Attention 8 bit by rows, down projections 3 bit in groups of 64, the rest 4 bit."""

    packs: dict[str, Pack] = {
        "down_proj": lambda w: gptq(w, 3, 64), "attention": lambda w: gptq(w, 8, 0),
        "": lambda w: gptq(w, 4, 32),
    }  # fmt: skip
    stored, wanted = mixed_state(random_state(SIZES), packs)
    by_rows, wide = {"bits": 8, "group_size": -1}, {"bits": 3, "group_size": 64}
    entries = {
        ".*self_attn\\.[qkvo]_proj": by_rows,
        ".*\\.mlp\\.down_proj": wide,
        ".*experts\\..*down_proj": wide,
        ".*router.*": {"bits": 16},
    }
    rules = {("+:" if key == "dynamic" else "") + entry: found for entry, found in entries.items()}
    rules["-:.*vision.*"] = {}
    path = write(tmp_path, stored, config("gptq", **{key: rules}), SIZES)
    assert_loads_as(path, wanted, SIZES)


FAULTS: list[tuple[str, Tensor | None, dict[str, Any], str]] = [
    ("qzeros", None, {}, f"{UP}.qweight is packed, but {UP}.qzeros is not there"),
    ("scales", None, {}, f"{UP}.qweight is packed, but {UP}.scales is not there"),
    ("qweight", None, {}, f"no packed weight uses .*{UP}.qzeros"),
    ("scales", torch.ones(3, 47).half(), {}, "no codes of 2 or 3 or 4 or 8 bits of one"),
    ("scales", torch.ones(4, 48).half(), {}, "96 columns in 4 groups, but group_size is 32"),
    ("scales", torch.ones(3, 48).int(), {}, "scales is I32"),
    ("scales", torch.full((3, 48), float("nan")), {}, "NaN or infinity"),
    ("qzeros", torch.zeros(2, 6, dtype=torch.int32), {}, r"qzeros is \[2, 6\], but"),
    ("qzeros", torch.zeros(3, 9, dtype=torch.int32), {}, "no codes of"),
    ("qzeros", torch.zeros(3, 1, dtype=torch.int32), {}, "no codes of"),
    ("qweight", torch.zeros(12, 47, dtype=torch.int32), {}, "no codes of"),
    ("qweight", torch.zeros(12, dtype=torch.int32), {}, "must be a matrix"),
    ("qweight", torch.zeros(12, 48), {}, "qweight is F32"),
    ("g_idx", torch.zeros(95, dtype=torch.int32), {}, r"g_idx is \[95\], but"),
    ("g_idx", torch.full((96,), 3).int(), {"desc_act": True}, "groups from 3 to 3, but there are"),
    ("g_idx", torch.full((96,), -7).int(), {}, "groups from -7 to -7"),
    ("g_idx", (2 - torch.arange(96) // 32).int(), {}, "says that they are not .desc_act"),
    ("qscales", torch.ones(3, 48), {}, f"no packed weight uses {UP}.qscales"),
    ("", None, {"group_size": 0}, "group_size is 0"),
    ("", None, {"group_size": 1 << 70}, "48 columns in 2 groups"),
    ("", None, {"group_size": None}, "group_size is None"),
    ("", None, {"checkpoint_format": "marlin"}, "checkpoint_format is marlin, which is not"),
]


@pytest.mark.parametrize(("word", "value", "said", "match"), FAULTS)
def test_what_does_not_fit_is_named(
    tmp_path: Path, word: str, value: Tensor | None, said: dict[str, Any], match: str
) -> None:
    """One clear error each."""
    stored, _ = packed_state(
        random_state(), lambda w: gptq(w, 4, 32), which=lambda n: "layers.1.experts" in n
    )
    if word:
        stored.pop(f"{UP}.{word}", None)
    if value is not None:
        stored[f"{UP}.{word}"] = value
    with pytest.raises(CheckpointError, match=match):
        path = write(tmp_path, stored, config("gptq", **said))
        load_model(path, device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("scheme", "said", "match"),
    [
        (qweight.read_awq, {"version": "gemv"}, "version is gemv"),
        (qweight.read_auto_round, {"packing_format": "auto_round:mx"}, "packing_format is auto_ro"),
        (qweight.read_auto_round, {"packing_format": ["a"]}, "packing_format is "),
        (qweight.read_awq, {}, "no codes of 4 bits"),
    ],
)
def test_other_layouts_are_named(scheme: Scheme, said: dict[str, Any], match: str) -> None:
    """The last: the codes of GPTQ under the name of AWQ."""
    parts, _ = gptq(torch.randn(48, 96), 4, 32)
    stored = {f"{UP}.{word}": part for word, part in parts.items()}
    with pytest.raises(CheckpointError, match=match):
        unpacked(scheme, config("x", **said)["quantization_config"], stored)


def test_torchao_is_refused_with_a_remedy(tmp_path: Path) -> None:
    """Its weights are pickled objects, which are never read."""
    stored, _ = packed_state(random_state(), lambda w: gptq(w, 4, 32))
    with pytest.raises(CheckpointError, match="torchao.*pickled.*the BF16 checkpoint"):
        load_model(write(tmp_path, stored, config("torchao")), device="cpu")
    assert "torchao" not in SCHEMES


@pytest.mark.parametrize("bits", [4, 8])
def test_a_zero_point_above_all_codes(bits: int) -> None:
    """The first version stores 15 for 16; the sum does not run over into its neighbour."""
    top = 2**bits - 1
    parts = {
        "qweight": rows_of_words(torch.full((8, 8), top), bits).T.contiguous(),
        "qzeros": rows_of_words(torch.full((1, 8), top), bits),
        "scales": torch.ones(1, 8),
    }
    stored = {f"{UP}.{word}": part for word, part in parts.items()}
    found = unpacked(qweight.read_gptq, {"group_size": -1}, stored)[f"{UP}.weight"]
    assert torch.equal(found, torch.full((8, 8), -1.0))


@pytest.mark.parametrize("bits", [5, 6, 7])
def test_more_bits_of_auto_round(bits: int) -> None:
    """A stream for these too; GPTQModel orders them in another way, and says so."""
    parts, numbers = gptq(torch.randn(32, 704), bits, 64)
    stored = {f"{UP}.{word}": part for word, part in parts.items()}
    found = unpacked(qweight.read_auto_round, {"group_size": 64}, stored)
    assert torch.equal(found[f"{UP}.weight"], numbers)
    with pytest.raises(CheckpointError, match="no codes of 2 or 3 or 4 or 8 bits"):
        unpacked(qweight.read_gptq, {"group_size": 64}, stored)
    with pytest.raises(CheckpointError, match="checkpoint_format is gptq_p"):
        unpacked(qweight.read_gptq, {"checkpoint_format": "gptq_p"}, stored)
