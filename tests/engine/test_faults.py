"""A fault at every stage: the guilty request ends with its error, the others as if without it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from dgemma.engine import batch, step
from dgemma.engine.engine import TRIES, Engine
from dgemma.model.batch import ForwardBatch
from dgemma.model.cache import Segment
from dgemma.types import Output, Request
from tests.support.engine_checks import check_scheduler
from tests.support.engines import EndingFrontend, engine, request, run

GUILTY = 3
"""Index and seed of the request that faults."""

ERRORS: dict[str, Callable[[], Exception]] = {
    "exception": lambda: RuntimeError("a bug"),
    "out of memory": lambda: torch.OutOfMemoryError("CUDA out of memory"),
    "out of host memory": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory"),
}


def requests() -> list[Request]:
    """Six that run side by side, with different lengths."""
    return [request(seed, max_tokens=8 * seed) for seed in range(1, 7)]


def answers(one: Engine) -> dict[int, Output]:
    """Run all six; nothing may be left behind."""
    streams = [one.submit(r) for r in requests()]
    out = {}
    while one.running:
        one.step()
        check_scheduler(one.scheduler)
    for stream in streams:
        _, output = run(stream)
        out[output.index] = output
    assert one.scheduler.pages.available == one.scheduler.pages.full.count
    return out


@pytest.fixture(scope="module")
def expected() -> dict[int, Output]:
    """The answers without a fault."""
    return answers(engine())


class Owned(Segment):
    """A segment that knows the label of its request."""

    owner: int


def own_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mark the segments of forwards with the request they belong to."""
    whole = batch.segments

    def segments(scheduled: Any) -> Any:
        made = []
        for segment in whole(scheduled):
            owned = Owned(*(getattr(segment, field.name) for field in fields(segment)))
            object.__setattr__(owned, "owner", scheduled.sequence.request.index)
            made.append(owned)
        return made

    monkeypatch.setattr(batch, "segments", segments)


def assert_only_the_guilty(made: dict[int, Output], expected: dict[int, Output], why: str) -> None:
    """All others are equal to those of a run without a fault."""
    assert made[GUILTY].finish_reason == "error" and why in str(made[GUILTY].error)
    others = expected.keys() - {GUILTY}
    if "memory" in why:  # prompts are then encoded in smaller pieces, which may round otherwise
        made, expected = ({k: without_trace(v) for k, v in d.items()} for d in (made, expected))
    assert {k: made[k] for k in others} == {k: expected[k] for k in others}


def without_trace(output: Output) -> Output:
    """An answer without the entropies on the way."""
    return replace(output, trace=())


@pytest.mark.parametrize("kind", list(ERRORS))
@pytest.mark.parametrize("stage", ["prefill", "step", "encoding a commit"])
def test_forward(
    stage: str, kind: str, expected: dict[int, Output], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request's fault in a shared forward takes the whole batch with it."""
    one = engine()
    own_segments(monkeypatch)
    forward = one.model.forward

    def broken(batch: ForwardBatch) -> Any:
        for segment in batch.segments:
            place = "prefill" if segment.stored == 0 else "encoding a commit"
            if segment.denoise:
                place = "step" if segment.soft is not None else "first step"
            assert isinstance(segment, Owned)
            if segment.owner == GUILTY and place == stage:
                raise ERRORS[kind]()
        return forward(batch)

    monkeypatch.setattr(one.model, "forward", broken)
    assert_only_the_guilty(answers(one), expected, str(ERRORS[kind]()))


@pytest.mark.parametrize("kind", list(ERRORS))
@pytest.mark.parametrize("stage", ["open", "reserve", "encoded"])
def test_pages(
    stage: str, kind: str, expected: dict[int, Output], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault while pages are given out or filled."""
    one = engine()
    pages = one.scheduler.pages
    whole = getattr(pages, stage)
    opened: list[Any] = []
    original_open = pages.open

    def remember(*args: Any) -> Any:
        table = original_open(*args)
        opened.append(table)
        return table

    def broken(*args: Any) -> Any:
        # The third to be admitted is the guilty one.
        third = len(opened) == GUILTY - 1 if stage == "open" else False
        if third and not hits:
            hits.append(1)
            raise ERRORS[kind]()
        if stage != "open" and len(opened) >= GUILTY and args[0] is opened[GUILTY - 1]:
            hits.append(1)
            raise ERRORS[kind]()
        return remember(*args) if stage == "open" else whole(*args)

    hits: list[int] = []
    if stage != "open":
        monkeypatch.setattr(pages, "open", remember)
    monkeypatch.setattr(pages, stage, broken)
    made = answers(one)
    assert hits
    assert_only_the_guilty(made, expected, str(ERRORS[kind]()))


@pytest.mark.parametrize("kind", list(ERRORS))
def test_commit(kind: str, expected: dict[int, Output], monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault while a finished canvas is committed."""
    one = engine()
    whole = step.resolve_canvas

    def broken(seq: Any, canvas: Any, hidden: Any) -> None:
        if seq.request.index == GUILTY and canvas.index == 1:
            raise ERRORS[kind]()
        whole(seq, canvas, hidden)

    monkeypatch.setattr(step, "resolve_canvas", broken)
    assert_only_the_guilty(answers(one), expected, str(ERRORS[kind]()))


def test_a_reader_that_faults(expected: dict[int, Output]) -> None:
    """The reader of a commit's text is not the engine's code, and may raise anything."""
    one = engine()

    def fault(_: Any) -> bool:
        raise KeyError("theirs")

    one.frontend = EndingFrontend(fault, lambda request: request.index == GUILTY)
    streams = [one.submit(r) for r in requests()]
    made = {output.index: output for _, output in map(run, streams)}
    assert_only_the_guilty(made, expected, "KeyError: 'theirs'")


@pytest.mark.parametrize("stage", ["prefill", "step", "encoding a commit"])
def test_nan(stage: str, expected: dict[int, Output], monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that are not finite spread through the batch, or through cached pages."""
    one = engine()
    own_segments(monkeypatch)
    forward = one.model.forward

    def broken(batch: ForwardBatch) -> Any:
        out, start = forward(batch), 0
        for segment in batch.segments:
            place = "prefill" if segment.stored == 0 else "encoding a commit"
            place = "step" if segment.denoise else place
            assert isinstance(segment, Owned)
            if segment.owner == GUILTY and place == stage:
                out[start : start + segment.length] *= torch.nan
            start += segment.length
        return out

    monkeypatch.setattr(one.model, "forward", broken)
    assert_only_the_guilty(answers(one), expected, "not finite")


def test_nan_is_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of a broken pass serve every later request with the same beginning."""
    one = engine()
    long = Request(token_ids=tuple(range(2, 62)) * 3, params=request().params)
    expected = run(one.submit(long))[1]
    fresh = engine()
    weight = fresh.model.get_parameter("layers.0.input_norm.weight")
    kept = weight.clone()
    weight[0] = torch.nan
    assert run(fresh.submit(long))[1].finish_reason == "error"
    weight.copy_(kept)
    assert fresh.scheduler.pages.cached == 0
    assert run(fresh.submit(long))[1] == expected


def test_memory_that_is_short_for_a_while(
    expected: dict[int, Output], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory with many beside it: the batch must shrink, and nobody be lost."""
    one = engine()
    forward, sizes = one.model.forward, list[int]()

    def tight(batch: ForwardBatch) -> Any:
        sizes.append(sum(segment.length for segment in batch.segments))
        if sizes[-1] > 24:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(batch)

    monkeypatch.setattr(one.model, "forward", tight)
    made = answers(one)
    assert {k: without_trace(v) for k, v in made.items()} == {
        k: without_trace(v) for k, v in expected.items()
    }
    assert sum(size > 24 for size in sizes) < 6, "it runs into the same wall at every pass"


def test_a_failed_pass_frees_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The halves run on top of the activations of the pass that had no room for them."""
    one = engine()
    forward, held = one.model.forward, list[weakref.ref[torch.Tensor]]()

    def tight(batch: ForwardBatch) -> Any:
        assert all(ref() is None for ref in held), "the tensors of a failed pass are still there"
        if len(batch.segments) > 2:
            activations = torch.ones(1000)
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(batch)

    monkeypatch.setattr(one.model, "forward", tight)
    made = answers(one)
    assert held and {output.finish_reason for output in made.values()} == {"length"}


def test_memory_that_is_short_for_one_alone(
    expected: dict[int, Output], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A moment without memory ends a request that would have run in the next."""
    one = engine()
    forward, faults = one.model.forward, [0]

    def tight(batch: ForwardBatch) -> Any:
        if faults[0] < TRIES - 1:
            faults[0] += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(batch)

    monkeypatch.setattr(one.model, "forward", tight)
    _, output = run(one.submit(requests()[0]))
    assert without_trace(output) == without_trace(expected[1]) and faults[0] == TRIES - 1


def test_a_mistake_of_the_engine_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everyone waits for ever on an engine that cannot plan."""
    one = engine()
    stream = one.submit(request())

    def broken(now: float) -> Any:
        raise AssertionError("a count is wrong")

    monkeypatch.setattr(one.scheduler, "plan", broken)
    with pytest.raises(AssertionError):
        one.step()
    one.end_all("the engine failed")
    _, output = run(stream)
    assert output.finish_reason == "error" and one.running == 0
    assert run(one.submit(request()))[1].finish_reason == "length", "the next request runs"
