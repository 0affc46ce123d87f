"""Fits the limits of a checkpoint: how long a canvas may take, and how unlikely it may be.

Knows answers, their grades and the encoder's figures. Knows nothing about files or commands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from dgemma.compose.calibration import Calibration
from dgemma.diffusion.learnt import SHARE, StepCounts
from dgemma.errors import InvalidRequest
from dgemma.evaluate.run import BATCH, HELD_OUT_SEED, score
from dgemma.evaluate.verdict import encoder_logprobs
from dgemma.llm import LLM
from dgemma.params import SamplingParams
from dgemma.request_parts import ToolUse
from dgemma.tasks import Example, make_example
from dgemma.types import Output, Request

SEED = HELD_OUT_SEED + 1
"""Of the examples and of their answers: none of them is in the evaluation."""
FEWEST = 20
"""Canvases, and right answers, from which a limit is fitted."""
ONCE = SamplingParams(restart_after=0, race=1)
"""No canvas is begun anew: its steps would be cut off at the limit that is to be found."""


@dataclass(slots=True)
class Runs:
    """What the answers to some examples were like.

    Attributes:
        name: of the examples.
        steps: of each canvas that converged.
        canvases: all of them.
        logprobs: of each right answer, mean of its least likely canvas, in nats.
        graded: answers of which it is known whether they are right.
    """

    name: str
    steps: list[int] = field(default_factory=list)
    canvases: int = 0
    logprobs: list[float] = field(default_factory=list)
    graded: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A prompt, and how its answer is graded; None: that is not known."""

    request: Request
    right: Callable[[Output], bool] | None


def from_task(llm: LLM, task: str, n: int) -> list[Asked]:
    """`n` examples of a task that no evaluation has."""

    def asked(example: Example, index: int) -> Asked:
        thinking = example.thinking is not None
        ids = llm.chat_ids(list(example.messages), list(example.tools) or None, thinking)
        tools = ToolUse(example.tools, required=False) if example.tools else None
        request = _request(llm, ids, index, chat=True, tool_use=tools)
        return Asked(request, lambda output: score(example, output)["exact"] == 1.0)

    return [asked(make_example(task, "heldout", SEED, index), index) for index in range(n)]


def from_prompts(llm: LLM, rows: Sequence[object]) -> list[Asked]:
    """Prompts of a user: objects with "messages" or "prompt", and "answer" where it is known.

    Raises:
        InvalidRequest: a row of another form.
    """
    out = []
    for number, row in enumerate(rows, 1):
        row = row if isinstance(row, dict) else {}
        prompt, answer = row.get("prompt", row.get("messages")), row.get("answer")
        if (
            row.keys() - {"prompt", "messages", "answer"}
            or ("prompt" in row) == ("messages" in row)
            or not isinstance(prompt, str if "prompt" in row else list)
            or not isinstance(answer, str | None)
        ):
            raise InvalidRequest(
                f'prompt {number} must be an object with "messages", or with "prompt", a text; '
                'and "answer", a text, if it is known'
            )
        ids, chat = llm.frontend.ids(prompt, None, False)
        right = None if answer is None else _equals(answer)
        out.append(Asked(_request(llm, ids, number, chat=chat), right))
    return out


def _equals(answer: str) -> Callable[[Output], bool]:
    return lambda output: output.text.strip() == answer.strip()


def _request(llm: LLM, ids: Sequence[int], index: int, **more: object) -> Request:
    params = replace(ONCE, seed=SEED + index, max_tokens=2 * llm.config.canvas_length)
    return Request(token_ids=tuple(ids), params=params, **more)  # type: ignore[arg-type]


def answer(
    llm: LLM, name: str, asked: Sequence[Asked],
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Runs:  # fmt: skip
    """Answer everything, with the checkpoint's own schedule.

    Args:
        progress: called with the name, how many are answered, and how many there are.
    """
    runs = Runs(name)
    for low in range(0, len(asked), BATCH):
        part = asked[low : low + BATCH]
        streams = [llm.submit(one.request) for one in part]
        known: list[tuple[Output, list[int]]] = []
        for one, stream in zip(part, streams, strict=True):
            commits = [event for event in stream if event.type == "commit" and event.reason]
            output = stream.result()
            runs.canvases += len(commits)
            runs.steps += [event.step for event in commits if event.reason == "converged"]
            if one.right is not None:
                runs.graded += 1
                if one.right(output):
                    known.append((output, [len(event.ids) for event in commits]))
        read = encoder_logprobs(llm, [output for output, _ in known])
        for (_, lengths), logprobs in zip(known, read, strict=True):
            runs.logprobs.append(least_canvas(logprobs, lengths))
        progress(name, low + len(part), len(asked))
    return runs


def least_canvas(logprobs: Sequence[float], lengths: Sequence[int]) -> float:
    """The least of the canvases' mean log-probabilities; what follows the last id is the last's."""
    means, begin = [], 0
    for number, length in enumerate(lengths, 1):
        end = len(logprobs) if number == len(lengths) else begin + length
        if part := logprobs[begin:end]:
            means.append(fmean(part))
        begin = end
    return min(means, default=0.0)


def least_logprob(logprobs: Sequence[float]) -> float:
    """The greatest bound that at most 5 % of the values are below."""
    order = sorted(logprobs)
    return min(0.0, order[math.floor(len(order) * (1 - SHARE) + 1e-9)])


def fit(every: Sequence[Runs], before: Calibration | None = None) -> Calibration:
    """The limits of all runs together; temperatures that there are stay.

    `least_logprob` is that of the runs whose right answers the encoder finds least likely: of none
    are more than 5 % of the right answers below it. Runs without enough of them do not count.

    Raises:
        InvalidRequest: too few canvases converged.
    """
    steps = [count for runs in every for count in runs.steps]
    if len(steps) < FEWEST:
        raise InvalidRequest(
            f"{len(steps)} canvases converged, and a limit needs {FEWEST}; give more examples"
        )
    bounds = [least_logprob(r.logprobs) for r in every if len(r.logprobs) >= FEWEST]
    return replace(
        before or Calibration(), restart_after=StepCounts(steps).limit(),
        least_logprob=min(bounds, default=None),
    )  # fmt: skip


def as_markdown(every: Sequence[Runs]) -> str:
    """A line for each of the runs."""
    lines = [
        "| examples | canvases | converged | steps, 50 % and 95 % of them | right | "
        "log-probability that 95 % of the right ones reach |",
        "|---|---|---|---|---|---|",
    ]
    for runs in every:
        steps = sorted(runs.steps)
        middle = f"{steps[len(steps) // 2]}, {StepCounts(steps).limit()}" if steps else "-"
        least = f"{least_logprob(runs.logprobs):.4f}" if runs.logprobs else "-"
        right = f"{len(runs.logprobs) / runs.graded:.1%}" if runs.graded else "-"
        share = f"{len(steps) / max(1, runs.canvases):.1%}"
        lines.append(f"| {runs.name} | {runs.canvases} | {share} | {middle} | {right} | {least} |")
    return "\n".join(lines)
