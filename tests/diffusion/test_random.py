"""Counter-based draws: the exact stream, its quality, and ids that avoid what is suppressed."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dgemma.diffusion.random import Purpose, bits, mix, stream_keys, uniform_ids, uniforms
from dgemma.errors import InvalidRequest
from tests.support.chance import chi_square, chi_square_limit

CPU = torch.device("cpu")
MASK = 2**64 - 1
GOLDEN_IDS = [240984, 83570, 229539, 118617, 46464, 125733]
GOLDEN_BITS = [15157052.0, 3274198.0, 15489119.0]
WORDS = st.integers(0, MASK)
SMALL = st.integers(0, 2**20)


def python_mix(x: int) -> int:
    """SplitMix64's finaliser in plain integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def python_output(state: int, number: int) -> int:
    """Output `number` of SplitMix64 in plain integers."""
    return python_mix((state + (number + 1) * 0x9E3779B97F4A7C15) & MASK)


def signed(x: int) -> int:
    return x - 2**64 if x >> 63 else x


def key(
    seed: int, canvas: int = 0, step: int = 0, purpose: Purpose = Purpose.SAMPLE
) -> torch.Tensor:
    return stream_keys([seed], [canvas], [step], purpose, CPU)


def test_published_vector() -> None:
    """Key 0 gives SplitMix64's published stream; torch's arithmetic shift would break it."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert bits(torch.zeros(1, dtype=torch.int64), 3)[0].tolist() == [signed(x) for x in published]


@given(WORDS)
def test_mix_is_that_of_plain_integers(x: int) -> None:
    """Wrap-around of int64 products and logical shifts, also for negative numbers."""
    assert mix(torch.tensor([signed(x)])).item() == signed(python_mix(x))


@given(WORDS, SMALL, SMALL, st.sampled_from(Purpose), st.integers(0, 9))
def test_stream_is_that_of_plain_integers(
    seed: int, canvas: int, step: int, purpose: Purpose, position: int
) -> None:
    """The documented chain, for every 64-bit seed: a seed of 2**63 or more must not overflow."""
    state = python_output(python_output(python_output(seed, canvas), step), int(purpose))
    expected = signed(python_output(state, position))
    assert bits(key(seed, canvas, step, purpose), 10)[0, position].item() == expected


def test_a_seed_keeps_its_numbers() -> None:
    """These numbers are a promise: a seed in a bug report must give the same answer next year."""
    keys = key(2**64 - 1, 3, 7, Purpose.NOISE)
    assert uniform_ids(keys, 6, 262_144, (258_880, 0))[0].tolist() == GOLDEN_IDS
    assert (uniforms(keys, 3)[0] * 2**24).tolist() == GOLDEN_BITS


@given(WORDS, SMALL, st.integers(0, 2**20), SMALL)
def test_a_try_is_part_of_the_canvas_counter(
    seed: int, canvas: int, attempt: int, step: int
) -> None:
    """The documented chain; the first try has the numbers that it had without any other."""
    args = [seed], [canvas], [step], Purpose.NOISE, CPU
    state = python_output(python_output(seed, canvas + (attempt << 32)), step)
    expected = signed(python_output(python_output(state, int(Purpose.NOISE)), 0))
    assert bits(stream_keys(*args, [attempt]), 1).item() == expected
    assert torch.equal(stream_keys(*args, [0]), stream_keys(*args))


def test_a_row_does_not_depend_on_the_others() -> None:
    """A batch, its order, or a longer canvas must not move a row's numbers."""
    seeds, canvases, steps = [5, 2**64 - 1, 0, 5], [0, 1, 2, 0], [3, 0, 47, 4]
    together = bits(stream_keys(seeds, canvases, steps, Purpose.NOISE, CPU), 16)
    for b in range(4):
        alone = bits(key(seeds[b], canvases[b], steps[b], Purpose.NOISE), 8)[0]
        assert torch.equal(together[b, :8], alone)


def test_neighbouring_streams_share_nothing() -> None:
    """Swapped arguments, or a sum where a hash belongs, make (0, 1) and (1, 0) one stream."""
    grid = list(itertools.product(range(8), range(8), range(8)))
    numbers = torch.cat(
        [
            bits(stream_keys(*map(list, zip(*grid, strict=True)), purpose, CPU), 8).flatten()
            for purpose in Purpose
        ]
    )
    assert len(numbers.unique()) == len(numbers) == 8**3 * 8 * len(Purpose)


@pytest.mark.parametrize("argument", ["seed", "canvas", "step", "purpose", "position"])
def test_one_step_aside_is_another_number(argument: str) -> None:
    """Half of the bits must change when one argument goes up by one; 5 sigma, 6e-7 by chance."""
    rows = list(range(4096))
    zeros = [0] * len(rows)
    if argument == "position":
        words = bits(stream_keys(rows, zeros, zeros, Purpose.SAMPLE, CPU), 2)
        first, second = words[:, 0], words[:, 1]
    else:
        ones = [1] * len(rows)
        columns = {"seed": rows, "canvas": zeros, "step": zeros}
        moved = dict(columns)
        if argument != "purpose":
            moved[argument] = [r + 1 for r in rows] if argument == "seed" else ones
        other = Purpose.NOISE if argument == "purpose" else Purpose.SAMPLE
        first = bits(stream_keys(*columns.values(), Purpose.SAMPLE, CPU), 1)[:, 0]
        second = bits(stream_keys(*moved.values(), other, CPU), 1)[:, 0]
    changed = ((first ^ second)[:, None] >> torch.arange(64)) & 1
    sigma = 0.5 / len(rows) ** 0.5  # of the share of rows in which one bit changes
    assert (changed.double().mean() - 0.5).abs() < 5 * sigma / 8
    # The largest of 64 bits: 5.5 sigma happens once in 400,000 tries.
    assert (changed.double().mean(0) - 0.5).abs().max() < 5.5 * sigma


def test_uniforms_are_uniform() -> None:
    """In [0, 1) on the grid of 2**-24, and even over 256 bins; false alarm 3e-7 for each of two."""
    numbers = uniforms(
        stream_keys(list(range(400)), [0] * 400, [0] * 400, Purpose.SAMPLE, CPU), 256
    )
    scaled = numbers.double() * 2**24
    assert torch.equal(scaled, scaled.round()) and numbers.min() >= 0 and numbers.max() < 1
    for bins in (numbers * 256, scaled % 256):  # the highest and the lowest eight bits
        counts = torch.bincount(bins.long().flatten(), minlength=256)
        value, freedom = chi_square(counts, torch.full((256,), numbers.numel() / 256))
        assert value < chi_square_limit(freedom)


@pytest.mark.parametrize(
    ("size", "suppressed"),
    [(300, ()), (300, (0,)), (300, (299,)), (300, (0, 1, 2, 150, 151, 298, 299)), (1000, (7, 7))],
)
def test_ids_are_uniform_over_the_allowed(size: int, suppressed: tuple[int, ...]) -> None:
    """Trap 8: 1e5 draws never hit a suppressed id, and every other id comes equally often.

    Catches a map that shifts ids by one or doubles the neighbour of a suppressed one. False alarm
    3e-7 each. Seen to fail with `suppress_ids` ignored by `uniform_ids`.
    """
    keys = stream_keys(list(range(400)), [0] * 400, [1] * 400, Purpose.NOISE, CPU)
    ids = uniform_ids(keys, 256, size, suppressed)
    counts = torch.bincount(ids.flatten(), minlength=size)
    assert len(counts) == size and counts[list(suppressed)].sum() == 0
    allowed = [i for i in range(size) if i not in suppressed]
    expected = torch.full((len(allowed),), ids.numel() / len(allowed))
    value, freedom = chi_square(counts[allowed], expected)
    assert value < chi_square_limit(freedom)


@given(st.integers(1, 40), st.data())
def test_ids_are_the_ranks_of_the_allowed(size: int, data: st.DataObject) -> None:
    """The exact map, whatever is suppressed: the draw modulo their count, in their list."""
    some = data.draw(st.lists(st.integers(0, size - 1), max_size=size))
    suppressed = tuple(some)[: max(0, size - 1)]
    allowed = [i for i in range(size) if i not in suppressed]
    keys = key(data.draw(WORDS))
    expected = [allowed[((b & MASK) >> 1) % len(allowed)] for b in bits(keys, 20)[0].tolist()]
    assert uniform_ids(keys, 20, size, suppressed)[0].tolist() == expected


@pytest.mark.parametrize("suppressed", [(4,), (-1,), (0, 1, 2, 3)])
def test_impossible_suppression_is_refused(suppressed: tuple[int, ...]) -> None:
    """An id beyond the vocabulary would silently protect nothing; none left would divide by 0."""
    with pytest.raises(InvalidRequest, match="suppress_ids"):
        uniform_ids(key(0), 8, 4, suppressed)


@pytest.mark.gpu
def test_cuda_draws_the_same() -> None:
    """The same bits on both devices, or a seed would mean two answers."""
    rows = list(range(64))
    keys = stream_keys(rows, rows, rows, Purpose.SAMPLE, CPU)
    there = stream_keys(rows, rows, rows, Purpose.SAMPLE, torch.device("cuda"))
    assert torch.equal(bits(keys, 256), bits(there, 256).cpu())
    assert torch.equal(uniforms(keys, 256), uniforms(there, 256).cpu())
    some = (0, 5, 258_880)
    ids = uniform_ids(keys, 256, 262_144, some)
    assert torch.equal(ids, uniform_ids(there, 256, 262_144, some).cpu())
