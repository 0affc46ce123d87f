"""Score a model on held-out examples of the project's own tasks, in both modes.

Every figure is computed from answers made by the engine. Knows tasks and outputs. Knows nothing
about training, and nothing about how a report is laid out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from dgemma.llm import LLM
from dgemma.params import SamplingParams
from dgemma.request_parts import ToolUse
from dgemma.tasks import Example, grade, make_example
from dgemma.types import Mode, Output, Request

HELD_OUT_SEED = 20260610
"""Of the fixed evaluation set; training uses other seeds, and its splits share nothing with it."""
BATCH = 32
BLANK_BINS = ((35, 37), (38, 40), (41, 43), (44, 45))


@dataclass(slots=True)
class Tally:
    """Sums over the answers of one task in one mode.

    Attributes:
        count: answers.
        scores: sum of each of the grader's scores.
        steps: model passes that made tokens (denoising steps, or autoregressive passes).
        tokens: committed tokens.
        bins: Sudoku alone: (solved, asked) by number of blanks.
    """

    count: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    tokens: int = 0
    bins: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)

    def add(self, example: Example, output: Output) -> None:
        """Grade one answer."""
        scores = score(example, output)
        self.count += 1
        self.steps += output.usage.steps
        self.tokens += output.usage.completion_tokens
        for name, value in scores.items():
            self.scores[name] = self.scores.get(name, 0.0) + value
        if example.task == "sudoku":
            blanks = example.meta["blanks"]
            assert isinstance(blanks, int)
            key = next(b for b in BLANK_BINS if b[0] <= blanks <= b[1])
            solved, asked = self.bins.get(key, (0, 0))
            self.bins[key] = (solved + int(scores["exact"]), asked + 1)

    def mean(self, name: str) -> float:
        """Mean of one score."""
        return self.scores.get(name, 0.0) / max(1, self.count)


def score(example: Example, output: Output) -> dict[str, float]:
    """The grader's scores of one answer."""
    calls = [{"name": c.name, "arguments": dict(c.arguments)} for c in output.tool_calls]
    text = output.text + "".join(call.text for call in output.invalid_tool_calls)
    return grade(example, text, output.thinking, calls)


def answers(
    llm: LLM, examples: list[Example], mode: Mode, seed: int, max_tokens: int,
    setting: SamplingParams | None = None,
) -> Iterator[tuple[Example, Output]]:  # fmt: skip
    """Answers to all examples, `BATCH` at a time; `setting` is for diffusion alone."""
    for low in range(0, len(examples), BATCH):
        part = examples[low : low + BATCH]
        streams = []
        for i, example in enumerate(part):
            ids = llm.chat_ids(
                list(example.messages), list(example.tools) or None, example.thinking is not None
            )
            params = SamplingParams(max_tokens=max_tokens)
            if mode == "diffusion":
                params = replace(params, seed=seed + low + i).merged(setting or SamplingParams())
            request = Request(
                token_ids=tuple(ids), params=params, mode=mode, chat=True,
                tool_use=ToolUse(example.tools, required=False) if example.tools else None,
            )  # fmt: skip
            streams.append(llm.submit(request))
        for example, stream in zip(part, streams, strict=True):
            yield example, stream.result()


def evaluate(
    llm: LLM,
    tasks: list[str],
    modes: list[Mode],
    n: int,
    seed: int = HELD_OUT_SEED,
    report: Callable[[str], None] = print,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[tuple[str, Mode], Tally]:
    """Tallies by task and mode over `n` held-out examples of each task.

    Args:
        seed: of the examples and of the answers.
        report: receives a line for each task and mode.
        progress: called after each answer with the task and mode, the answers and their total.
    """
    canvas = llm.config.canvas_length
    results: dict[tuple[str, Mode], Tally] = {}
    for task in tasks:
        examples = [make_example(task, "heldout", seed, i) for i in range(n)]
        for mode in modes:
            tally = results[task, mode] = Tally()
            for example, output in answers(llm, examples, mode, seed, 2 * canvas):
                tally.add(example, output)
                progress(f"{task} {mode}", tally.count, n)
            report(f"{task} {mode}: exact {tally.mean('exact'):.3f} of {n}")
    return results
