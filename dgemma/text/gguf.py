"""The metadata of a GGUF file: the keys before its tensors, as plain Python values.

Knows the container's header, versions 2 and 3, little-endian. Knows nothing about tensors, nor
about what a key means.
Source: the GGUF specification (ggml, docs/gguf.md).
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from dgemma.errors import TokenizerError
from dgemma.files.read import check_regular

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_DEEPEST = 8
_LENGTH = struct.Struct("<Q")


def read_metadata(path: str | Path) -> dict[str, Any]:
    """All metadata of a GGUF file; only the pages before its tensors are read.

    Returns:
        Key to int, float, bool, str or (nested) list.

    Raises:
        TokenizerError: the file is absent, no GGUF, of an unknown version, or cut short.
    """
    try:
        check_regular(path)
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # mmap refuses an empty file with ValueError
        raise TokenizerError(f"{path} cannot be read ({error}); give a GGUF file") from error
    with data:
        if data[:4] != _MAGIC:
            raise TokenizerError(f"{path} is not a GGUF file; give a file that begins with 'GGUF'")
        try:
            return _MetadataReader(data).metadata()
        except (struct.error, _Broken) as error:
            text = f"{path}: broken GGUF metadata ({error})"
            raise TokenizerError(f"{text}; download the file again") from error


class _Broken(Exception):
    """The bytes are no GGUF metadata."""


class _MetadataReader:
    """Walks through the bytes of the header."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = len(_MAGIC)

    def metadata(self) -> dict[str, Any]:
        """The values of all keys."""
        version = self._number("I")
        if version not in _VERSIONS:
            raise _Broken(f"version {version}, known are 2 and 3 in little-endian order")
        self._number("Q")  # number of tensors
        found: dict[str, Any] = {}
        for _ in range(self._number("Q")):
            key = self._text()
            found[key] = self._value(self._number("I"), 0)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind == _BOOL:
            return self._number("B") != 0
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _ARRAY and depth < _DEEPEST:
            return self._array(depth)
        raise _Broken(f"value type {kind} at byte {self._at}")

    def _array(self, depth: int) -> list[Any]:
        kind = self._number("I")
        count = self._number("Q")
        if count > len(self._data) - self._at:  # every item takes a byte or more
            raise _Broken(f"an array of {count} items at byte {self._at} is longer than the file")
        if kind not in _NUMBERS:
            return [self._value(kind, depth + 1) for _ in range(count)]
        layout = struct.Struct(f"<{count}{_NUMBERS[kind]}")
        values = list(layout.unpack_from(self._data, self._at))
        self._at += layout.size
        return values

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._data, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def _text(self) -> str:
        (length,) = _LENGTH.unpack_from(self._data, self._at)
        start = self._at + _LENGTH.size
        raw = self._data[start : start + length]
        if len(raw) != length:
            raise _Broken(f"a text of {length} bytes at byte {self._at} is longer than the file")
        self._at = start + length
        return raw.decode("utf-8", "replace")
