"""GGUF files: what they hold loads, and computes what the unpacked numbers compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor as Torch

from dgemma.errors import CheckpointError, ConfigError
from dgemma.loading import load_model, save_model
from dgemma.quant.gguf_blocks import FORMATS
from dgemma.quant.modules import PackedExperts, PackedLinear
from dgemma.weights.files import open_checkpoint
from dgemma.weights.gguf import GgufSource
from tests.support.gguf_checkpoint import (
    CONFIG,
    NUMBERS,
    all_of,
    keys_of,
    numbers,
    q4_k_m,
    raw,
    rope_freqs,
    tensors_of,
    write,
)
from tests.support.gguf_files import Key, Tensor, gguf
from tests.support.packed_files import assert_loads_as, outputs, random_state

STATE = random_state(CONFIG)
KEYS = keys_of(CONFIG)


def made(
    path: Path, types: Callable[[str], str] = q4_k_m, splits: int = 1
) -> tuple[Path, dict[str, Torch]]:
    """A file of random tensors, and what they mean."""
    tensors, meant = tensors_of(STATE, types)
    return write(path, KEYS, [*tensors, rope_freqs(CONFIG)], splits), meant


def changed(
    path: Path, change: Callable[[list[Tensor]], list[Tensor]], **keys: Key
) -> tuple[Path, dict[str, Torch]]:
    """A file with other tensors or keys."""
    tensors, meant = tensors_of(STATE, all_of("F32"))
    more = {name.replace("__", ".").replace("_of_", "-"): key for name, key in keys.items()}
    return write(path, {**KEYS, **more}, change(tensors)), meant


def refusal(path: Path) -> str:
    """The one error of a file."""
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        load_model(path, device="cpu")
    assert str(path.parent) in str(caught.value)
    return str(caught.value)


def test_the_mix_of_q4_k_m(tmp_path: Path) -> None:
    """Five types in one file; the down projections fall back, as their rows are no 256 wide."""
    path, meant = made(tmp_path / "m.gguf")
    model = assert_loads_as(path, meant, CONFIG)
    kinds = {info.dtype for info in GgufSource(path).tensors.values()}
    assert kinds == {"F32", "Q4_K", "Q5_0", "Q6_K", "Q8_0"}
    layer = model.layers[0]
    assert isinstance(layer.experts, PackedExperts)
    assert isinstance(layer.attention.q_proj, PackedLinear)
    assert model.embed.weight.dtype == torch.float32  # unpacked


@pytest.mark.parametrize("word", [w for w in NUMBERS if w != "Q4_K"])
def test_every_type(tmp_path: Path, word: str) -> None:
    """Plain and packed, the table of the vocabulary in it, too."""
    path, meant = made(tmp_path / "m.gguf", all_of(word))
    assert_loads_as(path, meant, CONFIG)


def test_splits(tmp_path: Path) -> None:
    """Any of three files stands for all; the first holds keys alone."""
    path, meant = made(tmp_path / "m.gguf", splits=3)
    for given in sorted(tmp_path.glob("*.gguf")):
        assert_loads_as(given, meant, CONFIG)
    assert len(open_checkpoint(path).source.tensors) == len(STATE)


def halved(tensors: list[Tensor]) -> list[Tensor]:
    """Gate and up of the experts apart."""
    out = []
    for one in tensors:
        if "ffn_gate_up_exps" not in one.name:
            out.append(one)
            continue
        columns, rows, experts = one.dims
        size = len(one.data) // experts
        matrices = [one.data[i * size : (i + 1) * size] for i in range(experts)]
        for half, part in (("gate", slice(0, size // 2)), ("up", slice(size // 2, size))):
            name = one.name.replace("gate_up", half)
            data = b"".join(matrix[part] for matrix in matrices)
            out.append(Tensor(name, [columns, rows // 2, experts], one.kind, data))
    return out


@pytest.mark.parametrize("word", ["BF16", "Q4_K"])
def test_experts_apart(tmp_path: Path, word: str) -> None:
    """Two stacks in place of one make the same network."""
    tensors, meant = tensors_of(STATE, all_of(word))
    path = write(tmp_path / "m.gguf", KEYS, halved(tensors))
    assert_loads_as(path, meant, CONFIG)


def test_gate_and_up_of_two_types(tmp_path: Path) -> None:
    """Halves that are packed in two ways are unpacked: no rule joins them."""
    one, meant = tensors_of(STATE, all_of("Q4_K"))
    other, more = tensors_of(STATE, all_of("Q8_0"))
    tensors = [t for t in halved(one) if "ffn_up_exps" not in t.name]
    tensors += [t for t in halved(other) if "ffn_up_exps" in t.name]
    for name in meant:
        if "gate_up_proj" in name:
            rows = meant[name].shape[1] // 2
            meant[name] = torch.cat([meant[name][:, :rows], more[name][:, rows:]], 1)
    assert_loads_as(write(tmp_path / "m.gguf", KEYS, tensors), meant, CONFIG)


@pytest.mark.parametrize("apart", [False, True])
def test_nvfp4(tmp_path: Path, apart: bool) -> None:
    """Each matrix has a scale beside its blocks; that of the down projections is in the router's.

    A zero scale of activations changes nothing.
    """
    tensors, meant = tensors_of(STATE, all_of("NVFP4"))
    tensors = halved(tensors) if apart else tensors
    generator = torch.Generator().manual_seed(1)
    extra = []
    for one in tensors:
        base = one.name.removesuffix("weight")
        if one.kind != NUMBERS["NVFP4"] or "ffn_down_exps" in one.name:
            continue
        count = one.dims[2] if len(one.dims) == 3 else 1
        scale = torch.rand(count, generator=generator) + 0.5
        if "ffn_up" in one.name and apart:
            continue  # a scale of one is left out by the converter
        extra += [Tensor(base + "scale", [count], 0, raw(scale))]
        extra += [Tensor(base + "input_scale", [count], 0, raw(torch.zeros(count)))]
        multiply(meant, base + "weight", scale, one.dims[1])
    assert_loads_as(write(tmp_path / "m.gguf", KEYS, [*tensors, *extra]), meant, CONFIG)


def multiply(meant: dict[str, Torch], name: str, scale: Torch, rows: int) -> None:
    """Put the scale of a GGUF tensor into the numbers that it means."""
    from dgemma.weights.gguf_names import gguf_to_ours

    ours = gguf_to_ours(name.replace("ffn_gate_exps", "ffn_gate_up_exps"))
    assert ours is not None
    if meant[ours].dim() == 3:
        meant[ours][:, :rows] *= scale[:, None, None]
    else:
        meant[ours] *= scale


def test_a_head_that_is_written_out(tmp_path: Path) -> None:
    """A copy of the table is left aside; another head is not this network."""
    for types in (all_of("F32"), q4_k_m):
        tensors, meant = tensors_of(STATE, types)
        table = next(t for t in tensors if t.name == "token_embd.weight")
        head = replace(table, name="output.weight")
        assert_loads_as(write(tmp_path / "m.gguf", KEYS, [*tensors, head]), meant, CONFIG)
        other = replace(head, data=bytes([*head.data[:-2], 1, 1]))
        said = refusal(write(tmp_path / "m.gguf", KEYS, [*tensors, other]))
        assert "lm_head.weight differs from" in said and "tied in this network" in said


@pytest.mark.fault("Q 8")
def test_what_is_missing_or_left_over(tmp_path: Path) -> None:
    """Every tensor is used once or named: nothing is dropped."""
    path = tmp_path / "m.gguf"
    cases: dict[str, Callable[[list[Tensor]], list[Tensor]]] = {
        r"lacks blk.1.attn_k.weight;": lambda t: [x for x in t if x.name != "blk.1.attn_k.weight"],
        "lacks blk.0.ffn_gate_exps.weight, blk.0.ffn_up_exps.weight": lambda t: [
            x for x in t if x.name != "blk.0.ffn_gate_up_exps.weight"
        ],
        "holds blk.2.attn_norm.weight, which have no place": lambda t: [
            *t, Tensor("blk.2.attn_norm.weight", [256], 0, bytes(1024))
        ],
        "holds blk.1.attn_v.weight, which have": lambda t: [
            *t, Tensor("blk.1.attn_v.weight", [256, 128], 0, bytes(4 * 256 * 128))
        ],
        "mean nothing here: blk.0.attn_q.scale": lambda t: [
            *t, Tensor("blk.0.attn_q.scale", [1], 0, bytes(4))
        ],
        "mean nothing here: blk.0.attn_q.input_scale": lambda t: [
            *t, Tensor("blk.0.attn_q.input_scale", [1], 0, bytes(4))
        ],
        "mean nothing here: v.blk.0.ln1": lambda t: [*t, Tensor("v.blk.0.ln1", [1], 0, bytes(4))],
        "vector in Q8_0": lambda t: [
            *(x for x in t if x.name != "output_norm.weight"),
            Tensor("output_norm.weight", [256], 8, bytes(34 * 8)),
        ],
        "mis-shaped: model.decoder.norm.weight is": lambda t: [
            *(x for x in t if x.name != "output_norm.weight"),
            Tensor("output_norm.weight", [128], 0, bytes(512)),
        ],
        "rope_freqs.weight scales frequencies": lambda t: [
            *t, Tensor("rope_freqs.weight", [64], 0, raw(torch.full((64,), 2.0)))
        ],
        "rope_freqs.weight is not a row": lambda t: [
            *t, Tensor("rope_freqs.weight", [4], 1, bytes(8))
        ],
    }  # fmt: skip
    for message, change in cases.items():
        assert message in refusal(changed(path, change)[0])


def test_scales_that_do_not_fit(tmp_path: Path) -> None:
    """A scale is one number for each matrix, in F32."""
    tensors, _ = tensors_of(STATE, all_of("NVFP4"))
    for dims, kind, size in (([3], 0, 12), ([4], 1, 8)):
        bad = Tensor("blk.0.ffn_gate_up_exps.scale", dims, kind, bytes(size))
        said = refusal(write(tmp_path / "m.gguf", KEYS, [*tensors, bad]))
        assert "must hold 1 or 4 F32" in said


@pytest.mark.parametrize(
    "arch, message",
    [("gemma4", "run this one with llama.cpp"), ("clip", "the vision part"),
     ("llama", "is 'llama': only 'diffusion-gemma' is run"), (None, "is None"),
     ("gemma3", "is 'gemma3': only 'diffusion-gemma' is run; take a GGUF of DiffusionGemma")],
)  # fmt: skip
@pytest.mark.fault("Q 20")
def test_other_models(tmp_path: Path, arch: str | None, message: str) -> None:
    """The name of the arch, before any tensor is looked at: the table here is of unknown types."""
    keys = {} if arch is None else {"general.architecture": Key("text", arch)}
    path = write(tmp_path / "m.gguf", keys, [Tensor("x", [7], 99, b"")])
    said = refusal(path)
    assert message in said and "99" not in said


def test_wrong_splits(tmp_path: Path) -> None:
    """A set that is not whole, or not a set."""
    path, _ = made(tmp_path / "m.gguf", splits=3)
    second = path.with_name("m-00002-of-00003.gguf")
    third = path.with_name("m-00003-of-00003.gguf")
    lone = path.with_name("lone.gguf")
    for one in (path, second):
        lone.write_bytes(one.read_bytes())
        assert "Give all splits their own names back" in refusal(lone)
    kept = third.read_bytes()
    third.write_bytes(second.read_bytes())
    assert "00003-of-00003.gguf has split.no 1 and" in refusal(path)
    own = {"split.no": Key("u16", 2), "split.count": Key("u16", 3)}
    third.write_bytes(gguf(own, tensors_of(STATE, q4_k_m)[0][:4]))
    assert "which m-00002-of-00003.gguf has, too" in refusal(path)
    third.write_bytes(gguf(own))
    assert "the splits hold" in refusal(path)
    third.write_bytes(kept)
    load_model(path, device="cpu", weights=False)


def test_a_plain_weight_that_is_not_finite(tmp_path: Path) -> None:
    """A plain weight that no computation can use."""
    path, _ = changed(
        tmp_path / "m.gguf",
        lambda t: [
            replace(x, data=b"\0\0\xc0\x7f" + x.data[4:]) if "attn_q.w" in x.name else x for x in t
        ],
    )
    with pytest.raises(CheckpointError, match="holds NaN or infinity"):
        load_model(path, device="cpu")


@pytest.mark.parametrize(
    ("word", "at", "byte"),
    [("Q4_K", 3, 0x7C), ("Q4_K", 1, 0xFE), ("Q6_K", 209, 0x7F), ("Q5_1", 3, 0xFC),
     ("Q8_0", 1, 0x7D), ("MXFP4", 0, 0xFF)],
)  # fmt: skip
def test_scales_that_are_not_finite(tmp_path: Path, word: str, at: int, byte: int) -> None:
    """They lie among the codes, in the last block of a matrix; nothing else in it may alarm."""
    size = FORMATS[NUMBERS[word]].size

    def damaged(tensors: list[Tensor]) -> list[Tensor]:
        out = []
        for one in tensors:
            data = bytearray(one.data)
            if one.name == "blk.1.ffn_gate_up_exps.weight":
                data[len(data) - size + at] = byte
            out.append(replace(one, data=bytes(data)))
        return out

    tensors, _ = tensors_of(STATE, all_of(word))
    path = write(tmp_path / "m.gguf", KEYS, tensors)
    load_model(path, device="cpu")
    write(path, KEYS, damaged(tensors))
    with pytest.raises(CheckpointError, match=f"gate_up_proj holds NaN or infinity in its {word}"):
        load_model(path, device="cpu")


def test_views_and_copies(tmp_path: Path) -> None:
    """Mapped or copied, with an alignment below that of a number: the same network."""
    tensors, meant = tensors_of(STATE, q4_k_m)
    path = tmp_path / "m.gguf"
    keys = KEYS | {"general.alignment": Key("u32", 1)}
    path.write_bytes(gguf(keys, tensors, alignment=1))
    model = assert_loads_as(path, meant, CONFIG)
    path.unlink()  # small files are copied
    assert all(bool(torch.isfinite(one).all()) for one in outputs(model))


def test_packed_files_are_not_saved(tmp_path: Path) -> None:
    """What cannot be written says so."""
    for word, message in (("Q4_K", "holds packed weights"), ("BF16", "holds its tokenizer")):
        found = load_model(made(tmp_path / "m.gguf", all_of(word))[0], device="cpu")
        with pytest.raises(CheckpointError, match=message):
            save_model(found.model, found.checkpoint, tmp_path / "out")


def test_nothing_of_the_weights_is_read_to_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening walks over keys and the tensor table alone, and maps no tensor but `rope_freqs`."""
    path, _ = made(tmp_path / "m.gguf")
    mapped = []
    original = GgufSource._bytes
    monkeypatch.setattr(
        GgufSource, "_bytes", lambda s, i, keep: (mapped.append(i.nbytes), original(s, i, keep))[1]
    )
    checkpoint = open_checkpoint(path)
    load_model(path, device="cpu", weights=False)
    assert isinstance(checkpoint.source, GgufSource)
    assert mapped == [4 * CONFIG.full.head_dim // 2] * 2
    assert checkpoint.source.keys.header_bytes + checkpoint.nbytes < path.stat().st_size


def test_numbers_have_one_meaning() -> None:
    """The blocks of these tests are of the size that they are meant to be."""
    assert all(NUMBERS[form.name] == number for number, form in FORMATS.items())
    blocks = torch.zeros(1, 18, dtype=torch.uint8)
    blocks[0, :2] = torch.tensor([1.0], dtype=torch.float16).view(torch.uint8)
    assert numbers("Q4_0", blocks, 32).tolist() == [[-8.0] * 32]
