"""The log's lines: with a time and the path that was asked for, for programs and for people."""

from __future__ import annotations

import io
import json
import logging
import re

import pytest

from dgemma.server.log import LONGEST_PATH, JSONLines, Readable, set_format, shown_path
from tests.support.client import serve

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def record(**fields: object) -> logging.LogRecord:
    """A line of the log; of a request if it has fields."""
    made = logging.LogRecord("dgemma.server", logging.WARNING, "", 0, "some %s", ("words",), None)
    if fields:
        made.fields = fields
    return made


@pytest.mark.fault("N 43")
def test_lines_for_programs_have_a_time() -> None:
    """Catches a log of which nobody knows when."""
    for line in (record(), record(status=200, path="/health")):
        found = json.loads(JSONLines().format(line))
        assert STAMP.fullmatch(found.pop("time"))
        assert found in (
            {"level": "warning", "message": "some words"},
            {"status": 200, "path": "/health"},
        )


@pytest.mark.fault("N 43")
def test_lines_for_people() -> None:
    """Catches JSON in a terminal, and a line that leaves out what it knows."""
    assert re.fullmatch(r"\d\d:\d\d:\d\d warning: some words", Readable().format(record()))
    fields = {"request_id": "req_1", "method": "GET", "route": "/health", "path": "/health",
              "status": 200, "ms": 1.5, "owner": "", "prompt_tokens": 3}  # fmt: skip
    said = Readable().format(record(**fields))
    assert said[9:] == "200 GET /health 1.5 ms request_id=req_1 prompt_tokens=3"


@pytest.mark.fault("N 43")
def test_a_terminal_gets_the_readable_form() -> None:
    """Catches a form that does not follow the stream, and another stream's that changes too."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    root = logging.getLogger()
    streams = [Terminal(), io.StringIO(), io.StringIO()]
    handlers = [logging.StreamHandler(stream) for stream in streams]
    for handler in handlers:
        root.addHandler(handler)
    try:
        for stream in streams[:2]:
            set_format(stream)
        logging.getLogger("dgemma.server").warning("hello")
    finally:
        for handler in handlers:
            root.removeHandler(handler)
    terminal, plain, other = (stream.getvalue() for stream in streams)
    assert terminal.endswith(" warning: hello\n") and other == "hello\n"
    assert json.loads(plain)["message"] == "hello"


@pytest.mark.fault("N 43")
def test_paths_in_the_log_are_short_and_plain() -> None:
    """Catches a path that moves a terminal's cursor, breaks a line, or fills the log."""
    assert shown_path("/v1/\x1b[2J\n\u202eabc") == r"/v1/\x1b[2J\n\u202eabc"
    for path in ("/" * 5000, "\u6f22" * 5000, "'\"" * 99):
        shown = shown_path(path)
        assert len(shown) == LONGEST_PATH and shown.isascii() and shown.isprintable()


@pytest.mark.model
@pytest.mark.fault("N 43")
def test_the_path_that_was_asked_for_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Catches a 404 of which the log says no more than "other"."""
    with caplog.at_level(logging.INFO, "dgemma.server"):
        serve().get("/v2/%1b%5b2Jchat?secret=1")
    [line] = [json.loads(one.message) for one in caplog.records]
    assert (line["status"], line["route"]) == (404, "other")
    assert line["path"] == r"/v2/\x1b[2Jchat" and "secret" not in caplog.text
