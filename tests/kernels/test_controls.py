"""Controls of the vocabulary operation, against definitions written with plain Python sets."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dgemma.errors import InvalidRequest
from dgemma.kernels.controls import Bias, Controls, Filters, Masks
from dgemma.kernels.head import Head
from dgemma.types import CanvasControl
from tests.support.masks import packed
from tests.support.random_vocabulary import hidden_rows, make, random_keys

ROWS = 7
KERNELS = ("rows", "tiles")  # the kernels of "triton" have tests of their own


def with_kernel(words: Head, kernel: str) -> Head:
    return Head(words.table, words.softcap, kernel)


def belief(words: Head, hidden: Tensor, bias: Bias | None = None) -> Tensor:
    """fp64 [N, V] capped logits, straight from the definition."""
    logits = torch.tanh(hidden.double() @ words.table.weight.double().T / 30) * 30
    if bias is not None:
        for row, i, value in zip(bias.rows, bias.ids, bias.values, strict=True):
            logits[row, i] += value
    return logits


def filters(top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Filters:
    """The same filter for every row but the last, which has none."""
    out = Filters(
        torch.full((ROWS,), top_k), torch.full((ROWS,), top_p), torch.full((ROWS,), min_p)
    )
    out.top_k[-1], out.top_p[-1], out.min_p[-1] = 0, 1.0, 0.0
    return out


@given(st.lists(st.sets(st.integers(0, 299), min_size=1), min_size=1, max_size=4), st.data())
def test_packed_masks_are_the_sets(allowed: list[set[int]], data: st.DataObject) -> None:
    """Bit 31 is the sign of a word; a tile may begin and end inside a word."""
    masks = packed(allowed, 300, torch.zeros(1, dtype=torch.int64))
    low = data.draw(st.integers(0, 299))
    high = data.draw(st.integers(low + 1, 300))
    for row, ids in zip(masks.columns(low, high).tolist(), allowed, strict=True):
        assert row == [i in ids for i in range(low, high)]
    index = torch.arange(-1, len(allowed))  # no bitset, then each
    asked = data.draw(st.lists(st.integers(0, 299), min_size=len(index), max_size=len(index)))
    expected = [
        row >= 0 and i in allowed[row] for row, i in zip(index.tolist(), asked, strict=True)
    ]
    assert Masks(masks.table, index).allows(torch.tensor(asked)).tolist() == expected


def test_impossible_masks_are_refused() -> None:
    """An empty mask would end in NaN three calls later."""
    index = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(InvalidRequest, match="list 0 of allowed ids is empty"):
        CanvasControl(allowed=((),), masks=(0,))
    for wrong in (-1, 300):
        with pytest.raises(InvalidRequest, match="outside the vocabulary"):
            packed([[5, wrong]], 300, index)
    with pytest.raises(InvalidRequest, match="alternatives"):
        make(300).read(hidden_rows(1), torch.ones(1), torch.zeros(1), Controls(alternatives=301))


@pytest.mark.parametrize("kernel", KERNELS)
def test_masks_and_bias_act_before_everything(kernel: str) -> None:
    """A masked id with probability, a bias on another row, a bias after the temperature."""
    words, hidden = with_kernel(make(700, 3.0), kernel), hidden_rows(ROWS)
    words.tiles.tile_elements = 256 * 16
    allowed = [list(range(0, 700, 7)), [3], [255, 256, 511, 512, 699]]
    index = torch.tensor([-1, 0, 1, 2, 0, -1, 2])
    bias = Bias(
        torch.tensor([0, 0, 3, 5]), torch.tensor([4, 4, 256, 699]),
        torch.tensor([1.5, 2.5, 9.0, -4.0]),
    )  # fmt: skip
    temperature = torch.linspace(0.4, 1.3, ROWS)
    controls = Controls(masks=packed(allowed, 700, index), bias=bias, logprobs=True)
    got = words.read(hidden, temperature, random_keys(ROWS), controls)
    logits = belief(words, hidden, bias)
    for row, which in enumerate(index.tolist()):
        if which >= 0:
            barred = torch.tensor([i not in allowed[which] for i in range(700)])
            logits[row, barred] = -math.inf
    p = (logits / temperature[:, None]).softmax(-1)
    assert torch.equal(got.argmax, p.argmax(-1))
    assert (p[torch.arange(ROWS), got.sample] > 0).all()
    expected = -(p * p.clamp(min=1e-300).log()).sum(-1)
    torch.testing.assert_close(got.entropy.double(), expected, atol=1e-5, rtol=1e-5)
    soft = p @ words.table.weight.double() * 8**0.5
    torch.testing.assert_close(got.soft.double(), soft, atol=1e-4, rtol=1e-4)
    assert got.logprobs is not None
    at = p.gather(1, got.logprobs.ids).log()
    torch.testing.assert_close(got.logprobs.tempered.double(), at, atol=1e-4, rtol=1e-4)
    plain = logits.softmax(-1).gather(1, got.logprobs.ids).log()
    torch.testing.assert_close(got.logprobs.plain.double(), plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_scores_and_alternatives(kernel: str) -> None:
    """Column order, ids of another tile, masked ids at -inf."""
    words, hidden = with_kernel(make(700, 3.0), kernel), hidden_rows(ROWS)
    words.tiles.tile_elements = 256 * 16
    score = torch.tensor([[0, 255, 699]] * ROWS)
    controls = Controls(suppress_ids=(255,), score_ids=score, alternatives=5)
    got = words.read(hidden, torch.full((ROWS,), 0.7), random_keys(ROWS), controls).logprobs
    logits = belief(words, hidden)
    logits[:, 255] = -math.inf
    best = logits.topk(5)
    assert got is not None
    assert torch.equal(got.ids[:, 2:5], score) and torch.equal(got.ids[:, 5:], best.indices)
    for value, p in ((got.tempered, (logits / 0.7)), (got.plain, logits)):
        expected = p.log_softmax(-1).gather(1, got.ids)
        torch.testing.assert_close(value.double(), expected, atol=1e-4, rtol=1e-4)
    assert (got.plain[:, 3] == -math.inf).all()


@pytest.mark.parametrize(
    "case", [{"top_k": 1}, {"top_k": 9}, {"top_p": 0.3}, {"top_p": 0.9}, {"min_p": 0.2}]
)
def test_filters_keep_what_they_say(case: dict[str, float]) -> None:
    """Each filter against its sentence; the last row has none and keeps all."""
    logits = belief(make(700, 3.0), hidden_rows(ROWS)).float()
    kept = Controls(filters=filters(**case)).filter(logits.clone()) > -math.inf  # type: ignore[arg-type]
    assert kept[-1].all()
    for row in range(ROWS - 1):
        p = logits[row].double().softmax(-1)
        ranked = p.argsort(descending=True).tolist()
        if "top_k" in case:
            expected = ranked[: int(case["top_k"])]
        elif "min_p" in case:
            expected = [i for i in ranked if p[i] >= case["min_p"] * p.max()]
        else:
            mass = [float(p[ranked[:n]].sum()) for n in range(700)]
            expected = [i for i, before in zip(ranked, mass, strict=True) if before < case["top_p"]]
        assert set(kept[row].nonzero()[:, 0].tolist()) == set(expected)


@pytest.mark.oracle
def test_filters_of_oracles_warpers() -> None:
    """The three together, in the order of `transformers`' own warpers."""
    warpers = pytest.importorskip("transformers.generation.logits_process")
    logits = belief(make(700, 3.0), hidden_rows(ROWS)).float()
    expected = logits.clone()
    for warper in (
        warpers.TopKLogitsWarper(40), warpers.TopPLogitsWarper(0.8), warpers.MinPLogitsWarper(0.1)
    ):  # fmt: skip
        expected = warper(None, expected)
    ours = Controls(filters=filters(40, 0.8, 0.1)).filter(logits.clone())
    assert torch.equal(ours[:-1], expected[:-1]) and torch.equal(ours[-1], logits[-1])


@pytest.mark.parametrize("kernel", KERNELS)
def test_filters_act_before_entropy_and_sample(kernel: str) -> None:
    """Seen to fail when a tiled reading ignored them."""
    words, hidden = with_kernel(make(700, 3.0), kernel), hidden_rows(ROWS)
    controls = Controls(filters=filters(top_k=1))
    got = words.read(hidden, torch.full((ROWS,), 5.0), random_keys(ROWS), controls)
    assert torch.equal(got.sample[:-1], got.argmax[:-1]) and (got.entropy[:-1] == 0).all()
    assert got.entropy[-1] > 1
    single = words.table.weight[got.argmax[:-1]] * words.table.scale()
    torch.testing.assert_close(got.soft[:-1], single)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scored", [False, True])
def test_pinned_rows(kernel: str, scored: bool) -> None:
    """A pinned row is that of a mask with one id; the others keep their very bits."""
    words = with_kernel(make(600), kernel)
    hidden, uniforms = hidden_rows(ROWS), random_keys(ROWS)
    temperature = torch.full((ROWS,), 0.7)
    pinned = torch.tensor([-1, 5, -1, 599, -1, 0, -1])
    asked = Controls(logprobs=scored)
    got = words.read(hidden, temperature, uniforms, Controls(pinned=pinned, logprobs=scored))
    plain = words.read(hidden, temperature, uniforms, asked)
    masks = packed([[5], [599], [0]], 600, torch.tensor([-1, 0, -1, 1, -1, 2, -1]))
    masked = words.read(hidden, temperature, uniforms, Controls(masks=masks))
    assert torch.equal(got.argmax, masked.argmax) and torch.equal(got.sample, masked.sample)
    assert torch.equal(got.entropy[pinned >= 0], torch.zeros(3))
    assert torch.allclose(got.soft, masked.soft, atol=1e-5)
    for name in ("argmax", "sample", "entropy", "soft"):
        rows = getattr(got, name)[pinned < 0], getattr(plain, name)[pinned < 0]
        assert torch.equal(*rows), name
    if scored:
        assert got.logprobs is not None and plain.logprobs is not None
        assert torch.equal(got.logprobs.plain, plain.logprobs.plain)


@pytest.mark.parametrize("kernel", KERNELS)
def test_all_rows_pinned(kernel: str) -> None:
    """No row is left to be read."""
    words = with_kernel(make(600), kernel)
    pinned = torch.arange(ROWS)
    hidden = hidden_rows(ROWS)
    got = words.read(
        hidden, torch.ones(ROWS), random_keys(ROWS), Controls(pinned=pinned)
    )  # fmt: skip
    assert torch.equal(got.argmax, pinned) and torch.equal(got.soft, words.embed(pinned))


@pytest.mark.parametrize("kernel", KERNELS)
def test_joined_controls_are_those_of_each(kernel: str) -> None:
    """A mask, a bias or a pin that slips to the rows of the next canvas."""
    words = with_kernel(make(600), kernel)
    hidden, uniforms = hidden_rows(3 * ROWS), random_keys(3 * ROWS)
    temperature = torch.linspace(0.4, 0.8, 3 * ROWS)
    parts = [
        Controls(masks=packed([[1, 2], [3]], 600, torch.tensor([0, 1, -1, 0, 1, -1, 0]))),
        Controls(
            pinned=torch.tensor([-1, 9, -1, -1, 9, -1, -1]),
            bias=Bias(torch.tensor([0, 6]), torch.tensor([5, 6]), torch.tensor([9.0, 99.0])),
        ),
        Controls(masks=packed([[7]], 600, torch.tensor([0, -1, -1, -1, -1, -1, 0]))),
    ]
    whole = words.read(hidden, temperature, uniforms, Controls.join([(p, ROWS) for p in parts], ()))
    for number, part in enumerate(parts):
        rows = slice(number * ROWS, (number + 1) * ROWS)
        alone = words.read(hidden[rows], temperature[rows], uniforms[rows], part)
        for name in ("argmax", "sample", "entropy", "soft"):
            assert torch.equal(getattr(whole, name)[rows], getattr(alone, name)), (number, name)
