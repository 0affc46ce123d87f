"""The reply of OpenAI's old completions API, which Mercury's fill-in-the-middle shares.

Knows the old form of choices and log-probabilities. Knows nothing about how text comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dgemma.server.apis.completions.schema import CompletionRequest
from dgemma.server.choices import LEAST, ChoiceFields, Choices, finish_reason
from dgemma.server.pieces import Folded
from dgemma.text.tokenizer import Detokenizer, Tokenizer
from dgemma.types import TokenScore


class TextChoices(Choices[ChoiceFields]):
    """Choices that are plain text."""

    PREFIX, KIND, CHUNK = "cmpl", "text_completion", "text_completion"

    def choice(self, number: int, folded: Folded) -> dict[str, Any]:
        """See `Choices.choice`."""
        scores, reason = self.logprobs(folded.scores), finish_reason(folded)
        return self.chunk(number, folded.text, logprobs=scores, reason=reason)

    def chunk(
        self, number: int, content: str | None = None, *,
        logprobs: dict[str, Any] | None = None, reason: str | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """See `Choices.chunk`."""
        return {
            "text": content or "",
            "index": number,
            "logprobs": logprobs,
            "finish_reason": reason,
        }

    def logprobs(self, scores: Sequence[TokenScore], first: int = 0) -> dict[str, Any] | None:
        """See `Choices.logprobs`."""
        asked = self._asked
        if not isinstance(asked, CompletionRequest) or asked.logprobs is None:
            return None
        return logprobs(scores, asked.logprob_token_ids or (), self.tokenizer, first)


def logprobs(
    scores: Sequence[TokenScore], asked: Sequence[int], tokenizer: Tokenizer, first: int = 0
) -> dict[str, Any]:
    """Log-probabilities of an answer's tokens.

    Args:
        scores: of all its tokens so far.
        asked: `logprob_token_ids`, which are listed among the likeliest of each position.
        first: the first of the tokens to be shown.
    """
    detokenizer = Detokenizer(tokenizer)
    offsets, size = [], 0
    for score in scores:
        offsets.append(size)
        size += len(detokenizer.push([score.token_id]))
    shown = scores[first:]
    tops = [dict(zip(asked, score.asked, strict=False)) | dict(score.top) for score in shown]
    name = tokenizer.token_text
    return {
        "tokens": [name(score.token_id) for score in shown],
        "token_logprobs": [max(score.logprob, LEAST) for score in shown],
        "top_logprobs": [{name(i): max(v, LEAST) for i, v in top.items()} for top in tops],
        "text_offset": offsets[first:],
    }
