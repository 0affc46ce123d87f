"""Mercury's reply to a code editor, as a whole or in chunks.

Knows the form of a chat's message and delta. Knows nothing about how an edit is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dgemma.server.accounting import costs
from dgemma.server.choices import ChoiceFields, Choices
from dgemma.server.pieces import End, Folded
from dgemma.types import TokenScore


class EditChoices(Choices[ChoiceFields]):
    """The only choice, a message of text."""

    PREFIX, KIND, CHUNK = "editcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, number: int, folded: Folded) -> dict[str, Any]:
        """See `Choices.choice`."""
        message = {"role": "assistant", "content": folded.text}
        reason = folded.ended.output.finish_reason
        return {"index": number, "message": message, "finish_reason": reason}

    def chunk(
        self, number: int, content: str | None = None, *,
        logprobs: dict[str, Any] | None = None, reason: str | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """See `Choices.chunk`."""
        delta = {} if content is None else {"content": content}
        return {"index": number, "delta": delta, "finish_reason": reason}

    def opening(self) -> Iterator[dict[str, Any]]:
        """See `Choices.opening`."""
        yield self.chunk(0) | {"delta": {"role": "assistant"}}

    def logprobs(self, scores: Sequence[TokenScore], first: int = 0) -> None:
        """None are sent."""

    def last(self, end: End) -> dict[str, Any]:
        """See `Choices.last`; Mercury's has all costs."""
        return costs([end])


class ApplyChoices(EditChoices):
    """The same for an update that is applied."""

    PREFIX = "applycmpl"
