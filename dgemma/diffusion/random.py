"""Random draws as a function: seed, canvas, attempt, step, position and purpose give the number.

There is no generator and no state, so a request draws the same numbers alone, in any batch and
after it was preempted, and two draws never disturb each other. All of it is integer operations of
torch on int64 with wrap-around, which give the same bits on a CPU and on CUDA.

    stream key   SplitMix64 of the seed, of which output number `canvas + (attempt << 32)` seeds a
                 SplitMix64, of which output number `step` seeds one, of which output number
                 `purpose` is it
    position p   output number p of the SplitMix64 that starts at the stream key

The numbers are part of the meaning of a seed: changing anything here changes every answer.
Knows nothing about logits, canvases or requests.
Source: SplitMix64, Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache

import torch
from torch import Tensor

from dgemma.errors import InvalidRequest


class Purpose(IntEnum):
    """The use of a number. The values are part of the streams: never renumber or reuse (4 was)."""

    SAMPLE = 1
    NOISE = 2
    START = 3
    SEED = 5
    TOKEN = 6
    EDIT = 7


def _signed(value: int) -> int:
    """The int64 with the low 64 bits of `value`."""
    value &= 2**64 - 1
    return value - 2**64 if value >> 63 else value


GAMMA = _signed(0x9E3779B97F4A7C15)
MULTIPLIERS = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shifted(x: Tensor, count: int) -> Tensor:
    """Logical right shift; torch's own copies the sign bit."""
    return (x >> count) & ((1 << (64 - count)) - 1)


def mix(x: Tensor) -> Tensor:
    """The SplitMix64 finaliser, a bijection of int64."""
    x = (x ^ _shifted(x, 30)) * MULTIPLIERS[0]
    x = (x ^ _shifted(x, 27)) * MULTIPLIERS[1]
    return x ^ _shifted(x, 31)


def _output(state: Tensor, number: Tensor) -> Tensor:
    """Output `number` (from 0) of the SplitMix64 that starts at `state`."""
    return mix(state + (number + 1) * GAMMA)


def stream_keys(
    seeds: Sequence[int],
    canvases: Sequence[int],
    steps: Sequence[int],
    purpose: Purpose,
    device: torch.device,
    attempts: Sequence[int] | None = None,
) -> Tensor:
    """The key of each row's stream: int64 [B] on `device`.

    Args:
        seeds: from 0 to 2**64 - 1, one a row, as are the next two.
        canvases: which canvas of the request, below 2**32.
        steps: which denoising step of the canvas; 0 where there are no steps.
        purpose: of the numbers.
        attempts: which try of the canvas, below 2**31; None: the first of each.
    """
    if attempts is not None:
        canvases = [c + (attempt << 32) for c, attempt in zip(canvases, attempts, strict=True)]
    key = torch.tensor([_signed(seed) for seed in seeds], dtype=torch.int64)
    key = _output(key, torch.tensor(canvases, dtype=torch.int64))
    key = _output(key, torch.tensor(steps, dtype=torch.int64))
    return _output(key, torch.tensor(int(purpose))).to(device)


def bits(keys: Tensor, count: int) -> Tensor:
    """64 random bits for each of the first `count` positions: int64 [B] -> int64 [B, count]."""
    positions = torch.arange(count, dtype=torch.int64, device=keys.device)
    return _output(keys[:, None], positions[None, :])


def uniforms(keys: Tensor, count: int) -> Tensor:
    """Uniform fp32 numbers in [0, 1), multiples of 2**-24: int64 [B] -> fp32 [B, count]."""
    return _shifted(bits(keys, count), 40).float() * 2.0**-24


def uniform_ids(
    keys: Tensor, count: int, vocab_size: int, suppress_ids: tuple[int, ...] = ()
) -> Tensor:
    """Uniform token ids out of [0, vocab_size) without `suppress_ids`: int64 [B, count].

    63 bits modulo the number of allowed ids: an id's probability is off by less than one part in
    2**63 / vocab_size.

    Raises:
        InvalidRequest: a suppressed id is not in the vocabulary, or all of it is suppressed.
    """
    gaps = _gaps(vocab_size, suppress_ids, keys.device)
    rank = _shifted(bits(keys, count), 1) % (vocab_size - len(gaps))
    return rank + torch.searchsorted(gaps, rank, right=True)


@lru_cache(maxsize=64)
def _gaps(vocab_size: int, suppress_ids: tuple[int, ...], device: torch.device) -> Tensor:
    """For each suppressed id, in order, how many allowed ids lie below it: int64 [S]."""
    ordered = sorted(set(suppress_ids))
    if ordered and not 0 <= ordered[0] <= ordered[-1] < vocab_size:
        raise InvalidRequest(
            f"suppress_ids {ordered} are not all in the vocabulary of {vocab_size}"
        )
    if len(ordered) >= vocab_size:
        raise InvalidRequest("suppress_ids leaves no id of the vocabulary")
    below = [token - k for k, token in enumerate(ordered)]
    return torch.tensor(below, dtype=torch.int64, device=device)
