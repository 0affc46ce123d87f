"""Small packed checkpoints and GGUF files, and ways to break them: each number is one.

Knows the files of each layout and what is wrong in others. Knows nothing about how they are read.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dgemma.weights.find import bundled_models
from tests.support import gguf_checkpoint
from tests.support.gguf_files import CODES, Key, gguf
from tests.support.gguf_files import Tensor as GgufTensor
from tests.support.hostile_checkpoints import (
    ESCAPES,
    RAW,
    VALUES,
    WEIGHTS,
    get,
    get_json,
    in_bytes,
    in_header,
    in_kinds,
    in_tensors,
    put,
)
from tests.support.packed_files import CONFIG, random_state, write
from tests.support.packing import (
    Pack,
    Parts,
    affine,
    fp8_blocks,
    mxfp4,
    nvfp4,
    packed_state,
)
from tests.support.packing_ints import awq, gptq, int_quantized, nf4, pack_quantized

SIZES = replace(CONFIG, hidden_size=64, intermediate_size=64, moe_intermediate_size=64)
GGUF_SIZES = replace(
    gguf_checkpoint.CONFIG, vocab_size=1024, max_position_embeddings=256, top_k_experts=2
)
HUGE = (2**60, 2**63, 2**64 - 1, 2**40, 2**31, 2**32, 0, 1)
"""Counts, lengths and places."""


def _fp4(weight: Tensor) -> Parts:
    codes, scale, outer, numbers = nvfp4(weight)
    parts = {"weight": codes, "weight_scale": scale, "weight_scale_2": outer.view(-1)}
    return parts | {"input_scale": torch.tensor(0.01)}, numbers


def _nv(weight: Tensor) -> Parts:
    codes, scale, outer, numbers = nvfp4(weight)
    parts = {"weight_packed": codes, "weight_scale": scale}
    return parts | {"weight_global_scale": 1 / outer.view(-1)}, numbers


def _mx(weight: Tensor) -> Parts:
    codes, scale, numbers = mxfp4(weight)
    return {"weight": codes.contiguous().view(torch.uint32), "scales": scale}, numbers


def _groups(**rule: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"type": "int", **rule}}
    return _said("compressed-tensors", config_groups={"group_0": group}, ignore=["lm_head"])


def _said(method: str, **more: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": method, **more}}


_FOUR = {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False}
DIRECTORIES: Mapping[str, tuple[Pack, str, Mapping[str, Any]]] = {
    "int4": (lambda w: pack_quantized(w, 4, 32, symmetric=False), "each", _groups(**_FOUR)),
    "int4-ordered": (lambda w: pack_quantized(w, 4, 32, mixed=True), "each",
                     _groups(**_FOUR | {"symmetric": True})),
    "int8": (lambda w: int_quantized(w, 0, symmetric=False), "each",
             _groups(num_bits=8, strategy="channel")),
    "fp8-blocks": (lambda w: fp8_blocks(w, 32, 32, "weight_scale_inv"), "each",
                   _said("fp8", weight_block_size=[32, 32])),
    "fp8-rows": (lambda w: fp8_blocks(w, 1, w.shape[-1], "weight_scale"), "each",
                 _groups(num_bits=8, strategy="channel")),
    "nvfp4": (_nv, "each", _said("compressed-tensors")),
    "modelopt": (_fp4, "each", _said("modelopt", quant_algo="NVFP4", ignore=["*router*"])),
    "gptq": (lambda w: gptq(w, 4, 32), "each",
             _said("gptq", bits=4, group_size=32, desc_act=False)),
    "gptq-ordered": (lambda w: gptq(w, 4, 32, mixed=True), "each",
                     _said("gptq", bits=4, group_size=32, desc_act=True)),
    "awq": (lambda w: awq(w, 32), "each", _said("awq", bits=4, group_size=32, version="gemm")),
    "nf4": (lambda w: nf4(w, nested=True), "each", _said("bitsandbytes", load_in_4bit=True)),
    "mlx": (lambda w: affine(w, 4, 32), "switch_glu",
            {"quantization": {"bits": 4, "group_size": 32}}),
    "mlx-mxfp4": (_mx, "stacks", {"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}),
}  # fmt: skip
"""How a matrix is packed, how experts are named, and what config.json says."""
FILES = ("gguf", "gguf-nvfp4", "gguf-splits")
LAYOUTS = (*DIRECTORIES, *FILES)


def make_packed(root: Path) -> None:
    """A whole checkpoint of each layout, `root/LAYOUT`."""
    state = random_state(SIZES)
    for name, (pack, experts, said) in DIRECTORIES.items():
        write(root / name, packed_state(state, pack, experts=experts)[0], said, SIZES)
    for name in FILES:
        path = root / name / "m.gguf"
        gguf_checkpoint.write(path, *_file(name), splits=3 if name == "gguf-splits" else 1)


def model_in(directory: Path) -> Path:
    """What is given to load a checkpoint of `make_packed`: it, or a GGUF file in it."""
    files = sorted(directory.glob("*.gguf"))
    whole = (directory / "config.json").exists() or (directory / WEIGHTS).exists()
    return directory if whole or not files else files[0]


def _file(name: str) -> tuple[dict[str, Key], list[GgufTensor]]:
    types = gguf_checkpoint.all_of("NVFP4") if name == "gguf-nvfp4" else gguf_checkpoint.q4_k_m
    tensors, _ = gguf_checkpoint.tensors_of(random_state(GGUF_SIZES), types)
    vocabulary = gguf_checkpoint.vocabulary_keys(bundled_models()["nano"])
    keys = gguf_checkpoint.keys_of(GGUF_SIZES) | vocabulary
    return keys, [*tensors, gguf_checkpoint.rope_freqs(GGUF_SIZES)]


def break_packed(root: Path, into: Path, number: int) -> str:
    """Copy the checkpoint of one layout and break it in one or two ways; returns what was done."""
    layout = LAYOUTS[number % len(LAYOUTS)]
    shutil.copytree(root / layout, into)
    draw = random.Random(number)
    done, wanted = [layout], draw.choice((1, 1, 2))
    for _ in range(9):  # a way may find nothing to break
        way = draw.choice(IN_DIRECTORIES if layout in DIRECTORIES else IN_FILES)
        try:
            done.append(f"{way.__name__}: {way(into, draw)}")
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError,
                SafetensorError, struct.error):  # fmt: skip
            continue
        if len(done) > wanted:
            break
    return "; ".join(done)


# -- ways for directories --------------------------------------------------------------------------


def in_rules(at: Path, draw: random.Random) -> str:
    """A value or key of what config.json says about the packing."""
    values = get_json(at / "config.json")
    place: Any = values
    key: Any = next(k for k in ("quantization_config", "quantization") if k in values)
    for _ in range(draw.choice((1, 1, 2, 3, 4))):
        inner = place[key]
        if not inner or not isinstance(inner, (dict, list)):
            break
        place = inner
        key = draw.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
    raw, marker = "", "MARKER"
    kind = draw.randrange(4)
    if kind == 0:
        del place[key]
    elif kind == 1:
        raw, place[key] = draw.choice(RAW), marker
    else:
        words = ("channel", "tensor", "block", "re:(a+)+$", "*" * 99, "gptq_v2", 8, 3, 16, 64, -1,
                 "torchao", [2**40, 2**40], [0, 0])  # fmt: skip
        place[key] = draw.choice((*VALUES, *words, *words))
    put(at / "config.json", json.dumps(values).replace(f'"{marker}"', raw or marker))
    return f"{str(key)[:40]!a} kind {kind} {raw[:20]!a}"


def in_parts(at: Path, draw: random.Random) -> str:
    """A scale, zero, order, state or matrix of codes: gone, of another kind, or nonsense."""
    weights = load(get(at / WEIGHTS))
    plain = ("norm", "embed", "router", "scalar", "self_cond")
    name = draw.choice([n for n in sorted(weights) if not any(word in n for word in plain)])
    part = weights[name]
    kind = draw.randrange(8)
    if kind == 0:
        del weights[name]
    elif kind == 1:
        value = draw.choice((0, 1, -1, 127, 2**31 - 1, 2**60, float("nan"), float("inf"), 1e38))
        wide = torch.full(part.shape, value, dtype=torch.float64)
        weights[name] = wide.to(part.dtype)
    elif kind == 2:
        weights[name] = part.flatten().view(torch.uint8).view(-1)[: draw.choice((0, 1, 7, 64))]
    elif kind == 3:
        other = draw.choice((torch.int64, torch.float64, torch.bool, torch.bfloat16, torch.uint8))
        weights[name] = part.to(torch.float32).to(other)
    elif kind == 4:
        weights[name] = part.repeat_interleave(2, draw.randrange(max(1, part.dim()))).contiguous()
    elif kind == 5:
        weights[name] = part.flatten() if draw.random() < 0.5 else part[None]
    elif kind == 6:
        extra = ("weight_scale", "scales", "weight_zero_point", "k_scale", "weight_g_idx", "SCB")
        weights[f"{name.rpartition('.')[0]}.{draw.choice(extra)}"] = torch.ones(3)
    else:
        raw = part.flatten().view(torch.uint8)
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    put(at / WEIGHTS, save(weights))
    return f"kind {kind} of {name}"


def in_state(at: Path, draw: random.Random) -> str:
    """The JSON that bitsandbytes writes into a tensor; other layouts have none."""
    weights = load(get(at / WEIGHTS))
    name = draw.choice([n for n in sorted(weights) if "quant_state" in n])
    state = json.loads(bytes(weights[name].tolist()))
    key = draw.choice(sorted(state))
    state[key] = draw.choice((*VALUES, *HUGE, [2**40, 2**40], [64, 2**39], [1, 1]))
    text = json.dumps(state).encode()
    text = draw.choice((text, text, text, *(one.encode() for one in RAW)))
    weights[name] = torch.frombuffer(bytearray(text or b"\0"), dtype=torch.uint8)
    put(at / WEIGHTS, save(weights))
    return f"{key} of {name}"


IN_DIRECTORIES: tuple[Callable[[Path, random.Random], str], ...] = (
    in_rules, in_rules, in_parts, in_parts, in_parts, in_state, in_header, in_tensors, in_bytes,
    in_kinds,
)  # fmt: skip


# -- ways for files --------------------------------------------------------------------------------


def _one(at: Path, draw: random.Random) -> Path:
    return draw.choice(sorted(at.glob("*.gguf")))


def in_gguf_bytes(at: Path, draw: random.Random) -> str:
    """Bits, lengths, junk, and large numbers wherever a length may be."""
    path = _one(at, draw)
    data = bytearray(get(path))
    kind = draw.randrange(5)
    reach = min(len(data) - 8, draw.choice((24, 400, 60_000, len(data))))
    if kind == 0:
        del data[draw.randrange(reach) :]
    elif kind == 1:
        data[:4] = draw.choice((b"GGML", b"FUGG", b"\0\0\0\0", b"PK\3\4"))
    elif kind == 2:
        at_byte = draw.randrange(4, reach)
        data[at_byte : at_byte + 8] = struct.pack("<Q", draw.choice(HUGE))
    elif kind == 3:
        data[8 : 24] = struct.pack("<QQ", draw.choice(HUGE), draw.choice(HUGE))  # fmt: skip
    else:
        for _ in range(draw.choice((1, 3, 20))):
            data[draw.randrange(reach)] ^= 1 << draw.randrange(8)
    put(path, bytes(data))
    return f"kind {kind} within {reach}"


def in_gguf_keys(at: Path, draw: random.Random) -> str:
    """A well-formed file whose keys say something else."""
    keys, tensors = _file(draw.choice(FILES))
    key = draw.choice(sorted(keys))
    kind = draw.randrange(4)
    numbers = [Key(code, draw.choice((0, 1, 2, 3, 97))) for code in CODES]
    large = [Key("u64", n) for n in HUGE] + [Key("i64", -(2**63)), Key("i32", -1)]
    floats = [Key("f32", x) for x in (float("nan"), float("inf"), -1.0, 0.0, 1e-30)]
    texts = [Key("text", t) for t in ("", "gemma4", "clip", ESCAPES, "x" * 99_999, "{% x %}")]
    raw = [Key("text", b"\xff\xfe\0"), Key("text[]", []), Key("u8[]", [1] * 1000)]
    raw += [Key("text[]", [b"\xff", b"\0", b"a b", b""]), Key("f32[]", [0.5] * 2)]
    value = draw.choice([*numbers, *large, *floats, *texts, *raw])
    if kind == 0:
        del keys[key]
    elif kind == 1:
        old = keys[key]
        if not old.kind.endswith("[]"):
            keys[key] = Key(f"{old.kind}[]", [old.value] * draw.choice((0, 1, 5)))
        else:
            items = list(old.value)
            items[draw.randrange(len(items))] = items[0]
            keys[key] = Key(old.kind, draw.choice((items, items[:-1], items * 3, items[::-1])))
    elif kind == 2:
        prefix = draw.choice(("diffusion-gemma.", "diffusion.", "tokenizer.ggml.", "general.", ""))
        extra = draw.choice(("x", "alignment", "logit_scale", "eb_max_steps", "pre", "file_type"))
        keys[prefix + extra] = value
    else:
        keys[key] = value
    put(_one(at, draw), gguf(keys, tensors))
    return f"kind {kind} of {key} {value.kind}"


def in_gguf_tensors(at: Path, draw: random.Random) -> str:
    """A tensor table with other names, types, sizes and places; numbers that are none."""
    keys, tensors = _file(draw.choice(FILES))
    index = draw.randrange(len(tensors))
    one = tensors[index]
    kind = draw.randrange(8)
    if kind == 0:
        tensors.pop(index)
    elif kind == 1:
        names = ("", ESCAPES, "x" * 2000, tensors[0].name, "output.weight", "blk.9.attn_q.weight")
        one = replace(one, name=draw.choice(names))
    elif kind == 2:
        one = replace(one, kind=draw.choice((*range(42), 99, 2**31)))
    elif kind == 3:
        dims = ([], [0], [2**60], [2**32, 2**32], [1] * 5, one.dims[::-1], [*one.dims, 1],
                [one.dims[0] * 2, *one.dims[1:]], [one.dims[0] - 1, *one.dims[1:]])  # fmt: skip
        one = replace(one, dims=draw.choice(dims))
    elif kind == 4:
        one = replace(one, offset=draw.choice((0, 32, 31, *HUGE, 2**64 - 32)))
    elif kind == 5:
        value = draw.choice((0, 255, 0x7F, 0x7C))
        one = replace(one, data=bytes([value]) * len(one.data))
    elif kind == 6:
        tensors += [replace(one, name=f"{one.name}{i}") for i in range(draw.choice((1, 3000)))]
    else:
        scale = one.name.replace("weight", draw.choice(("scale", "input_scale", "bias")))
        tensors.append(GgufTensor(scale, [draw.choice((1, 3, 4))], 0, bytes(16)))
    if kind:
        tensors[index] = one
    version = draw.choice((3,) * 8 + (1, 2, 4, 3 << 24))
    put(_one(at, draw), gguf(keys, tensors, version=version))
    return f"kind {kind} of {one.name[:40]!a}"


def in_files(at: Path, draw: random.Random) -> str:
    """A file that is gone, renamed, doubled, empty, endless, or no file."""
    path = _one(at, draw)
    kind = draw.randrange(7)
    if kind == 0:
        path.rename(path.with_name("m-00001-of-99999.gguf"))
    elif kind == 1:
        path.rename(path.with_name("m-00000-of-00000.gguf"))
    elif kind == 2:
        shutil.copy(path, path.with_name("m-00002-of-00003.gguf"))
    elif kind == 3:
        with path.open("r+b") as file:
            file.truncate(draw.choice((0, 4, 1 << 38)))
    elif kind == 4:
        path.unlink()
        path.symlink_to(draw.choice(("/dev/zero", path.name, "..", "/proc/self/mem")))
    elif kind == 5:
        put(at / "dgemma.json", draw.choice(RAW))
    else:
        path.unlink()
        path.mkdir()
    return f"{path.name} kind {kind}"


IN_FILES: tuple[Callable[[Path, random.Random], str], ...] = (
    in_gguf_bytes, in_gguf_bytes, in_gguf_bytes, in_gguf_keys, in_gguf_keys, in_gguf_keys,
    in_gguf_tensors, in_gguf_tensors, in_gguf_tensors, in_files,
)  # fmt: skip
