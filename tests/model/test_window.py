"""Trap 1: what a sliding layer sees, key by key, and at the released window and canvas.

The keys are all equal, so every query takes the plain mean of the values it sees. One value is a
needle of 1 among zeros: a query's result is one over the number of keys it sees where it sees the
needle, and exactly zero where it does not.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dgemma.kernels.attention import ATTENTION
from dgemma.model.attention import ReferenceAttention
from dgemma.model.batch import BatchMaker, CachedPath
from dgemma.model.cache import Cache, cache_dtypes
from dgemma.model.config import ModelConfig
from dgemma.model.paged import PagedAttention
from tests.support.oracle import tiny_pair

pytestmark = pytest.mark.oracle

LIMIT = 2e-5
S, F = "sliding_attention", "full_attention"
WINDOW, CANVAS = 16, 8
SLIDING, FULL = 0, 1


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    """A sliding and a full layer, a window of 16, canvases of 8."""
    return tiny_pair(0, layer_types=(S, F))[1].config


KERNELS = (*sorted(ATTENTION), "gathered")


def path_of(config: ModelConfig, kernel: str) -> CachedPath:
    """The path that a kernel belongs to."""
    return PagedAttention(config) if kernel == "gathered" else ReferenceAttention(config, kernel)


def seen(
    config: ModelConfig, layer: int, kernel: str, pieces: list[int], canvas: int, needle: int
) -> Tensor:
    """What each query of prompt (in pieces) and canvas gets of the needle: [T + canvas]."""
    shape = config.attention(layer)
    cache = Cache(config, 1, 4096, 64, cache_dtypes(torch.float32), torch.device("cpu"))
    row, path = cache.rows[0], path_of(config, kernel)
    maker = BatchMaker({}, path, torch.empty(0, config.hidden_size))
    total = sum(pieces) + canvas
    v = torch.zeros(total, shape.num_key_value_heads, shape.head_dim)
    v[needle] = 1
    out = []
    for part in torch.split(torch.arange(total), [*pieces, canvas] if canvas else pieces):
        denoise = bool(canvas) and part[0].item() >= sum(pieces)
        batch = maker.make([row.segment(part, denoise)], cache.memory)
        q = torch.ones(len(batch.ids), config.num_attention_heads, shape.head_dim)
        rows = torch.zeros(len(batch.ids), *v.shape[1:])
        rows[: len(part)] = v[part]
        (got,) = batch.split(path.attend(layer, q, torch.zeros_like(rows), rows, batch))
        assert torch.equal(got, got[:, :1, :1].expand_as(got))
        out.append(got[:, 0, 0])
        row.stored += 0 if denoise else len(part)
    return torch.cat(out)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("pieces", [[40], [1] * 40, [15, 25], [16, 24], [17, 23], [13, 13, 14]])
@pytest.mark.parametrize("layer", [SLIDING, FULL])
def test_needle_at_every_depth_of_a_prompt(
    config: ModelConfig,
    layer: int,
    pieces: list[int],
    kernel: str,
    count: Callable[[int, int], int],
) -> None:
    """Query p sees p-15..p, wherever the prompt was cut: on, before and after the window's border.

    Catches a window of 15 or 17, one that counts from the chunk's start, and keys dropped early.
    """
    place = torch.arange(40)
    for needle in range(0, 40, count(3, 1) if len(pieces) == 40 else 1):
        mask = place >= needle
        if layer == SLIDING:
            mask &= place < needle + WINDOW
        keys = (place + 1).clamp(max=WINDOW) if layer == SLIDING else place + 1
        got = seen(config, layer, kernel, pieces, 0, needle)
        torch.testing.assert_close(got, mask / keys)
        assert torch.equal(got > 0, mask)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("length", [1, 9, 13, 14, 15, 16, 17, 40])
@pytest.mark.parametrize("layer", [SLIDING, FULL])
def test_needle_at_every_depth_before_a_canvas(
    config: ModelConfig, layer: int, length: int, kernel: str
) -> None:
    """Every canvas position sees the last 15 cached keys and all of the canvas.

    Catches a window of 14 or 16 keys, one counted back from each query, and one that also limits
    what canvas positions see of each other.
    """
    reach = min(length, WINDOW - 1) if layer == SLIDING else length
    for needle in range(length + CANVAS):
        got = seen(config, layer, kernel, [length], CANVAS, needle)[length:]
        expected = 1 / (reach + CANVAS) if needle >= length - reach else 0.0
        torch.testing.assert_close(got, torch.full((CANVAS,), expected))
        assert bool((got > 0).all()) == (expected > 0)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


# Prompt lengths around the released window and canvas, and where the prompt is cut in two.
RELEASED = [(768, 0), (769, 0), (1000, 0), (1022, 0), (1023, 1022), (1024, 1023), (1025, 1024),
            (1026, 1025), (1281, 1023), (1290, 1024), (1400, 1025)]  # fmt: skip


@pytest.mark.parametrize(("length", "cut"), RELEASED)
@torch.no_grad()
def test_released_window_and_canvas_as_the_oracle(length: int, cut: int) -> None:
    """1024 and 256, as in the released checkpoint: sizes at which a constant could be tied down."""
    theirs, ours = tiny_pair(length, layer_types=(S, F), sliding_window=1024, canvas_length=256)
    generator = torch.Generator().manual_seed(length)
    prompt = torch.randint(1, 290, (1, length), generator=generator)
    canvas = torch.randint(1, 290, (1, 256), generator=generator)
    expected = theirs(input_ids=prompt, decoder_input_ids=canvas)
    cache = ours.new_cache(1, 4096)
    pieces = [prompt[:, :cut], prompt[:, cut:]] if cut else [prompt]
    hidden = torch.cat([ours.encode(piece, cache) for piece in pieces], 1)
    assert relative(hidden, expected.encoder_last_hidden_state) <= LIMIT
    assert relative(ours.head.logits(ours.denoise(canvas, cache)), expected.logits) <= LIMIT
