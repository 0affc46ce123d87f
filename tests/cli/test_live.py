"""The live view: what is painted, how wide it is, and that redrawing leaves nothing behind."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator

import pytest

from dgemma.cli import live
from dgemma.cli.live import CLEAR_BELOW, DIM, Screen, colour, paint, show, watch, width
from dgemma.compose.fill import Hole, fill
from dgemma.params import SamplingParams
from dgemma.types import Event, Output, TextDelta
from tests.support.nano import nano


class Terminal(io.StringIO):
    """A terminal of 10 columns that keeps what is written to it."""

    def isatty(self) -> bool:
        """It says that it is one."""
        return True

    def fileno(self) -> int:
        """Nobody reads from it."""
        return 1


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """10 columns, 6 lines."""
    size = os.terminal_size((10, 6))
    monkeypatch.setattr(live.os, "get_terminal_size", lambda fd: size)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def events(*texts: str) -> Iterator[Event]:
    """A frame and a commit for each text, then the end."""
    for text in texts:
        ids = tuple(map(ord, text))
        size = len(ids)
        yield Event(type="frame", ids=ids, accepted=b"\1" * size, entropy=bytes(size))
        yield Event(type="commit", ids=ids, deltas=(TextDelta(text),))
    yield Event(type="done", output=Output(text="".join(texts)))


def test_paint() -> None:
    """Text behind the end id is shown, or sure positions are dim."""
    frame = Event(type="frame", ids=(97, 98, 1, 99), accepted=b"\1\0\0\0", entropy=bytes(4))
    text = paint(frame, chr, frozenset({1}))
    assert width(text) == 2 and text.count(DIM) == 1
    assert text.index("a") < text.index(DIM) < text.index("b") and "c" not in text


def test_colours() -> None:
    """An entropy without a colour raises; a sure position looks like an unsure one."""
    codes = [colour(entropy) for entropy in range(256)]
    assert codes[0] != codes[255] and len(set(codes)) == len(live.COLOURS)


def test_rows_are_counted(terminal: Terminal) -> None:
    """The cursor goes up too far or too little: lines of the last frame stay on the screen."""
    screen = Screen(terminal)
    for text, rows in (("", 0), ("x" * 10, 0), ("x" * 11, 1), ("a\nb", 1), ("x" * 25 + "\nb", 3)):
        screen.draw(text)
        assert screen.rows == rows, text
    screen.draw("end")
    assert terminal.getvalue().endswith(f"\r\x1b[3A{live.CLEAR_BELOW}end")


def test_never_taller_than_the_terminal(terminal: Terminal) -> None:
    """Long lines that wrap scroll the screen, and every frame leaves a copy behind."""
    screen = Screen(terminal)
    screen.draw("\n".join("y" * 25 for _ in range(9)))
    assert screen.rows <= 4


def test_a_terminal_without_a_size(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that gives its size as 0 by 0 divides by zero."""
    monkeypatch.setattr(live.os, "get_terminal_size", lambda fd: os.terminal_size((0, 0)))
    screen = Screen(terminal)
    screen.draw("x" * 81)
    assert screen.rows == 1
    screen.draw("\n".join("y" * 30))
    assert screen.rows == 21


@pytest.mark.parametrize("told", ["", "ab"])
def test_an_interrupt_clears_the_draft(told: str, terminal: Terminal) -> None:
    """The message of the end is glued to a stale draft, or text that was told is lost."""

    def broken() -> Iterator[Event]:
        yield from list(events(*([told] if told else [])))[:-1]
        yield Event(type="frame", ids=(120,), accepted=b"\0", entropy=b"\0")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        show(broken(), chr, frozenset(), terminal)
    assert terminal.getvalue().split(CLEAR_BELOW)[-1] == (f"{told}\n" if told else "")


def test_end_shows_all(terminal: Terminal) -> None:
    """The beginning of a long answer is lost when the view ends."""
    text = "\n".join(f"line {k}" for k in range(20))
    output = show(events(text), chr, frozenset(), terminal)
    assert output.text == text and terminal.getvalue().endswith(text + "\n")


def test_plain_where_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe gets escape codes, or the text twice, or output redirected later is missed."""
    show(events("ab", "cd"), chr, frozenset())
    assert capsys.readouterr().out == "abcd\n"


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("NO_COLOR", "1")])
def test_terminals_that_want_no_colour(
    name: str, value: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's wish for plain text is ignored."""
    monkeypatch.setenv(name, value)
    show(events("ab"), chr, frozenset(), terminal)
    assert terminal.getvalue() == "ab\n"


def test_text_told_early_is_not_drawn_twice(terminal: Terminal) -> None:
    """What is told of a canvas that goes on stands before the frames that hold it as well."""
    part = Event(type="commit", ids=(97,), deltas=(TextDelta("a"),), whole=False)
    rest = Event(type="commit", ids=(98,), deltas=(TextDelta("b"),))
    told = list(events("ab"))
    again = [told[0], part, told[0], rest, *told[2:]]
    plain = io.StringIO()
    for stream in (plain, terminal):
        live.show(iter(again), chr, frozenset({1}), stream)
    assert plain.getvalue() == "ab\n"
    frames = terminal.getvalue().split(live.CLEAR_BELOW)[1:]
    assert len(frames) == 3 and frames[0] == frames[1]


@pytest.mark.model
@pytest.mark.parametrize("tty", [False, True])
def test_a_plan_is_watched(terminal: Terminal, tty: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches drafts of a hole that stay on the screen, or that get into a file, and a result that
    is not the plain one."""
    monkeypatch.setattr(terminal, "isatty", lambda: tty)
    params = SamplingParams(seed=1, max_steps=3, stability_threshold=9)
    parts = ["Dear ", Hole(max_tokens=2), "."]
    found = watch(nano(), fill(nano().facts, parts, params), terminal)
    assert found == nano().fill(parts, params)
    drawn = terminal.getvalue().split(CLEAR_BELOW)
    assert len(drawn) in ((5, 6) if tty else (1,))  # a step each, maybe the winner's, and none
    bare = re.sub(r"\x1b.*?m", "", "".join(drawn))
    assert drawn[-1] == "" and ("Dear" in bare) == tty


@pytest.mark.model
def test_an_interrupted_plan_leaves_no_draft(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message of the end is glued to the last draft."""
    drawn = iter(["a draft"])

    def interrupted(*_: object) -> str:
        if (text := next(drawn, None)) is None:
            raise KeyboardInterrupt
        return text

    monkeypatch.setattr(live, "paint", interrupted)
    params = SamplingParams(seed=1, max_steps=3, stability_threshold=9)
    with pytest.raises(KeyboardInterrupt):
        watch(nano(), fill(nano().facts, ["Dear ", Hole(max_tokens=2), "."], params), terminal)
    assert terminal.getvalue().endswith(f"a draft\r{CLEAR_BELOW}")
