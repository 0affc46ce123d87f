"""The Lab, as a person uses it: playing, keys, positions, traces, forks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.page import ask, assert_shows, grid, open_lab
from tests.ui.fake import Fake, Gate, ending, frame, run_of, status

pytestmark = pytest.mark.process

COUNT_WRITES = """() => {
  const grid = document.querySelector("[role=listbox]");
  window.writes = new Map();
  window.watching = new MutationObserver((all) => {
    for (const one of all) {
      const key = `${one.type} ${one.attributeName ?? ""}`;
      const cell = one.target.nodeType === 3 ? one.target.parentNode : one.target;
      const seen = window.writes.get(cell) ?? {};
      seen[key] = (seen[key] ?? 0) + 1;
      window.writes.set(cell, seen);
    }
  });
  const what = { subtree: true, childList: true, characterData: true, attributes: true };
  window.watching.observe(grid, what);
}"""


def test_a_run(page: Any, fake: Fake) -> None:
    """A state that is not shown, a request with other fields, an answer that is not the model's."""
    fake.script = [status("queued"), Gate("a"), status("encoding", 512, 2048), Gate("b"),
                   *run_of(16, 3, gates=True)[2:]]  # fmt: skip
    open_lab(page)
    assert_shows(page, ".model", "fakecanvas 256cpu float32")
    assert page.locator(".stage").is_hidden()
    assert page.locator(".examples button").all_text_contents() == fake.props["examples"][:3]
    page.get_by_text("Settings").click()
    page.get_by_label("Seed").fill("5")
    page.get_by_label("Most passes").fill("9")
    ask(page)
    assert_shows(page, ".run-words", "queued")
    fake.open("a")
    assert_shows(page, ".run-words", "reading the prompt, 512 of 2,048 tokens")
    fake.open("b")
    assert_shows(page, "output.pass", "pass 1 of at most 48")
    assert page.get_by_role("button", name="Run", exact=True).is_disabled()
    for name in ("pass 2", "pass 3", "end"):
        fake.open(name)
    assert_shows(page, "output.pass", "pass 3 of 3")
    words = ["The", "␣cat", "␣sat", "␣on", "␣the", "␣mat", ",", "␣and", "␣then", "␣it", "␣slept"]
    assert grid(page) == [*words, ".", *words[:4]]
    assert_shows(page, "header .counts:visible", "● 16 accepted")
    assert_shows(
        page, ".below:visible .text", "AnswerThe cat sat on the mat, and then it slept.The"
    )
    said = ["converged", "3 passes", "16 tokens", "5.3 tokens a pass", "1.23 s", "seed 7"]
    shown = page.locator(".draft + .counts:visible").inner_text()
    assert [one.replace("\xa0", " ") for one in shown.split("   ")] == said
    assert page.locator(".run-words").is_hidden()
    assert fake.bodies == [{
        "model": "fake", "messages": [{"role": "user", "content": "a cat"}], "seed": 5,
        "stream": True, "stream_options": {"include_usage": True},
        "diffusion": {"max_steps": 9, "stream": "ids"},
    }]  # fmt: skip


def test_playing(page: Any, fake: Fake) -> None:
    """Passes that are skipped when they are played, or cannot be reached by key and slider."""
    page.clock.install()
    fake.script = run_of(16, 5)
    open_lab(page, "500")
    ask(page)
    assert_shows(page, "output.pass", re.compile("pass 1 of 5|pass 1 of at most 48"))
    page.get_by_role("heading", name="Lab").click()
    for wanted in (2, 3, 4, 5):
        page.clock.run_for(500)
        assert_shows(page, "output.pass", f"pass {wanted} of 5")
    page.clock.run_for(100)
    assert page.get_by_role("button", name="Play").is_visible()
    for key, wanted in (
        ("Home", 1), ("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2), ("End", 5),
    ):  # fmt: skip
        page.keyboard.press(key)
        page.clock.run_for(50)
        assert_shows(page, "output.pass", f"pass {wanted} of 5")
    page.keyboard.press(" ")
    page.clock.run_for(50)
    assert_shows(page, "output.pass", "pass 1 of 5")
    page.keyboard.press(" ")
    page.clock.run_for(3000)
    assert_shows(page, "output.pass", "pass 1 of 5")
    page.get_by_label("Pass", exact=True).fill("3")
    page.clock.run_for(50)
    assert_shows(page, "output.pass", "pass 4 of 5")
    page.get_by_label("Speed").select_option("0")
    page.get_by_role("button", name="Play").click()
    page.clock.run_for(50)
    assert_shows(page, "output.pass", "pass 5 of 5")


def test_writes_and_nodes(page: Any, fake: Fake) -> None:
    """A cell that is written twice for a pass, or though nothing changed; nodes that grow."""
    same = [frame(0, [0, 1, 2], "011", [90, 0, 0], pieces={0: "a", 1: "b", 2: "c"}),
            Gate("next"), frame(1, [0, 3, 2], "111", [0, 0, 0], pieces={3: "d"})]  # fmt: skip
    fake.script = [*same, Gate("end"), *ending("adc", steps=2, tokens=3)]
    open_lab(page)
    ask(page)
    assert_shows(page, "output.pass", "pass 1 of at most")
    page.evaluate(COUNT_WRITES)
    fake.open("next")
    assert_shows(page, "output.pass", "pass 2 of at most")
    found = page.evaluate("() => [...window.writes].map(([cell, all]) => [cell.dataset.at, all])")
    written = dict(found)
    label = {"attributes aria-label": 1}  # of the one cell that has the tab stop
    assert written["0"] == {"attributes class": 1, **label} and set(written) == {"0", "1"}
    assert written["1"] == {"characterData ": 1, "attributes class": 1}
    fake.open("end")
    assert_shows(page, "output.pass", "pass 2 of 2")
    page.evaluate("() => window.watching.disconnect()")

    count = "() => document.querySelectorAll('*').length"
    fake.script = run_of(64, 4)
    sizes = []
    for _ in range(8):
        ask(page)
        assert_shows(page, "header .counts:visible", "● 64 accepted")
        page.locator("[role=option]").nth(3).click()
        page.get_by_role("button", name="Close").click()
        sizes.append(page.evaluate(count))
    assert len(set(sizes[1:])) == 1, sizes
    style = "(cell) => getComputedStyle(cell).transitionDuration + getComputedStyle(cell).contain"
    assert page.locator("[role=option]").first.evaluate(style) == "0sstrict"


def test_all_passes_at_once(page: Any, fake: Fake) -> None:
    """A picture with a row too many, in another order, or that leads nowhere."""
    low, high = [0] * 4, [255] * 4
    passes = [frame(step, [0, 1, 2, 3], "1111", low if step % 2 else high) for step in range(3)]
    fake.script = [*passes, *ending("x", steps=3, tokens=4)]
    open_lab(page)
    ask(page)
    assert_shows(page, "output.pass", "pass 3 of 3")
    canvas = page.locator(".heat-map canvas:visible")
    rows = canvas.evaluate("""(canvas) => {
      const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      const rows = Array.from({ length: canvas.height }, (_, y) =>
        Array.from({ length: canvas.width }, (_, x) => data[4 * (y * canvas.width + x) + 2]));
      return rows;
    }""")
    assert [len(row) for row in rows] == [4, 4, 4] and all(len(set(row)) == 1 for row in rows)
    assert rows[0] == rows[2] and rows[0][0] < rows[1][0]  # less blue where it is unsure
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 0.9, "y": box["height"] * 0.5})
    assert_shows(page, "output.pass", "pass 2 of 3")
    assert_shows(page, ".inspector", "Position 3")
    page.get_by_role("button", name="Show as a table").click()
    table = page.locator(".heat-table tr:visible").all_text_contents()
    assert table[2] == "20.000 nats4000" and len(table) == 4


def test_keyboard_alone(page: Any, fake: Fake) -> None:
    """A way through the Lab that needs a mouse; a second tab stop in the grid."""
    fake.script = run_of(64, 4)
    open_lab(page)
    page.keyboard.type("a cat")
    page.keyboard.press("Enter")
    assert_shows(page, "output.pass", "pass 4 of 4")
    focused = "() => document.activeElement.getAttribute('aria-label')"
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement.getAttribute('role')") == "option":
            break
    assert page.evaluate(focused).startswith("position 0: The, accepted, 0.")
    assert page.locator("[role=option][tabindex='0']").count() == 1
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused).startswith("position 1: blank cat, accepted, 0.")
    page.keyboard.press("ArrowDown")
    row = int(re.findall(r"\d+", page.evaluate(focused))[0]) - 1
    assert row > 3
    for key, wanted in (("ArrowUp", 1), ("End", 63), ("ArrowDown", 63), ("Home", 0)):
        page.keyboard.press(key)
        assert page.evaluate(focused).startswith(f"position {wanted}:")
    page.keyboard.press("Enter")
    assert_shows(page, ".inspector", "Position 0")
    assert_shows(page, ".inspector", "54 68 65")
    page.keyboard.press("Escape")
    assert page.locator(".inspector").is_hidden()
    page.keyboard.press("?")
    assert_shows(page, "dialog[open]", "play or pause")
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    page.evaluate("() => document.activeElement.blur()")
    page.keyboard.press("Shift+Tab")
    page.get_by_role("link", name="Skip to the content").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("() => document.activeElement.id") == "main"
    assert page.url.endswith("#/lab")


def test_a_position(page: Any, fake: Fake) -> None:
    """A piece that becomes markup, bytes as U+FFFD, alternatives that do not sum to one."""
    pieces = {1: "<img src=x onerror=alert(1)>", 2: {"bytes": [240, 159]}, 3: {"bytes": [152, 128]},
              4: "\u202ex", 5: "\n", 40: "<turn>"}  # fmt: skip
    more = {"alternatives": [[[1, -0.105], [4, -9.0]], *[[[5, -0.1]]] * 5]}
    fake.script = [
        frame(0, [4, 2, 3, 4, 5, 40], "000000", [255] * 6, pieces=pieces),
        frame(1, [1, 2, 3, 4, 5, 40], "120000", [9] * 6, **more), *ending("x", steps=2, tokens=6),
    ]  # fmt: skip
    fake.features = ("stream", "stream_alternatives")
    open_lab(page)
    ask(page)
    assert_shows(page, "output.pass", "pass 2 of 2")
    assert fake.bodies[0]["diffusion"]["stream_alternatives"] == 8
    assert grid(page) == [pieces[1], "😀", "…3/4", "U+202Ex", "⏎", "<turn>"]
    assert page.locator("img").count() == 0
    page.locator("[role=option]").first.click()
    assert_shows(page, ".inspector", "<img src=x onerror=alert(1)>")
    assert page.locator(".history button").all_text_contents() == [
        "1○U+202Ex",
        f"2●{pieces[1][:23]}…",
    ]
    shares = page.locator(".alternatives .share").all_text_contents()
    assert shares == ["90.0 %", "< 0.1 %", "10.0 %"]
    assert (
        page.get_by_role("button", name="Re-noise from here").count() == 0
    )  # this server has no edits
    page.locator("[role=option]").nth(1).click()
    assert_shows(page, ".inspector", "f0 9f")


def test_traces(page: Any, fake: Fake, tmp_path: Path) -> None:
    """A trace that differs when it is saved again, a bad file that changes what is shown."""
    fake.script = run_of(32, 4)
    open_lab(page)
    ask(page, "save me")
    assert_shows(page, "output.pass", "pass 4 of 4")
    saved = []
    for name in ("one", "two"):
        with page.expect_download() as caught:
            page.get_by_role("button", name="Save trace").click()
        assert caught.value.suggested_filename == "fake-7.dgemma.json"
        page.locator("[role=option]").first.click()
        path = tmp_path / f"{name}.dgemma.json"
        caught.value.save_as(path)
        saved.append(path.read_bytes())
        page.get_by_label("Trace file").set_input_files(path)
        assert_shows(page, "output.pass", "pass 4 of 4")
        page.locator(".inspector").wait_for(state="hidden")
    assert saved[0] == saved[1] and json.loads(saved[0])["end"]["finish_reason"] == "stop"
    page.locator("[role=option]").first.click()
    assert_shows(page, ".inspector", "In wordsThe")
    other = tmp_path / "other.json"
    other.write_bytes(saved[0].replace(b'"The"', b'"One"'))
    page.get_by_label("Trace file").set_input_files(other)
    page.locator(".inspector").wait_for(state="hidden")
    page.locator("[role=option]").first.click()
    assert_shows(page, ".inspector", "In wordsOne")
    page.get_by_role("button", name="First pass").click()
    before = grid(page)
    bad = tmp_path / "<img src=x>.json"
    bad.write_text('{"format": "dgemma-trace", "version": 9}')
    page.get_by_label("Trace file").set_input_files(bad)
    assert_shows(page, ".notice", "<img src=x>.json was not loaded: the trace has another version")
    assert grid(page) == before
    page.reload()
    drop = """async (text) => {
      const data = new DataTransfer();
      data.items.add(new File([text], "x.dgemma.json"));
      const on = { dataTransfer: data, bubbles: true, cancelable: true };
      document.querySelector(".lab").dispatchEvent(new DragEvent("drop", on));
    }"""
    page.get_by_label("Prompt").wait_for()
    page.evaluate(drop, saved[0].decode())
    assert_shows(page, "output.pass", "pass 4 of 4")
    assert page.get_by_label("Prompt").input_value() == "save me"


def test_forks(page: Any, fake: Fake) -> None:
    """Edits that are not sent as they are shown, a fork that hides where it differs."""
    fake.features = ("stream", "edits", "stream_alternatives")
    pieces = {1: "a", 2: "b", 3: "c"}
    more = {"alternatives": [[[1, -0.1], [2, -2.4]]] * 2}
    first = frame(0, [1, 1], "00", [99, 99], pieces=pieces, **more)
    fake.script = [first, frame(1, [1, 3], "11", [0, 0], **more), *ending("ac", steps=2, tokens=2)]
    open_lab(page)
    ask(page)
    assert_shows(page, "output.pass", "pass 2 of 2")
    page.locator("[role=option]").first.click()
    assert_shows(page, ".inspector", "● accepted")
    second = [frame(step, [2, 3], "21", [0, 0], **more) for step in (1, 2)]
    fake.script = [first, second[0], *ending("bc", steps=2, tokens=2)]
    page.get_by_role("button", name="pin b").click()  # in the last pass: it is made again
    assert_shows(page, ".inspector", "◆ pinned")
    assert_shows(page, ".chips:not(:empty)", 'pin "b" at 0, pass 2')
    page.get_by_role("button", name="Differs from pass 2 on").click()
    base, fork = page.locator(".track").all()
    assert base.locator("[role=option]").all_text_contents() == ["a", "c"]
    assert fork.locator("[role=option]").all_text_contents() == ["b", "c"]
    page.get_by_role("button", name="First pass").click()
    assert_shows(page, "output.pass", "pass 1 of 2")
    fake.script = [first, *second, *ending("bc", steps=3, tokens=2)]
    page.get_by_role("button", name="Re-noise from here").click()
    assert_shows(page, ".chips:not(:empty)", "renoise at 0, pass 2")
    assert_shows(page, "output.pass", "pass 3 of 3")
    for name in ("Last pass", "Differs from pass 2 on"):  # the fork is longer than the run
        page.get_by_role("button", name=name).click()
        assert fork.locator("[role=option].apart").all_text_contents() == ["b"], name
    place = {"canvas": 0, "try": 0, "step": 1, "position": 0}
    pin, again = {**place, "do": "pin", "id": 2}, {**place, "do": "renoise"}
    asked = [body["diffusion"].get("edits") for body in fake.bodies]
    assert asked == [None, [pin], [pin, again]]
    assert [body.get("seed") for body in fake.bodies] == [None, 7, 7]
    page.get_by_role("button", name='Remove: pin "b"').click()
    page.get_by_role("button", name="Differs").wait_for()
    page.get_by_role("button", name="Remove: renoise").click()
    page.get_by_role("region", name="Fork").wait_for(state="hidden")
    assert fake.bodies[-1]["diffusion"]["edits"] == [again] and len(fake.bodies) == 4
