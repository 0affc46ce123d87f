"""A process that renders strangers' Markdown for a server: `python -m` this module.

A text may take a parser of code or of formulae all time or memory; here it takes this process
alone, which gives way to the engine. See `dgemma.constrain.compile_process`, whose loop it runs.
"""

from __future__ import annotations

import os
from typing import Any

from dgemma.constrain.compile_process import Answer, run
from dgemma.server.render import render

WARM = "`a` $x$\n```python\n1\n```\n"
"""A text that loads what the first request would wait for."""


def make(_: dict[str, Any]) -> Answer:
    """What answers: the kind is always "markdown", the value is the text."""
    if hasattr(os, "nice"):
        os.nice(10)
    render(WARM)
    return lambda kind, value: {"html": render(value)}


if __name__ == "__main__":
    run(make)
