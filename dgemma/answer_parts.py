"""The smaller values that an `Output` holds. They must not know tensors (no torch) or text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScore:
    """Natural logarithms of probabilities at one position, temperature 1, controls included.

    Attributes:
        token_id, logprob: of the token at this position.
        top: the likeliest ids with their values, as many as `logprobs` asked for.
        asked: values of `logprob_token_ids`, in their order.
        entropy: nats of the distribution that the last step drew from.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    asked: tuple[float, ...] = ()
    entropy: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """How an answer was kept in its grammar.

    Attributes:
        mode: "json_schema", "regex", "grammar", "choices", "structure", "tools",
            "strict_tools" or "bad_words".
        complete: whether the text is a whole text of the grammar; never true of a cut one.
        rounds: how often a finished canvas was denoised again to repair it.
        repaired: positions that then came out right.
        fallbacks: positions whose token was chosen at the commit against the model's first choice.
        closed: tokens that were put in because the room ran short.
    """

    mode: str
    complete: bool = False
    rounds: int = 0
    repaired: int = 0
    fallbacks: int = 0
    closed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the encoder, which reads a text from left to right, thinks of committed tokens.

    Attributes:
        logprobs: natural logarithm of the probability of each token, temperature 1; an end id that
            follows them is the last.
        disagreements: places among them where the encoder's first choice is another id.
        steps: denoising steps of the canvases, those of discarded tries left out.
        converged: whether every canvas converged.
        below: canvases that `quality="careful"` found unlikely, and that no try made better.
    """

    logprobs: tuple[float, ...] = ()
    disagreements: tuple[int, ...] = ()
    steps: int = 0
    converged: bool = True
    below: int = 0

    @classmethod
    def joined(cls, parts: Sequence[Verdict]) -> Verdict:
        """The verdict on consecutive parts of an answer, each of which but the last has no end."""
        starts = accumulate((len(part.logprobs) for part in parts), initial=0)
        return cls(
            logprobs=tuple(value for part in parts for value in part.logprobs),
            disagreements=tuple(
                start + place
                for start, part in zip(starts, parts, strict=False)
                for place in part.disagreements
            ),
            steps=sum(part.steps for part in parts),
            converged=all(part.converged for part in parts),
            below=sum(part.below for part in parts),
        )

    @property
    def mean(self) -> float:
        """Mean log-probability; 0.0 of no tokens."""
        return sum(self.logprobs) / max(1, len(self.logprobs))

    @property
    def minimum(self) -> float:
        """The least log-probability; 0.0 of no tokens."""
        return min(self.logprobs, default=0.0)

    @property
    def score(self) -> float:
        """The least log-probability, less 0.1 for each step: the figure that tells most.

        The encoder finds what was blended, the steps find what does not settle. Any weight from
        0.02 to 0.5 tells nano's answers apart as well.
        """
        return self.minimum - 0.1 * self.steps
