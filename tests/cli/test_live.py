"""The live view: what is painted, and that redrawing leaves nothing behind."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from dgemma.cli import live, paint
from dgemma.cli.live import Screen, show, watch
from dgemma.cli.paint import Painter, Transcript, colour
from dgemma.compose.fill import Hole, fill
from dgemma.params import DEFAULT_TRIES, SamplingParams
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import (
    Event,
    InvalidToolCall,
    InvalidToolCallDelta,
    Output,
    TextDelta,
    ThoughtDelta,
    ToolCall,
    ToolCallDelta,
)
from dgemma.weights.find import bundled_models
from tests.support import terminal as emulator
from tests.support.nano import nano
from tests.support.terminal import Terminal

JAPANESE = "日本語の文章を書いています。" * 3
TURN = 106


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Of the bundled model; it spells what it does not know in bytes."""
    return Tokenizer.from_directory(bundled_models()["nano"])


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], Terminal]:
    """Makes a terminal of a size; the program asks it for that."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def terminal(columns: int = 80, height: int = 24) -> Terminal:
        made = Terminal(columns, height)
        monkeypatch.setattr(
            live.os, "get_terminal_size", lambda fd: os.terminal_size((made.columns, made.height))
        )
        return made

    return terminal


def frame(ids: list[int], accepted: bytes = b"", entropy: bytes = b"") -> Event:
    """A step that accepted all, unless it says otherwise."""
    size = len(ids)
    return Event(type="frame", ids=tuple(ids), accepted=accepted or b"\1" * size,
                 entropy=entropy or bytes(size))  # fmt: skip


def events(tokenizer: Tokenizer, *texts: str) -> Iterator[Event]:
    """A frame and a commit for each text, then the end."""
    for text in texts:
        ids = tokenizer.encode(text)
        yield frame(ids)
        yield Event(type="commit", ids=tuple(ids), deltas=(TextDelta(text),))
    yield Event(type="done", output=Output(text="".join(texts)))


def plain(tokenizer: Tokenizer) -> Painter:
    """A painter of plain text."""
    return Painter(tokenizer, (TURN,))


def test_a_draft(tokenizer: Tokenizer, make: Callable[..., Terminal]) -> None:
    """Text after the end id is shown, or accepted positions are dim, or unsure ones look sure."""
    terminal = make()
    ids = [*tokenizer.encode("a"), *tokenizer.encode("b"), TURN, *tokenizer.encode("c")]
    text = plain(tokenizer).draft(frame(ids, b"\1\0\0\0", bytes([0, 255, 0, 0])))
    Screen(terminal).draw(text)
    assert terminal.lines() == ["ab"]
    sure, unsure = terminal.styles("ab")
    assert (sure, unsure) == ("38;5;252", "2;38;5;167")


@pytest.mark.fault("N 16")
def test_without_colours_a_draft_still_shows_what_is_open(
    tokenizer: Tokenizer, make: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NO_COLOR switches the whole live view off, not its colours."""
    terminal = make()
    monkeypatch.setenv("NO_COLOR", "1")
    ids = [*tokenizer.encode("a"), *tokenizer.encode("b")]
    text = plain(tokenizer).draft(frame(ids, b"\1\0", bytes([0, 255])))
    Screen(terminal).draw(text)
    assert terminal.styles("ab") == ["", "2"]
    show(events(tokenizer, "ab", "cd"), plain(tokenizer), terminal)
    assert "38;5" not in terminal.getvalue() and live.CLEAR_BELOW in terminal.getvalue()


def test_colours() -> None:
    """An entropy without a colour raises; a sure position looks like an unsure one."""
    codes = [colour(entropy) for entropy in range(256)]
    assert codes[0] != codes[255] and len(set(codes)) == len(paint.COLOURS)


def test_a_character_of_several_tokens(tokenizer: Tokenizer, make: Callable[..., Terminal]) -> None:
    """A draft shows the bytes of a character one by one, as unknown ones."""
    ids = tokenizer.encode("日本")
    assert len(ids) > 2
    terminal = make()
    Screen(terminal).draw(plain(tokenizer).draft(frame(ids)))
    assert terminal.lines() == ["日本"]


@pytest.mark.fault("N 17")
@pytest.mark.parametrize("columns", [80, 79, 50, 9])
def test_wide_characters_leave_no_copies(columns: int, make: Callable[..., Terminal]) -> None:
    """The rows of a drawing are miscounted, and each drawing leaves a stale one above it."""
    terminal = make(columns, 24)
    terminal.write("> go\n")
    screen = Screen(terminal)
    for k in range(12):
        screen.draw(JAPANESE + "x" * k)
    assert "".join(terminal.everything()) == "> go" + JAPANESE + "x" * 11
    screen.end(f"{JAPANESE}\n")
    assert "".join(terminal.everything()) == "> go" + JAPANESE


@pytest.mark.fault("N 17")
def test_a_terminal_with_other_widths(
    make: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One character that this terminal takes for wide shifts every drawing by a row."""
    ours = emulator.columns_of
    monkeypatch.setattr(emulator, "columns_of", lambda c: 2 if c in "…①" else ours(c))
    terminal = make(20, 10)
    screen = Screen(terminal)
    for k in range(6):
        screen.draw("…①" * 10 + "\n" + "y" * k)
    assert terminal.everything()[1:] == ["y" * 5] and "…" in terminal.everything()[0]


@pytest.mark.fault("N 17")
def test_a_narrower_terminal(make: Callable[..., Terminal]) -> None:
    """The terminal breaks what it shows anew, and rows of the last drawing stay."""
    terminal = make(80, 24)
    terminal.write("> go\n")
    screen = Screen(terminal)
    for columns in (80, 50, 33, 80, 60):
        terminal.resize(columns, 24)
        screen.draw(f"{'x' * 70}\n{JAPANESE}\nend")
        assert "".join(terminal.everything()) == f"> go{'x' * 70}{JAPANESE}end"


def test_never_taller_than_the_terminal(make: Callable[..., Terminal]) -> None:
    """A long text scrolls the screen, and every frame leaves a copy behind."""
    terminal = make(10, 6)
    screen = Screen(terminal)
    for k in range(5):
        screen.draw("\n".join(f"{n} {'y' * 12}" for n in range(9)) + str(k))
    assert not terminal.above
    assert terminal.lines() == ["yyyy", "7 yyyyyyyy", "yyyy", "8 yyyyyyyy", "yyyy4"]


def test_a_terminal_without_a_size(make: Callable[..., Terminal]) -> None:
    """A terminal that gives its size as 0 by 0 divides by zero."""
    screen = Screen(terminal := make())
    terminal.columns = terminal.height = 0
    assert screen.size() == (80, 24)


def test_end_shows_all(tokenizer: Tokenizer, make: Callable[..., Terminal]) -> None:
    """The beginning of a long answer is lost when the view ends, or a line of it is broken."""
    text = "\n".join(f"line {k}" for k in range(20)) + " and more"
    terminal = make(12, 6)
    output = show(events(tokenizer, text), plain(tokenizer), terminal)
    assert output.text == text and terminal.getvalue().endswith(f"{text}\n")
    assert terminal.everything() == [*text.split("\n")[:-1], "line 19 and", "more", ""]


def test_plain_where_no_terminal(tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe gets escape codes, or the text twice, or output redirected later is missed."""
    show(events(tokenizer, "ab", "cd"), plain(tokenizer))
    assert capsys.readouterr().out == "abcd\n"


@pytest.mark.fault("N 16")
def test_a_terminal_that_cannot_redraw(
    tokenizer: Tokenizer, make: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TERM=dumb gets control sequences, or nothing."""
    terminal = make()
    monkeypatch.setenv("TERM", "dumb")
    show(events(tokenizer, "ab"), plain(tokenizer), terminal)
    assert terminal.getvalue() == "ab\n"


def test_text_told_early_is_not_drawn_twice(
    tokenizer: Tokenizer, make: Callable[..., Terminal]
) -> None:
    """What is told of a canvas that goes on stands before the frames that hold it as well."""
    first, second = tokenizer.encode("a"), tokenizer.encode("b")
    part = Event(type="commit", ids=tuple(first), deltas=(TextDelta("a"),), whole=False)
    rest = Event(type="commit", ids=tuple(second), deltas=(TextDelta("b"),))
    step = frame([*first, *second])
    told = [step, part, step, rest, frame(tokenizer.encode("c")),
            Event(type="done", output=Output(text="ab"))]  # fmt: skip
    terminal, pipe = make(), io.StringIO()
    for stream in (pipe, terminal):
        show(iter(told), plain(tokenizer), stream)
    assert pipe.getvalue() == "ab\n"
    frames = [emulator.CONTROL.sub("", text) for text in
              terminal.getvalue().split(live.CLEAR_BELOW)]  # fmt: skip
    assert [text.strip() for text in frames[1:]] == ["ab", "ab", "abc", "ab"]


@pytest.mark.parametrize("told", ["", "ab"])
def test_an_interrupt_clears_the_draft(
    told: str, tokenizer: Tokenizer, make: Callable[..., Terminal]
) -> None:
    """The message of the end is glued to a stale draft, or text that was told is lost."""

    def broken() -> Iterator[Event]:
        yield from list(events(tokenizer, *([told] if told else [])))[:-1]
        yield frame(tokenizer.encode("x"))
        raise KeyboardInterrupt

    terminal = make()
    with pytest.raises(KeyboardInterrupt):
        show(broken(), plain(tokenizer), terminal)
    assert terminal.lines() == ([told, ""] if told else [""])


@pytest.mark.fault("N 15", "N 19")
def test_thought_calls_and_text_are_apart(
    tokenizer: Tokenizer, make: Callable[..., Terminal]
) -> None:
    """A thought is gone once it is over; a call, or the markers of a broken one, stand as text."""

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, control=True)

    answer = ids('<|channel>thought\n1<2<channel|>yes<|tool_call>call:f{a:<|"|>x<|"|>}<tool_call|>')
    broken = ids('<|tool_call>call:f{a:<|"|>x<tool_call|>no')
    painter = Painter(tokenizer, (TURN,), prompt=ids("<|turn>"))
    told = (
        ThoughtDelta("1<2"), TextDelta("yes"),
        ToolCallDelta(0, ToolCall(name="f", arguments={"a": "x"})),
        InvalidToolCallDelta(
            0, InvalidToolCall(text='call:f{a:<|"|>x', error="a string is not closed")
        ),
        TextDelta("no"),
    )  # fmt: skip
    seen = [
        "[thought] 1<2", "", "yes", '[call] f({"a": "x"})',
        '[invalid call] f{a:"x (a string is not closed)', "no",
    ]  # fmt: skip
    terminal = make()
    Screen(terminal).draw(painter.draft(frame([*answer, *broken])))
    assert terminal.lines() == seen
    terminal = make()
    done = [frame([*answer, *broken]), Event(type="commit", ids=(*answer, *broken), deltas=told),
            Event(type="done", output=Output())]  # fmt: skip
    show(iter(done), painter, terminal)
    assert terminal.lines() == [*seen, ""]
    assert terminal.styles("1<2") == ["2"] * 3 and terminal.styles("yes") == [""] * 3
    pipe = io.StringIO()
    show(iter(done), painter, pipe)
    assert pipe.getvalue().splitlines() == seen


def test_a_thought_alone_ends_its_line() -> None:
    """What follows is glued to a thought that no answer came after."""
    transcript = Transcript()
    assert transcript.add([ThoughtDelta("a"), ThoughtDelta("b")]) == "[thought] ab"
    assert transcript.end() == "\n"


@pytest.mark.fault("N 13")
def test_an_interrupt_waits_for_the_end_of_a_drawing(
    make: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a drawing is on the screen, of a height that nobody knows."""
    screen = Screen(terminal := make())
    write = terminal.write

    def interrupted(text: str) -> int:
        signal.raise_signal(signal.SIGINT)
        return write(text)

    monkeypatch.setattr(terminal, "write", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            screen.draw("a\nb")
    finally:
        signal.signal(signal.SIGINT, before)
    assert terminal.lines() == screen.drawn == ["a", "b"]


def test_a_text_does_not_steer_the_terminal(
    tokenizer: Tokenizer, make: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model's text clears the screen; or a file gets another text than the model wrote."""
    text = "a\x1b[2J\x07b"
    terminal, pipe = make(), io.StringIO()
    show(events(tokenizer, text), plain(tokenizer), terminal)
    monkeypatch.setenv("TERM", "dumb")
    show(events(tokenizer, text), None, terminal)
    assert terminal.lines() == ["a�[2J�b"] * 2 + [""]
    show(events(tokenizer, text), None, pipe)
    assert pipe.getvalue() == f"{text}\n"


@pytest.mark.model
@pytest.mark.parametrize("tty", [False, True])
def test_a_plan_is_watched(
    make: Callable[..., Terminal], tty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches drafts of a hole that stay on the screen, or that get into a file, and a result that
    is not the plain one."""
    terminal = make()
    monkeypatch.setattr(terminal, "isatty", lambda: tty)
    params = SamplingParams(seed=1, max_steps=3, stability_threshold=9)
    parts = ["Dear ", Hole(max_tokens=2), "."]
    found = watch(nano(), fill(nano().facts, parts, params), params, terminal)
    assert found == nano().fill(parts, params)
    drawn = terminal.getvalue().split(live.CLEAR_BELOW)
    assert len(drawn) in ((5, 6) if tty else (1,))  # a step each, maybe the winner's, and none
    bare = emulator.CONTROL.sub("", "".join(drawn))
    assert terminal.lines() == [""] and ("Dear" in bare) == tty


@pytest.mark.model
def test_an_interrupted_plan_leaves_no_draft(
    make: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message of the end is glued to the last draft."""
    drawn = iter(["a draft"])

    def interrupted(*_: object) -> str:
        if (text := next(drawn, None)) is None:
            raise KeyboardInterrupt
        return text

    terminal = make()
    monkeypatch.setattr(Painter, "draft", interrupted)
    params = SamplingParams(seed=1, max_steps=3, stability_threshold=9)
    with pytest.raises(KeyboardInterrupt):
        plan = fill(nano().facts, ["Dear ", Hole(max_tokens=2), "."], params)
        watch(nano(), plan, params, terminal)
    assert "a draft" in terminal.getvalue() and terminal.lines() == [""]


def attempts(painter: Painter, *numbers: tuple[int, int]) -> list[str]:
    """The line below the draft of each canvas and attempt."""
    drawn = [painter.draft(replace(frame([5]), canvas=c, attempt=a)) for c, a in numbers]
    return [emulator.CONTROL.sub("", text).partition("\n")[2] for text in drawn]


def test_the_try_is_told(tokenizer: Tokenizer) -> None:
    """A canvas that is begun anew looks like one that went wrong; or the line comes and goes while
    the best try goes on; or it stays with the next canvas."""
    own = Painter(tokenizer, (TURN,), params=SamplingParams(restart_after=3, tries=3))
    told = attempts(own, (0, 0), (0, 1), (0, 2), (0, 0), (1, 0))
    assert told == ["", "try 2 of 3", "try 3 of 3", "try 1 of 3", ""]
    usual = Painter(tokenizer, (TURN,), params=SamplingParams(restart_after=3))
    assert attempts(usual, (0, 1)) == [f"try 2 of {DEFAULT_TRIES}"]


def test_a_race_is_one_try(tokenizer: Tokenizer, make: Callable[..., Terminal]) -> None:
    """The line flickers, since another canvas of the race leads after every step."""
    own = Painter(tokenizer, (TURN,), params=SamplingParams(race=4, tries=2))
    assert attempts(own, (0, 0), (0, 3), (0, 1)) == ["", "", ""]
    assert attempts(own, (0, 4), (0, 7), (0, 5)) == ["try 2 of 2"] * 3
    terminal = make()
    steps = [replace(frame(tokenizer.encode(text)), attempt=a) for text, a in
             (("ab", 0), ("cd", 3), ("ef", 6), ("gh", 1))]  # fmt: skip
    done = Event(type="done", output=Output(text="gh"))
    end = Event(type="commit", ids=tuple(tokenizer.encode("gh")), deltas=(TextDelta("gh"),))
    show([*steps, end, done], Painter(tokenizer, (TURN,), params=SamplingParams(race=4)), terminal)
    assert terminal.everything() == ["gh", ""]
