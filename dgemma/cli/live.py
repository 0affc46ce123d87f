"""A live view of the canvas in a terminal: text solid, drafts dim, entropy as colour."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, TextIO, TypeVar

from dgemma.cli.cells import rows, width
from dgemma.cli.keys import unseen_keys
from dgemma.cli.paint import Painter, Transcript
from dgemma.params import SamplingParams
from dgemma.types import Event, Output

if TYPE_CHECKING:
    from dgemma.compose.plan import Plan
    from dgemma.llm import LLM

T = TypeVar("T")
CLEAR_BELOW, WRAP, NO_WRAP = "\x1b[J", "\x1b[?7h", "\x1b[?7l"
LEGEND = """\
--live: a colour is how unsure the model is (white, green, yellow, orange, red);
a dim token was not accepted in this step and will be drawn again."""
LIVE = "show the drafts, if standard output is a terminal"


def redraws(stream: TextIO) -> bool:
    """Whether a stream is a terminal on which text can be drawn again."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


class Screen:
    """Redraws one block of text in place, as tall as the terminal allows.

    It breaks the rows itself, with the terminal's own wrapping off: a character that the terminal
    takes for wider than we do cannot make the block taller, and leave stale rows behind.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.drawn: list[str] = []

    def size(self) -> tuple[int, int]:
        """Columns and lines of the terminal."""
        size = os.get_terminal_size(self.stream.fileno())
        return size.columns or 80, size.lines or 24  # 0: the terminal does not say

    def draw(self, text: str) -> None:
        """Replace the last drawing by the newest rows of this text, as many as fit."""
        columns, lines = self.size()
        shown = rows(text, columns)[-max(1, lines - 1) :]
        self._replace(NO_WRAP + "\n".join(shown) + WRAP, shown, columns)

    def _replace(self, text: str, shown: list[str], columns: int) -> None:
        # Most terminals break the rows that they show anew when they become narrower.
        tall = sum(max(1, -(-width(row) // columns)) for row in self.drawn)
        up = f"\x1b[{tall - 1}A" if tall > 1 else ""
        with uninterrupted():
            self.stream.write(f"\r{up}{CLEAR_BELOW}{text}")
            self.stream.flush()
            self.drawn = shown

    def end(self, text: str) -> None:
        """Write all of the final text, however tall, as it is; `text` ends with its own line."""
        self._replace(text, [], self.size()[0])


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """An interrupt waits for the end: half a drawing could not be replaced any more."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    waiting: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if waiting:
            handler(*waiting[0])


def show(
    events: Iterable[Event],
    painter: Painter | None = None,
    stream: TextIO | None = None,
    least_s: float = 0.0,
) -> Output:
    """Follow a stream to its end and write the answer as it comes.

    Args:
        events: of `LLM.stream`.
        painter: draws the drafts live, on a terminal that can redraw; None: no drafts.
        stream: where to write; None: standard output.
        least_s: least seconds a frame stays, so that a fast model can be watched.

    Returns:
        The output of the "done" event.
    """
    stream = stream or sys.stdout
    screen = Screen(stream) if painter is not None and redraws(stream) else None
    transcript, told, output = Transcript(dim=redraws(stream), terminal=stream.isatty()), "", None
    with unseen_keys() if screen is not None else contextlib.nullcontext():
        try:
            for event in events:
                if event.type == "frame":
                    if screen is not None and painter is not None:
                        screen.draw(painter.draft(event))
                        time.sleep(least_s)
                    continue
                piece = transcript.add(event.deltas)
                told += piece
                if screen is None:
                    stream.write(piece)
                    stream.flush()
                elif painter is not None and event.type == "commit":
                    painter.commit(event)
                output = event.output
        finally:  # also if it is interrupted: of the draft nothing stays
            if screen is not None:
                screen.end(told + transcript.end())
            else:
                stream.write(transcript.end())
    assert output is not None, "a stream ends with an output"
    if not told:
        stream.write("\n")
    return output


def watch(llm: LLM, plan: Plan[T], params: SamplingParams, stream: TextIO | None = None) -> T:
    """Run a plan, drawing its canvases on a terminal; nothing of them stays.

    Args:
        params: of the plan.
        stream: where to draw; None: standard output.

    Returns:
        The plan's result.
    """
    stream = stream or sys.stdout
    screen = Screen(stream) if redraws(stream) else None
    painter = Painter(llm.frontend.tokenizer, llm.facts.end_ids, params=params.merged(llm.defaults))
    events = llm.stream_plan(plan)
    if screen is None:
        return events.result()
    with unseen_keys():
        try:
            for event in events:
                if event.type == "frame" and event.event is not None:
                    screen.draw(painter.draft(event.event))
        finally:
            screen.end("")
    return events.result()
