"""The requests of a load generator, their arrival times, and a sample of each answer."""

from __future__ import annotations

import codecs
import io
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from dgemma.errors import InvalidRequest
from dgemma.tasks import TASKS, make_example

Drafts = Literal["off", "text", "mercury"]
DRAFTS: dict[Drafts, dict[str, Any]] = {
    "off": {}, "text": {"diffusion": {"stream": "text"}}, "mercury": {"diffusing": True},
}  # fmt: skip
"""Fields by which a server is asked for drafts; a server without them refuses or ignores them."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: a conversation, most tokens of the answer, and a seed."""

    messages: Sequence[Mapping[str, Any]]
    max_tokens: int
    seed: int

    def body(self, model: str, drafts: Drafts) -> dict[str, Any]:
        """In OpenAI's words, streamed."""
        return {
            "model": model, "messages": list(self.messages), "max_tokens": self.max_tokens,
            "seed": self.seed, "stream": True, "stream_options": {"include_usage": True},
            **DRAFTS[drafts],
        }  # fmt: skip


@dataclass(slots=True, kw_only=True)
class TrafficSample:
    """The course of one request. Times are seconds since it was due; None: it did not get there.

    Attributes:
        due_s: when it was due, seconds since the run began. In an open loop that is its arrival,
            so a client that lags makes times longer, not the load smaller.
        frame_s, text_s, end_s: until the first draft, the first text (thought, call), the end.
        prompt_tokens, completion_tokens: as the server counts them; None: it did not say.
        failure: the status, or how the stream broke off; empty: none.
    """

    due_s: float = 0.0
    frame_s: float | None = None
    text_s: float | None = None
    end_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    failure: str = ""

    def read(self, data: str, now_s: float) -> None:
        """Take in one event of the stream."""
        if data == "[DONE]":
            self.end_s = now_s
            return
        chunk = json.loads(data)
        if chunk.get("error"):
            self.failure = "error event"
            return
        if (usage := chunk.get("usage")) is not None:
            self.prompt_tokens = usage.get("prompt_tokens")
            self.completion_tokens = usage.get("completion_tokens")
        if is_draft(chunk):
            self.frame_s = now_s if self.frame_s is None else self.frame_s
        elif any(map(has_text, chunk.get("choices", ()))):
            self.text_s = now_s if self.text_s is None else self.text_s


def is_draft(chunk: Mapping[str, Any]) -> bool:
    """Whether a chunk shows text that may still change, in one of the dialects."""
    meta = chunk.get("diffusion_meta") or {}
    return bool(meta.get("diffusion_content")) or chunk.get("type") == "diffusion_frame"


def has_text(choice: Mapping[str, Any]) -> bool:
    """Whether a chunk's choice brings something of the answer."""
    delta = choice.get("delta") or {}
    names = ("content", "reasoning_content", "reasoning", "tool_calls")
    return any(delta.get(name) for name in names)


class EventReader:
    """Server-sent events out of bytes that may be cut anywhere."""

    def __init__(self) -> None:
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
        self._rest = ""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> Iterator[str]:
        """The data of each event that is whole now."""
        *lines, self._rest = (self._rest + self._decoder.decode(piece)).split("\n")
        for line in lines:
            name, _, value = line.partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))
            elif not line and self._data:
                yield "\n".join(self._data)
                self._data = []


def arrivals(rate: float, count: int, seed: int) -> list[float]:
    """Seconds at which requests come at random, `rate` a second on average (Poisson)."""
    draw = random.Random(f"arrivals {seed} {rate}")
    return list(accumulate(draw.expovariate(rate) for _ in range(count)))


class TrafficMix:
    """Requests of mixed kinds and lengths; the same for the same seed, each to be sent once.

    Every batch of them has the same kinds and lengths in the same order, so that loads compare.
    From a file the conversations come again when all were sent; a server that keeps prompts then
    has less to do.
    """

    def __init__(
        self, seed: int, lengths: Sequence[int], given: Sequence[Sequence[Mapping[str, Any]]] = ()
    ) -> None:
        """
        Args:
            lengths: most tokens of an answer, one of which is drawn for each.
            given: conversations; none: held-out examples of nano's tasks, those without tools.
        """
        self._seed, self._lengths, self._given = seed, lengths, given
        self._next = 0

    def take(self, count: int) -> list[Ask]:
        """The next requests."""
        first, self._next = self._next, self._next + count
        return [self._ask(place, first + place) for place in range(count)]

    def _ask(self, place: int, number: int) -> Ask:
        draw = random.Random(f"request {self._seed} {place}")
        length = draw.choice(self._lengths)
        if self._given:
            return Ask(self._given[number % len(self._given)], length, number)
        tasks = [task for task in TASKS if task != "tools"]
        example = make_example(draw.choice(tasks), "heldout", self._seed, number)
        return Ask(example.messages, length, number)


def conversations(path: Path) -> list[list[dict[str, Any]]]:
    """The conversations of a file: on each line {"messages": [...]} or {"prompt": "..."}.

    Raises:
        InvalidRequest: it cannot be read, or a line is something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"cannot read {path}: {error}") from error
    out = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError as error:
            raise InvalidRequest(f"{path}, line {number} is not valid JSON: {error}") from error
        match found:
            case {"messages": [*messages]}:
                out.append(messages)
            case {"prompt": str(prompt)}:
                out.append([{"role": "user", "content": prompt}])
            case _:
                raise InvalidRequest(
                    f'{path}, line {number}: write {{"messages": [...]}} or {{"prompt": "..."}}'
                )
    if not out:
        raise InvalidRequest(f"{path} holds no prompt; write one on each line")
    return out
