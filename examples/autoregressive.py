"""One Sudoku, decoded in two ways with the same weights: denoising, and token by token."""

import dgemma
from dgemma.tasks import grade, make_sudoku

llm = dgemma.load("nano")
puzzle = make_sudoku("heldout", 3, 0)
print(puzzle.question)

answers = {
    "denoised": llm.chat(puzzle.messages, dgemma.SamplingParams(seed=3, max_tokens=96)),
    "token by token": llm.autoregress(puzzle.messages, dgemma.SamplingParams(max_tokens=96)),
}
for name, answer in answers.items():
    cells = grade(puzzle, answer.text)["cells"]
    print(f"\n{name}, {answer.usage.steps} passes, {cells:.0%} of the cells right:\n{answer.text}")
