"""Progress: redrawn on a terminal and gone at the end; elsewhere a line now and then."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable

import pytest

import dgemma
from dgemma.cli import options
from dgemma.cli.progress import LINE_EVERY_S, LINES, LogHandler, Progress, amount, duration
from tests.support.commands import Ran, Terminal

pytestmark = pytest.mark.fault("N 28")


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_terminal_has_one_line() -> None:
    """A line for every step, none at all, or one that stays behind in front of the answer."""
    stream, clock = Terminal(), Clock()
    with Progress("loading nano", show=amount, stream=stream, clock=clock) as progress:
        assert stream.lines() == ["loading nano ..."]
        for second in range(1, 5):
            clock.now = float(second)
            progress(second * 10e9, 40e9)
            progress(1e9, 50e9)  # too soon to be drawn
    assert stream.lines() == [
        "loading nano ...",
        "loading nano: 10 GB of 40 GB, about 3 s left",
        "loading nano: 20 GB of 40 GB, about 2 s left",
        "loading nano: 30 GB of 40 GB, about 1 s left",
        "loading nano: 40 GB of 40 GB",
    ]
    assert "\n" not in stream.getvalue()
    assert stream.getvalue().endswith("\r" + " " * len("loading nano: 40 GB of 40 GB") + "\r")


def test_a_file_has_lines_now_and_then() -> None:
    """Thousands of lines in a log, or none for an hour; quick work says nothing."""
    stream, clock = io.StringIO(), Clock()
    with Progress("transformers generates", at_most=True, stream=stream, clock=clock) as progress:
        for step in range(1, 97):
            clock.now += LINE_EVERY_S / 40
            progress(step, 96)
    assert stream.getvalue().splitlines() == [
        "transformers generates: 40 of at most 96, at most 21 s left",
        "transformers generates: 80 of at most 96, at most 6 s left",
    ]


def test_long_work_has_twenty_lines() -> None:
    """A night of training whose log is all progress."""
    stream, clock = io.StringIO(), Clock()
    progress = Progress("training", stream=stream, clock=clock)
    for step in range(4000):
        clock.now += LINE_EVERY_S
        progress(step + 1, 4000)
    assert len(stream.getvalue().splitlines()) == LINES


def test_each_part_has_its_own_estimate() -> None:
    """The time of the first part is taken for that of the second."""
    stream, clock = Terminal(), Clock()
    progress = Progress("one", stream=stream, clock=clock)
    clock.now = 1000.0
    progress.start("two")
    clock.now = 1010.0
    progress(1, 7)
    assert stream.lines() == ["one ...", "two ...", "two: 1 of 7, about 60 s left"]


def test_other_lines_stand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log record or a remark that is written into the middle of the line."""
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    for write in (
        options.say,
        lambda text: LogHandler().emit(logging.makeLogRecord({"msg": text})),
    ):
        Progress("loading")
        write("355 vision tensors left aside")
        assert stream.getvalue().endswith(
            "\rloading ...\r           \r355 vision tensors left aside\n"
        )


def test_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that wraps cannot be taken back."""
    monkeypatch.setenv("COLUMNS", "20")
    Progress("loading google/diffusiongemma-26B-A4B-it", stream=(stream := Terminal()))
    assert stream.lines() == ["loading google/diffu"[:19]]


@pytest.mark.parametrize(("seconds", "said"), [
    (0.2, "1 s"), (89, "89 s"), (120, "2 min"), (5300, "88 min"), (9000, "2.5 h"),
])  # fmt: skip
def test_durations(seconds: float, said: str) -> None:
    """ "7230 seconds" is nothing that a person can picture."""
    assert duration(seconds) == said


@pytest.mark.model
def test_loading_reports_all_bytes() -> None:
    """A bar that stops at a half, or passes its end."""
    said: list[tuple[int, int]] = []
    dgemma.load("nano", device="cpu", progress=lambda *told: said.append(told)).close()
    done, totals = [done for done, _ in said], {total for _, total in said}
    assert len(totals) == 1 and done == sorted(done) and done[-1] == totals.pop() > 3_000_000


@pytest.mark.model
def test_a_command_that_loads_says_so(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight silent seconds; and on a file, a line about nano, which loads at once."""
    words = ("generate", "--max-tokens", "3", "--max-steps", "1", "Hello")
    code, _, err = run(*words)
    assert (code, err) == (0, "")
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    assert run(*words)[0] == 0
    assert stream.lines()[:2] == ["loading torch ...", "loading nano ..."]
    assert stream.getvalue().endswith(" \r")
