"""Writes the container of GGUF files, version 3: keys, a table of tensors, then their bytes.

Knows no key and no tensor by its name.
Source: the GGUF specification (ggml, docs/gguf.md).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from torch import Tensor

from dgemma.weights.writers.stream import as_bytes

ALIGNMENT = 32
NUMBERS = {"u16": (2, "H"), "u32": (4, "I"), "i32": (5, "i"), "f32": (6, "f"), "bool": (7, "?")}
STRING, ARRAY = 8, 9

Value = tuple[str, Any]
"""A word of `NUMBERS` or "str", with "[]" behind it for a list; and the value."""


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A tensor of the file.

    Attributes:
        name, shape: torch's order; the file has the reverse.
        kind: ggml's type number.
        nbytes: of all chunks together.
        chunks: its bytes in their order, as tensors of any dtype.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    nbytes: int
    chunks: Callable[[], Iterator[Tensor]]


def write_gguf(
    file: BinaryIO, keys: Mapping[str, Value], entries: Sequence[Entry],
    progress: Callable[[int, int], None],
) -> None:  # fmt: skip
    """Write a whole file.

    Args:
        progress: called now and then with the bytes that are written, and all of them.
    """
    file.write(_head(keys, entries))
    total, done = sum(entry.nbytes for entry in entries), 0
    for entry in entries:
        file.write(bytes(-file.tell() % ALIGNMENT))
        begin = done
        for chunk in entry.chunks():
            done += file.write(as_bytes(chunk).data)
            progress(done, total)
        assert done - begin == entry.nbytes, "other bytes than the table says"


def _head(keys: Mapping[str, Value], entries: Sequence[Entry]) -> bytes:
    out = [struct.pack("<4sIQQ", b"GGUF", 3, len(entries), len(keys))]
    for key, (kind, value) in keys.items():
        out += [_text(key), _value(kind, value)]
    offset = 0
    for entry in entries:
        dims = entry.shape[::-1]
        table = struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, entry.kind, offset)
        out += [_text(entry.name), table]
        offset += entry.nbytes + -entry.nbytes % ALIGNMENT
    return b"".join(out)


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _value(kind: str, value: Any) -> bytes:
    if not kind.endswith("[]"):
        number, data = _plain(kind, [value])
        return struct.pack("<I", number) + data
    number, data = _plain(kind.removesuffix("[]"), value)
    return struct.pack("<IIQ", ARRAY, number, len(value)) + data


def _plain(kind: str, values: Sequence[Any]) -> tuple[int, bytes]:
    if kind == "str":
        return STRING, b"".join(_text(text) for text in values)
    number, code = NUMBERS[kind]
    return number, struct.pack(f"<{len(values)}{code}", *values)
