"""Every request ends exactly once, with one of four reasons, whatever happens to it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from dgemma.engine import batch
from dgemma.engine.engine import Engine
from dgemma.model.transformer import DiffusionGemma
from dgemma.params import SamplingParams
from dgemma.types import Event, Output, Request
from tests.support.engines import EndingFrontend, engine, request, run, tiny


def test_ends_with_length() -> None:
    """An answer cut at max_tokens says "stop", or ends twice."""
    _, output = run(engine().submit(request()))
    assert output.finish_reason == "length" and len(output.token_ids) == 20


def test_ends_with_stop() -> None:
    """An end id is part of the answer, or the answer goes on behind it."""
    one = engine()
    _, free = run(one.submit(request(max_tokens=8)))
    end = free.token_ids[4]
    _, output = run(Engine(one.model, end_ids=(end,)).submit(request()))
    assert output.finish_reason == "stop"
    assert output.token_ids == free.token_ids[: free.token_ids.index(end)]


@pytest.mark.parametrize("mode", ["diffusion", "autoregressive"])
def test_closing_at_every_position(mode: str) -> None:
    """Closing between two events loses the end, ends twice, or leaves the row in the engine."""
    one = engine()
    total = len(list(one.submit(request(mode=mode))))
    whole = run(one.submit(request(mode=mode)))[1].token_ids
    for position in range(total + 1):
        stream = one.submit(request(mode=mode))
        head = [next(stream) for _ in range(position)]
        stream.close()
        stream.close()
        tail = list(stream)
        events = head + tail
        assert [event.type for event in events].count("done") == 1
        output = events[-1].output
        assert output is not None and output.finish_reason in ("cancelled", "length")
        if position <= 1:
            assert output.finish_reason == "cancelled"
        assert output.token_ids == whole[: len(output.token_ids)]
        assert one.running == 0


def test_an_abandoned_stream_is_cancelled() -> None:
    """A caller that breaks out of its loop leaves a row that every later step pays for."""
    one = engine()
    next(one.submit(request()))
    gc.collect()
    assert one.running == 0


def shared_weight(model: DiffusionGemma) -> torch.Tensor:
    """A weight that every row meets."""
    return model.get_parameter("layers.0.input_norm.weight")


@pytest.mark.parametrize("mode", ["diffusion", "autoregressive"])
def test_nan_weights(mode: str) -> None:
    """Numbers that are not finite become tokens, an endless loop, or an exception."""
    one = engine()
    kept = shared_weight(one.model).clone()
    before = run(one.submit(request(mode=mode)))[1].token_ids
    shared_weight(one.model)[0] = torch.nan
    _, output = run(one.submit(request(mode=mode)))
    assert output.finish_reason == "error" and "not finite" in str(output.error)
    shared_weight(one.model).copy_(kept)
    assert run(one.submit(request(mode=mode)))[1].token_ids == before, "the engine is spoilt"


def test_forward_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault in the network leaves requests without an end, or spoils the engine."""
    one = engine()
    expected = run(one.submit(request()))[1]
    streams = [one.submit(request(k)) for k in (1, 2)]
    one.step()

    def broken(batch: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(one.model, "forward", broken)
        for stream in streams:
            _, output = run(stream)
            assert output.finish_reason == "error"
            assert "RuntimeError: out of memory" in str(output.error)
    assert one.running == 0
    assert run(one.submit(request()))[1] == expected


def test_only_the_bad_row_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """One request's NaN takes its neighbours with it."""
    one = engine()
    expected = run(one.submit(request(2)))[1]
    bad, good = one.submit(request(1)), one.submit(request(2))
    whole = batch.propose

    def one_bad(canvases: Any, head_output: Any, *rest: Any) -> Any:
        for number, canvas in enumerate(canvases):
            if canvas.seed == 1:
                head_output.entropy[8 * number] = torch.nan
        return whole(canvases, head_output, *rest)

    monkeypatch.setattr(batch, "propose", one_bad)
    assert run(bad)[1].finish_reason == "error"
    assert run(good)[1] == expected


def test_a_finished_row_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 6: a row that stays in the forward behind its end, or changes the answer it gave."""
    one = engine()
    expected = [run(one.submit(request(k, max_tokens=k * 8)))[1] for k in (1, 4)]
    forward, rows = one.model.forward, []

    def counted(batch: Any) -> Any:
        rows.append(len(batch.segments))
        return forward(batch)

    monkeypatch.setattr(one.model, "forward", counted)
    short, long = (one.submit(request(k, max_tokens=k * 8)) for k in (1, 4))
    assert run(long)[1] == expected[1] and run(short)[1] == expected[0]
    # A canvas is three steps; with the first goes the prompt, or the canvas before it.
    assert rows == [2 + 2, 2, 2] + 3 * [1 + 1, 1, 1]


@pytest.mark.parametrize("mode", ["diffusion", "autoregressive"])
def test_suppressed_ids_are_never_used(mode: str) -> None:
    """Trap 8: a config's placeholders that do not reach the noise, the samples or the twin.

    Half of the vocabulary is suppressed, so a leak would show in the first canvas.
    """
    barred = frozenset(range(1, 64, 2))
    free, model = tiny(), tiny()
    model.config = replace(model.config, suppress_ids=tuple(sorted(barred)))
    outputs = [run(Engine(m, end_ids=()).submit(request(mode=mode)))[1] for m in (free, model)]
    used = [
        {*output.token_ids, *(i for t in output.trace for i in (*t.ids, *t.argmax))}
        for output in outputs
    ]
    assert used[0] & barred and used[1] and not used[1] & barred


@pytest.mark.parametrize("mode", ["diffusion", "autoregressive"])
def test_end_of_the_context(mode: str) -> None:
    """The answer runs past the model's positions, or stops a canvas too early."""
    _, output = run(engine(context=40).submit(request(mode=mode, max_tokens=None)))
    assert output.finish_reason == "length"
    room = 40 - 4
    assert len(output.token_ids) == (room // 8 * 8 if mode == "diffusion" else room)


@pytest.mark.parametrize("max_tokens", [1, 7, 8, 9, 16, 20])
def test_max_tokens_and_usage(max_tokens: int) -> None:
    """The cut is off by one at a canvas border, or the counts are those before the cut."""
    _, output = run(engine().submit(request(max_tokens=max_tokens)))
    usage = output.usage
    assert len(output.token_ids) == usage.completion_tokens == max_tokens
    assert usage.prompt_tokens == 4
    assert usage.canvases == -(-max_tokens // 8)
    assert usage.steps == 3 * usage.canvases
    assert usage.tokens_per_step == max_tokens / usage.steps


def test_usage_of_the_twin() -> None:
    """A model that decodes token by token reports canvases, or passes that it did not make."""
    _, output = run(engine().submit(request(mode="autoregressive")))
    assert output.usage.canvases == 0
    assert output.usage.steps == output.usage.completion_tokens == 20
    assert output.usage.tokens_per_step == 1


def test_two_engines() -> None:
    """State shared between engines: two models in one process answer for each other."""
    expected = [run(engine(seed).submit(request()))[1] for seed in (0, 1)]
    assert expected[0].token_ids != expected[1].token_ids
    pair = [engine(seed).submit(request()) for seed in (0, 1)]
    outputs: list[Output | None] = [None, None]
    while None in outputs:
        for k, stream in enumerate(pair):
            if outputs[k] is None:
                outputs[k] = next(stream).output
    assert outputs == expected


@pytest.mark.slow
def test_two_threads() -> None:
    """Threads that drive one engine at once lose events or step a row twice."""
    one = engine()
    expected = [run(one.submit(request(seed, max_tokens=40)))[0] for seed in range(8)]
    got: dict[int, list[Event]] = {}
    faults: list[BaseException] = []

    def work(seeds: range) -> None:
        try:
            for seed in seeds:
                got[seed] = list(one.submit(request(seed, max_tokens=40)))
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(range(k, 8, 2),)) for k in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert not faults
    assert [got[seed] for seed in range(8)] == expected


def test_closing_from_another_thread() -> None:
    """A close that comes during a step ends the request twice or is lost."""
    one = engine()
    for _ in range(20):
        stream = one.submit(request(max_tokens=200))
        next(stream)
        closer = threading.Thread(target=stream.close)
        closer.start()
        _, output = run(stream)
        closer.join()
        assert output.finish_reason == "cancelled"
    assert one.running == 0


def test_drawn_seed() -> None:
    """A drawn seed that is not reported, or does not give the same answer again."""
    one = engine()
    free = Request(token_ids=(2, 3), params=SamplingParams(max_tokens=8, max_steps=2))
    first, second = (run(one.submit(free))[1] for _ in range(2))
    assert first.seed != second.seed
    again = request(max_tokens=8, max_steps=2, seed=first.seed)
    repeated = Request(token_ids=(2, 3), params=again.params)
    assert run(one.submit(repeated))[1] == first


@pytest.fixture
def chunks() -> Callable[[int], Engine]:
    """An engine with a chunk of that many tokens."""
    return lambda size: Engine(tiny(), end_ids=(), chunk=size)


def test_cancel_while_encoding(chunks: Callable[[int], Engine]) -> None:
    """A request cancelled in the middle of its prompt never ends."""
    one = chunks(1)
    stream = one.submit(request())
    one.step()
    stream.close()
    _, output = run(stream)
    assert output.finish_reason == "cancelled" and output.token_ids == ()


@pytest.mark.parametrize("field", ["deadline_s", "queue_timeout_s"])
def test_deadlines_count_from_arrival(field: str) -> None:
    """A grammar that takes long, or a busy thread, gives a request more time than it has."""
    now = [0.0]

    class Slow(EndingFrontend):
        def matcher(self, request: Request) -> None:
            now[0] += 4.0

    one = Engine(tiny(), end_ids=(), clock=lambda: now[0])
    one.frontend = Slow(lambda ids: False)
    seq = one.prepare(replace(request(), **{field: 9.0}))
    early = one.prepare(replace(request(), **{field: 9.0}))
    now[0] = 9.5  # until the thread took them
    one.add(seq)
    one.add(early)
    one.step()
    assert seq.output is not None and "9.0 s" in str(seq.output.error)
    assert early.output is None


@pytest.mark.parametrize("params", [{"mode": "exact"}, {"verdict": True}])
def test_nan_in_a_reading(params: dict[str, Any]) -> None:
    """An id of -1 in the answer, or a verdict of numbers that JSON does not have."""
    one = engine()
    seq = one.prepare(request(**params))
    one.add(seq)
    while not seq.proposed:
        one.step()
        assert seq.output is None
    unused = next(i for i in range(64) if i not in seq.proposed)  # so the hidden states are finite
    one.model.get_parameter("embed.weight")[unused] = torch.nan
    one.step()
    assert seq.output is not None and seq.output.finish_reason == "error"
    assert "not finite" in str(seq.output.error) and min(seq.output.token_ids, default=0) >= 0


@pytest.mark.parametrize("moment", ["reading", "leaving"])
def test_no_count_misses_a_request_that_ends_meanwhile(moment: str) -> None:
    """Counts are read in other threads: one said that nothing runs, and that nothing had ended."""
    one = engine()
    stream = one.submit(request())
    one.step()
    found = []

    class Leaving(list):  # type: ignore[type-arg]
        """The request ends while the places are counted, or its counts are read as it leaves."""

        def __len__(self) -> int:
            if moment == "reading":
                stream.close()
            return super().__len__()

        def remove(self, seq: Any) -> None:
            super().remove(seq)
            if moment == "leaving":
                found.append(one.counters())

    one.scheduler.running = Leaving(one.scheduler.running)
    if moment == "reading":
        found.append(one.counters())
    stream.close()
    assert [(counts.running, counts.ended_cancelled) for counts in found] == [(0, 1)]
