"""`bench offline`: many requests at once, measured on nano; nothing here fails for being slow."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench import offline
from dgemma.bench.stats import median
from dgemma.errors import EngineError
from dgemma.types import Output
from tests.support.nano import nano

pytestmark = pytest.mark.model


def test_served_and_offline_do_the_same_work(
    count: Callable[[int, int], int], record: Callable[..., None]
) -> None:
    """A rate over other tokens than those that were made, or of fewer requests."""
    many, runs = count(2, 16), count(1, 5)
    made: list[int] = []
    whole = offline.tokens

    def counted(outputs: list[Output]) -> int:
        made.append(whole(outputs))
        assert len(outputs) == many
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offline, "tokens", counted)
        point = offline.throughput(nano(), many, many, runs)
    assert len(point.offline_tokens_per_s) == len(point.served_tokens_per_s) == runs
    assert len(set(made)) == 1 and made[0] > 0
    assert point.ratio == median(point.served_tokens_per_s) / median(point.offline_tokens_per_s)
    record(f"nano: tokens per second, {many} requests served / offline", point.ratio)


def test_a_newcomer_under_load(
    count: Callable[[int, int], int], record: Callable[..., None]
) -> None:
    """A load that is over before the newcomer comes; requests that are left running."""
    llm, many, runs = nano(), count(2, 16), count(1, 5)
    wait = offline.newcomer(llm, many, runs)
    assert len(wait.extra_steps) == runs and min(wait.step_ms) > 0 and min(wait.alone_ms) > 0
    assert llm.engine.running == 0
    record(
        f"nano: steps of {many} others that a newcomer's first frame waits",
        median(wait.extra_steps),
    )


def test_a_cached_prompt(count: Callable[[int, int], int], record: Callable[..., None]) -> None:
    """A prompt that is cached by the run before it, or not at all."""
    llm, length = nano(), count(1000, 4000)
    before = llm.counters()
    found = offline.cached(llm, length, 1)
    after = llm.counters()
    tenth = length // 10
    hits = after.prefix_hit_tokens - before.prefix_hit_tokens
    assert 2 * (length - tenth - 64) <= hits <= 2 * (length - tenth)
    assert after.encoded_tokens - before.encoded_tokens == 4 * length - hits
    assert llm.engine.running == 0
    record(f"nano: prefill of {length} tokens, nine tenths cached / nothing", found.ratio)


def test_a_failed_request_is_no_measurement() -> None:
    """A rate of requests that ended with an error."""
    with pytest.raises(EngineError, match="broken"):
        offline.tokens([Output(error="broken", finish_reason="error")])
