"""Random vocabulary operations, rows and draws for the tests of the kernels."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from dgemma.diffusion.random import Purpose, stream_keys, uniforms
from dgemma.kernels.head import Head
from dgemma.kernels.head_output import HeadOutput
from tests.support.heads import head_of

WIDTH = 8


def make(size: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Head:
    """A random table of `size` ids; logits have a standard deviation of about `scale`."""
    table = torch.randn(size, WIDTH, generator=torch.Generator().manual_seed(size))
    return head_of((table * scale * WIDTH**-0.5).to(dtype))


def hidden_rows(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


def random_keys(rows: int, seed: int = 0) -> Tensor:
    """The draws of `rows` positions."""
    return uniforms(stream_keys([seed], [0], [0], Purpose.SAMPLE, torch.device("cpu")), rows)[0]


def same(a: HeadOutput, b: HeadOutput) -> bool:
    """Whether all bits are equal."""
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(a) if f.name != "logprobs"]
    return all(torch.equal(x, y) for x, y in pairs)


def rows_of(read: HeadOutput, rows: Tensor) -> HeadOutput:
    return HeadOutput(read.argmax[rows], read.sample[rows], read.entropy[rows], read.soft[rows])
