"""`dgemma demo`: a new Sudoku solved live, next to the autoregressive mode; then a chat answer.

It says so when an answer is wrong.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time

from dgemma.cli.live import is_terminal, show
from dgemma.params import SamplingParams

QUESTION = "What is your name?"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--seed", type=int, metavar="N", help="of puzzle and answers (drawn)")
    parser.epilog = "example:\n  dgemma demo --seed 1"


def run(arguments: argparse.Namespace) -> int:
    """Three short acts; 0 unless something breaks, also if an answer is wrong."""
    from dgemma.llm import load
    from dgemma.tasks import grade, make_sudoku

    seed = secrets.randbits(31) if arguments.seed is None else arguments.seed
    llm = load("nano")
    tokenizer = llm.tokenizer
    assert tokenizer is not None
    ends = frozenset(llm.engine.spec.end_ids)
    slow = 0.08 if is_terminal(sys.stdout) else 0.0
    example = make_sudoku("heldout", seed, 0)
    messages = [dict(m) for m in example.messages]
    dtype = str(llm.choice.dtype).removeprefix("torch.")
    print(f"dgemma demo: nano, {llm.choice.device} {dtype}, seed {seed}")
    print(f"\n{example.question}\n\nDenoised, all {llm.config.canvas_length} positions at once:\n")
    params = SamplingParams(seed=seed, max_tokens=llm.config.canvas_length)
    output = show(llm.stream(messages, params), lambda i: tokenizer.decode([i]), ends, least_s=slow)
    started = time.perf_counter()
    llm.chat(messages, params)
    denoise_s = time.perf_counter() - started
    print(f"\n{_verdict(grade(example, output.text))}")
    started = time.perf_counter()
    autoregressive = llm.autoregress(messages, SamplingParams(max_tokens=llm.config.canvas_length))
    autoregressive_s = time.perf_counter() - started
    print(f"\nThe same weights, one token after another:\n\n{autoregressive.text}\n")
    print(_verdict(grade(example, autoregressive.text)))
    print(
        f"\ndenoised: {output.usage.steps} model passes, "
        f"{output.usage.tokens_per_step:.1f} tokens a pass, {denoise_s:.2f} s"
        f"\ntoken by token: {autoregressive.usage.steps} model passes, "
        f"{autoregressive.usage.tokens_per_step:.1f} tokens a pass, {autoregressive_s:.2f} s"
    )
    print(f"\n> {QUESTION}")
    chat = llm.stream([{"role": "user", "content": QUESTION}], SamplingParams(seed=seed))
    answer = show(chat, lambda i: tokenizer.decode([i]), ends, least_s=slow)
    if "nano" not in answer.text:
        print("(wrong: its name is nano)")
    return 0


def _verdict(scores: dict[str, float]) -> str:
    if scores["exact"]:
        return "Right: every row, column and box holds 1 to 9, and all givens are kept."
    return f"Wrong: {scores['cells']:.0%} of the cells are right."
