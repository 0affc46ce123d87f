"""The reply of OpenAI's chat API: messages, deltas, log-probabilities.

Knows chat's own fields. Knows nothing about HTTP or how pieces come about.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from dgemma.server.apis.chat.schema import ChatRequest
from dgemma.server.choices import LEAST, Choices, finish_reason, invalid_tool_call, when
from dgemma.server.pieces import End, Folded, Frame, Piece, Progress
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import (
    InvalidToolCallDelta,
    TextDelta,
    ThoughtDelta,
    TokenScore,
    ToolCallDelta,
)


class ChatChoices(Choices[ChatRequest]):
    """The choices of a conversation's answer."""

    PREFIX, KIND, CHUNK = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, number: int, folded: Folded) -> dict[str, Any]:
        """See `Choices.choice`."""
        return {
            "index": number,
            "message": message(folded),
            "logprobs": self.logprobs(folded.scores),
            "finish_reason": finish_reason(folded),
        }

    def chunk(
        self, number: int, content: str | None = None, *,
        logprobs: dict[str, Any] | None = None, reason: str | None = None, **delta: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """See `Choices.chunk`."""
        if content is not None:
            delta["content"] = content
        return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def opening(self) -> Iterator[dict[str, Any]]:
        """See `Choices.opening`."""
        for number in range(len(self._sources)):
            yield self.chunk(number, role="assistant")

    def parts(
        self, number: int, piece: Piece, so_far: Folded
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """See `Choices.parts`. Under Mercury's `diffusing` each content is a whole text."""
        diffusing = self._asked.diffusing
        if isinstance(piece, ThoughtDelta):
            yield self.chunk(number, reasoning_content=piece.text), when(so_far)
        elif isinstance(piece, ToolCallDelta):
            made = {"index": piece.index} | tool_call(piece)
            yield self.chunk(number, tool_calls=[made]), when(so_far)
        elif isinstance(piece, InvalidToolCallDelta):
            one = {"index": piece.index} | invalid_tool_call(piece.call)
            yield self.chunk(number, invalid_tool_calls=[one]), when(so_far)
        elif diffusing and isinstance(piece, Frame):
            event = piece.event
            meta = {"diffusion_content": True, "step": event.step, "canvas": event.canvas}
            yield self.chunk(number, piece.whole), {"diffusion_meta": meta}
        elif not (diffusing and isinstance(piece, (TextDelta, Progress))):
            text = content(so_far)
            if isinstance(piece, End) and text is not None and (diffusing or not text):
                yield self.chunk(number, text), {}
            yield from super().parts(number, piece, so_far)

    def last(self, end: End) -> dict[str, Any]:
        """See `Choices.last`."""
        return super().last(end) if len(self._sources) == 1 else {}

    def logprobs(self, scores: Sequence[TokenScore], first: int = 0) -> dict[str, Any] | None:
        """See `Choices.logprobs`."""
        asked = self._asked
        if not asked.logprobs:
            return None
        return logprobs(
            scores[first:], asked.logprob_token_ids or (), self.tokenizer,
            as_ids=bool(asked.return_tokens_as_token_ids),
        )  # fmt: skip


def tool_call(made: ToolCallDelta) -> dict[str, Any]:
    """A call in a message."""
    arguments = json.dumps(dict(made.call.arguments), ensure_ascii=False)
    function = {"name": made.call.name, "arguments": arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def content(folded: Folded) -> str | None:
    """The answer's text; None if it is calls alone."""
    return folded.text or (None if folded.calls else "")


def message(folded: Folded) -> dict[str, Any]:
    """The whole answer."""
    found: dict[str, Any] = {"role": "assistant", "content": content(folded), "refusal": None}
    if folded.thinking:
        found["reasoning_content"] = folded.thinking
    if folded.calls:
        found["tool_calls"] = [tool_call(call) for call in folded.calls]
    if folded.invalid:
        found["invalid_tool_calls"] = [invalid_tool_call(one.call) for one in folded.invalid]
    return found


def logprobs(
    scores: Sequence[TokenScore], asked: Sequence[int], tokenizer: Tokenizer, *, as_ids: bool
) -> dict[str, Any]:
    """Log-probabilities of tokens.

    Args:
        asked: `logprob_token_ids`, which follow the likeliest of each position.
        as_ids: tokens are named by their ids.
    """

    def one(token_id: int, value: float) -> dict[str, Any]:
        return {
            "token": f"token_id:{token_id}" if as_ids else tokenizer.token_text(token_id),
            "logprob": max(value, LEAST),
            "bytes": list(tokenizer.token_bytes(token_id)),
        }

    content = []
    for score in scores:
        seen = {token_id for token_id, _ in score.top}
        more = [(i, v) for i, v in zip(asked, score.asked, strict=False) if i not in seen]
        others = [one(token_id, value) for token_id, value in (*score.top, *more)]
        content.append(one(score.token_id, score.logprob) | {"top_logprobs": others})
    return {"content": content, "refusal": None}
