"""How long a hole shall be: candidate lengths are read together, pruned, and written to the end.

Knows lengths, scores and how the one is judged by the other. Knows nothing about text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dgemma.types import TokenScore

DENSE = 8
"""Up to here every length is tried; above, each is a quarter longer than the one before."""
KEPT = 3
"""Candidates that are written to the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One candidate length of a hole.

    Attributes:
        tokens: free tokens between the borders; 0 and below: none but those of healed borders
            (-1: of the right one alone, -2: one token over both).
        reading: mean log-probability of the hole's likeliest tokens after one step.
        score: the same, corrected for length.
        final: mean log-probability of the tokens when written to the end; None if pruned.
        chosen: whether this one was taken.
    """

    tokens: int
    reading: float
    score: float
    final: float | None = None
    chosen: bool = False


def grid(least: int, most: int, count: int) -> list[int]:
    """At most `count` lengths from `least` to `most`: each one at first, then growing steps."""
    for growth in (1.25, 1.5, 2.0, 3.0, 10.0):
        out, at = [], least
        while at < most:
            out.append(at)
            at = at + 1 if at < DENSE else max(at + 1, round(at * growth))
        out.append(most)
        if len(out) <= count:
            return out
    return sorted({least + round(i * (most - least) / max(1, count - 1)) for i in range(count)})


def between(tried: Collection[int], best: int, count: int) -> list[int]:
    """Untried lengths between the neighbours of the best one, at most `count`."""
    below = max((n for n in tried if n < best), default=best)
    above = min((n for n in tried if n > best), default=best)
    found = [n for n in range(below + 1, above) if n not in tried]
    found.sort(key=lambda n: (abs(n - best), n))
    return sorted(found[:count])


def mean(values: Sequence[float]) -> float:
    """The mean; 0.0 (certain) of nothing."""
    return sum(values) / len(values) if values else 0.0


def nearby(old: int, least: int, most: int) -> list[int]:
    """Lengths to try for a text that has `old` tokens now: its own first."""
    shifts = (0, 1, -1, 2, -2, 3, -3, round(old / 4), -round(old / 4), round(old / 2))
    return list(dict.fromkeys(old + s for s in shifts if least <= old + s <= most)) or [
        min(max(old, least), most)
    ]


NEAR = 6
"""Pinned tokens on either side of a hole by which its length is judged."""


def judge(
    scores: Sequence[TokenScore], free: Sequence[range], content: int
) -> list[tuple[float, float]]:
    """How good the length of each slot is, by one step over the canvas.

    A hole's own likeliest tokens tell little: the fewer, the surer they are. But the model also
    reads what is pinned, and where the hole has the wrong length it doubts the text that follows.
    So a length is judged by the probability that pinned tokens nearby (the end of the text among
    them) have in the model's own eyes, which needs no correction for length.

    Args:
        scores: of every position of the canvas.
        free: the positions of each slot.
        content: positions before the end.

    Returns:
        For each slot the mean log-probability of its likeliest tokens, and its score.
    """
    loose = {i for at in free for i in at}
    out = []
    for at in free:
        around = [*range(max(0, at.start - NEAR), at.start), *range(at.stop, at.stop + NEAR)]
        kept = [i for i in around if i <= content and i < len(scores) and i not in loose]
        own = mean([scores[i].logprob for i in at])
        out.append((own, mean([scores[i].logprob for i in kept]) if kept else own))
    return out
