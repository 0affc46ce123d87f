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

from starlette.requests import Request

from dgemma.frontend import TextStream
from dgemma.server import sse
from dgemma.server.apis.chat.reply import LEAST
from dgemma.server.errors import Refusal, body_of, crash, dialect_of, refusal
from dgemma.server.service import Service
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
    scores: Sequence[TokenScore], asked: Sequence[int], tokenizer: Tokenizer, first: int = 0
) -> dict[str, Any]:
    """Log-probabilities of an answer's tokens.

    Args:
        scores: of all its tokens so far.
        asked: `logprob_token_ids`, which stand among the likeliest of each position.
        first: the first of the tokens that are to be told of.
    """
    letters = Detokenizer(tokenizer)
    offsets, size, top = [], 0, []
    for score in scores:
        offsets.append(size)
        size += len(letters.push([score.token_id]))
    scores, offsets = scores[first:], offsets[first:]
    for score in scores:
        values = dict(zip(asked, score.asked, strict=False)) | dict(score.top)
        top.append({tokenizer.token_text(i): max(v, LEAST) for i, v in values.items()})
    return {
        "tokens": [tokenizer.token_text(score.token_id) for score in scores],
        "token_logprobs": [max(score.logprob, LEAST) for score in scores],
        "top_logprobs": top, "text_offset": offsets,
    }  # fmt: skip


@contextmanager
def ending(streams: Sequence[TextStream]) -> Iterator[None]:
    """Ends what still runs when the block is left: a client may be gone before its reply began."""
    try:
        yield
    finally:
        end(streams)


def end(streams: Sequence[TextStream]) -> None:
    """End what still runs."""
    for stream in streams:
        stream.close()


def logged(http: Request, service: Service, **texts: Any) -> dict[str, Any]:
    """What the log line of a request will hold besides: what was written, if that is wished."""
    note = texts if service.settings.log_text else {}
    http.scope["dgemma.log"] = note
    return note


async def with_errors(
    source: AsyncGenerator[bytes, None], http: Request, service: Service, *, done: bool = False
) -> AsyncGenerator[bytes, None]:
    """The same events; what goes wrong on the way is told by one, since the status is out.

    Args:
        http: its path says in which API's shape; its log line says that it failed.
        done: whether OpenAI's last line follows.
    """
    try:
        async for piece in source:
            yield piece
    except Exception as error:
        found = refusal(error)
        path = http.url.path
        http.scope.setdefault("dgemma.log", {})["error"] = found.code or found.status
        if found.status >= 500 and not isinstance(error, Refusal):
            said = crash(error, text=service.settings.log_text)
            log.error("a stream of %s failed\n%s", path, said)
        dialect = dialect_of(path)
        name = "error" if dialect == "anthropic" else None
        yield sse.event(body_of(found, dialect), name)
    finally:
        await source.aclose()
    if done:
        yield sse.DONE
