"""Broken GGUF files, each of a kind of its own, and a server that is started on one of them."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.gguf_files import Key, Tensor, entry, gguf, text

HUGE = 1 << 60
ARCH = {"general.architecture": Key("text", "diffusion-gemma")}
ESCAPES = "\x1b[2J\x1b]0;pwned\x07"


def _head(tensors: int, keys: int, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


def _table(*tensors: Tensor) -> bytes:
    return gguf(ARCH, tensors)


FILES: Mapping[str, bytes] = {
    "magic.gguf": b"GGML" + bytes(4096),
    "cut.gguf": gguf(ARCH)[:30],
    "version.gguf": _head(0, 0, version=3 << 24),
    "keys.gguf": _head(0, HUGE),
    "tensors.gguf": _head(HUGE, 0),
    "text.gguf": _head(0, 1, struct.pack("<Q", HUGE) + bytes(64)),
    "value.gguf": _head(0, 1, text("x") + struct.pack("<IQ", 8, HUGE)),
    "array.gguf": _head(0, 1, text("x") + struct.pack("<IIQ", 9, 8, HUGE)),
    "nested.gguf": _head(0, 1, text("x") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 99),
    "kind.gguf": _head(0, 1, text("x") + struct.pack("<I", 77)),
    "twice.gguf": _head(0, 2, entry("x", "u8", 1) * 2),
    "arch.gguf": gguf({"general.architecture": Key("text", "llama")}),
    "escapes.gguf": gguf({"general.architecture": Key("text", ESCAPES)}),
    "type.gguf": _table(Tensor("token_embd.weight", [32, 32], 99, bytes(64))),
    "size.gguf": _table(Tensor("token_embd.weight", [HUGE, 16], 0, bytes(64))),
    "place.gguf": _table(Tensor("token_embd.weight", [4, 4], 0, bytes(64), offset=HUGE)),
    "overlap.gguf": _table(*(Tensor(name, [4, 4], 0, bytes(64), offset=0) for name in "ab")),
    "name.gguf": _table(Tensor("x" * 9999, [4], 0, bytes(64))),
    "split-00001-of-00003.gguf": gguf(ARCH),
}
"""Name -> content."""


def start(path: Path, seconds: float = 60) -> str:
    """What comes of `dgemma serve` on a file that it must not serve: "refused" in one line."""
    words = [sys.executable, "-m", "dgemma", "serve", str(path), "--port", "0"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"broke: {path.name} went on"
    said = done.stderr.removesuffix("\n")
    one_line = said.isprintable() and said.startswith("dgemma: error: ") and len(said) < 2000
    return "refused" if done.returncode == 2 and one_line else f"broke: {path.name}"
