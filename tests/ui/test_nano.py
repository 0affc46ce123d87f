"""The page against a real server with the bundled model: its key, a run, a fork, its trace."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.live import KEY, Live, running
from tests.support.page import ask, assert_shows, grid

pytestmark = [pytest.mark.process, pytest.mark.model]
QUESTION = "What is your name?"


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    """A server that needs a key."""
    with running() as found:
        yield found


@pytest.fixture
def lab(page: Any, live: Live, complaints: list[str]) -> Any:
    """The Lab of that server, with the key given."""
    page.add_init_script("localStorage.setItem('dgemma.pace', '0')")
    page.goto(f"{live.url}/")
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Use key").click()
    assert_shows(page, ".model", "nano")
    complaints[:] = [one for one in complaints if "401" not in one]
    return page


def finish(page: Any) -> None:
    """Until the answer is there."""
    assert_shows(page, ".text:has(.draft):visible h3", "Answer")


def test_a_way_through_the_lab(lab: Any, tmp_path: Path) -> None:
    """A screen that the scripted server pleases and the real one does not."""
    assert_shows(lab, ".empty", "nano is a toy")
    ask(lab, QUESTION)
    finish(lab)
    first = lab.locator(".draft:visible").inner_text()
    assert "nano" in first
    lab.get_by_role("button", name="First pass").click()
    lab.locator("[role=option]").first.click()
    lab.get_by_role("button", name="Re-noise from here").click()
    assert_shows(lab, ".chips:not(:empty)", "renoise at 0, pass 2")
    lab.get_by_role("region", name="Fork").get_by_role("heading", name="Answer").wait_for()
    saved = []
    for name in ("one", "two"):
        with lab.expect_download() as caught:
            lab.get_by_role("button", name="Save trace").click()
        path = tmp_path / f"{name}.json"
        caught.value.save_as(path)
        saved.append(path.read_bytes())
        lab.get_by_label("Trace file").set_input_files(path)
        lab.get_by_role("region", name="Fork").wait_for(state="hidden")
    assert saved[0] == saved[1]
    trace = json.loads(saved[0])
    assert [one["do"] for one in trace["request"]["diffusion"]["edits"]] == ["renoise"]
    assert KEY not in saved[0].decode()
    width = len(trace["frames"][0]["ids"])
    assert len(grid(lab)) == width == trace["model"]["canvas_length"]


def test_the_last_draft_is_the_answer(lab: Any, count: Callable[[int, int], int]) -> None:
    """Frames that show another text than the one that is committed."""
    script = """async ([question, key, seeds]) => {
      const [api, t, k, s] = await Promise.all(
        ["api", "trace", "tokens", "server"].map((one) => import(`/ui/${one}.js`)));
      api.setKey(key);
      const { name, width, ends, controls } = s.server.get();
      const found = [];
      for (let seed = 0; seed < seeds; seed++) {
        const body = { messages: [{ role: "user", content: question }], seed, stream: true,
          diffusion: { stream: "ids" } };
        const trace = t.begin({ name, canvas_length: width }, body);
        for await (const event of api.events("/v1/chat/completions", body)) t.record(trace, event);
        const { ids } = trace.frames.at(-1);
        found.push([trace.text, k.draft(ids, trace.pieces, ends, controls), trace.commits.length]);
      }
      return found;
    }"""
    seeds = count(3, 50)
    found = lab.evaluate(script, [QUESTION, KEY, seeds])
    assert len(found) == seeds
    for text, draft, commits in found:
        assert text == draft and text and commits == 1


def test_a_foreign_request_is_not_made(lab: Any, live: Live, complaints: list[str]) -> None:
    """A page that fetches something from elsewhere."""
    seen: list[str] = []
    lab.on("requestfinished", lambda request: seen.append(request.url))
    lab.reload()
    lab.get_by_label("API key").wait_for()
    assert seen and all(url.startswith((live.url, "blob:", "data:")) for url in seen)
    complaints[:] = [one for one in complaints if "401" not in one]
