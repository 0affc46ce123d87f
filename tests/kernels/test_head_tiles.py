"""The streamed vocabulary operation against the plain reference."""

from __future__ import annotations

import pytest
import torch

from dgemma.errors import InvalidRequest
from dgemma.kernels import head_tiles
from dgemma.kernels.controls import Controls
from dgemma.kernels.head import Head, choose_head
from dgemma.kernels.workspace import Workspace
from tests.support.heads import head_of
from tests.support.random_vocabulary import hidden_rows, make, random_keys, rows_of, same


def both(size: int, dtype: torch.dtype = torch.float32) -> tuple[Head, Head]:
    words = make(size, 4.0, dtype)
    rows, tiles = (Head(words.table, 30.0, kernel) for kernel in ("rows", "tiles"))
    return rows, tiles


@pytest.mark.parametrize("tile", [256, 512, 2048, 1 << 20])
@pytest.mark.parametrize("size", [5, 256, 300, 1024, 5000])
@pytest.mark.parametrize("count", [1, 3, 16, 70])
def test_equal_to_the_reference(size: int, tile: int, count: int) -> None:
    """Tokens for every tile size; a tile left out, a border counted twice, a peak not rescaled.

    Seen to fail with `shrink` left out (soft embedding) and with `low` forgotten (argmax).
    """
    rows, tiles = both(size)
    tiles.tiles.tile_elements = tile * max(count, 16)
    hidden, uniforms = hidden_rows(count), random_keys(count)
    temperature = torch.linspace(0.4, 0.8, count)
    expected = rows.read(hidden, temperature, uniforms, Controls())
    got = tiles.read(hidden, temperature, uniforms, Controls())
    assert torch.equal(got.argmax, expected.argmax)
    assert torch.equal(got.sample, expected.sample)
    torch.testing.assert_close(got.entropy, expected.entropy, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(got.soft, expected.soft, atol=2e-5, rtol=2e-5)


def test_16_bit_is_nearer_to_fp32_than_the_reference() -> None:
    """The reference rounds logits to 16 bit before the softmax, as the oracle does; tiles do not.

    Both read the same rounded products, so fp32 truth is computed from those.
    """
    rows, tiles = both(5000, torch.bfloat16)
    tiles.tiles.tile_elements = 512 * 64
    hidden, uniforms = hidden_rows(64).bfloat16(), random_keys(64)
    temperature, weight = torch.full((64,), 0.6), rows.table.weight
    logits = torch.tanh(torch.nn.functional.linear(hidden, weight).double() / 30) * 30 / 0.6
    truth = logits.softmax(-1) @ weight.double() * float(rows.table.scale())
    errors = []
    for words in (tiles, rows):
        got = words.read(hidden, temperature, uniforms, Controls())
        assert torch.equal(logits.max(-1).values, logits.gather(1, got.argmax[:, None])[:, 0])
        errors.append(float((got.soft.double() - truth).norm() / truth.norm()))
    assert errors[0] <= errors[1] and errors[0] < 0.01


def test_rows_do_not_depend_on_each_other() -> None:
    """Bit for bit in fp32, as for the reference; tiles are wider when rows are fewer."""
    _, tiles = both(5000)
    tiles.tiles.tile_elements = 512 * 75
    hidden, uniforms, temperature = hidden_rows(75), random_keys(75), torch.linspace(0.4, 0.8, 75)
    whole = tiles.read(hidden, temperature, uniforms, Controls())
    for pick in (torch.tensor([0]), torch.tensor([41]), torch.arange(33), torch.arange(74, -1, -3)):
        tiles.tiles.tile_elements = 512 * max(16, len(pick))
        part = tiles.read(hidden[pick], temperature[pick], uniforms[pick], Controls())
        assert same(part, rows_of(whole, pick))


def test_no_tensor_of_rows_times_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 7: what a step may hold is one tile, and the same one at the next step."""
    scratch = Workspace()
    monkeypatch.setattr(head_tiles, "WORKSPACE", scratch)
    _, tiles = both(1 << 15)
    tiles.tiles.tile_elements = 64 * 1024
    hidden, uniforms, temperature = hidden_rows(64), random_keys(64), torch.full((64,), 0.6)
    tiles.read(hidden, temperature, uniforms, Controls())
    assert max(flat.numel() for flat in scratch._flat.values()) == 64 * 1024
    before = {name: flat.data_ptr() for name, flat in scratch._flat.items()}
    tiles.read(hidden, temperature, uniforms, Controls())
    assert before == {name: flat.data_ptr() for name, flat in scratch._flat.items()}


def test_not_finite_rows_are_told() -> None:
    """NaN and infinite hidden states give NaN entropy and ids in range, and spoil no neighbour."""
    _, tiles = both(1000)
    hidden, uniforms, temperature = hidden_rows(20), random_keys(20), torch.full((20,), 0.6)
    whole = tiles.read(hidden, temperature, uniforms, Controls())
    for value in (torch.nan, torch.inf, -torch.inf):
        spoilt = hidden.clone()
        spoilt[7, 3] = value
        got = tiles.read(spoilt, temperature, uniforms, Controls())
        assert got.entropy[7].isnan() and 0 <= got.sample[7] < 1000 and 0 <= got.argmax[7] < 1000
        others = torch.tensor([i for i in range(20) if i != 7])
        assert same(rows_of(got, others), rows_of(whole, others))


def test_the_choice_has_a_reason() -> None:
    """Small vocabularies are read row by row; an unknown kernel is refused, not ignored."""
    cpu = torch.device("cpu")
    assert choose_head(1024, cpu)[0] == "rows" and "1024" in choose_head(1024, cpu)[1]
    assert choose_head(262_144, cpu)[0] == "tiles"
    with pytest.raises(InvalidRequest, match="rows"):
        head_of(torch.ones(300, 8), "cuda")
