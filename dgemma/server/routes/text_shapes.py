"""Replies in the words of OpenAI's old completions API, which Mercury's fill-in-the-middle shares.

Knows choices, chunks and the old form of log-probabilities. Knows nothing about how text comes.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Receive, Scope, Send

from dgemma.server import sse
from dgemma.server.errors import Refusal, body_of, dialect_of, refusal
from dgemma.server.routes.chat_shapes import LEAST
from dgemma.text.stream import Stream
from dgemma.text.tokenizer import Detokenizer, Tokenizer
from dgemma.types import TokenScore

log = logging.getLogger("dgemma.server")

STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
}
"""What the document says of a route that can stream."""


@dataclass(frozen=True, slots=True)
class Head:
    """What every reply and every chunk begins with."""

    model: str
    kind: str = "cmpl"
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def reply(self, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A reply or a chunk."""
        return {
            "id": f"{self.kind}-{self.id}", "object": "text_completion", "created": self.created,
            "model": self.model, "choices": list(choices),
        }  # fmt: skip


def choice(
    number: int, text: str, reason: str | None = None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    """One choice, or a piece of one."""
    return {"text": text, "index": number, "logprobs": logprobs, "finish_reason": reason}


def logprobs(
    scores: Sequence[TokenScore], asked: Sequence[int], tokenizer: Tokenizer
) -> dict[str, Any]:
    """Log-probabilities of an answer's tokens.

    Args:
        asked: `logprob_token_ids`, which stand among the likeliest of each position.
    """
    letters = Detokenizer(tokenizer)
    offsets, size, top = [], 0, []
    for score in scores:
        offsets.append(size)
        size += len(letters.push([score.token_id]))
        values = dict(zip(asked, score.asked, strict=False)) | dict(score.top)
        top.append({tokenizer.token_text(i): max(v, LEAST) for i, v in values.items()})
    return {
        "tokens": [tokenizer.token_text(score.token_id) for score in scores],
        "token_logprobs": [max(score.logprob, LEAST) for score in scores],
        "top_logprobs": top, "text_offset": offsets,
    }  # fmt: skip


class Events(sse.Events):
    """Server-sent events that end the model's streams with them, even if they never began."""

    def __init__(
        self, source: AsyncGenerator[bytes, None], heartbeat_s: float, streams: Sequence[Stream]
    ) -> None:
        super().__init__(source, heartbeat_s)
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with ending(self._streams):
            await super().__call__(scope, receive, send)


@contextmanager
def ending(streams: Sequence[Stream]) -> Iterator[None]:
    """Ends what still runs when the block is left: a client may be gone before its reply began."""
    try:
        yield
    finally:
        for stream in streams:
            stream.close()


async def told(
    source: AsyncGenerator[bytes, None], path: str, *, done: bool = False
) -> AsyncGenerator[bytes, None]:
    """The same events; what goes wrong on the way is told by one, since the status is out.

    Args:
        path: says in which API's shape.
        done: whether OpenAI's last line follows.
    """
    try:
        async for piece in source:
            yield piece
    except Exception as error:
        found = refusal(error)
        if found.status >= 500 and not isinstance(error, Refusal):
            log.exception("a stream of %s failed", path)
        dialect = dialect_of(path)
        name = "error" if dialect == "anthropic" else None
        yield sse.event(body_of(found, dialect), name)
    finally:
        await source.aclose()
    if done:
        yield sse.DONE
