"""Real weights of other models: our reader and our block formats give the logits of others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import dgemma
from dgemma.errors import CheckpointError
from tests.support.witness import FILES, GEMMA, SMOLLM, File, Witness, check

pytestmark = pytest.mark.model

GOLDENS = {
    GEMMA.name: (
        [2, 818, 5279, 529, 7001, 563], {506: 19.0915, 496: 18.5476},
        [506, 5279, 529, 506, 2891, 529, 7001, 236761],
    ),
    SMOLLM.name: (
        [504, 3575, 282, 4649, 314], {7042: 17.3713, 260: 14.8886}, [7042, 30, 198, 198, 504, 2988]
    ),
}  # fmt: skip
"""Ids, the two largest logits after them, and what greedy decoding gives: transformers 5.17, fp32,
on the unpacked weights."""


@pytest.fixture(scope="module", params=FILES, ids=lambda file: file.name)
def file(request: pytest.FixtureRequest) -> File:
    """A witness."""
    return request.param


@pytest.fixture(scope="module")
def path(request: pytest.FixtureRequest, file: File) -> Path:
    """Its file, checked."""
    folder = request.config.getoption("--witnesses")
    if folder is None or not (folder / file.name).exists():
        pytest.skip("no witnesses: python -m tests.support.witness DIR; pytest --witnesses DIR")
    check(folder / file.name, file.sha256)
    return folder / file.name


def test_goldens(path: Path, file: File, record: Callable[..., None]) -> None:
    """Codes off by one, a bit from its neighbour, a sign lost; heads turned in wrong pairs."""
    witness = Witness(path)
    assert witness.types() == file.types
    ids, best, greedy = GOLDENS[file.name]
    # One pass over the whole answer: greedy decoding takes the largest logit at each position,
    # so it gives these ids if and only if each of them wins after those before it.
    logits = witness.logits([*ids, *greedy])[len(ids) - 1 : -1]
    assert logits.argmax(-1).tolist() == greedy
    values, found = logits[0].topk(2)
    assert found.tolist() == list(best)
    largest = max(abs(v - b) for v, b in zip(values.tolist(), best.values(), strict=True))
    record(f"{file.name}: largest difference to the golden logits", largest, "<= 1e-3")
    assert largest <= 1e-3


def test_the_loader_refuses_it(path: Path) -> None:
    """A file that is well read, of a network that is not ours."""
    with pytest.raises(CheckpointError) as refused:
        dgemma.load(path, device="cpu")
    arch = "gemma3" if path.name == GEMMA.name else "llama"
    said = f"{path}: general.architecture is '{arch}': only 'diffusion-gemma' is run; take a GGUF"
    assert str(refused.value).startswith(said)
