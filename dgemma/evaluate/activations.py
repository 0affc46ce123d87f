"""Runs a model on texts and watches what its matrices are multiplied with.

The inputs are those of real answers: prompts as they are encoded, and canvases as they settle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dgemma.evaluate.calibrate import Asked, answer, from_prompts
from dgemma.llm import LLM
from dgemma.quant.activations import Activations

PIECE = 2000
"""Characters of a plain text that are a prompt together."""


def user_texts(llm: LLM, data: str | Sequence[object]) -> list[Asked]:
    """A plain text, cut into prompts, or rows with messages or a prompt.

    Raises:
        InvalidRequest: see `from_prompts`.
    """
    if isinstance(data, str):
        pieces = [data[low : low + PIECE] for low in range(0, len(data), PIECE)]
        data = [{"prompt": piece} for piece in pieces if piece.strip()]
    return from_prompts(llm, data)


def watch(
    llm: LLM, asked: Sequence[Asked], progress: Callable[[str, int, int], None]
) -> Activations:
    """What was seen while all of these were answered; see `answer` for `progress`."""
    seen = Activations(llm.model)
    try:
        answer(llm, "calibration texts", asked, progress)
    finally:
        seen.close()
    return seen
