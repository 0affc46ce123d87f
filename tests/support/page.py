"""What a person does on the page, for tests in a browser.

Knows the page's labels. Knows nothing about what a test expects.
"""

from __future__ import annotations

import re
from typing import Any

WAIT_MS = 60_000
"""How long a test waits for the page: a busy machine is not a bug."""


def open_lab(page: Any, pace: str = "0") -> None:
    """The Lab, which shows the newest pass unless another pace is given."""
    page.add_init_script(f"localStorage.setItem('dgemma.pace', '{pace}')")
    page.goto("/#/lab")
    page.get_by_label("Prompt").wait_for()


def ask(page: Any, text: str = "a cat") -> None:
    """Run a prompt."""
    page.get_by_label("Prompt").fill(text)
    page.get_by_label("Prompt").press("Enter")


def assert_shows(page: Any, selector: str, text: str | re.Pattern[str]) -> None:
    """Until an element that is seen has some text."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_contain_text(text, timeout=WAIT_MS)


def grid(page: Any) -> list[str]:
    """The texts of the cells."""
    return page.locator("[role=option]:not([hidden])").all_text_contents()
