"""A tiny checkpoint, and thousands of ways to break it: each number is one, the same every time.

Knows the files of a checkpoint and what is wrong in others. Knows nothing about how they are read.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import stat
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from dgemma.model.config import AttentionShape, ModelConfig
from dgemma.model.hf_generation import GenerationDefaults
from dgemma.model.transformer import DiffusionGemma
from dgemma.params import SamplingParams
from dgemma.weights.find import bundled_models
from dgemma.weights.save import save_weights
from tests.support.hostile_templates import DEEP, ENDLESS, LONG

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
ESCAPES = "\x1b[2J\x1b]0;pwned\x07\x9b1m\u202e"
TIES = ("lm_head.weight", "model.encoder.language_model.embed_tokens.weight")

RAW = ("1" * 5000, "-" + "9" * 4300, "1e999", "NaN", "-Infinity", "[" * 100_000, "{", "",
       '{"a":' * 50_000, "[" * 900 + "]" * 900, "[" + "0," * 300_000 + "0]", "01",
       "'a'")  # fmt: skip
"""JSON texts, some broken, that stand in the place of a value."""
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 97, 2**16, 2**31, 2**32, 2**63, 2**64, 10**18, 10**400, 0.5,
    -0.5, 1e-320, 1e308, "", "a", "<bos>", "x" * 100_000, ESCAPES, "\ud800", "\0", "../../x",
    "/dev/zero", [], [[]], {}, {"a": {}}, [0], ["x"], [None], [1, [2, [3]]], {"": 0},
    {"type": "Sequence"}, [{"type": "Sequence"}], {"Regex": "(a+a+)+$"}, {"String": ""},
    {"Regex": "["}, "float8_e4m3fn", "sliding_attention",
)  # fmt: skip
NORMALIZERS: tuple[Any, ...] = (
    {"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}] * 6},
    {"type": "Replace", "pattern": {"String": ""}, "content": "aa"},
    {"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": ""},
    {"type": "Prepend", "prepend": "a" * 100_000},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Precompiled", "precompiled_charsmap": ""},
    {"type": "Sequence", "normalizers": [{"type": "NFKD"}] * 9},
    {"type": "BertNormalizer"}, {"type": "ByteLevel"}, {"type": "Lowercase"}, {"type": "NFC"},
)  # fmt: skip
PRE_TOKENIZERS: tuple[Any, ...] = (
    {"type": "Split", "pattern": {"Regex": "(a+a+)+$"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"Regex": "(?=a)*" * 99}, "behavior": "Removed", "invert": True},
    {"type": "Split", "pattern": {"Regex": r"\p{L}+|."}, "behavior": "Removed", "invert": True},
    {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True},
    {"type": "FixedLength", "length": 0}, {"type": "Whitespace"}, {"type": "Magic"},
    {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}] * 99},
)  # fmt: skip


def make_tiny(directory: Path) -> None:
    """Two layers of random numbers, with the tokenizer and template of nano."""
    nano = bundled_models()["nano"]
    config = ModelConfig(
        vocab_size=1024, hidden_size=16, intermediate_size=8, moe_intermediate_size=8,
        num_experts=2, top_k_experts=1, num_attention_heads=2,
        layer_types=("sliding_attention", "full_attention"),
        sliding=AttentionShape(head_dim=8, num_key_value_heads=1, rope_theta=1e4),
        full=AttentionShape(
            head_dim=16, num_key_value_heads=1, rope_theta=1e6, partial_rotary_factor=0.25
        ),
        sliding_window=16, max_position_embeddings=512, canvas_length=16, eos_token_ids=(1, 106),
    )  # fmt: skip
    model = DiffusionGemma(config)
    model.reset_parameters(seed=1)
    save_weights(
        model, directory, config=config, files={name: nano / name for name in TEXT_FILES},
        generation=GenerationDefaults(SamplingParams(max_steps=4, entropy_bound=0.1), (1,), 0),
        dtype=torch.bfloat16,
    )  # fmt: skip


def break_checkpoint(base: Path, into: Path, number: int) -> str:
    """Copy the checkpoint and break it in one to three ways; returns what was done."""
    shutil.copytree(base, into)
    draw = random.Random(number)
    done = []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        way = draw.choice(WAYS)
        try:
            done.append(f"{way.__name__}: {way(into, draw)}")
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError,
                SafetensorError):  # fmt: skip
            done.append(f"{way.__name__}: nothing left to break")
    return "; ".join(done)


def get(path: Path) -> bytes:
    """The content of a file, unless an earlier way has put something else in its place."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > 1 << 26:
        raise ValueError("no longer a file")
    return path.read_bytes()


def get_json(path: Path) -> Any:
    """The value in it."""
    return json.loads(get(path))


def put(path: Path, data: bytes | str) -> None:
    """Write a file, never through a link."""
    path.unlink(missing_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


# -- ways ------------------------------------------------------------------------------------------


def in_json(at: Path, draw: random.Random) -> str:
    """A value, key or item of a JSON file."""
    name = draw.choice((*JSON_FILES, "config.json"))
    root = {"": get_json(at / name)}
    place: Any = root
    key: Any = ""
    for _ in range(draw.choice((0, 1, 1, 2, 2, 3, 4))):
        inner = place[key]
        if not inner or not isinstance(inner, (dict, list)):
            break
        place = inner
        key = draw.choice(list(inner)[:60] if isinstance(inner, dict) else range(len(inner)))
    kind = draw.randrange(6)
    marker = "".join(draw.choices(string.ascii_letters, k=20))
    raw = ""
    if kind == 0:
        del place[key]
    elif kind == 1:
        raw = draw.choice(RAW)
        place[key] = marker
    elif kind == 2 and isinstance(place, dict):
        place[draw.choice(("x", "", ESCAPES, "x" * 9999, marker))] = draw.choice(VALUES)
    elif kind == 3 and isinstance(place, list):
        place += place * draw.choice((1, 50))
    else:
        place[key] = draw.choice(VALUES)
    text = json.dumps(root.get(""), ensure_ascii=True)
    if kind == 1:
        text = text.replace(f'"{marker}"', raw)
    if draw.random() < 0.1:  # the key a second time
        text = text.replace("{", '{"model_type": [], ', 1)
    put(at / name, text)
    return f"{name} {str(key)[:40]!a} kind {kind} {raw[:20]!a}"


def in_bytes(at: Path, draw: random.Random) -> str:
    """Bits, lengths, junk."""
    path = at / draw.choice((*JSON_FILES, WEIGHTS, WEIGHTS, WEIGHTS, "chat_template.jinja"))
    data = bytearray(get(path))
    kind = draw.randrange(5)
    if kind == 0:
        del data[draw.randrange(len(data)) :]
    elif kind == 1:
        data += draw.randbytes(draw.choice((1, 7, 4096)))
    elif kind == 2:
        data[:] = draw.choice((b"", b"\0" * 100, b"{}", b"[]", b"\xff\xfe", b"version https://git"))
    else:
        reach = min(len(data), draw.choice((8, 400, len(data))))
        for _ in range(draw.choice((1, 3, 20))):
            data[draw.randrange(reach)] ^= 1 << draw.randrange(8)
    put(path, bytes(data))
    return f"{path.name} kind {kind}"


def in_header(at: Path, draw: random.Random) -> str:
    """The names, types and places in the weights' file."""
    path = at / WEIGHTS
    data = get(path)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    name = draw.choice(sorted(set(header) - {"__metadata__"}))
    kind = draw.randrange(7)
    if kind == 0:
        header[name]["dtype"] = draw.choice(("F64", "F8_E4M3", "I8", "BOOL", "U64", "F4", "x", 5))
    elif kind == 1:
        header[name]["shape"] = draw.choice(([], [0], [-1], [2**63], [2**40, 2**40], [1.5], "x"))
    elif kind == 2:
        header[name]["data_offsets"] = draw.choice(([0, 0], [5, 2], [0, 2**63], [-1, 4], [0], []))
    elif kind == 3:
        header[draw.choice((ESCAPES, "", "x" * 99_999, "\u2028", "layers.N.x"))] = header.pop(name)
    elif kind == 4:
        header["__metadata__"] = draw.choice(({"a": ESCAPES}, {"a": 1}, [], {"a": {"b": {}}}))
    elif kind == 5:
        header[name][draw.choice(("x", "dtype"))] = draw.choice(VALUES[:20])
    else:
        header |= {f"extra.{i}": header[name] for i in range(draw.choice((1, 20_000)))}
    text = json.dumps(header).encode()
    length = draw.choice((len(text),) * 5 + (len(text) + 9, 2**40, 2**63, 0))
    put(path, length.to_bytes(8, "little") + text + data[8 + size :])
    return f"kind {kind} of {name}"


def in_tensors(at: Path, draw: random.Random) -> str:
    """Well-formed files with other tensors than the config has."""
    weights = load(get(at / WEIGHTS))
    name = draw.choice(sorted(weights))
    kind = draw.randrange(6)
    if kind == 0:
        del weights[name]
    elif kind == 1:
        weights[name].view(-1)[0] = draw.choice((float("nan"), float("inf"), 3e38))
    elif kind == 2:
        tied = weights["model.decoder.embed_tokens.weight"].clone()
        weights[draw.choice(TIES)] = tied if draw.random() < 0.5 else tied[:5].clone()
    elif kind == 3:
        weights[name + draw.choice((ESCAPES, ".weight_scale", "2"))] = weights.pop(name)
    elif kind == 4:
        weights[name] = weights[name].to(draw.choice((torch.int8, torch.float64, torch.bool)))
    else:
        weights[name] = draw.choice((torch.zeros(0), torch.zeros(()), torch.zeros(3, 0, 2)))
    put(at / WEIGHTS, save(weights))
    return f"kind {kind} of {name}"


def in_index(at: Path, draw: random.Random) -> str:
    """An index of shards that names what is no shard."""
    names = sorted(load(get(at / WEIGHTS)))
    shard = draw.choice((WEIGHTS, "a" * 5000, "../x", "/dev/zero", ESCAPES, "", ".", "\0", "pipe"))
    if shard == "pipe":
        (at / shard).unlink(missing_ok=True)
        os.mkfifo(at / shard)
    placed: dict[str, Any] = dict.fromkeys(names, WEIGHTS)
    placed[draw.choice(names)] = shard if draw.random() < 0.8 else draw.choice(VALUES)
    index = draw.choice(({"weight_map": placed}, {"weight_map": placed}, {"weight_map": []}, []))
    put(at / INDEX, json.dumps(index))
    return shard[:20]


def in_kinds(at: Path, draw: random.Random) -> str:
    """Something else in the place of a file."""
    path = at / draw.choice((*JSON_FILES, WEIGHTS, INDEX, "chat_template.jinja",
                             "special_tokens_map.json"))  # fmt: skip
    kind = draw.randrange(9)
    other = get(at / draw.choice((*JSON_FILES, WEIGHTS)))
    path.unlink(missing_ok=True)
    if kind == 1:
        path.mkdir()
    elif kind == 2:
        os.mkfifo(path)
    elif kind == 3:
        path.symlink_to(draw.choice(("/dev/zero", "/dev/urandom", "/dev/null", "/dev/tty")))
    elif kind == 4:
        path.symlink_to(draw.choice((path.name, "nothing", "..")))
    elif kind == 5:
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(str(path))
    elif kind == 6:
        with path.open("wb") as file:
            file.truncate(1 << 38)  # of holes
    elif kind == 7:
        path.write_bytes(other)
    elif kind == 8:
        path.symlink_to("/proc/self/mem")
    return f"{path.name} kind {kind}"


def in_template(at: Path, draw: random.Random) -> str:
    """Another template, in either place."""
    source = draw.choice((*ENDLESS, *LONG, *DEEP, "\ufeff{{ bos_token }}", "{{ 1/0 }}", "{% x %}"))
    if draw.random() < 0.7:
        put(at / "chat_template.jinja", source)
    else:
        (at / "chat_template.jinja").unlink()
        path = at / "tokenizer_config.json"
        listed: Any = draw.choice((source, [{"name": "default", "template": source}], ["x"], {}))
        put(path, json.dumps(get_json(path) | {"chat_template": listed}))
    return ascii(source[:40])


def in_tokenizer(at: Path, draw: random.Random) -> str:
    """Parts that grow or search without end; tokens that share an id, or leave gaps."""
    path = at / "tokenizer.json"
    values = get_json(path)
    model, added = values["model"], values["added_tokens"]
    kind = draw.randrange(8)
    if kind == 0:
        values["normalizer"] = draw.choice(NORMALIZERS)
    elif kind == 1:
        values["pre_tokenizer"] = draw.choice(PRE_TOKENIZERS)
    elif kind == 2:
        model["vocab"][draw.choice(("zzz", ESCAPES, "\ud800", ""))] = draw.choice((70, 9999, 2**31))
    elif kind == 3:
        token = draw.choice(added)
        token[draw.choice(sorted(token))] = draw.choice(
            (True, "", " ", "a", 5, ESCAPES, "x" * 9999)
        )
    elif kind == 4:
        extra = draw.choice((1, 3000))
        added += [dict(added[0], id=1024 + i, content=f"<|{i}{ESCAPES}|>") for i in range(extra)]
    elif kind == 5:
        keys = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "unk_token", "type")
        model[draw.choice(keys)] = draw.choice((0.5, "x", "a" * 9999, "Unigram"))
    elif kind == 6:
        model["merges"] = draw.choice(([], [["a", "b"]], [["zzz", "y"]], ["a b"], model["vocab"]))
    else:
        values["post_processor" if draw.random() < 0.5 else "decoder"] = draw.choice(VALUES)
    put(path, json.dumps(values))
    return f"kind {kind}"


WAYS: tuple[Callable[[Path, random.Random], str], ...] = (
    in_json, in_json, in_json, in_json, in_bytes, in_bytes, in_header, in_tensors, in_index,
    in_kinds, in_kinds, in_template, in_tokenizer, in_tokenizer,
)  # fmt: skip
