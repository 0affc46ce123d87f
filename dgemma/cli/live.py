"""A live view of the canvas in a terminal: text solid, drafts dim, entropy as colour."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TextIO, TypeVar

from dgemma.types import ENTROPY_PER_NAT, Event, Output

if TYPE_CHECKING:
    from dgemma.compose.plan import Plan
    from dgemma.llm import LLM

T = TypeVar("T")
RESET, DIM, CLEAR_BELOW = "\x1b[0m", "\x1b[2m", "\x1b[J"
COLOURS = ((0.05, 252), (0.3, 114), (1.0, 179), (2.0, 173), (float("inf"), 167))
"""Upper bounds in nats and their colours of the 256: sure is white, unsure is red."""
LEGEND = """\
--live: a colour is how unsure the model is (white, green, yellow, orange, red);
a dim token was not accepted in this step and will be drawn again."""
LIVE = "show the drafts, if standard output is a terminal"


def is_terminal(stream: TextIO) -> bool:
    """Whether colours and redrawing make sense."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb" and "NO_COLOR" not in os.environ


def colour(entropy: int) -> int:
    """The colour of one position from `Event.entropy`."""
    nats = entropy / ENTROPY_PER_NAT
    return next(code for bound, code in COLOURS if nats <= bound)


def paint(event: Event, token_text: Callable[[int], str], end_ids: frozenset[int]) -> str:
    """A frame as coloured text up to its first end id; dim where the sample was not accepted."""
    parts = []
    for token, sure, entropy in zip(event.ids, event.accepted, event.entropy, strict=True):
        if token in end_ids:
            break
        parts.append(f"{'' if sure else DIM}\x1b[38;5;{colour(entropy)}m{token_text(token)}{RESET}")
    return "".join(parts)


class Screen:
    """Redraws one block of text in place, as tall as the terminal allows."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.rows = 0

    def draw(self, text: str) -> None:
        """Replace the last drawing."""
        size = os.get_terminal_size(self.stream.fileno())
        columns, lines = size.columns or 80, size.lines or 24  # 0: the terminal does not say
        shown: list[str] = []
        rows = 0
        for line in reversed(text.split("\n")):  # the newest lines, as many as fit
            tall = 1 + max(0, width(line) - 1) // columns
            if shown and rows + tall > lines - 2:
                break
            shown.insert(0, line)
            rows += tall
        self._replace("\n".join(shown))
        self.rows = rows - 1

    def _replace(self, text: str) -> None:
        up = f"\x1b[{self.rows}A" if self.rows else ""
        self.stream.write(f"\r{up}{CLEAR_BELOW}{text}")
        self.stream.flush()

    def end(self, text: str) -> None:
        """Write all of the final text, however tall, and leave the cursor below."""
        self._replace(text + "\n")
        self.rows = 0

    def abandon(self, text: str) -> None:
        """Clear the draft; of an answer that was broken off, only `text` stays."""
        if text:
            self.end(text)
        else:
            self.draw("")


def width(line: str) -> int:
    """Columns of a line without its colour codes (one per character)."""
    return len(re.sub(r"\x1b[^m\x1b]*m", "", line))


def show(
    events: Iterable[Event],
    token_text: Callable[[int], str],
    end_ids: frozenset[int],
    stream: TextIO | None = None,
    least_s: float = 0.0,
) -> Output:
    """Follow a stream to its end, drawing it live on a terminal or as plain text elsewhere.

    Args:
        events: of `LLM.stream`.
        token_text: the text of one id.
        end_ids: a frame's text ends before the first of these.
        stream: where to draw; None: standard output.
        least_s: least seconds a frame stays, so that a fast model can be watched.

    Returns:
        The output of the "done" event.
    """
    stream = stream or sys.stdout
    screen = Screen(stream) if is_terminal(stream) else None
    committed = emitted = ""
    try:
        for event in events:
            if event.type == "commit":
                emitted += event.text
                if event.whole:  # else the frames still show it
                    committed = emitted
            if screen is None:
                stream.write(event.text if event.type != "frame" else "")
                stream.flush()
            elif event.type == "frame":
                screen.draw(committed + paint(event, token_text, end_ids))
                time.sleep(least_s)
            if event.output is not None:
                if screen is not None:
                    screen.end(event.output.text)
                else:
                    stream.write("\n")
                return event.output
    except KeyboardInterrupt:
        if screen is not None:
            screen.abandon(committed)
        raise
    raise AssertionError("a stream ends with an output")


def watch(llm: LLM, plan: Plan[T], stream: TextIO | None = None) -> T:
    """Run a plan, drawing its canvases on a terminal; nothing of them stays.

    Returns:
        The plan's result.
    """
    stream = stream or sys.stdout
    screen = Screen(stream) if is_terminal(stream) else None
    token_text, end_ids = llm.frontend.tokenizer.token_text, frozenset(llm.facts.end_ids)
    events = llm.stream_plan(plan)
    try:
        for event in events:
            if screen is not None and event.type == "frame" and event.event is not None:
                screen.draw(paint(event.event, token_text, end_ids))
    finally:
        if screen is not None:
            screen.abandon("")
    return events.result()
