"""`python -m bench.offline`: throughput against concurrency, and a newcomer's wait under load.

offline   the engine stepped in a loop, nobody reading: the best there is
served    the same requests through `LLM.submit`, read by as many callers as run at once
newcomer  one more request, of a higher priority, that arrives while the others run
cached    a prompt of which nine tenths are in the pages already
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.chart import Lines
from bench.run import Say, main, sizes
from dgemma.bench.drive import Where, example_ids, finished, prompt_ids
from dgemma.bench.report import Report, Table
from dgemma.bench.stats import median, ratio
from dgemma.cli.options import positive
from dgemma.llm import LLM
from dgemma.params import SamplingParams
from dgemma.types import Output, Request

NOTES = (
    "Requests are held-out examples of nano's tasks under its chat template (random ids where the "
    "model has none), 64 tokens at most; seeds 0, 1, ...; early stop as the checkpoint has it. "
    "All rows of the first table run the same requests, so many of them at a time.",
    "`offline`: one thread steps the engine; `served`: each request through `LLM.submit`, its "
    "frames read in an event loop. Runs alternate; the ratio is of the medians.",
    "`newcomer`: a request of priority 1 arrives at random moments while as many others run; its "
    "first frame, less that of the same request alone, in steps of the load.",
    "`cached`: encoding a prompt nothing of which, or nine tenths of which, is in the pages; with "
    "the first denoising step, which goes with its last piece.",
)
MAX_TOKENS = 64


@dataclass(frozen=True)
class OfflinePoint:
    """Throughput with so many requests at once; each list has one entry a run."""

    concurrency: int
    offline_tokens_per_s: list[float]
    served_tokens_per_s: list[float]

    @property
    def ratio(self) -> float:
        """Served over offline."""
        return ratio(self.served_tokens_per_s, self.offline_tokens_per_s)


@dataclass(frozen=True)
class Wait:
    """A newcomer's first frame, milliseconds, and the load's median step."""

    concurrency: int
    alone_ms: list[float]
    loaded_ms: list[float]
    step_ms: list[float]

    @property
    def extra_steps(self) -> list[float]:
        """How many of the load's steps the load has cost it, each time."""
        idle = median(self.alone_ms)
        return [(ms - idle) / step for ms, step in zip(self.loaded_ms, self.step_ms, strict=True)]


def requests(llm: LLM, count: int) -> list[Request]:
    """Different requests, none with a beginning of more than the template's in common."""
    return [
        Request(
            token_ids=example_ids(llm, number),
            params=SamplingParams(seed=number, max_tokens=MAX_TOKENS),
            index=number,
            frames=True,
        )
        for number in range(count)
    ]


def tokens(outputs: Sequence[Output]) -> int:
    """Committed tokens.

    Raises:
        EngineError: a request failed.
    """
    return sum(finished(output).usage.completion_tokens for output in outputs)


def offline(llm: LLM, work: Sequence[Request], concurrency: int) -> float:
    """Committed tokens per second, so many at once; the next starts when one has ended."""
    engine = llm.engine
    engine.forget()
    start = time.perf_counter()
    streams = []
    for request in work:
        while engine.running >= concurrency:
            engine.step()
        streams.append(engine.submit(request))
    outputs = [event.output for stream in streams for event in stream if event.output]
    return tokens(outputs) / (time.perf_counter() - start)


def served(llm: LLM, work: Sequence[Request], concurrency: int) -> float:
    """The same through the worker, every event read in an event loop."""

    async def last(request: Request, free: asyncio.Semaphore) -> Output:
        async with free:
            output = None
            async for event in llm.submit(request):
                output = event.output
        assert output is not None
        return output

    async def together() -> list[Output]:
        free = asyncio.Semaphore(concurrency)
        return await asyncio.gather(*(last(request, free) for request in work))

    llm.engine.forget()
    start = time.perf_counter()
    outputs = asyncio.run(together())
    return tokens(outputs) / (time.perf_counter() - start)


def repeated(measure: Callable[[int], tuple[float, ...]], runs: int) -> list[list[float]]:
    """Each number of a measurement over its runs, after one that warms up."""
    found = [measure(run) for run in range(runs + 1)]
    return [list(numbers) for numbers in zip(*found[1:], strict=True)]


def throughput(llm: LLM, concurrency: int, total: int, runs: int) -> OfflinePoint:
    """The same requests with so many at once, `runs` times in either way."""
    work = requests(llm, total)

    def both(run: int) -> tuple[float, ...]:
        return offline(llm, work, concurrency), served(llm, work, concurrency)

    return OfflinePoint(concurrency, *repeated(both, runs))


def first_frame_ms(llm: LLM, request: Request) -> float:
    """From submitting to the first frame; the rest is cancelled."""
    start = time.perf_counter()
    stream = llm.submit(request)
    next(stream)
    waited = (time.perf_counter() - start) * 1e3
    stream.close()
    for _ in stream:
        pass
    return waited


def newcomer(llm: LLM, concurrency: int, runs: int) -> Wait:
    """A request that arrives while others run."""

    def once(run: int) -> tuple[float, ...]:
        pool = requests(llm, concurrency + 1)
        person = Request(
            token_ids=pool[-1].token_ids, params=pool[-1].params, frames=True, priority=1
        )
        llm.engine.forget()
        alone = first_frame_ms(llm, person)
        llm.engine.forget()
        # Long answers that do not stop early, so that all of them run when the newcomer arrives.
        params = SamplingParams(seed=run, max_tokens=llm.engine.spec.length, max_steps=48,
                                confidence_threshold=0.0)  # fmt: skip
        began = llm.counters().steps
        load = [llm.submit(Request(token_ids=r.token_ids, params=params)) for r in pool[:-1]]
        while llm.counters().steps < began + 2 * concurrency:
            time.sleep(0.001)
        before, begin = llm.counters().passes, time.perf_counter()
        while llm.counters().passes < before + 4:
            time.sleep(0.001)
        passes = llm.counters().passes - before
        step_ms = (time.perf_counter() - begin) / passes * 1e3
        time.sleep(step_ms / 1e3 * run / (runs + 1))  # at another moment of a step each time
        loaded = first_frame_ms(llm, person)
        for stream in load:
            stream.close()
        for stream in load:
            stream.result()
        return alone, loaded, step_ms

    return Wait(concurrency, *repeated(once, runs))


@dataclass(frozen=True)
class Prefill:
    """Encoding a prompt of so many tokens, milliseconds: from nothing, and from nine tenths."""

    prompt: int
    cold_ms: list[float]
    cached_ms: list[float]

    @property
    def ratio(self) -> float:
        """Cached over cold."""
        return ratio(self.cached_ms, self.cold_ms)


def prefill_ms(llm: LLM, ids: Sequence[int]) -> float:
    """Encode a prompt, up to the end of the first denoising step, which goes with it."""
    engine = llm.engine
    before = engine.counters()
    start = time.perf_counter()
    stream = engine.submit(Request(token_ids=tuple(ids), params=SamplingParams(seed=0)))
    done = before.encoded_tokens + before.prefix_hit_tokens + len(ids)
    while (now := engine.counters()).encoded_tokens + now.prefix_hit_tokens < done:
        engine.step()
    waited = (time.perf_counter() - start) * 1e3
    stream.close()
    return waited


def cached(llm: LLM, length: int, runs: int) -> Prefill:
    """A prompt encoded from nothing, and another with the same first nine tenths."""

    def both(run: int) -> tuple[float, ...]:
        ids = list(prompt_ids(llm.config, length, run))
        other = ids[: length * 9 // 10] + list(prompt_ids(llm.config, length, 99))[: length // 10]
        llm.engine.forget()
        return prefill_ms(llm, ids), prefill_ms(llm, other)

    return Prefill(length, *repeated(both, runs))


def tables(points: Sequence[OfflinePoint], waits: Sequence[Wait], prefill: Prefill) -> list[Table]:
    """The results for people."""
    first = Table(
        "Committed tokens per second",
        ("requests at once", "offline", "served", "served / offline"),
        [
            [p.concurrency, median(p.offline_tokens_per_s), median(p.served_tokens_per_s), p.ratio]
            for p in points
        ],
    )
    second = Table(
        "A newcomer's first frame",
        ("others", "alone, ms", "under load, ms", "step of the load, ms", "extra steps, median",
         "extra steps, most"),
        [
            [w.concurrency, median(w.alone_ms), median(w.loaded_ms), median(w.step_ms),
             median(w.extra_steps), max(w.extra_steps)]
            for w in waits
        ],
    )  # fmt: skip
    third = Table(
        "Encoding a prompt",
        ("prompt", "nothing cached, ms", "nine tenths cached, ms", "ratio"),
        [[prefill.prompt, median(prefill.cold_ms), median(prefill.cached_ms), prefill.ratio]],
    )
    return [first, second, third]


def chart(points: Sequence[OfflinePoint]) -> Lines:
    """Throughput against requests at once."""
    series = {
        "offline": [(float(p.concurrency), median(p.offline_tokens_per_s)) for p in points],
        "served": [(float(p.concurrency), median(p.served_tokens_per_s)) for p in points],
    }
    return Lines("Throughput", "requests at once", "committed tokens per second", series, {})


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the program."""
    add = parser.add_argument
    many = "1,2,4,8,16"
    add("--concurrency", type=sizes, default=many, help=f"requests at once ({many})")
    add("--runs", type=positive, default=5, help="runs of each kind (5)")
    add("--prompt", type=positive, default=4000, help="tokens of the cached prompt (4000)")


def measure(where: Where, options: argparse.Namespace, say: Say) -> tuple[Report, Sequence[Lines]]:
    """Every number of requests, then the cached prompt."""
    llm, sizes, runs = where.open(), options.concurrency, options.runs
    prompt_ids(llm.config, options.prompt)  # refused before anything is run
    points, waits = [], []
    for size in sizes:
        points.append(throughput(llm, size, max(sizes), runs))
        waits.append(newcomer(llm, size, runs))
        say(f"{size} at once: served / offline {points[-1].ratio:.3f}")
    prefill = cached(llm, options.prompt, runs)
    values = {"throughput": points, "newcomer": waits, "cached": prefill}
    shown = tables(points, waits, prefill)
    return where.report("Many requests at once", llm, shown, values, NOTES), [chart(points)]


if __name__ == "__main__":
    sys.exit(main("offline", __doc__, configure, measure))
