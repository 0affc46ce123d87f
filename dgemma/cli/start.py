"""The program `dgemma` from its first line on: an interrupt ends it with one line, at any time.

While modules are imported an exception would be lost or half caught: torch, for one, swallows some
and reports others at the exit. So an interrupt then ends the process at once; nothing is begun yet
that would have to be tidied up. Later it is a `KeyboardInterrupt` as usual.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

IMPORTING = "<frozen importlib._bootstrap>"
"""The file of Python's own frames while a module is imported."""
INTERRUPTED = 130


def leave(*_: object) -> NoReturn:
    """End the process now, in one line."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def interrupted(number: int, frame: FrameType | None) -> None:
    """The handler of an interrupt."""
    while frame is not None:
        if frame.f_code.co_filename == IMPORTING:
            leave()
        frame = frame.f_back
    raise KeyboardInterrupt


def handle_interrupts() -> None:
    """Take over Python's own handler; any other stays, and so does a shell's "ignore"."""
    mine = threading.current_thread() is threading.main_thread()
    if mine and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupted)


def main() -> int:
    """Run the command line of this process; returns the exit code."""
    handle_interrupts()
    from dgemma.cli.main import main as run

    code = run()
    if signal.getsignal(signal.SIGINT) is interrupted:  # Python's own end prints tracebacks
        signal.signal(signal.SIGINT, leave)
    return code
