"""`dgemma demo`: a new Sudoku, denoised and token by token; then a chat answer.

On a terminal one watches both side by side. It says so when an answer is wrong.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from typing import TYPE_CHECKING

from dgemma.cli.boards import LEGEND, Letter, Puzzle, Side, race
from dgemma.cli.live import Screen, redraws, show
from dgemma.cli.options import add_model, open_model
from dgemma.cli.paint import Painter
from dgemma.params import SamplingParams
from dgemma.types import Event, Output, Request, TextDelta
from dgemma.weights.find import bundled_models

if TYPE_CHECKING:
    from dgemma.llm import LLM
    from dgemma.tasks import Example

QUESTION = "What is your name?"
FRAME_S = 0.3
"""Seconds that a draft of the answer stays."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser)
    parser.add_argument("--seed", type=int, metavar="N", help="of puzzle and answers (drawn)")
    parser.epilog = (
        "Other models than nano get the same puzzle, in the words that nano was trained on.\n\n"
        "example:\n  dgemma demo --seed 1"
    )


def run(arguments: argparse.Namespace) -> int:
    """Three short acts; 0 unless something breaks, also if an answer is wrong."""
    from dgemma.tasks import make_sudoku

    seed = secrets.randbits(31) if arguments.seed is None else arguments.seed
    llm = open_model(arguments)
    example = make_sudoku("heldout", seed, 0)
    dtype = str(llm.choice.dtype).removeprefix("torch.")
    print(f"dgemma demo: {arguments.model}, {llm.device} {dtype}, seed {seed}")
    nano = llm.checkpoint.directory == bundled_models().get("nano")
    if not nano:
        print("nano was trained on such puzzles, put in these words; other models were not.")
    watched = redraws(sys.stdout)
    if watched:
        _race(llm, example, seed)
    else:
        _text(llm, example, seed)
    print(f"\n> {QUESTION}")
    asked = [{"role": "user", "content": QUESTION}]
    ids = llm.chat_ids(asked)
    painter = Painter(llm.frontend.tokenizer, llm.facts.end_ids, ids, llm.defaults)
    answer = show(llm.stream(asked, seed=seed), painter, least_s=FRAME_S if watched else 0)
    if nano and "nano" not in answer.text:
        print("(wrong: its name is nano)")
    return 0


def _answers(llm: LLM, example: Example, seed: int) -> list[tuple[list[Event], Output, float]]:
    """The events of both ways, the output, and its seconds once all is warm."""
    ids = tuple(llm.chat_ids(example.messages))
    most = llm.config.canvas_length
    denoise = Request(token_ids=ids, params=SamplingParams(seed=seed, max_tokens=most),
                      chat=True, frames=True)  # fmt: skip
    follow = Request(token_ids=ids, params=SamplingParams(max_tokens=most),
                     mode="autoregressive", chat=True)  # fmt: skip
    llm.submit(denoise).result()
    out = []
    for request in (denoise, follow):
        started = time.perf_counter()
        events = list(llm.submit(request))
        seconds = time.perf_counter() - started
        output = events[-1].output
        assert output is not None
        out.append((events, output, seconds))
    return out


def _race(llm: LLM, example: Example, seed: int) -> None:
    """Both ways side by side."""
    (steps, denoised, denoise_s), (tokens, followed, follow_s) = _answers(llm, example, seed)
    rows = example.question.splitlines()[1:]
    puzzle = Puzzle(rows, example.answer.splitlines())
    given: list[Letter] = [(char, "") for char in "\n".join(rows)]
    painter = Painter(llm.frontend.tokenizer, llm.facts.end_ids, llm.chat_ids(example.messages))
    drafts, states = [given], [""]
    size = llm.config.canvas_length
    for event in (event for event in steps if event.type == "frame"):
        drafts.append([
            (char, style) for deltas, style in painter.pieces(event)
            for delta in deltas if isinstance(delta, TextDelta) for char in delta.text
        ])  # fmt: skip
        accepted = sum(map(bool, event.accepted))
        states.append(f"pass {len(states)}, {accepted} of {size} accepted")
    drafts[-1] = _letters(denoised.text)
    left = Side("Denoised, all cells at once", drafts, states,
                _short(example, denoised, denoise_s))  # fmt: skip
    written, count, drafts, states = "", 0, [given], [""]
    for event in (event for event in tokens if event.type == "commit"):
        written += event.text
        count += len(event.ids)
        drafts.append(_letters(written))
        states.append(f"pass {len(states)}, {count} tokens written")
    drafts[-1] = _letters(followed.text)
    right = Side("Token by token, from the left", drafts, states,
                 _short(example, followed, follow_s))  # fmt: skip
    print("The same weights in two ways, slowed down: one pass of the model at a time.")
    print(f"{LEGEND}\n")
    race(puzzle, (left, right), Screen(sys.stdout))


def _letters(text: str) -> list[Letter]:
    return [(char, "") for char in text]


def _text(llm: LLM, example: Example, seed: int) -> None:
    """Both ways one after the other, as plain text."""
    (_, denoised, denoise_s), (_, followed, follow_s) = _answers(llm, example, seed)
    size = llm.config.canvas_length
    print(f"\n{example.question}\n\nDenoised, all {size} positions at once:\n\n{denoised.text}")
    print(f"\n{_verdict(example, denoised)}")
    print(f"\nThe same weights, one token after another:\n\n{followed.text}\n")
    print(_verdict(example, followed))
    print(
        f"\ndenoised: {denoised.usage.steps} model passes, "
        f"{denoised.usage.tokens_per_step:.1f} tokens a pass, {denoise_s:.2f} s"
        f"\ntoken by token: {followed.usage.steps} model passes, "
        f"{followed.usage.tokens_per_step:.1f} tokens a pass, {follow_s:.2f} s"
    )


def _verdict(example: Example, output: Output) -> str:
    from dgemma.tasks import grade

    scores = grade(example, output.text)
    if scores["exact"]:
        return "Right: every row, column and box holds 1 to 9, and all givens are kept."
    return f"Wrong: {scores['cells']:.0%} of the cells are right."


def _short(example: Example, output: Output, seconds: float) -> str:
    """The verdict below a board, and its seconds."""
    from dgemma.tasks import grade

    scores = grade(example, output.text)
    said = "right" if scores["exact"] else f"wrong: {scores['cells']:.0%} of the cells are right"
    return f"{said}\n{seconds:.2f} s"
