"""`bench generate`: how long a user waits, and three rates that must not be mixed up.

committed tokens   those of the answer, end ids and padding not counted
canvas tokens      whole canvases, padding included
step tokens        positions denoised: steps x canvas length
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dgemma.bench.clock import now_ms
from dgemma.bench.drive import Where, example_ids, finished, prompt_ids
from dgemma.bench.report import Cell, Report, Table
from dgemma.bench.stats import median
from dgemma.llm import LLM
from dgemma.params import SamplingParams
from dgemma.types import Request, Usage

NOTES = (
    "`committed` counts the tokens of the answer, `canvas` whole canvases with their padding, "
    "`step` every position of every denoising step; each over the time of the whole request, "
    "prefill included.",
    "Early stop as the checkpoint has it; seeds 0, 1, ... one a run. A frame is the draft after a "
    "denoising step.",
)


@dataclass(frozen=True)
class TimedAnswer:
    """One measured request.

    Attributes:
        usage: its counts.
        canvas: the length of a canvas.
        total_ms, first_frame_ms, first_commit_ms: since it was submitted.
    """

    usage: Usage
    canvas: int
    total_ms: float
    first_frame_ms: float
    first_commit_ms: float

    @property
    def rates(self) -> dict[str, float]:
        """Tokens per second of the three kinds, and committed tokens per step."""
        seconds = self.total_ms / 1e3
        return {
            "committed_tokens_per_s": self.usage.completion_tokens / seconds,
            "canvas_tokens_per_s": self.usage.canvases * self.canvas / seconds,
            "step_tokens_per_s": self.usage.steps * self.canvas / seconds,
            "committed_tokens_per_step": self.usage.tokens_per_step,
        }


def answer(llm: LLM, prompt: Sequence[int], params: SamplingParams) -> TimedAnswer:
    """Run one request and note the times of its events.

    Raises:
        EngineError: it failed.
    """
    device = llm.choice.device
    llm.engine.forget()  # a prompt that was measured before must be encoded again
    start = now_ms(device)
    seen: dict[str, float] = {}
    usage = None
    for event in llm.submit(Request(token_ids=tuple(prompt), params=params, frames=True)):
        seen.setdefault(event.type, now_ms(device) - start)
        if event.output is not None:
            usage = finished(event.output).usage
    assert usage is not None, "a stream ends with an output"
    nan = float("nan")
    return TimedAnswer(
        usage, llm.engine.spec.length, seen["done"], seen.get("frame", nan), seen.get("commit", nan)
    )


def measure(llm: LLM, prompt: Sequence[int], max_tokens: int, runs: int) -> list[TimedAnswer]:
    """A request that warms up, then `runs` that count."""
    answer(llm, prompt, SamplingParams(seed=0, max_tokens=1, max_steps=2))
    return [
        answer(llm, prompt, SamplingParams(seed=seed, max_tokens=max_tokens))
        for seed in range(runs)
    ]


def medians(answers: Sequence[TimedAnswer]) -> dict[str, float]:
    """The middle of every rate and time."""
    out = {name: median([one.rates[name] for one in answers]) for name in answers[0].rates}
    for name in ("first_frame_ms", "first_commit_ms", "total_ms"):
        out[name] = median([getattr(one, name) for one in answers])
    out["steps_per_canvas"] = median(
        [one.usage.steps / max(1, one.usage.canvases) for one in answers]
    )
    return out


def report(where: Where, options: Namespace, say: Callable[[str], None]) -> Report:
    """Measure and lay out."""
    llm = where.open()
    prompt = example_ids(llm, 0)
    if options.prompt is not None:
        prompt = prompt_ids(llm.config, options.prompt)
    answers = measure(llm, prompt, options.max_tokens, options.runs)
    middle = medians(answers)
    rows: list[list[Cell]] = [
        ["committed tokens", middle["committed_tokens_per_s"], "per second"],
        ["canvas tokens", middle["canvas_tokens_per_s"], "per second"],
        ["step tokens", middle["step_tokens_per_s"], "per second"],
        ["committed tokens", middle["committed_tokens_per_step"], "per step"],
        ["steps", middle["steps_per_canvas"], "per canvas"],
        ["time to first frame", middle["first_frame_ms"], "ms"],
        ["time to first commit", middle["first_commit_ms"], "ms"],
        ["whole request", middle["total_ms"], "ms"],
    ]
    each: list[list[Cell]] = [
        [
            str(seed), one.usage.prompt_tokens, one.usage.completion_tokens, one.usage.canvases,
            one.usage.steps, one.first_frame_ms, one.first_commit_ms, one.total_ms,
        ]
        for seed, one in enumerate(answers)
    ]  # fmt: skip
    head = (
        "seed", "prompt tokens", "committed tokens", "canvases", "steps", "first frame, ms",
        "first commit, ms", "total, ms",
    )  # fmt: skip
    shown = [
        Table(f"Medians of {len(answers)} answers", ("what", "value", "unit"), rows),
        Table("Each answer", head, each),
    ]
    title = f"Generation, prompt {len(prompt)}, at most {options.max_tokens} tokens"
    return where.report(title, llm, shown, {"runs": answers, **middle}, NOTES)
