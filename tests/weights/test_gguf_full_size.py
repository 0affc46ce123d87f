"""The published Q4_K_M file in full size, as a sparse file: 16.8 GB on paper, megabytes on disk."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest

from dgemma.files.gguf import TYPES
from dgemma.model.config import ModelConfig
from dgemma.weights.gguf_names import ours_to_gguf
from dgemma.weights.names import is_vision, to_ours
from tests.support.full_size import opened
from tests.support.gguf_checkpoint import DOWN, NUMBERS, keys_of, rope_freqs
from tests.support.gguf_files import Key, Tensor, gguf
from tests.support.sparse_files import has_sparse_files

pytestmark = pytest.mark.process

OPEN = """
source = checkpoint.source
opened = time.perf_counter() - start
swap(model, packed_formats(model, checkpoint))
planned = time.perf_counter() - start
size = 0
for name, info in source.tensors.items():
    parts = source.packed(name).parts.values() if info.format else [source.read(name)]
    for part in parts:
        assert part.view(-1)[-1] == 0
        size += part.nbytes
mapped = time.perf_counter() - start
packed = sum(map(keeps_packed, model.modules()))
print(size, packed, source.keys.header_bytes, held("VmHWM:"), opened, planned, mapped)
"""


def more(number: int, count: int) -> bool:
    """Where llama.cpp's Q4_K_M spends more bits: the first and last eighth, a third of the rest."""
    first = count // 8
    return number < first or number >= 7 * count // 8 or (number - first) % 3 == 2


def types_of(names: list[str], layers: int) -> dict[str, str]:
    """The type of every matrix, by our names."""
    values = [name for name in names if "v_proj" in name]
    found = {}
    for name in names:
        layer = int(name.split(".")[1]) if name.startswith("layers.") else layers
        if any(part in name for part in DOWN):
            found[name] = "Q8_0" if layer < layers and more(layer, layers) else "Q5_0"
        elif name == "embed.weight" or (name in values and more(values.index(name), len(values))):
            found[name] = "Q6_K"
        else:
            found[name] = "F32" if "router" in name else "Q4_K"
    return found


def write_sparse(
    path: Path, config: ModelConfig, shapes: dict[str, tuple[int, ...]]
) -> Counter[str]:
    """Right keys, names, types and places, zeros for weights; how many tensors are of each type."""
    matrices = [name for name, shape in shapes.items() if len(shape) > 1]
    types = types_of(matrices, config.num_layers)
    tensors, starts, end = [], dict[str, int](), 0
    shapes = {ours_to_gguf(name): shape for name, shape in shapes.items()} | {
        "rope_freqs.weight": (config.full.head_dim // 2,)
    }
    words = {ours_to_gguf(name): word for name, word in types.items()}
    for name, shape in shapes.items():
        word = words.get(name, "F32")
        _, elements, size = TYPES[NUMBERS[word]]
        starts[name] = end
        tensors.append(Tensor(name, list(reversed(shape)), NUMBERS[word], b"", end))
        end += -(-(prod(shape) // elements * size) // 32) * 32
    keys = {
        **keys_of(config),
        "tokenizer.ggml.model": Key("text", "gemma4"),
        "tokenizer.ggml.tokens": Key("text[]", [f"t{i}" for i in range(config.vocab_size)]),
        "tokenizer.ggml.merges": Key("text[]", [f"t{i} t" for i in range(514_906)]),
        "tokenizer.ggml.scores": Key("f32[]", [0.0] * config.vocab_size),
        "tokenizer.ggml.token_type": Key("i32[]", [1] * config.vocab_size),
    }
    head, rope = gguf(keys, tensors), rope_freqs(config).data
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + end)
        file.seek(len(head) + starts["rope_freqs.weight"])
        file.write(rope)
    return Counter(words.get(name, "F32") for name in shapes)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_opens_plans_and_maps(
    tmp_path: Path,
    released: ModelConfig,
    released_tensors: dict[str, tuple[int, ...]],
    full: bool,
    record: Callable[..., None],
) -> None:
    """Nothing is read but the header: a pass over the weights would break the bound of memory.

    The time is asserted at full count only: a busy machine must not fail the default suite.
    """
    if not has_sparse_files(tmp_path):
        pytest.skip("this file system has no sparse files, and 17 GB are too much for a test")
    ours = {to_ours(name): shape for name, shape in released_tensors.items()}
    shapes = {name: shape for name, shape in ours.items() if name and not is_vision(name)}
    file = tmp_path / "m-Q4_K_M.gguf"
    kinds = write_sparse(file, released, shapes)
    # The published file has these, and 16.807 GB.
    assert kinds == {"F32": 423, "Q4_K": 194, "Q5_0": 33, "Q8_0": 28, "Q6_K": 14}
    assert 16.79e9 < file.stat().st_size < 16.83e9
    size, packed, header, resident, *seconds = opened(file, OPEN)
    record("26B Q4_K_M, sparse: GB mapped", size / 1e9)
    record("26B Q4_K_M, sparse: MB of header read", header / 1e6)
    record("26B Q4_K_M, sparse: GB resident", resident / 1e9, "< 2")
    record("26B Q4_K_M, sparse: seconds to open, plan and map", seconds[-1], "< 10")
    print(f"mapped {size / 1e9:.2f} GB after {seconds} s, {resident / 1e9:.2f} GB resident")
    assert file.stat().st_size - 2 * header < size < file.stat().st_size
    assert packed == 115 + 3 * 30 + 3 + 30  # attention, dense, self-conditioning, experts
    assert header < 20e6 and resident < 2e9
    if full:
        assert seconds[-1] < 10
