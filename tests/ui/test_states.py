"""The states of a screen: refused, cut off, silent, without a key; what is said, and to whom."""

from __future__ import annotations

import gzip
import re
from typing import Any

import pytest

from tests.support.page import ask, assert_shows, open_lab
from tests.ui.fake import CUT, UI, Fake, Gate, chunk, run_of

pytestmark = pytest.mark.process

CONTRASTS = """() => {
  // axe does not measure text on a background image.
  const brush = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const light = (colour) => {
    brush.fillStyle = colour;
    brush.fillRect(0, 0, 1, 1);
    const part = [...brush.getImageData(0, 0, 1, 1).data].slice(0, 3).map((byte) => byte / 255)
      .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
  };
  const cell = document.querySelector("[role=option]");
  return Array.from({ length: 17 * 3 }, (_, at) => {
    cell.className = `cell s${at % 3} e${Math.floor(at / 3)} text`;
    const { color, backgroundColor } = getComputedStyle(cell);
    const [low, high] = [light(color), light(backgroundColor)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  });
}"""


def test_reduced_motion(page: Any, fake: Fake) -> None:
    """Passes that play by themselves for one who wants no motion."""
    page.emulate_media(reduced_motion="reduce")
    page.clock.install()
    fake.script = run_of(16, 5, gates=True)
    open_lab(page, "0")
    page.clock.run_for(2000)
    ask(page)
    page.locator("[aria-label=Pass][max='0']:enabled").wait_for()
    page.clock.run_for(50)
    assert_shows(page, "output.pass", "pass 1 of at most 48")
    fake.open("pass 2")
    page.locator("[aria-label=Pass][max='1']").wait_for()
    page.clock.run_for(100)
    assert_shows(page, "output.pass", "pass 1 of at most 48")
    page.clock.run_for(1000)
    for name in ("pass 3", "pass 4", "pass 5", "end"):
        fake.open(name)
    assert_shows(page, ".draft + .counts:visible", "converged")
    page.clock.run_for(50)
    assert_shows(page, "output.pass", "pass 5 of 5")
    page.get_by_role("button", name="One pass back").click()
    page.clock.run_for(50)
    assert_shows(page, "output.pass", "pass 4 of 5")


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_accessible(page: Any, fake: Fake, look: str) -> None:
    """Contrast, names and roles that axe finds fault with; a page that scrolls sideways."""
    from axe_playwright_python.sync_playwright import Axe

    page.emulate_media(color_scheme="dark" if look == "dark" else "light")
    if look == "phone":
        page.set_viewport_size({"width": 360, "height": 740})
    fake.script = run_of(96, 6)
    fake.features = ("stream", "edits")
    open_lab(page)
    if look == "light":  # the others have the same controls
        assert [one["help"] for one in faults(Axe().run(page))] == []
    ask(page)
    assert_shows(page, "output.pass", "pass 6 of 6")
    page.get_by_role("button", name="One pass back").click()
    page.get_by_role("button", name="One pass back").click()
    page.get_by_role("button", name="Show as a table").click()
    page.locator("[role=option]").nth(90).click()
    found = faults(Axe().run(page))
    assert [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found] == []
    assert min(page.evaluate(CONTRASTS)) > 4.5
    wide = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) <= 0
    small = """() => [...document.querySelectorAll("button, input, select, summary, nav a")]
      .map((one) => [one, one.getBoundingClientRect()])
      .filter(([one, box]) => box.width && (box.width < 24 || box.height < 24))
      .map(([one]) => one.outerHTML.slice(0, 100))"""
    assert page.evaluate(small) == []


def faults(result: Any) -> list[dict[str, Any]]:
    """What axe found."""
    return result.response["violations"]


def refusal(status: int, message: str, **more: Any) -> tuple[int, dict[str, str], dict[str, Any]]:
    """An answer that is an error."""
    headers = {"Retry-After": "3"} if status == 429 else {}
    return status, headers, {"error": {"message": message, "param": None, "code": None, **more}}


def test_refusals(page: Any, fake: Fake, complaints: list[str]) -> None:
    """An error without a mark at its field, a 429 that is not counted down."""
    page.clock.install()
    fake.script = run_of(16, 2)
    fake.refusals = [
        refusal(400, "max_steps must be at most 9", param="diffusion.max_steps"),
        refusal(429, "Too busy."), refusal(413, "the body is larger than 1 MB"),
    ]  # fmt: skip
    open_lab(page)
    ask(page)
    assert_shows(page, ".run-words", "max_steps must be at most 9")
    field = page.get_by_label("Most passes")
    assert field.get_attribute("aria-invalid") == "true"
    assert_shows(page, ".field .error:visible", "max_steps must be at most 9")
    assert page.get_by_role("button", name="Ask again").is_hidden()
    ask(page)
    for left in (3, 2, 1):
        assert_shows(page, ".run-words", f"Too busy. Again in {left} s.")
        assert page.get_by_role("button", name="Ask again").is_hidden()
        page.clock.run_for(1000)
    assert field.get_attribute("aria-invalid") is None
    page.get_by_role("button", name="Ask again").click()
    assert_shows(page, ".run-words", "the body is larger than 1 MB")
    page.get_by_role("button", name="Ask again").click()
    assert_shows(page, ".run-words", re.compile("^$"))
    complaints[:] = [one for one in complaints if "status of 4" not in one]


def test_cut_off(page: Any, fake: Fake, complaints: list[str]) -> None:
    """What was told is lost with the connection; nobody says when the server is back."""
    fake.script = [*run_of(16, 4)[:5], Gate("cut"), CUT]
    open_lab(page)
    ask(page)
    assert_shows(page, "output.pass", "pass 2 of")
    fake.open("cut")
    assert_shows(
        page, ".run-words", "Cut off after pass 2: the connection was lost. It answers again."
    )
    assert_shows(page, "output.pass", "pass 2 of 2")
    fake.script = [*run_of(16, 4)[:4], {"error": {"message": "bye", "code": "cancelled"}}]
    page.get_by_role("button", name="Ask again").click()
    assert_shows(page, ".run-words", "Cut off after pass 1: the server is stopping.")
    fake.script = [chunk({"role": "assistant"}), b"data: {nonsense\n\n"]
    page.get_by_role("button", name="Ask again").click()
    assert_shows(page, ".run-words", "Cut off before the first pass: the server sent an event that")
    complaints[:] = [one for one in complaints if "ERR_" not in one]


def test_stop_and_silence(page: Any, fake: Fake) -> None:
    """A stop that leaves the server working; a silence that looks like work."""
    page.clock.install()
    fake.script = [*run_of(16, 4)[:4], Gate("a"), b": still here\n\n", Gate("never")]
    open_lab(page)
    ask(page)
    assert_shows(page, ".run-words", "writing")
    page.clock.run_for(9_000)
    assert_shows(page, ".run-clock", "9 s")
    assert page.locator(".run-silent").is_hidden()
    page.clock.run_for(2_000)
    page.get_by_text("the server is silent").wait_for()
    fake.open("a")
    page.locator(".run-silent").wait_for(state="attached")
    page.wait_for_function("() => performance.now() > 0")
    page.clock.run_for(500)
    page.get_by_text("the server is silent").wait_for(state="hidden")
    page.get_by_role("button", name="Stop").click()
    assert_shows(page, ".run-words", "stopped")
    assert fake.gone.wait(10)
    assert_shows(page, "output.pass", "pass 1 of 1")


def test_key(page: Any, fake: Fake, complaints: list[str]) -> None:
    """A key that needs a reload, or is found in a storage or an address."""
    fake.key = "sk-right"
    fake.script = run_of(16, 2)
    page.goto("/")
    for value in ("sk-wrong", "sk-right"):
        page.get_by_label("API key").fill(value)
        page.get_by_role("button", name="Use key").click()
        if value == "sk-wrong":
            assert_shows(page, "dialog[open]", "The server refused this key.")
    assert_shows(page, ".model", "fake")
    ask(page)
    assert_shows(page, "output.pass", "of 2")
    stored = page.evaluate("() => JSON.stringify([localStorage, sessionStorage, location.href])")
    assert "sk-" not in stored
    complaints[:] = [one for one in complaints if "401" not in one]


def test_what_is_said(page: Any, fake: Fake) -> None:
    """A screen reader that hears every pass, or never hears the end."""
    page.clock.install()
    fake.script = run_of(16, 4, gates=True)
    open_lab(page)
    page.evaluate("""() => {
      window.told = [];
      const line = document.getElementById("say");
      const note = () => window.told.push(line.textContent);
      new MutationObserver(note).observe(line, { childList: true });
    }""")
    ask(page)
    assert_shows(page, "output.pass", "pass 1 of")
    page.clock.run_for(100)
    for name in ("pass 2", "pass 3"):
        fake.open(name)
        assert_shows(page, "output.pass", f"{name} of")
    page.clock.run_for(5000)
    fake.open("pass 4")
    fake.open("end")
    assert_shows(page, "output.pass", "pass 4 of 4")
    page.clock.run_for(5000)
    told = page.evaluate("() => window.told")
    assert (
        len(told) == 3 and told[0] == "Run begun." and told[1].startswith("Pass 3 of at most 48,")
    )
    assert told[2].startswith("Done after 4 passes: The cat sat on the mat")


def test_the_start_is_small(page: Any, fake: Fake) -> None:
    """A page that grows without anyone noticing: 30 requests, 60 KB of its own under gzip."""
    open_lab(page)
    page.locator(".examples button").first.wait_for()
    assert len(fake.paths) <= 30 and "/openapi.json" in fake.paths
    names = {path.removeprefix("/ui/") for path in fake.paths if path.startswith("/ui/")}
    assert sum(len(gzip.compress((UI / name).read_bytes())) for name in names) < 60_000


def test_every_module_loads(blank: Any) -> None:
    """A module that fails, or complains, when it is imported."""
    names = [f"/ui/{path.relative_to(UI).as_posix()}" for path in sorted(UI.rglob("*.js"))]
    script = "async (names) => (await Promise.all(names.map((one) => import(one)))).length"
    assert blank.evaluate(script, names) == len(names) > 15
