"""How well a model's own figures tell right answers from wrong ones.

The figures are those of the encoder, which reads an answer from left to right, and those of the
denoiser, which wrote it. Knows answers and their grades. Knows nothing about how either is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from dgemma.errors import InvalidRequest
from dgemma.evaluate.run import BATCH, HELD_OUT_SEED, answers, score
from dgemma.llm import LLM
from dgemma.params import SamplingParams
from dgemma.tasks import make_example
from dgemma.types import Output, Request, Verdict

SIGNS = ("verdict, score", "encoder, mean log-probability", "encoder, least log-probability",
         "denoiser, mean entropy", "denoising steps")  # fmt: skip
"""The figures of an answer, in the order of `Judged.signs`."""


def auroc(values: Sequence[float], right: Sequence[bool]) -> float | None:
    """Chance that a right answer has a greater value than a wrong one; equal ones count half.

    0.5 is a coin, 1.0 parts the two without a fault. None if all are right or all are wrong.

    Raises:
        InvalidRequest: not one value for each answer.
    """
    if len(values) != len(right):
        raise InvalidRequest(f"{len(values)} values for {len(right)} answers; give one for each")
    goods = sum(map(bool, right))
    bads = len(right) - goods
    if not goods or not bads:
        return None
    order = sorted(zip(values, map(bool, right), strict=True), key=lambda pair: pair[0])
    wins, below, at = 0.0, 0, 0
    while at < len(order):
        end = at
        while end < len(order) and order[end][0] == order[at][0]:
            end += 1
        good = sum(ok for _, ok in order[at:end])
        bad = end - at - good
        wins += good * (below + bad / 2)
        below, at = below + bad, end
    return wins / (goods * bads)


def encoder_logprobs(llm: LLM, outputs: Sequence[Output]) -> list[tuple[float, ...]]:
    """The encoder's log-probabilities of each answer's ids, and of the end id after them.

    The one place that knows their source: the verdict of an output that has one, else a reading of
    prompt and answer by a request of mode "score". The reading has no end id: an answer may end by
    one of several, and an output does not say which.
    """
    found = [() if output.verdict is None else output.verdict.logprobs for output in outputs]
    missing = [i for i, one in enumerate(outputs) if one.verdict is None and one.token_ids]
    requests = [
        Request(
            token_ids=outputs[i].prompt_ids + outputs[i].token_ids, mode="score",
            score_from=len(outputs[i].prompt_ids),
        )
        for i in missing
    ]  # fmt: skip
    for i, scored in zip(missing, llm.run(requests), strict=True):
        found[i] = tuple(one.logprob for one in scored.scores)
    return found


@dataclass(slots=True)
class Judged:
    """The answers of one task.

    Attributes:
        task: its name.
        right: of each answer.
        signs: of each answer its figures, in the order of `SIGNS`; the greater, the better.
    """

    task: str
    right: list[bool] = field(default_factory=list)
    signs: list[tuple[float, ...]] = field(default_factory=list)

    def areas(self) -> list[float | None]:
        """AUROC of each of `SIGNS`."""
        return [auroc([row[i] for row in self.signs], self.right) for i in range(len(SIGNS))]


def judge(
    llm: LLM, tasks: Sequence[str], n: int, setting: SamplingParams | None = None,
    seed: int = HELD_OUT_SEED, report: Callable[[str], None] = print,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Judged]:  # fmt: skip
    """Grades and figures of `n` held-out examples of each task; see `evaluate`.

    Args:
        setting: of the answers; by default no canvas is restarted, so that poor ones are judged.
    """
    asked = (setting or SamplingParams()).merged(
        SamplingParams(restart_after=0, logprobs=0, verdict=True)
    )
    made = []
    for task in tasks:
        examples = [make_example(task, "heldout", seed, i) for i in range(n)]
        judged, waiting = Judged(task), list[Output]()
        for example, output in answers(
            llm, examples, "diffusion", seed, 2 * llm.config.canvas_length, asked
        ):
            judged.right.append(score(example, output)["exact"] == 1.0)
            waiting.append(output)
            if len(waiting) == BATCH or len(judged.right) == n:
                read = encoder_logprobs(llm, waiting)
                judged.signs += [signs_of(*pair) for pair in zip(waiting, read, strict=True)]
                waiting.clear()
                progress(f"{task} judged", len(judged.right), n)
        report(f"{task}: {fmean(judged.right):.3f} right of {n}")
        made.append(judged)
    return made


def signs_of(output: Output, logprobs: Sequence[float]) -> tuple[float, ...]:
    """The figures of one answer, in the order of `SIGNS`; the greater, the better."""
    entropy = fmean([one.entropy for one in output.scores]) if output.scores else 0.0
    mean = fmean(logprobs) if logprobs else 0.0
    found = Verdict(logprobs=tuple(logprobs), steps=output.usage.steps)
    return found.score, mean, found.minimum, -entropy, -float(found.steps)


def as_markdown(made: Sequence[Judged]) -> str:
    """A table with a line for each task."""
    lines = [
        f"| task | n | right | {' | '.join(f'AUROC: {sign}' for sign in SIGNS)} |",
        "|---" * (3 + len(SIGNS)) + "|",
    ]
    for one in made:
        areas = ["-" if area is None else f"{area:.3f}" for area in one.areas()]
        lines.append(
            f"| {one.task} | {len(one.right)} | {fmean(one.right):.1%} | {' | '.join(areas)} |"
        )
    return "\n".join(lines)
