"""An answer as text for a terminal: thoughts, tool calls and text apart, drafts in colours."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dgemma.cli.cells import clean
from dgemma.params import SamplingParams
from dgemma.text.calls import QUOTE
from dgemma.text.parse import MarkerIds, StreamParser, thought_is_open
from dgemma.types import (
    ENTROPY_PER_NAT,
    Delta,
    Event,
    InvalidToolCall,
    TextDelta,
    ThoughtDelta,
    ToolCall,
    Verdict,
)

if TYPE_CHECKING:
    from dgemma.text.tokenizer import Tokenizer

RESET, BOLD, DIM = "\x1b[0m", "\x1b[1m", "\x1b[2m"
COLOURS = ((0.05, 252), (0.3, 114), (1.0, 179), (2.0, 173), (float("inf"), 167))
"""Upper bounds in nats and their colours of the 256: sure is white, unsure is red."""


def wants_colour() -> bool:
    """Whether the user lets programs use colours; see https://no-color.org."""
    return not os.environ.get("NO_COLOR")


def colour(entropy: int) -> int:
    """The colour of one position from `Event.entropy`."""
    nats = entropy / ENTROPY_PER_NAT
    return next(code for bound, code in COLOURS if nats <= bound)


def style(accepted: int, entropy: int) -> str:
    """The style of one position of a draft: dim if the step did not accept it, and its colour."""
    tint = f"\x1b[38;5;{colour(entropy)}m" if wants_colour() else ""
    return ("" if accepted else DIM) + tint


def call_text(call: ToolCall | InvalidToolCall) -> str:
    """A tool call in one line."""
    if isinstance(call, InvalidToolCall):
        text = call.text.removeprefix("call:").replace(QUOTE, '"')
        return f"[invalid call] {text} ({call.error})"
    return f"[call] {call.name}({json.dumps(dict(call.arguments), ensure_ascii=False)})"


class Transcript:
    """Deltas of an answer as lines to read: the thought, a line for each call, the text."""

    def __init__(self, *, dim: bool = False, terminal: bool = False) -> None:
        """
        Args:
            dim: thoughts are dim.
            terminal: leave out what would steer a terminal; else a text is given as it is.
        """
        self._dim = dim
        self._clean = clean if terminal else str
        self._thinking = False
        self._line_begun = False

    def copy(self) -> Transcript:
        """Another one that goes on from here."""
        return copy.copy(self)

    def add(self, deltas: Sequence[Delta], style: str = "") -> str:
        """What follows on the text so far, each piece in this style."""
        return "".join(self._piece(delta, style) for delta in deltas)

    def _piece(self, delta: Delta, style: str) -> str:
        before = ""
        if self._thinking and not isinstance(delta, ThoughtDelta):
            before, self._thinking, self._line_begun = "\n\n", False, False
        if isinstance(delta, ThoughtDelta):
            text = self._clean(delta.text)
            if not self._thinking:
                text = f"{self._new_line()}[thought] {text}"
            self._thinking, self._line_begun = True, True
            style += DIM if self._dim else ""
        elif isinstance(delta, TextDelta):
            text = self._clean(delta.text)
            self._line_begun = not text.endswith("\n")
        else:
            text = f"{self._new_line()}{self._clean(call_text(delta.call))}\n"
            self._line_begun = False
        return before + (f"{style}{text}{RESET}" if style else text)

    def _new_line(self) -> str:
        return "\n" if self._line_begun else ""

    def end(self) -> str:
        """What ends the last line."""
        return self._new_line()


def verdict_text(verdict: Verdict, discarded: int = 0) -> str:
    """The encoder's verdict in one line, with the steps of discarded tries apart."""
    count, differ = len(verdict.logprobs), len(verdict.disagreements)
    rest = f"{discarded} more discarded, " if discarded else ""
    rest += "converged" if verdict.converged else "not converged"
    if verdict.below:
        rest += f", {verdict.below} unlikely in every try"
    return (
        f"verdict: log-probability {verdict.mean:.3f} a token, {verdict.minimum:.3f} at least; "
        f"{differ} of {count} tokens not the first choice; {verdict.steps} steps, {rest}"
    )


class Painter:
    """Reads the ids of an answer, and paints the drafts of the canvas that is at work."""

    def __init__(
        self, tokenizer: Tokenizer, end_ids: Sequence[int], prompt: Sequence[int] | None = None,
        params: SamplingParams | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            tokenizer, end_ids: of the model.
            prompt: the ids of a conversation; None: the answer is plain text.
            params: of the answer, the checkpoint's own among them: how often a canvas is begun.
        """
        params = params or SamplingParams()
        self._tries, self._race = params.most_tries, params.race or 1
        self._restarted = (-1, -1)  # the request and the canvas that was begun anew
        is_open = prompt is not None and thought_is_open(MarkerIds.of(tokenizer), prompt)
        self._parser = StreamParser(tokenizer, chat=prompt is not None, thought_open=is_open)
        self._end_ids = frozenset(end_ids)
        self._transcript = Transcript(dim=True, terminal=True)
        self._pending: list[int] = []
        self._text = ""

    def commit(self, event: Event) -> None:
        """Take in the ids of a "commit" event; the frames show them until their canvas is over."""
        self._pending += event.ids
        if event.whole:
            self._text += self._transcript.add(self._parser.push(self._pending))
            self._pending = []

    def draft(self, event: Event) -> str:
        """The text so far, and a "frame" event up to its first end id."""
        transcript = self._transcript.copy()
        text = self._text + "".join(transcript.add(*piece) for piece in self.pieces(event))
        return text + self._try(event)

    def _try(self, event: Event) -> str:
        """The try, on a line of its own, once the canvas was begun anew. The canvases of a race
        are one try: which of them leads may change with every step."""
        number, where = event.attempt // self._race, (event.index, event.canvas)
        if number:
            self._restarted = where
        if self._restarted != where:
            return ""
        return f"\n{DIM}try {number + 1} of {self._tries}{RESET}"

    def pieces(self, event: Event) -> Iterator[tuple[list[Delta], str]]:
        """What each position of a frame adds, and its style."""
        parser = self._parser.copy()
        for token, sure, entropy in zip(event.ids, event.accepted, event.entropy, strict=True):
            if token in self._end_ids:
                break
            if deltas := parser.push([token]):
                yield deltas, style(sure, entropy)
