"""Writes GGUF files, as the specification has them; shares nothing with the reader."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

CODES = {"u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"),
         "i32": (5, "i"), "f32": (6, "f"), "bool": (7, "?"), "u64": (10, "Q"), "i64": (11, "q"),
         "f64": (12, "d")}  # fmt: skip


class Key(NamedTuple):
    """A value with its type: a key of `CODES`, "text", or either with "[]"."""

    kind: str
    value: Any


def text(value: str | bytes) -> bytes:
    """A GGUF string."""
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def payload(kind: str, value: Any) -> tuple[int, bytes]:
    """A value: its type number, and its bytes."""
    if kind.endswith("[]"):
        inner = kind.removesuffix("[]")
        parts = [payload(inner, one) for one in value]
        number = parts[0][0] if parts else (8 if inner == "text" else CODES[inner][0])
        return 9, struct.pack("<IQ", number, len(parts)) + b"".join(part for _, part in parts)
    if kind == "text":
        return 8, text(value)
    number, code = CODES[kind]
    return number, struct.pack("<" + code, value)


def entry(key: str, kind: str, value: Any) -> bytes:
    """A key with its value."""
    number, data = payload(kind, value)
    return text(key) + struct.pack("<I", number) + data


@dataclass
class Tensor:
    """A tensor of a file.

    Attributes:
        dims: in ggml's order, the contiguous one first.
        kind: ggml's type number.
        data: its bytes.
        offset: where the table says that it lies; None: behind the one before.
    """

    name: str
    dims: Sequence[int]
    kind: int
    data: bytes = field(repr=False)
    offset: int | None = None


def gguf(
    keys: Mapping[str, Key], tensors: Sequence[Tensor] = (), *, version: int = 3,
    alignment: int = 32,
) -> bytes:  # fmt: skip
    """A whole file."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    head += b"".join(entry(key, *value) for key, value in keys.items())
    body = b""
    for tensor in tensors:
        body += bytes(-len(body) % alignment)
        offset = len(body) if tensor.offset is None else tensor.offset
        head += text(tensor.name) + struct.pack("<I", len(tensor.dims))
        head += struct.pack(f"<{len(tensor.dims)}Q", *tensor.dims)
        head += struct.pack("<IQ", tensor.kind, offset)
        body += tensor.data
    return head + bytes(-len(head) % alignment) + body if tensors else head
