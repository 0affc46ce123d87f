"""The browser of the tests of the page: where it is, how it starts, and why there is none.

Knows Playwright. Knows nothing about the page.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = ("--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--no-first-run",
             "--disable-quic")  # fmt: skip


class NoBrowser(Exception):
    """There is none, or nothing to drive it with; the message names the remedy."""


def on_path() -> str | None:
    """The browser that the user names or has installed; None: perhaps Playwright brought one."""
    return os.environ.get("DGEMMA_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def browser() -> Iterator[Any]:
    """A running browser.

    Raises:
        NoBrowser: see there.
    """
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise NoBrowser("Playwright is missing: pip install 'dgemma[browser]'") from error
    with sync_playwright() as playwright:
        try:
            found = playwright.chromium.launch(executable_path=on_path(), args=list(ARGUMENTS))
        except Error as error:
            raise NoBrowser("no Chromium starts here: make browser") from error
        yield found
        found.close()
