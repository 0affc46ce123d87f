"""One Sudoku, two ways to decode with the same weights: denoising, and token by token."""

import time

import dgemma
from dgemma.tasks import grade, make_sudoku

llm = dgemma.load("nano")
puzzle = make_sudoku("heldout", 3, 0)
print(puzzle.question)

ways = {
    "denoised": lambda: llm.chat(puzzle.messages, dgemma.SamplingParams(seed=3, max_tokens=96)),
    "token by token": lambda: llm.autoregress(
        puzzle.messages, dgemma.SamplingParams(max_tokens=96)
    ),
}
for name, decode in ways.items():
    started = time.perf_counter()
    answer = decode()
    seconds = time.perf_counter() - started
    cells = grade(puzzle, answer.text)["cells"]
    print(f"\n{name}:\n{answer.text}")
    print(f"{cells:.0%} of the cells right, {answer.usage.steps} passes, {seconds:.2f} s")
