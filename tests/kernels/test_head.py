"""The vocabulary operation against plain formulas, row by row and key by key."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dgemma.errors import InvalidRequest
from dgemma.kernels import head
from dgemma.kernels.controls import Controls
from dgemma.kernels.head import Head
from dgemma.kernels.sampling import BLOCK
from tests.support.chance import chi_square, chi_square_limit
from tests.support.heads import head_of
from tests.support.oracle import tiny_pair
from tests.support.random_vocabulary import WIDTH, hidden_rows, make, random_keys, rows_of, same

PLAIN = Controls()
LAST_KEY = 1 - 2**-24


def grid_keys(count: int) -> Tensor:
    """`count` keys at even distances: an id of probability p gets within one of p * count."""
    return (torch.arange(count, dtype=torch.float64) / count).float()


def distribution(words: Head, hidden: Tensor, temperature: float) -> Tensor:
    """fp64 [N, V], straight from the definition."""
    logits = hidden.double() @ words.table.weight.double().T
    return (torch.tanh(logits / 30) * 30 / temperature).softmax(-1)


@pytest.mark.parametrize("size", [1, 5, 255, 256, 257, 700, 1024])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_equals_the_definition(size: int, temperature: float) -> None:
    """Cap after temperature, entropy in bits, a block cut off or counted twice at the border."""
    words, hidden = make(size, 4.0), hidden_rows(20)
    controls = Controls(logprobs=True)
    got = words.read(hidden, torch.full((20,), temperature), random_keys(20), controls)
    p = distribution(words, hidden, temperature)
    assert torch.equal(got.argmax, p.argmax(-1))
    expected = -(p * p.log()).sum(-1)
    torch.testing.assert_close(got.entropy.double(), expected, atol=1e-5, rtol=1e-5)
    soft = p @ words.table.weight.double() * WIDTH**0.5
    torch.testing.assert_close(got.soft.double(), soft, atol=5e-5, rtol=5e-5)
    ids = torch.stack((got.argmax, got.sample), -1)
    assert got.logprobs is not None
    plain = distribution(words, hidden, 1.0)
    for value, q in ((got.logprobs.tempered, p), (got.logprobs.plain, plain)):
        torch.testing.assert_close(value.double(), q.log().gather(1, ids), atol=2e-5, rtol=1e-5)


def test_logprobs_only_where_asked() -> None:
    """They cost a second pass over the logits."""
    got = make(300).read(hidden_rows(3), torch.ones(3), random_keys(3), PLAIN)
    assert got.logprobs is None


def test_each_row_has_its_own_temperature() -> None:
    """One temperature for all rows of a batch would mix the schedules of two requests."""
    words, hidden = make(700, 3.0), hidden_rows(1).expand(3, -1)
    uniforms = random_keys(1).expand(3)
    together = words.read(hidden, torch.tensor([0.4, 0.8, 5.0]), uniforms, PLAIN)
    assert together.entropy[0] < together.entropy[1] < together.entropy[2]
    alone = words.read(hidden[:1], torch.tensor([0.8]), uniforms[:1], PLAIN)
    assert same(rows_of(together, torch.tensor([1])), alone)


@pytest.mark.slow
@pytest.mark.parametrize("size", [300, 1024])
@pytest.mark.parametrize("temperature", [0.4, 0.8])
def test_every_id_gets_its_share_of_keys(
    size: int, temperature: float, count: Callable[[int, int], int]
) -> None:
    """An exact test without chance: n even keys give an id p * n of them, give or take 1.

    The order is that of the ids, so the sample never falls as the key grows. Catches a lost or
    doubled id at a block's edge, the untempered distribution, and a biased choice of the block.
    """
    words, total = make(size, 3.0), count(1 << 14, 1 << 16)
    hidden = hidden_rows(1)
    rows = hidden.expand(total, -1)
    sample = words.read(rows, torch.full((total,), temperature), grid_keys(total), PLAIN).sample
    expected = distribution(words, hidden, temperature)[0] * total
    counts = torch.bincount(sample, minlength=size)
    assert (counts - expected).abs().max() < 1.01
    assert (sample.diff() >= 0).all()


@pytest.mark.slow
def test_samples_follow_the_tempered_distribution() -> None:
    """The same with the real draws: 100,000 positions, chi-square, false alarm 3e-7."""
    words, count = make(300, 2.0), 100_000
    hidden = hidden_rows(1, 5)
    rows = hidden.expand(count, -1)
    read = words.read(rows, torch.full((count,), 0.7), random_keys(count), PLAIN)
    counts = torch.bincount(read.sample, minlength=300)
    value, freedom = chi_square(counts, distribution(words, hidden, 0.7)[0] * count)
    assert value < chi_square_limit(freedom)
    wrong, freedom = chi_square(counts, distribution(words, hidden, 0.8)[0] * count)
    assert wrong > 10 * chi_square_limit(freedom)  # the test would see a wrong temperature


@given(st.integers(1, 1100), st.integers(0, 999), st.sampled_from([0.05, 0.4, 1.0, 30.0]))
def test_blocks_pick_what_a_plain_inverse_cdf_picks(
    size: int, seed: int, temperature: float
) -> None:
    """Two stages must be one CDF: equal but for keys within rounding of a border between ids."""
    words, hidden, uniforms = make(size, 3.0), hidden_rows(16, seed), random_keys(16, seed)
    got = words.read(hidden, torch.full((16,), temperature), uniforms, PLAIN).sample
    reached = distribution(words, hidden, temperature).cumsum(-1)
    key = uniforms.double()[:, None] * reached[:, -1:]
    below = (reached <= key - 2e-5).sum(-1)
    above = (reached <= key + 2e-5).sum(-1)
    assert ((below <= got) & (got <= above)).all()


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [300, 4096])
def test_a_row_does_not_depend_on_the_others(
    size: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit in fp32: any subset, any order, any number of rows at a time, any threads.

    Catches products of few rows in another order of summation, and sums that a lone row's threads
    split up.
    """
    words, rows = make(size, 3.0), 75
    hidden, uniforms = hidden_rows(rows), random_keys(rows)
    temperature = torch.linspace(0.4, 0.8, rows)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = words.read(hidden, temperature, uniforms, PLAIN)
        picks = [torch.tensor([r]) for r in (0, 41, 74)]
        picks += [torch.arange(n) for n in (2, 3, 4, 15, 16, 17, 33)] + [torch.arange(74, -1, -3)]
        for pick in picks:
            part = words.read(hidden[pick], temperature[pick], uniforms[pick], PLAIN)
            assert same(part, rows_of(whole, pick))
        for at_a_time in (16, 17, 40, 74):
            monkeypatch.setattr(words, "rows_at_a_time", at_a_time)
            assert same(words.read(hidden, temperature, uniforms, PLAIN), whole)
    finally:
        torch.set_num_threads(before)


def test_never_more_logits_at_a_time_than_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 7: a canvas of 256 positions and 262,144 ids would take 268 MB a temporary.

    Seen to fail with all rows read in one piece.
    """
    made: list[int] = []
    original = Head.logits

    def watched(self: Head, hidden: Tensor, controls: Controls) -> Tensor:
        out = original(self, hidden, controls)
        made.append(out.numel())
        return out

    monkeypatch.setattr(Head, "logits", watched)
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 1 << 18)
    words = make(1 << 12)
    words.read(hidden_rows(100), torch.ones(100), random_keys(100), PLAIN)
    words.greedy(hidden_rows(100), PLAIN)
    assert max(made) <= 1 << 18 and sum(made) == 2 * 100 << 12
    assert make(262_144).rows_at_a_time * 262_144 * 4 <= 32 << 20


def test_one_key_at_either_end() -> None:
    """Key 0 must not pick an id of probability 0, nor the greatest key run past the last id."""
    words = make(300, 3.0)
    hidden = hidden_rows(64)
    ones = torch.ones(64)
    controls = Controls(suppress_ids=(0, 1, 299))
    first = words.read(hidden, ones, torch.zeros(64), controls).sample
    last = words.read(hidden, ones, torch.full((64,), LAST_KEY), controls).sample
    assert (first == 2).all() and (last <= 298).all() and (last > 250).all()


def test_extreme_temperatures() -> None:
    """Overflow of exp(logit / t): a tiny t is greedy, a huge one uniform, and neither is NaN."""
    words, hidden, uniforms = make(700, 3.0), hidden_rows(32), random_keys(32)
    cold = words.read(hidden, torch.full((32,), 1e-4), uniforms, PLAIN)
    assert torch.equal(cold.sample, cold.argmax)
    assert cold.entropy.max() < 0.1 and cold.entropy.min() >= 0 and cold.soft.isfinite().all()
    hot = words.read(hidden, torch.full((32,), 1e6), uniforms, PLAIN)
    torch.testing.assert_close(hot.entropy, torch.full((32,), 700.0).log())
    assert torch.equal(hot.argmax, words.read(hidden, torch.ones(32), uniforms, PLAIN).argmax)


def test_equal_logits_give_the_lowest_id() -> None:
    """Ties are real: the cap makes equals of all logits far beyond it."""
    words = head_of(torch.ones(600, WIDTH))
    got = words.read(torch.ones(2, WIDTH), torch.ones(2), torch.tensor([0.0, 0.5]), PLAIN)
    assert got.argmax.tolist() == [0, 0] and got.sample.tolist() == [0, 300]


SUPPRESSED = {
    "some": (0, 3, 255, 256, 511, 699),
    "a whole block": tuple(range(256, 512)),
    "all but one": tuple(i for i in range(700) if i != 300),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SUPPRESSED)
def test_suppressed_ids_do_not_exist(name: str, count: Callable[[int, int], int]) -> None:
    """Trap 8: no sample, no argmax, no entropy, no share of the belief; nothing becomes NaN.

    The table makes a suppressed id the most likely one. Seen to fail with `suppress_ids` ignored
    in `logits`.
    """
    ids = SUPPRESSED[name]
    words = make(700, 2.0)
    words.table.weight[ids[0]] = 20.0
    hidden = torch.ones(1, WIDTH)
    p = distribution(words, hidden, 0.8)
    p[:, list(ids)] = 0
    p = p / p.sum()
    draws = count(10_000, 100_000)
    rows = hidden.expand(draws, -1)
    controls = Controls(suppress_ids=ids)
    got = words.read(rows, torch.full((draws,), 0.8), random_keys(draws), controls)
    assert not torch.isin(got.sample, torch.tensor(ids)).any()
    assert (got.argmax == p.argmax()).all()
    assert torch.equal(words.greedy(hidden, controls), p.argmax(-1))
    torch.testing.assert_close(got.entropy[0].double(), torch.special.entr(p).sum(), atol=1e-5,
                               rtol=1e-5)  # fmt: skip
    soft = (p @ words.table.weight.double() * WIDTH**0.5)[0]
    torch.testing.assert_close(got.soft[0].double(), soft, atol=1e-5, rtol=1e-5)
    assert (words.read(hidden, torch.ones(1), torch.zeros(1), PLAIN).argmax == ids[0]).all()


@pytest.mark.parametrize("ids", [(300,), (-1,), tuple(range(300))])
def test_impossible_suppression_is_refused(ids: tuple[int, ...]) -> None:
    """-1 would silently suppress the last id."""
    with pytest.raises(InvalidRequest, match="suppress_ids"):
        make(300).read(hidden_rows(1), torch.ones(1), torch.zeros(1), Controls(suppress_ids=ids))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_are_not_finite_say_so(value: float) -> None:
    """The cap turns an infinite logit into 30: a broken network would look sure of itself.

    The other rows must not notice, and ids stay in range so that nothing crashes.
    """
    words, hidden, uniforms = make(700, 2.0), hidden_rows(20), random_keys(20)
    good = words.read(hidden, torch.ones(20), uniforms, PLAIN)
    broken = hidden.clone()
    broken[7, 3] = value
    got = words.read(broken, torch.ones(20), uniforms, PLAIN)
    others = torch.tensor([r for r in range(20) if r != 7])
    assert got.entropy[7].isnan()
    assert 0 <= got.sample[7] < 700 and 0 <= got.argmax[7] < 700
    assert same(rows_of(got, others), rows_of(good, others))
    greedy = words.greedy(broken, PLAIN)
    assert greedy[7] == -1 and torch.equal(greedy[others], good.argmax[others])
    drawn = words.draw(broken, torch.ones(20), uniforms, PLAIN)
    assert drawn[7] == -1 and torch.equal(drawn[others], good.sample[others])


def test_draw_is_the_sample_of_a_reading() -> None:
    """A drawn token of its own would have another distribution, or forget a row's temperature."""
    words, hidden, uniforms = make(700, 2.0), hidden_rows(50), random_keys(50)
    temperature, controls = torch.linspace(0.2, 3, 50), Controls(suppress_ids=(3, 5))
    read = words.read(hidden, temperature, uniforms, controls)
    assert torch.equal(words.draw(hidden, temperature, uniforms, controls), read.sample)
    assert not torch.equal(read.sample, read.argmax)


def test_bf16_decides_in_fp32() -> None:
    """Trap 3: entropy and sample from fp32 logits; only the belief sees them rounded to bf16.

    Seen to fail with the tempered logits rounded before the entropy. (A softmax asked for in bf16
    cannot be told apart on a CPU: torch computes it in fp32 and rounds the result.)
    """
    words, hidden = make(700, 4.0, torch.bfloat16), hidden_rows(40).bfloat16()
    weight = words.table.weight
    got = words.read(hidden, torch.full((40,), 0.4), random_keys(40), PLAIN)
    logits = torch.tanh(torch.nn.functional.linear(hidden, weight).float() / 30) * 30 / 0.4
    exact = torch.special.entr(logits.double().softmax(-1)).sum(-1)
    rounded = torch.special.entr(logits.bfloat16().double().softmax(-1)).sum(-1)
    torch.testing.assert_close(got.entropy.double(), exact, atol=1e-4, rtol=1e-4)
    assert (rounded - exact).abs().max() > 1e-3  # the test would see the difference
    belief = logits.bfloat16().softmax(-1, dtype=torch.float32).bfloat16()
    soft = torch.nn.functional.linear(belief, weight.T) * words.table.scale()
    assert torch.equal(got.soft, soft) and soft.dtype == torch.bfloat16


@pytest.mark.oracle
def test_the_models_head_is_the_same_with_gradients() -> None:
    """Training and reading share the cap and the soft embedding: they agree bit for bit, for any
    number of axes, and a gradient reaches the table from both of its uses."""
    _, model = tiny_pair(1)
    words = model.head
    hidden = torch.randn(4, 5, 64, generator=torch.Generator().manual_seed(0))
    learnt = words.logits(hidden)
    with torch.no_grad():
        logits = words.logits(hidden)
        flat = words.logits(hidden.view(20, 64), PLAIN)
        got = words.read(hidden.view(20, 64), torch.full((20,), 0.6), random_keys(20), PLAIN)
        soft = words.soft_embedding(logits / 0.6)
    weight = model.embed.weight
    formula = torch.tanh(torch.nn.functional.linear(hidden, weight) / 30) * 30
    assert torch.equal(learnt, logits) and torch.equal(learnt, formula)
    assert torch.equal(flat, logits.view(20, -1)) and torch.equal(got.soft, soft.view(20, 64))
    (learnt.sum() + words.soft_embedding(learnt).sum()).backward()
    (wanted,) = torch.autograd.grad(formula.sum(), weight)
    assert not torch.equal(weight.grad, wanted) and weight.grad.isfinite().all()


def test_the_block_is_part_of_the_seeds_meaning() -> None:
    """Another block size moves a token in a million: silently, so it is pinned here."""
    assert BLOCK == 256


@pytest.mark.gpu
def test_cuda_reads_the_same() -> None:
    """Rounding differs between devices; ids may, one in a thousand at most."""
    words, rows = make(4096, 3.0), 2048
    hidden, uniforms = hidden_rows(rows), random_keys(rows)
    there = head_of(words.table.weight.cuda())
    warm = torch.full((rows,), 0.6)
    a = words.read(hidden, warm, uniforms, PLAIN)
    b = there.read(hidden.cuda(), warm.cuda(), uniforms.cuda(), PLAIN)
    assert (a.sample != b.sample.cpu()).float().mean() < 1e-3
    torch.testing.assert_close(a.entropy, b.entropy.cpu(), atol=1e-4, rtol=1e-4)
