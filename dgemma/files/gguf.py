"""The container of a GGUF file: its keys, and where its tensors lie.

Knows versions 2 and 3, little-endian. Nothing is copied when a file is opened: every length is
walked over and checked, values are made when they are asked for, and tensors are never touched.
Knows nothing about what a key or a tensor means.
Source: the GGUF specification (ggml, docs/gguf.md) and ggml's type numbers.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from dgemma.files.read import MIB, check_regular, exists, reason

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
MOST_HEADER_BYTES = 256 * MIB
"""Keys and tensor table; those of a 26B checkpoint have 16 MiB."""
MOST_ITEMS = 4_000_000
"""Keys and items of their arrays that are not plain numbers; a 26B checkpoint has 0.8 million."""
MOST_KEY_BYTES, MOST_NAME_BYTES, MOST_TEXT_BYTES = 1 << 16, 1024, 16 * MIB
MOST_TENSORS, MOST_DIMENSIONS, MOST_SPLITS = 1 << 17, 4, 1000
DAMAGED = "the file is cut short or damaged: download it again"

TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2),
    26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
}  # fmt: skip
"""ggml's type number -> its word, and the numbers and bytes of a block."""
REMOVED = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 9: "Q8_1", 15: "Q8_K", 41: "Q1_0",
}  # fmt: skip
"""Types that ggml has dropped, or that are not for files, or that nothing here can unpack."""

_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_DEEPEST = 8
_LENGTH = struct.Struct("<Q").unpack_from
SPLIT = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)")
"""The end of the name of one of several files."""


class GgufError(ValueError):
    """The file cannot be used; the text names it, the fault and the remedy."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies.

    Attributes:
        kind: ggml's type number, a key of `TYPES`.
        shape: the slowest dimension first, as torch has it.
        start: its first byte in the file; `nbytes`: how many.
    """

    kind: int
    shape: tuple[int, ...]
    start: int
    nbytes: int


class GgufFile(Mapping[str, Any]):
    """An open file, as a mapping of its keys.

    A value is an int, float, bool, str or (nested) list; every look-up reads it anew.

    Attributes:
        path: the file.
        size: its bytes.
        header_bytes: of keys and, once they were asked for, of the tensor table: all that is read.
    """

    def __init__(self, path: str | Path) -> None:
        """
        Raises:
            GgufError: it cannot be read, is no GGUF, is of an unknown version, or its keys are cut
                short, too many or too long.
        """
        self.path = Path(path)
        try:
            self.size = check_regular(path).st_size
            with open(path, "rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # mmap refuses an empty file with ValueError
            raise GgufError(f"{path} cannot be read ({reason(error)}); give a GGUF file") from error
        begin = self._data[:19]
        if begin[:4] != MAGIC:
            what = "not a GGUF file; give a file that begins with 'GGUF'"
            if begin == b"version https://git":
                what = "a Git LFS pointer, not the weights; download the file itself"
            raise GgufError(f"{path} is {what}")
        self._walk = _Walk(self.path, self._data)
        self._places = self._walk.keys()
        self.header_bytes = self._walk.at

    def __getitem__(self, key: str) -> Any:
        return self._walk.value(*self._places[key])

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    @cached_property
    def tensors(self) -> Mapping[str, GgufTensor]:
        """All tensors by their names, in the file's order.

        Raises:
            GgufError: an unknown type, a place beyond the file, two tensors in one place.
        """
        alignment = self.get("general.alignment", ALIGNMENT)
        power = isinstance(alignment, int) and 1 <= alignment <= MIB
        if not power or alignment & (alignment - 1):
            raise GgufError(f"{self.path}: general.alignment is {alignment!s:.20}; {DAMAGED}")
        found, self.header_bytes = self._walk.tensors(alignment)
        return found


class _Walk:
    """Walks through the bytes of the header, checking every length before it is believed."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self.at = path, data, len(MAGIC)
        self._end = min(len(data), MOST_HEADER_BYTES)
        self._items = 0

    def keys(self) -> dict[str, tuple[int, int]]:
        """The keys: type and place of each value."""
        version = self._number("I")
        if version not in VERSIONS:
            hint = "; it is big-endian" if version in (2 << 24, 3 << 24) else ""
            raise GgufError(
                f"{self._path}: GGUF version {version}{hint}; only versions 2 and 3 in "
                "little-endian order are read: take another file, or convert it again"
            )
        self.count, keys = self._number("Q"), self._number("Q")
        self._count(keys, 13)
        if self.count > MOST_TENSORS:
            raise self._broken(f"a table of {self.count} tensors, more than {MOST_TENSORS:,}")
        found: dict[str, tuple[int, int]] = {}
        for _ in range(keys):
            key = self._text(MOST_KEY_BYTES)
            kind = self._number("I")
            if key in found:
                raise self._broken(f"the key {key[:99]!r} a second time")
            found[key] = (kind, self.at)
            self._skip(kind, 0)
        self._after_keys = self.at
        return found

    def value(self, kind: int, at: int) -> Any:
        """The value at a place that `keys` has walked over."""
        self.at = at
        if kind == _STRING:
            return self._text(MOST_TEXT_BYTES)
        if kind != _ARRAY:
            number = self._number(_NUMBERS.get(kind, "B"))
            return number != 0 if kind == _BOOL else number
        kind, count = self._number("I"), self._number("Q")
        if kind == _STRING:
            return self._texts(count)
        if kind == _ARRAY:
            return [self.value(_ARRAY, self.at) for _ in range(count)]
        layout = struct.Struct(f"<{count}{_NUMBERS.get(kind, '?')}")
        values = list(layout.unpack_from(self._data, self.at))
        self.at += layout.size
        return values

    def tensors(self, alignment: int) -> tuple[dict[str, GgufTensor], int]:
        """The tensor table, and where it ends."""
        self.at = self._after_keys
        table = []
        for _ in range(self.count):
            name = self._text(MOST_NAME_BYTES)
            dimensions = self._number("I")
            if not 1 <= dimensions <= MOST_DIMENSIONS:
                raise self._broken(f"{dimensions} dimensions of {name[:99]!r}; 1 to 4 are possible")
            dims = [self._number("Q") for _ in range(dimensions)]
            table.append((name, dims, self._number("I"), self._number("Q")))
        end = self.at
        begin = -(-end // alignment) * alignment
        found = {}
        for name, dims, kind, offset in table:
            if name in found:
                raise self._broken(f"the tensor {name[:99]!r} a second time")
            nbytes = self._size(name, dims, kind)
            if offset % alignment:
                raise self._broken(f"{name[:99]!r} at {offset}, which {alignment} does not divide")
            if begin + offset + nbytes > len(self._data):
                raise GgufError(
                    f"{self._path} is cut short: {name[:99]!r} ends at byte "
                    f"{begin + offset + nbytes:,}, the file has {len(self._data):,}; download it "
                    "again"
                )
            found[name] = GgufTensor(kind, tuple(reversed(dims)), begin + offset, nbytes)
        self._check_overlap(found)
        return found, end

    def _size(self, name: str, dims: list[int], kind: int) -> int:
        """Bytes of a tensor."""
        if kind not in TYPES:
            word = f" ({REMOVED[kind]})" if kind in REMOVED else ""
            raise GgufError(
                f"{self._path}: {name[:99]!r} has the type {kind}{word}, which is not supported; "
                "take a file of another type, such as Q4_K_M or Q8_0"
            )
        word, elements, size = TYPES[kind]
        if 0 in dims or dims[0] % elements:
            raise self._broken(f"{name[:99]!r} of shape {dims} in {word}, {elements} a block")
        return prod(dims) // elements * size

    def _check_overlap(self, tensors: Mapping[str, GgufTensor]) -> None:
        last, last_end = "", 0
        for name, place in sorted(tensors.items(), key=lambda item: item[1].start):
            if place.start < last_end:
                raise self._broken(f"{name[:99]!r} within the bytes of {last[:99]!r}")
            last, last_end = name, place.start + place.nbytes

    def _skip(self, kind: int, depth: int) -> None:
        """Go past a value, checking its lengths."""
        if kind in _NUMBERS or kind == _BOOL:
            self._move(struct.calcsize(_NUMBERS.get(kind, "?")))
        elif kind == _STRING:
            self._move(self._length(MOST_TEXT_BYTES))
        elif kind == _ARRAY and depth < _DEEPEST:
            inner, count = self._number("I"), self._number("Q")
            if inner in _NUMBERS or inner == _BOOL:
                self._move(count * struct.calcsize(_NUMBERS.get(inner, "?")))
                return
            self._count(count, 8)
            if inner == _STRING:
                self._skip_texts(count)
                return
            for _ in range(count):
                self._skip(inner, depth + 1)
        else:
            raise self._broken(f"a value of type {kind}")

    def _skip_texts(self, count: int) -> None:
        at, data, end = self.at, self._data, self._end
        try:
            for _ in range(count):
                at += 8 + _LENGTH(data, at)[0]
                if at > end:
                    break
        except struct.error as error:
            raise self._broken(f"{count} texts that reach beyond the file") from error
        self._move(at - self.at)

    def _texts(self, count: int) -> list[str]:
        found, data, at = [], self._data, self.at
        for _ in range(count):
            start = at + 8
            at = start + _LENGTH(data, at)[0]
            found.append(data[start:at])
        self.at = at
        # All at once is three times as fast, unless a text has the mark itself.
        texts = b"\0".join(found).decode("utf-8", "replace").split("\0") if found else []
        if len(texts) != count:
            texts = [text.decode("utf-8", "replace") for text in found]
        return texts

    def _number(self, code: str) -> Any:
        try:
            (value,) = struct.unpack_from("<" + code, self._data, self.at)
        except struct.error as error:
            raise self._broken("its end") from error
        self.at += struct.calcsize("<" + code)
        return value

    def _text(self, most: int) -> str:
        length = self._length(most)
        start = self.at
        self._move(length)
        return self._data[start : self.at].decode("utf-8", "replace")

    def _length(self, most: int) -> int:
        length: int = self._number("Q")
        if length > most:
            raise self._broken(f"a text of {length} bytes")
        return length

    def _move(self, size: int) -> None:
        if size > self._end - self.at:
            if self._end == MOST_HEADER_BYTES:
                raise self._broken(f"a header of more than {MOST_HEADER_BYTES >> 20} MiB")
            raise self._broken(f"a value of {size} bytes, which reaches beyond the file")
        self.at += size

    def _count(self, count: int, least: int) -> None:
        """Count items of at least so many bytes each."""
        self._items += count
        if self._items > MOST_ITEMS or count * least > len(self._data) - self.at:
            raise self._broken(f"{count} items, more than a file of this kind holds")

    def _broken(self, what: str) -> GgufError:
        return GgufError(f"{self._path}: broken GGUF header, {what} at byte {self.at}; {DAMAGED}")


def is_gguf(path: str | Path) -> bool:
    """Whether a file is one by its name or by how it begins."""
    try:
        check_regular(path)
        with open(path, "rb") as file:
            return str(path).lower().endswith(".gguf") or file.read(4) == MAGIC
    except OSError:
        return str(path).lower().endswith(".gguf")


def split_files(path: str | Path) -> list[Path]:
    """All files of a set whose names end in `-00001-of-00003.gguf`; any other file alone.

    Raises:
        GgufError: one of them is missing.
    """
    path = Path(path)
    match = SPLIT.search(path.name)
    if match is None:
        return [path]
    base, number, count = path.name[: match.start()], int(match[1]), int(match[2])
    if not 1 <= number <= count <= MOST_SPLITS:
        raise GgufError(f"{path} is not one of {count} splits by its name; restore the name")
    paths = [path.with_name(f"{base}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
    absent = [one.name for one in paths if not exists(one)]
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise GgufError(
            f"{path} is one of {count} splits, but {', '.join(absent[:3])}{more} is not beside it; "
            "download all of them"
        )
    return paths
