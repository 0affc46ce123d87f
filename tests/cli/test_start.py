"""The first moments of the program: what an interrupt does before a command is at work."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from dgemma.cli import start
from tests.support.live import hear_interrupts

INTERRUPT = """
import os, signal, sys
where = sys.argv.pop()

class Interrupt:
    def find_spec(self, name, *_):
        if name == where:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from dgemma.cli.start import main
sys.argv.append("doctor")
sys.exit(main())
"""


@pytest.mark.process
@pytest.mark.fault("N 49")
@pytest.mark.parametrize(
    "module", ["argparse", "dgemma.cli.main", "dgemma.cli.doctor", "numpy", "torch.nn"]
)
def test_an_interrupt_while_starting(module: str) -> None:
    """A traceback before the command has begun, statistics of torch, an interrupt that is lost."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPT, module], capture_output=True, text=True, timeout=120,
        preexec_fn=hear_interrupts,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.fault("N 49")
def test_other_handlers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell's `nohup`, or a program that calls the command line, loses its own handler."""
    taken: list[object] = []
    monkeypatch.setattr(start.signal, "signal", lambda _, handler: taken.append(handler))
    for found, takes in ((signal.SIG_IGN, []), (signal.default_int_handler, [start.interrupted])):
        monkeypatch.setattr(start.signal, "getsignal", lambda _, found=found: found)
        start.handle_interrupts()
        assert taken == takes
    with pytest.raises(KeyboardInterrupt):
        start.interrupted(signal.SIGINT, sys._getframe())
