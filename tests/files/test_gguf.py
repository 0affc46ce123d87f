"""The reader of GGUF containers, on the real file and on broken ones."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dgemma.files import gguf as container
from dgemma.files.gguf import TYPES, GgufError, GgufFile, split_files
from dgemma.quant.gguf_blocks import FORMATS
from tests.support.gguf_files import Key, Tensor, entry, gguf, text
from tests.support.tokenizers import fixture_file

Write = Callable[[bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file, and gives its path."""

    def inner(content: bytes) -> Path:
        (tmp_path / "x.gguf").write_bytes(content)
        return tmp_path / "x.gguf"

    return inner


def refusal(path: Path) -> str:
    """The one error of a file, keys and tensors."""
    with pytest.raises(GgufError) as caught:
        _ = GgufFile(path).tensors
    assert str(path) in str(caught.value)
    return str(caught.value)


PLAIN = [Tensor("a", [3, 2], 0, bytes(24)), Tensor("b", [32], 8, bytes(34))]


def test_all_kinds_of_values(write: Write) -> None:
    """Catches a wrong width or sign: one value read wrong moves all that follow."""
    kinds: dict[str, Any] = {
        "u8": 200, "i8": -3, "u16": 60000, "i16": -300, "u32": 2**31, "i32": -7, "f32": 0.5,
        "u64": 2**60, "i64": -(2**60), "f64": 0.1, "bool": True, "text": "né",
    }  # fmt: skip
    keys = {kind: Key(kind, value) for kind, value in kinds.items()}
    keys |= {f"{kind}[]": Key(f"{kind}[]", [value, value]) for kind, value in kinds.items()}
    keys |= {
        "mark": Key("text[]", ["a\0b", "", "\0"]), "none": Key("text[]", []),
        "nested": Key("u8[][]", [[9], [8, 7]]), "deep": Key("text[][]", [["x"], []]),
    }  # fmt: skip
    found = GgufFile(write(gguf(keys, version=2)))
    assert dict(found) == {key: value for key, (_, value) in keys.items()}
    assert len(found) == len(keys) and found["none"] == [] and "x" not in found


def test_the_table_of_tensors(write: Write) -> None:
    """Dimensions are reversed, places are counted from the aligned end of the header."""
    for alignment in (32, 64):
        keys = {"general.alignment": Key("u32", alignment)} if alignment != 32 else {}
        path = write(gguf(keys, PLAIN, alignment=alignment))
        found = GgufFile(path).tensors
        one, other = found["a"], found["b"]
        assert (one.shape, one.kind, one.nbytes) == ((2, 3), 0, 24)
        assert (other.shape, other.kind, other.nbytes) == ((32,), 8, 34)
        assert other.start - one.start == alignment and one.start % alignment == 0
        assert other.start + other.nbytes == path.stat().st_size


def test_types_are_those_of_the_unpackers() -> None:
    """The container and the formats must agree on the size of a block."""
    for number, form in FORMATS.items():
        assert TYPES[number] == (form.name, form.elements, form.size)


def test_every_cut_is_noticed(write: Write) -> None:
    """A download that broke off must say so, wherever it did."""
    whole = gguf({"a": Key("text", "xyz"), "b": Key("text[]", ["p", "q"])}, PLAIN)
    for length in range(1, len(whole)):
        assert "again" in (said := refusal(write(whole[:length]))) or "begins with" in said
    found = GgufFile(write(whole))
    assert dict(found) == {"a": "xyz", "b": ["p", "q"]} and len(found.tensors) == 2


HEAD = b"GGUF" + struct.pack("<I", 3)
ONE = HEAD + struct.pack("<QQ", 0, 1) + text("a")
"""A file of one key, up to its type."""
BROKEN: dict[str, tuple[bytes, str]] = {
    "version 1": (gguf({}, version=1), "version 1; only versions 2 and 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "it is big-endian"),
    "kind of value": (ONE + struct.pack("<IQ", 99, 0), "99"),
    "endless array": (
        ONE + struct.pack("<IIQ", 9, 10, 2**61), "beyond"
    ),
    "endless texts": (
        ONE + struct.pack("<IIQ", 9, 8, 2**61), "items"
    ),
    "a text of 2^60 among others": (
        ONE + struct.pack("<IIQQ", 9, 8, 2, 2**60)
        + bytes(64), "beyond the file",
    ),
    "text of 2^60": (
        ONE + struct.pack("<IQ", 8, 2**60), "2\\^60|bytes"
    ),
    "key of 2^63": (HEAD + struct.pack("<QQQ", 0, 1, 2**63), "bytes|items"),
    "nesting": (
        ONE + struct.pack("<I", 9)
        + struct.pack("<IQ", 9, 1) * 20 + bytes(12), "value of type 9",
    ),
    "many keys": (HEAD + struct.pack("<QQ", 0, 2**60), "items"),
    "many tensors": (HEAD + struct.pack("<QQ", 2**60, 0), "tensors"),
    "same key": (
        HEAD + struct.pack("<QQ", 0, 2) + entry("k", "u8", 1) * 2, "'k' a second time"
    ),
    "same tensor": (gguf({}, [PLAIN[0]] * 2), "'a' a second time"),
    "alignment": (gguf({"general.alignment": Key("u32", 0)}, PLAIN), "general.alignment is 0"),
    "alignment 48": (gguf({"general.alignment": Key("u32", 48)}, PLAIN), "alignment is 48"),
    "misaligned": (gguf({}, [replace(PLAIN[0], offset=8)]), "32 does not divide"),
    "beyond": (gguf({}, [replace(PLAIN[0], offset=2**62)]), "cut short: 'a' ends at"),
    "overlap": (gguf({}, [PLAIN[0], replace(PLAIN[1], offset=0)]), "'b' within the bytes of 'a'"),
    "no dims": (gguf({}, [replace(PLAIN[0], dims=[])]), "0 dimensions"),
    "five dims": (gguf({}, [replace(PLAIN[0], dims=[1] * 5)]), "5 dimensions"),
    "empty": (gguf({}, [replace(PLAIN[0], dims=[0, 5])]), r"shape \[0, 5\]"),
    "huge dims": (gguf({}, [replace(PLAIN[0], dims=[2**62, 2**62])]), "cut short"),
    "ragged block": (gguf({}, [replace(PLAIN[1], dims=[33])]), r"shape \[33\] in Q8_0"),
    "removed type": (gguf({}, [replace(PLAIN[0], kind=31)]), r"type 31 \(Q4_0_4_4\)"),
    "unknown type": (gguf({}, [replace(PLAIN[0], kind=142)]), "type 142, which is not supported"),
    "git": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "zip": (b"PK\3\4", "not a GGUF file"),
    "nothing": (b"", "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("content, message", BROKEN.values(), ids=BROKEN.keys())
def test_hostile_files(write: Write, content: bytes, message: str) -> None:
    """Lies about lengths must not cost memory or time, nor give a traceback."""
    assert re.search(message, refusal(write(content)))


def test_a_header_without_end(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sparse file may be as long as its lengths say: the header has a bound of its own."""
    monkeypatch.setattr(container, "MOST_HEADER_BYTES", 1000)
    assert "more than 0 MiB" in refusal(write(gguf({"a": Key("u8[]", bytes(2000))})))
    monkeypatch.setattr(container, "MOST_ITEMS", 10)
    assert "items" in refusal(write(gguf({"a": Key("text[]", [""] * 20)})))


def test_no_file(tmp_path: Path) -> None:
    """A wrong path and a directory."""
    assert "cannot be read" in refusal(tmp_path / "absent.gguf")
    assert "a directory" in refusal(tmp_path)


def test_splits(tmp_path: Path) -> None:
    """Any of a set stands for all; a missing one is named."""
    names = [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for name in names:
        (tmp_path / name).touch()
    for name in names:
        assert [path.name for path in split_files(tmp_path / name)] == names
    assert split_files(tmp_path / "m.gguf") == [tmp_path / "m.gguf"]
    (tmp_path / names[1]).unlink()
    with pytest.raises(GgufError, match=f"{names[1]} is not beside it; download"):
        split_files(tmp_path / names[0])
    for odd in ("m-00004-of-00003.gguf", "m-00000-of-00003.gguf", "m-00001-of-99999.gguf"):
        with pytest.raises(GgufError, match="restore the name"):
            split_files(tmp_path / odd)


def test_the_real_file() -> None:
    """The header of the published vocabulary, read to its end; opening makes no value."""
    path = fixture_file("gemma4_vocab.gguf")
    found = GgufFile(path)
    assert len(found) == 42 and found["general.architecture"] == "gemma4"
    assert len(found["tokenizer.ggml.tokens"]) == 262144
    assert len(found["tokenizer.ggml.merges"]) == 514906
    assert found["gemma4.final_logit_softcapping"] == 30.0
    assert found["tokenizer.ggml.add_bos_token"] is True
    assert found.tensors == {} and found.header_bytes <= path.stat().st_size
