"""The reader of GGUF metadata, on the real file and on broken ones."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from dgemma.errors import TokenizerError
from dgemma.text.gguf import read_metadata
from dgemma.text.tokenizer import Tokenizer


def text(value: str) -> bytes:
    """A GGUF string."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(key: str, kind: int, payload: bytes) -> bytes:
    """A key with its value."""
    return text(key) + struct.pack("<I", kind) + payload


def strings(values: list[str]) -> bytes:
    """The payload of an array of strings."""
    return struct.pack("<IQ", 8, len(values)) + b"".join(map(text, values))


def file_of(entries: list[bytes], version: int = 3) -> bytes:
    """A GGUF file without tensors."""
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(entries)) + b"".join(entries)


def test_all_kinds_of_values(tmp_path: Path) -> None:
    """Catches a wrong width or sign: one value read wrong moves all that follow."""
    kinds: list[tuple[int, str, Any]] = [
        (0, "B", 200), (1, "b", -3), (2, "H", 60000), (3, "h", -300), (4, "I", 2**31), (5, "i", -7),
        (6, "f", 0.5), (10, "Q", 2**60), (11, "q", -(2**60)), (12, "d", 0.1),
    ]  # fmt: skip
    entries = []
    for k, code, value in kinds:
        entries.append(entry(f"n{k}", k, struct.pack("<" + code, value)))
        entries.append(entry(f"a{k}", 9, struct.pack(f"<IQ2{code}", k, 2, value, value)))
    entries += [
        entry("yes", 7, b"\1"),
        entry("bools", 9, struct.pack("<IQ2B", 7, 2, 1, 0)),
        entry("text", 8, text("né")),
        entry("texts", 9, strings(["a", ""])),
        entry("nested", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQB", 0, 1, 9)),
    ]
    path = tmp_path / "x.gguf"
    path.write_bytes(file_of(entries, version=2) + b"tensors follow")
    found = read_metadata(path)
    for k, _, value in kinds:
        assert found[f"n{k}"] == value and found[f"a{k}"] == [value, value]
    assert found["yes"] is True and found["bools"] == [True, False]
    assert (found["text"], found["texts"], found["nested"]) == ("né", ["a", ""], [[9]])


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    """A download that broke off must say so, wherever it did."""
    whole = file_of([entry("a", 8, text("xyz")), entry("b", 9, strings(["p", "q"]))])
    path = tmp_path / "x.gguf"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(TokenizerError, match=str(path)):
            read_metadata(path)
    path.write_bytes(whole)
    assert read_metadata(path) == {"a": "xyz", "b": ["p", "q"]}


@pytest.mark.parametrize(
    "content",
    [
        file_of([], version=1),
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        file_of([entry("a", 99, b"")]),
        file_of([entry("a", 9, struct.pack("<IQ", 10, 2**62))]),
        file_of([entry("a", 8, struct.pack("<Q", 2**63))]),
        file_of([entry("a", 9, struct.pack("<IQ", 9, 1) * 20 + struct.pack("<IQ", 0, 0))]),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
    ],
)
def test_broken_headers(tmp_path: Path, content: bytes) -> None:
    """Lies about lengths must not cost memory or time, nor give a traceback."""
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match="broken GGUF metadata"):
        read_metadata(path)


def test_no_file(tmp_path: Path) -> None:
    """Another format and a wrong path are told apart."""
    with pytest.raises(TokenizerError, match="cannot be read"):
        read_metadata(tmp_path / "absent.gguf")
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(TokenizerError, match="not a GGUF file"):
        read_metadata(path)


def test_other_vocabularies(tmp_path: Path) -> None:
    """A vocabulary that we would cut up wrongly is refused; a broken one names its fault."""
    path = tmp_path / "x.gguf"
    path.write_bytes(file_of([entry("tokenizer.ggml.model", 8, text("llama"))]))
    with pytest.raises(TokenizerError, match=r"'llama' is not 'gemma4'; use tokenizer\.json"):
        Tokenizer.from_gguf(path)
    path.write_bytes(file_of([entry("tokenizer.ggml.model", 8, text("gemma4"))]))
    with pytest.raises(TokenizerError, match=r"broken vocabulary.*tokenizer\.ggml\.tokens"):
        Tokenizer.from_gguf(path)


def test_the_real_file(vocab_file: Path) -> None:
    """The header of the published vocabulary, read to its end."""
    found = read_metadata(vocab_file)
    assert len(found) == 42 and found["general.architecture"] == "gemma4"
    assert len(found["tokenizer.ggml.tokens"]) == 262144
    assert found["gemma4.final_logit_softcapping"] == 30.0
    assert found["tokenizer.ggml.add_bos_token"] is True
