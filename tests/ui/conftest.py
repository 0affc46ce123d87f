"""The page in a real browser: one browser and one scripted server for all tests of a process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.browser import NoBrowser, browser
from tests.support.page import WAIT_MS
from tests.ui.fake import Fake, serving


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser and the loop that Playwright keeps. Skips where there is none, fails in CI."""
    with ExitStack() as stack:
        try:
            found = stack.enter_context(browser())
        except NoBrowser as error:
            if os.environ.get("CI"):
                pytest.fail(str(error))
            pytest.skip(str(error))
        loop = asyncio.get_running_loop()
        asyncio._set_running_loop(None)
        yield found, loop
        asyncio._set_running_loop(loop)


@pytest.fixture(scope="session")
def fake_server() -> Iterator[Fake]:
    """The scripted server."""
    with serving() as fake:
        yield fake


@pytest.fixture
def fake(fake_server: Fake) -> Fake:
    """The scripted server, without what an earlier test has set."""
    fake_server.reset()
    return fake_server


@pytest.fixture
def driven(chromium: Any) -> Iterator[Any]:
    """The browser, while Playwright's loop runs: it is put aside between tests, as no other test
    could call `asyncio.run` under it."""
    found, loop = chromium
    asyncio._set_running_loop(loop)
    yield found
    asyncio._set_running_loop(None)


@pytest.fixture
def context(driven: Any, fake: Fake) -> Iterator[Any]:
    """A fresh profile, 1,280 by 900."""
    made = driven.new_context(base_url=fake.url, viewport={"width": 1280, "height": 900})
    made.set_default_timeout(WAIT_MS)
    yield made
    made.close()


@pytest.fixture
def complaints() -> list[str]:
    """What the console said that is wrong. A test that provokes it clears the list."""
    return []


@pytest.fixture(scope="session")
def kept() -> dict[str, Any]:
    """What is made once: the blank page and what its console said."""
    return {}


@pytest.fixture
def page(context: Any, complaints: list[str]) -> Iterator[Any]:
    """A tab. The test fails if the console has errors or warnings, of CSP or of ours."""
    tab = context.new_page()
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on(
        "console",
        lambda said: said.type in ("error", "warning") and complaints.append(said.text),
    )
    yield tab
    assert complaints == []


@pytest.fixture
def blank(driven: Any, fake: Fake, kept: dict[str, Any]) -> Iterator[Any]:
    """An empty page under the page's headers, for tests of modules; one for all of them."""
    if not kept:
        tab = driven.new_context(base_url=fake.url).new_page()
        kept.update(page=tab, said=[])
        tab.on("console", lambda said: kept["said"].append(said.text))
        tab.set_default_timeout(WAIT_MS)
        tab.goto("/ui/blank")
    yield kept["page"]
    assert kept["said"] == []
