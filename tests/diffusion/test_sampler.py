"""start, step and finish on readings made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dgemma.diffusion.canvas import Canvas, CanvasSpec, trace_step
from dgemma.diffusion.random import Purpose, stream_keys, uniform_ids, uniforms
from dgemma.diffusion.sampler import finish, sampling_inputs, start, step, step_all
from dgemma.diffusion.schedule import Schedule
from dgemma.kernels.controls import Controls
from dgemma.kernels.head_output import HeadOutput
from dgemma.params import SamplingParams, canvas_width
from tests.support.fakes import head_output
from tests.support.masks import packed

SPEC = CanvasSpec(length=4, vocab_size=1000, context_length=64, end_ids=(1, 106, 50))
NEVER = Schedule.of(SamplingParams(confidence_threshold=0))
SURE, UNSURE = [0.0] * 4, [2.0, 3.0, 1.0, 4.0]


def noise(canvas: Canvas) -> list[int]:
    """The fresh ids of the step after `canvas`."""
    keys = stream_keys(
        [canvas.seed], [canvas.index], [canvas.step], Purpose.NOISE, torch.device("cpu")
    )
    return uniform_ids(keys, SPEC.length, SPEC.vocab_size, SPEC.suppress_ids)[0].tolist()


def stepped(canvas: Canvas, read: HeadOutput, schedule: Schedule = NEVER) -> Canvas:
    return step(canvas, read, schedule, SPEC)


def test_start_is_noise_of_seed_and_index() -> None:
    """The same canvas twice, or canvas 1 starting like canvas 0, would repeat answers."""
    first = start(7, 0, SPEC)
    assert first.ids.tolist() == start(7, 0, SPEC).ids.tolist()
    assert first.ids.tolist() != start(7, 1, SPEC).ids.tolist()
    assert first.ids.tolist() != start(8, 0, SPEC).ids.tolist()
    assert first.ids.tolist() != noise(first)
    assert first.soft is None and first.argmax is None and first.step == 0


def test_questions_are_asked_canvas_after_canvas() -> None:
    """A flattening in the wrong order would hand a position the temperature of another request."""
    canvases = [start(3, 0, SPEC), replace(start(4, 2, SPEC), step=5)]
    schedules = [NEVER, Schedule.of(SamplingParams(max_steps=10))]
    temperature, keys = sampling_inputs(canvases, schedules)
    assert temperature.tolist() == pytest.approx([0.8] * 4 + [0.6] * 4)
    streams = stream_keys([3, 4], [0, 2], [0, 5], Purpose.SAMPLE, torch.device("cpu"))
    assert keys.tolist() == uniforms(streams, 4).flatten().tolist()


def test_accepted_take_the_sample_and_others_fresh_noise() -> None:
    """Not the argmax, not the old id: both look right while the network is sure."""
    schedule = replace(NEVER, entropy_bound=1.0)
    before = start(1, 0, SPEC)
    after = stepped(before, head_output([5, 6, 7, 8], UNSURE, sample=[15, 16, 17, 18]), schedule)
    fresh = noise(before)
    assert after.ids.tolist() == [15, fresh[1], 17, fresh[3]]
    assert after.accepted is not None and after.accepted.tolist() == [True, False, True, False]
    assert after.argmax is not None and after.argmax.tolist() == [5, 6, 7, 8]
    assert before.ids.tolist() == start(1, 0, SPEC).ids.tolist()  # a step changes nothing in place


def test_nothing_is_frozen() -> None:
    """Trap 4: a position accepted earlier is decided afresh, and noised when it is unsure now.

    Seen to fail with accepted positions kept from one step to the next.
    """
    first = stepped(start(1, 0, SPEC), head_output([5, 6, 7, 8], [0.2, 9.0, 9.0, 9.0]))
    assert first.accepted is not None and first.accepted.tolist()[0] and first.ids[0] == 5
    second = stepped(first, head_output([5, 6, 7, 8], [9.0, 9.0, 9.0, 0.2]))
    fresh = noise(first)
    assert second.ids.tolist() == [*fresh[:3], 8] and fresh[0] != 5


def test_noise_is_fresh_at_every_step() -> None:
    """The same noise again would hand the network its own input as evidence."""
    canvas, seen = start(1, 0, SPEC), []
    for _ in range(4):
        seen.append(canvas.ids.tolist()[1:])
        canvas = stepped(canvas, head_output([5, 6, 7, 8], [0.2, 9.0, 9.0, 9.0]))
    assert len({token for ids in seen for token in ids}) == 12  # of 1000 ids; fixed seed


@pytest.mark.parametrize("stability", [0, 1, 2, 3])
def test_stability_k_takes_k_plus_one_equal_canvases(stability: int) -> None:
    """Trap 5: with threshold k the canvas ends at the (k+1)-th equal argmax, so never first for 1.

    Seen to fail with `repeats` counted from one.
    """
    schedule = replace(NEVER, confidence_threshold=0.5, stability_threshold=stability)
    canvas = start(1, 0, SPEC)
    canvas = stepped(canvas, head_output([9, 9, 9, 9], UNSURE), schedule)  # unsure: no stop, counts
    steps = 0
    while not canvas.reason:
        canvas = stepped(canvas, head_output([5, 6, 7, 8], SURE), schedule)
        steps += 1
    assert (steps, canvas.reason) == (stability + 1, "converged")


def test_a_changed_argmax_starts_the_count_again() -> None:
    """Equal canvases must be in a row: A B A A is not three of A."""
    schedule = replace(NEVER, confidence_threshold=0.5, stability_threshold=2)
    canvas = start(1, 0, SPEC)
    for last in (8, 9, 8, 8):
        canvas = stepped(canvas, head_output([5, 6, 7, last], SURE), schedule)
        assert not canvas.reason
    assert stepped(canvas, head_output([5, 6, 7, 8], SURE), schedule).reason == "converged"


def test_confidence_is_the_mean_over_all_positions() -> None:
    """A mean over the accepted ones alone is below any threshold far too early."""
    schedule = replace(NEVER, confidence_threshold=0.5, stability_threshold=0)
    canvas = start(1, 0, SPEC)
    assert not stepped(canvas, head_output([5, 6, 7, 8], [0.0, 0.0, 0.0, 2.0]), schedule).reason
    assert stepped(canvas, head_output([5, 6, 7, 8], [0.0, 0.0, 0.0, 1.9]), schedule).reason


def test_the_tail_may_be_ignored() -> None:
    """What stands behind the first end id is cut off, so it need not settle; the end id must."""
    assert 1 in SPEC.end_ids
    schedule = replace(NEVER, confidence_threshold=0.5, stability_threshold=1)
    for ignore in (False, True):
        settling = replace(schedule, ignore_tail=ignore)
        canvas = start(1, 0, SPEC)
        for tail, unsure in ((7, 9.0), (8, 9.0)):
            canvas = stepped(
                canvas, head_output([5, 1, tail, 1], [0.1, 0.1, unsure, 9.0]), settling
            )
        assert canvas.reason == ("converged" if ignore else "")
        moved = replace(start(1, 0, SPEC), argmax=torch.tensor([5, 6, 7, 1]))
        assert not stepped(moved, head_output([5, 1, 7, 1], SURE), settling).reason
        doubtful = replace(start(1, 0, SPEC), argmax=torch.tensor([5, 1, 7, 1]))
        assert not stepped(doubtful, head_output([5, 1, 7, 1], [0.1, 2.0, 0, 0]), settling).reason
        endless = replace(start(1, 0, SPEC), argmax=torch.tensor([5, 6, 7, 8]))
        assert not stepped(endless, head_output([5, 6, 7, 8], [0.0, 0, 0, 2.4]), settling).reason


@pytest.mark.parametrize(
    ("asked", "most", "width"),
    [
        (None, 5, 256), ("auto", None, 256), ("auto", 1, 32), ("auto", 16, 32), ("auto", 17, 64),
        ("auto", 32, 64), ("auto", 200, 224), ("auto", 5000, 256), (7, None, 7), (256, 3, 256),
    ],
)  # fmt: skip
def test_canvas_width(asked: Any, most: int | None, width: int) -> None:
    """A 32-token answer costs a quarter of a full canvas; none is cut off by its own canvas."""
    assert canvas_width(SamplingParams(canvas_length=asked, max_tokens=most), 256) == width


def test_the_step_cap_takes_the_last_argmax() -> None:
    """The sampled canvas, or the argmax of the step before, would be committed instead."""
    schedule = replace(NEVER, max_steps=3)
    canvas = start(1, 0, SPEC)
    for token in (5, 6, 7):
        assert not canvas.reason
        canvas = stepped(canvas, head_output([token] * 4, UNSURE, sample=[99] * 4), schedule)
    assert canvas.reason == "step_cap" and canvas.step == 3
    assert finish(canvas, SPEC).canvas_ids == (7, 7, 7, 7)


def test_converging_at_the_cap_is_converging() -> None:
    """The trace would blame the cap for a canvas that was done."""
    schedule = replace(NEVER, max_steps=1, confidence_threshold=0.5, stability_threshold=0)
    assert stepped(start(1, 0, SPEC), head_output([5] * 4, SURE), schedule).reason == "converged"


def test_a_finished_canvas_cannot_be_stepped() -> None:
    """Trap 6: a finished row that is stepped on would change and cost work."""
    schedule = replace(NEVER, max_steps=1)
    canvas = stepped(start(1, 0, SPEC), head_output([5] * 4, SURE), schedule)
    with pytest.raises(AssertionError, match="finished"):
        stepped(canvas, head_output([5] * 4, SURE), schedule)


@pytest.mark.parametrize(
    ("argmax", "canvas_ids", "token_ids"),
    [
        ([5, 6, 7, 8], (5, 6, 7, 8), (5, 6, 7, 8)),
        ([5, 1, 7, 8], (5, 1, 0, 0), (5,)),
        ([5, 6, 106, 1], (5, 6, 106, 0), (5, 6)),
        ([50, 6, 7, 8], (50, 0, 0, 0), ()),
        ([5, 6, 7, 1], (5, 6, 7, 1), (5, 6, 7)),
        ([0, 5, 0, 0], (0, 5, 0, 0), (0, 5, 0, 0)),  # padding that the model wrote ends nothing
    ],
)
def test_finish(argmax: list[int], canvas_ids: tuple[int, ...], token_ids: tuple[int, ...]) -> None:
    """Trap 5: any of the three end ids, anywhere; it stays, the rest becomes padding.

    Seen to fail with only the first of `end_ids` looked for.
    """
    canvas = stepped(start(1, 0, SPEC), head_output(argmax, SURE), replace(NEVER, max_steps=1))
    commit = finish(canvas, SPEC)
    assert (commit.canvas_ids, commit.token_ids) == (canvas_ids, token_ids)
    assert commit.ended == any(token in SPEC.end_ids for token in argmax)


def test_numbers_that_are_not_finite_are_seen() -> None:
    """A NaN row must be told apart, not run to the cap; its neighbour must not notice."""
    canvases = [start(1, 0, SPEC), start(2, 0, SPEC)]
    both = head_output([5, 6, 7, 8] * 2, [0.0, math.nan, 0.0, 0.0, *UNSURE])
    bad, good = step_all(canvases, both, [NEVER, NEVER], SPEC)
    assert bad.failed and not good.failed
    assert good.ids.tolist() == stepped(canvases[1], head_output([5, 6, 7, 8], UNSURE)).ids.tolist()


def random_reading(generator: torch.Generator, rows: int) -> HeadOutput:
    ids = torch.randint(1000, (2, rows), generator=generator)
    return HeadOutput(
        argmax=ids[0] % 2,
        sample=ids[1],
        entropy=torch.rand(rows, generator=generator),
        soft=torch.rand(rows, 3, generator=generator),
    )


def rows_of(read: HeadOutput, b: int) -> HeadOutput:
    rows = slice(b * SPEC.length, (b + 1) * SPEC.length)
    return HeadOutput(read.argmax[rows], read.sample[rows], read.entropy[rows], read.soft[rows])


def same(a: Canvas, b: Canvas) -> bool:
    """Whether every field is equal."""
    for name in a.__slots__:
        x, y = getattr(a, name), getattr(b, name)
        if not (torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y):
            return False
    return True


@given(st.integers(0, 2**32), st.integers(1, 5))
def test_a_batch_is_each_alone(seed: int, rows: int) -> None:
    """Mixed seeds, steps, schedules and ends: no number of a canvas may come from another."""
    generator = torch.Generator().manual_seed(seed)
    canvases = [start(seed + b, b % 3, SPEC) for b in range(rows)]
    schedules = [
        Schedule.of(
            SamplingParams(
                max_steps=2 + b,
                entropy_bound=0.3 * b,
                confidence_threshold=0.6,
                stability_threshold=b % 3,
            )
        )
        for b in range(rows)
    ]
    while canvases:
        read = random_reading(generator, SPEC.length * len(canvases))
        together = step_all(canvases, read, schedules, SPEC)
        for b, canvas in enumerate(canvases):
            assert same(together[b], step(canvas, rows_of(read, b), schedules[b], SPEC))
        live = [b for b, canvas in enumerate(together) if not canvas.reason]
        canvases, schedules = [together[b] for b in live], [schedules[b] for b in live]


def test_trace_tells_the_step_as_it_was() -> None:
    """The canvas that was read, not the one made of it; the temperature of this step."""
    before = start(1, 0, SPEC)
    after = stepped(before, head_output([5, 6, 7, 8], UNSURE), replace(NEVER, entropy_bound=1.0))
    told = trace_step(before, after, NEVER)
    assert told.ids == tuple(before.ids.tolist()) and told.argmax == (5, 6, 7, 8)
    assert (told.canvas, told.step, told.reason) == (0, 0, "")
    assert told.accepted == b"\1\0\1\0" and told.entropy == (2.0, 3.0, 1.0, 4.0)
    assert told.temperature == pytest.approx(0.8)


def test_suppressed_ids_are_no_noise() -> None:
    """Trap 8: neither the first canvas nor a renoised one may hold a placeholder.

    Seen to fail with `suppress_ids` dropped in `start`, and in `step_all`.
    """
    spec = replace(SPEC, length=256, vocab_size=8, suppress_ids=(0, 3, 7))
    canvas = start(1, 0, spec)
    assert set(canvas.ids.tolist()) == {1, 2, 4, 5, 6}
    canvas = step(canvas, head_output([1] * 256, [9.0] * 256), NEVER, spec)
    assert set(canvas.ids.tolist()) == {1, 2, 4, 5, 6}


def test_noise_is_none_of_what_a_mask_allows() -> None:
    """Noise that stands for an answer: with few ids allowed, it is taken for a decision.

    Ids 0 to 3 of 64 are allowed at 256 positions. Drawn twice, one of them has a chance of 1/256:
    12 positions or more have one with a chance below 1e-8. Drawn once, 16 have one on average.
    """
    spec = replace(SPEC, length=512, vocab_size=64)
    index = torch.zeros(512, dtype=torch.int64).index_fill(0, torch.arange(256), -1)
    masked = Controls(masks=packed([range(4)], 64, index.flip(0)))
    free, canvas = start(1, 0, spec), start(1, 0, spec, masked)
    for _ in range(2):
        few = canvas.ids < 4
        assert int(few[:256].sum()) < 12 and int(free.ids[:256].lt(4).sum()) > 4
        assert torch.equal(canvas.ids[256:], free.ids[256:]), "where no mask is, nothing changes"
        kept = free.ids[:256] >= 4
        assert torch.equal(canvas.ids[:256][kept], free.ids[:256][kept])
        read = head_output([7] * 1024, [9.0] * 1024)
        free, canvas = step_all([free, canvas], read, [NEVER, NEVER], spec)


def test_a_mask_of_nearly_all_ids_leaves_the_noise_alone() -> None:
    """A banned word that nobody would have said changes the whole answer."""
    spec = replace(SPEC, length=64)
    index = torch.zeros(64, dtype=torch.int64)
    wide = Controls(masks=packed([[i for i in range(1000) if i != 5]], 1000, index))
    assert torch.equal(start(1, 0, spec, wide).ids, start(1, 0, spec).ids)
