"""From the log-probabilities of a step to plain values, one a position.

Knows nothing about how they were made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dgemma.diffusion.canvas import Canvas
from dgemma.kernels.head import Head
from dgemma.types import TokenScore


def token_scores(
    canvas: Canvas, ids: Sequence[int], asked: int, hidden: Tensor, head: Head,
    first: int = 0, likeliest: int = 0,
) -> list[TokenScore]:  # fmt: skip
    """Scores of len(ids) positions after a step that was asked for log-probabilities.

    Args:
        ids: what stands there in the end.
        asked: how many ids the caller named; a pinned id may follow them in the reading.
        hidden: [C, D] of the step, for ids that the reading has not.
        first: the position of the first of them.
        likeliest: how many alternatives the caller asked for; the reading may have more.
    """
    found = canvas.logprobs
    assert found is not None and canvas.entropy is not None
    top = canvas.controls.alternatives
    known, plain = found.ids[first:].tolist(), found.plain[first:].tolist()
    entropy = canvas.entropy[first:].tolist()
    last = len(known[0]) - top  # argmax, sample, asked, pinned | top
    values: list[float | None] = []
    for position, token in enumerate(ids):
        places = [k for k in range(last) if known[position][k] == token]
        values.append(plain[position][places[0]] if places else None)
    missing = [p for p, value in enumerate(values) if value is None]
    if missing:
        rows = torch.tensor(missing, device=hidden.device) + first
        wanted = torch.tensor([ids[p] for p in missing], device=hidden.device)
        made = head.scores(hidden[rows], wanted).tolist()
        for position, value in zip(missing, made, strict=True):
            values[position] = value
    return [
        TokenScore(
            token_id=token,
            logprob=value if value is not None else float("nan"),
            top=tuple(zip(known[p][last:], plain[p][last:], strict=True))[:likeliest],
            asked=tuple(plain[p][2 : 2 + asked]),
            entropy=entropy[p],
        )
        for p, (token, value) in enumerate(zip(ids, values, strict=True))
    ]
