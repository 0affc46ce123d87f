"""The page's modules alone, imported in a real browser under the page's own headers."""

from __future__ import annotations

import difflib
import json
import random
from typing import Any

import pytest

from tests.ui.fake import UI, Fake, Gate, ending, frame, run_of, status

pytestmark = pytest.mark.process


def test_dom(blank: Any) -> None:
    """Text that becomes markup, a key that loses its element, nodes that grow with updates."""
    found = blank.evaluate("""async () => {
      const { h, list, text, set } = await import("/ui/dom.js");
      const hostile = "<img src=x onerror=alert(1)>";
      let clicks = 0;
      const props = { class: "a", "aria-label": hostile, "aria-busy": false, title: null,
        style: { width: "3px" }, onclick: () => clicks++, id: undefined, draggable: false };
      const box = h("div", props, hostile, [1, [null, false, "b"]]);
      box.click();
      const items = h("ul");
      const make = (item) => h("li", null, item);
      list(items, ["a", "b", "c"], (x) => x, make);
      const [a, b, c] = items.children;
      list(items, ["c", "d", "a"], (x) => x, make);
      const kept = items.children[0] === c && items.children[2] === a && !b.isConnected;
      let twice = "";
      try { list(items, ["a", "a"], (x) => x, make); } catch (error) { twice = error.message; }
      const watched = [];
      const observer = new MutationObserver((all) => watched.push(...all));
      observer.observe(items, { subtree: true, childList: true, characterData: true });
      text(a.firstChild, "a");
      const silent = observer.takeRecords().length;
      text(a.firstChild, "z");
      const field = h("input", { value: "v", disabled: true });
      set(field, "disabled", false);
      return { html: box.outerHTML, clicks, kept, order: items.textContent, twice, silent,
        told: observer.takeRecords().length, field: [field.value, field.disabled] };
    }""")
    assert found.pop("html") == (
        '<div class="a" aria-label="&lt;img src=x onerror=alert(1)&gt;" aria-busy="false" '
        'style="width: 3px;">&lt;img src=x onerror=alert(1)&gt;1b</div>'
    )
    assert found == {
        "clicks": 1, "kept": True, "order": "cdz", "twice": "two items have the key a",
        "silent": 0, "told": 1, "field": ["v", False],
    }  # fmt: skip


def test_store(blank: Any) -> None:
    """A watcher that is told of nothing new, or after it has left."""
    told = blank.evaluate("""async () => {
      const { store } = await import("/ui/store.js");
      const told = [], one = store({ a: 1, b: 1 });
      const stop = one.watch((s) => s.a, (a) => told.push(a));
      one.set({ b: 2 }); one.set({ a: 2 }); one.set({ a: 2 }); stop(); one.set({ a: 3 });
      return [told, one.get()];
    }""")
    assert told == [[1, 2], {"a": 3, "b": 2}]


SSE = """async (pieces) => {
  const { eventParser } = await import("/ui/api.js");
  return pieces.map((cuts) => {
    const parser = eventParser();
    return cuts.flatMap((bytes) => parser.feed(new Uint8Array(bytes)));
  });
}"""


def test_events_are_read_however_they_are_cut(blank: Any) -> None:
    """A character or a line end in two halves; comments, names, data of several lines."""
    text = (
        "\ufeff: still here\r\n\r\ndata: {\"a\": \"ä€😀\"}\r\n\r\n"
        "event: x\r\ndata:1\r\ndata: 2\r\n\ndata\n\nid: 5\nretry: 1\n\r"
        "data: last\r\rdata: unfinished"
    )  # fmt: skip
    wanted = [
        {"name": "", "data": '{"a": "ä€😀"}'}, {"name": "x", "data": "1\n2"},
        {"name": "", "data": ""}, {"name": "", "data": "last"},
    ]  # fmt: skip
    raw = list(text.encode())
    cuts = [[raw[:at], raw[at:]] for at in range(len(raw) + 1)]
    cuts += [[[byte] for byte in raw], [raw]]
    for found in blank.evaluate(SSE, cuts):
        assert found == wanted


def test_who_stops_reading_hangs_up(blank: Any, fake: Fake) -> None:
    """A server that works on for nobody."""
    fake.script = [status("queued"), Gate("never")]
    script = """async () => {
      const { events } = await import("/ui/api.js");
      for await (const event of events("/v1/chat/completions", {})) return event.diffusion.state;
    }"""
    assert blank.evaluate(script) == "queued" and fake.gone.wait(10)


def parts_of(blank: Any, pairs: list[list[str]], split: str) -> list[Any]:
    """What diff.js says of pairs of texts."""
    return blank.evaluate(
        """async ([pairs, split]) => {
      const diff = await import("/ui/diff.js");
      return pairs.map(([old, now]) => diff.parts(old, now, diff[split]));
    }""",
        [pairs, split],
    )


@pytest.mark.parametrize("split", ["words", "lines"])
def test_differences(blank: Any, split: str) -> None:
    """A difference that does not give both texts back, or is longer than difflib's."""
    draw = random.Random(1)
    alphabet = ["a", "b", " ", "\n", "\r\n", "ä", "日本", "שלום", "😀", "e\u0301", "word"]
    pairs = [["", ""], ["", "x"], ["x", ""], ["a b", "a b"], ["a" * 5000, "b" * 5000]]
    for _ in range(300):
        old = [draw.choice(alphabet) for _ in range(draw.randrange(40))]
        now = [one for one in old if draw.random() > 0.2]
        for _ in range(draw.randrange(5)):
            now.insert(draw.randrange(len(now) + 1), draw.choice(alphabet))
        pairs.append(["".join(old), "".join(now)])
    for (old, now), found in zip(pairs, parts_of(blank, pairs, split), strict=True):
        assert "".join(one["text"] for one in found if one["kind"] != "new") == old
        assert "".join(one["text"] for one in found if one["kind"] != "old") == now
        kinds = [one["kind"] for one in found]
        assert all(one != other for one, other in zip(kinds, kinds[1:], strict=False))
        if old == now:
            assert set(kinds) <= {"same"}


def test_differences_are_the_shortest(blank: Any) -> None:
    """More edits than the longest common subsequence leaves; difflib may need more, never fewer."""
    draw = random.Random(2)
    pairs = [["".join(draw.choices("abc", k=draw.randrange(30))) for _ in "12"] for _ in range(200)]
    found = blank.evaluate(
        """async (pairs) => {
      const { changes } = await import("/ui/diff.js");
      return pairs.map(([old, now]) => changes([...old], [...now]));
    }""",
        pairs,
    )
    for (old, now), all_changes in zip(pairs, found, strict=True):
        kept, x, y = 0, 0, 0
        for one in [*all_changes, {"oldStart": len(old), "newStart": len(now)}]:
            assert old[x : one["oldStart"]] == now[y : one["newStart"]]
            kept += one["oldStart"] - x
            x, y = one.get("oldEnd", 0), one.get("newEnd", 0)
        matcher = difflib.SequenceMatcher(None, old, now, autojunk=False)
        assert kept >= sum(block.size for block in matcher.get_matching_blocks())
        assert kept == common(old, now)


def common(old: str, now: str) -> int:
    """The length of the longest common subsequence, by the table of every textbook."""
    row = [0] * (len(now) + 1)
    for char in old:
        last = row
        row = [0]
        for k, other in enumerate(now):
            row.append(last[k] + 1 if char == other else max(last[k + 1], row[k]))
    return row[-1]


MARKS = [
    ("Hello", "Hello"), (" Hello world ", "␣Hello world␣"), ("\n", "⏎"), ("\t\n", "⇥⏎"),
    ("", "∅"), ("a\u202eb", "aU+202Eb"), ("\u2066", "U+2066"), ("\ufeff", "U+FEFF"),
    ("\u200b", "U+200B"), ("\x00", "U+0000"), ("\u0301", "◌\u0301"), ("e\u0301", "e\u0301"),
    ("👩\u200d👩\u200d👧", "👩\u200d👩\u200d👧"), ("\u200d", "U+200D"), ("שלום", "שלום"),
    ("\r\n", "␍⏎"), ("   ", "␣␣␣"), ("\u00a0", "U+00A0"), ("\u3000", "U+3000"),
]  # fmt: skip


def test_marks(blank: Any) -> None:
    """A character that nobody sees, or that turns the line round."""
    script = """async (all) => all.map((await import("/ui/tokens.js")).visible)"""
    assert blank.evaluate(script, [text for text, _ in MARKS]) == [mark for _, mark in MARKS]


def test_cells(blank: Any) -> None:
    """Bytes that are shown as U+FFFD, control tokens that are known by their spelling."""
    found = blank.evaluate("""async () => {
      const t = await import("/ui/tokens.js");
      const bytes = (...all) => new Uint8Array(all);
      const pieces = new Map([[1, bytes(0xf0)], [2, bytes(0x9f, 0x98)], [3, bytes(0x80)],
        [4, "<eos>"], [5, "<eos>"], [6, "a"], [7, bytes(0xc3, 0xa4, 0x41)], [8, bytes(0xff)]]);
      const controls = new Map([[4, "<eos>"]]);
      const show = (...ids) =>
        t.cells(ids, pieces, controls).map((one) => `${one.kind} ${one.text}`);
      return [show(6, 1, 2, 3, 6), show(1, 2, 6, 3), show(4, 5, 99), show(7, 8),
        t.draft([6, 1, 2, 3, 6, 4, 6], pieces, new Set([4])), t.draft([1, 6], pieces, new Set()),
        [" Hello", "\\n", "", " ", "a "].map(t.spoken), t.shorten("👩‍👩‍👧".repeat(5), 3),
        [t.percent(0), t.percent(-8)], [t.nats(1), t.nats(255)],
        [0, 7, 8, 127, 128, 255].map(t.level)];
    }""")
    assert found == [
        ["text a", "part 😀", "part …2/4", "part …4/4", "text a"],
        ["part F0", "part 9F 98", "text a", "part 80"],
        ["control <eos>", "text <eos>", "mark #99"],
        ["part ä A", "part FF"],
        "a😀a", "\ufffda",
        ["blank Hello", "newline", "nothing", "blank", "a blank"], "👩‍👩‍👧👩‍👩‍👧…",
        ["100.0 %", "< 0.1 %"], ["0.02", "3.98 or more"], [0, 0, 1, 15, 16, 16],
    ]  # fmt: skip


def test_markdown(blank: Any, fake: Fake, kept: dict[str, Any]) -> None:
    """HTML that did not come from the server's own route; an answer that is lost if it fails."""
    fake.render = lambda text: f"<p><b>{text}</b></p>"
    script = """async (text) => {
      const { render } = await import("/ui/markdown.js");
      const box = document.createElement("div");
      await render(box, text);
      const found = [box.querySelector("b")?.textContent ?? null, box.textContent];
      try { box.innerHTML = "<i>x</i>"; } catch (error) { found.push(error.name); }
      return found;
    }"""
    assert blank.evaluate(script, "hello") == ["hello", "hello", "TypeError"]
    fake.render = lambda text: None
    assert blank.evaluate(script, "<b>x</b>") == [None, "<b>x</b>", "TypeError"]
    assert len(kept["said"]) == 2 and all("TrustedHTML" in one for one in kept["said"])
    kept["said"].clear()


RECORD = """async (events) => {
  const t = await import("/ui/trace.js");
  const trace = t.begin({ name: "m", canvas_length: 8 }, { messages: [], seed: 3 });
  const kinds = events.map((event) => t.record(trace, event));
  const once = t.write(trace);
  const indented = JSON.stringify(JSON.parse(once), null, 2);
  return [kinds, once, t.write(t.read(once)), t.write(t.read(indented))];
}"""


def test_a_trace_is_recorded_and_saved(blank: Any) -> None:
    """Events that get lost, a file that differs when it is saved again."""
    more = {"alternatives": [[[5, -0.1], [6, -2.5]], []]}
    events = [
        status("queued"), frame(1, [5, 6], "01", [9, 255], pieces={5: "a\u202e", 6: [240, 159]}),
        frame(2, [5, 7], "21", [0, 1], pieces={7: {"bytes": [255]}}, **more), *ending("a", steps=2),
    ]  # fmt: skip
    kinds, once, again, indented = blank.evaluate(RECORD, events)
    assert kinds == ["status", "frame", "frame", "commit", "text", "end", None]
    assert once == again == indented
    saved = json.loads(once)
    assert saved["format"] == "dgemma-trace" and saved["version"] == 1
    assert saved["pieces"] == [[5, "a\u202e"], [6, {"bytes": [240, 159]}], [7, {"bytes": [255]}]]
    assert saved["frames"][1] == {
        "canvas": 0, "step": 2, "t_ms": 60, "temperature": 0.7833, "ids": [5, 7], "state": "21",
        "entropy": [0, 1], **more,
    }  # fmt: skip
    assert saved["commits"][0]["stop_reason"] == "converged" and saved["text"] == "a"
    assert saved["seed"] == 7 and saved["end"]["finish_reason"] == "stop"
    assert set(saved["end"]) == {"diffusion_usage", "timings", "finish_reason", "usage"}
    [_, big, *others] = blank.evaluate(RECORD, run_of())
    assert all(one == big for one in others) and len(big) < 60_000
    [_, partial, *others] = blank.evaluate(RECORD, run_of()[:6])
    assert json.loads(partial)["end"] is None and all(one == partial for one in others)


def hostile() -> list[tuple[str, Any]]:
    """Files that nobody should take: a change of a good one, or a text."""
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    one = {"canvas": 0, "step": 1, "t_ms": 0, "temperature": 1, "ids": [5], "state": "0",
           "entropy": [0]}  # fmt: skip
    return [
        ("not JSON", "<script>alert(1)</script>"), ("not a dgemma trace", "[]"),
        ("not a dgemma trace", "null"), ("not a dgemma trace", {"format": "other"}),
        ("another version", {"version": 2}), ("another version", {"version": "1"}),
        ("not an object", {"model": None}), ("not an object", {"model": []}),
        ("whole number", {"model": {"name": "x", "canvas_length": 1e9}}),
        ("none of diffusion", {"mode": "__proto__"}), ("whole number", {"seed": -1}),
        ("whole number", {"seed": 0.5}), ("not a list", {"frames": {"length": 3}}),
        ("more than 4096", {"frames": [one] * 4097}), ("more than 4096", {"commits": [0] * 4097}),
        ("not an object", {"frames": [None]}), ("not an object", {"commits": [[]]}),
        ("more than 4096", {"frames": [{**one, "ids": [0] * 4097}]}),
        ("different lengths", {"frames": [{**one, "state": "00"}]}),
        ("different lengths", {"frames": [{**one, "entropy": []}]}),
        ("other digits", {"frames": [{**one, "state": "3"}]}),
        ("whole number", {"frames": [{**one, "ids": [-1]}]}),
        ("whole number", {"frames": [{**one, "ids": [2**31]}]}),
        ("whole number", {"frames": [{**one, "ids": ["5"]}]}),
        ("whole number", {"frames": [{**one, "entropy": [256]}]}),
        ("whole number", {"frames": [{**one, "step": None}]}),
        ("not a number", {"frames": [{**one, "t_ms": "1"}]}),
        ("not a number", {"frames": [{**one, "temperature": -1}]}),
        ("one list for each", {"frames": [{**one, "alternatives": []}]}),
        ("pairs", {"frames": [{**one, "alternatives": [[[5, 3]]]}]}),
        ("pairs", {"frames": [{**one, "alternatives": [[[5, None]]]}]}),
        ("repeats an id", {"pieces": [[5, "a"], [5, "b"]]}), ("not a list", {"pieces": ["ab"]}),
        ("whole number", {"pieces": [[5, {"bytes": [300]}]]}),
        ("not a list", {"pieces": [[5, {"bytes": "AA"}]]}), ("not a text", {"pieces": [[5, 6]]}),
        ("not a text", {"text": None}), ("not an object", {"end": 5}),
        ("nested more", {"end": {"usage": deep}}), ("nested more", {"request": {"a": deep}}),
    ]  # fmt: skip


def test_hostile_traces(blank: Any) -> None:
    """A file that is taken though something in it is out of range, or an error of the browser's."""
    [_, good, *_] = blank.evaluate(RECORD, run_of(8, 2))
    cases = hostile()
    files = [
        given if isinstance(given, str) else json.dumps(json.loads(good) | given)
        for _, given in cases
    ]
    found = blank.evaluate(
        """async (files) => {
      const { read, TraceError } = await import("/ui/trace.js");
      return files.map((file) => {
        try { read(file); return "taken"; }
        catch (error) { return error instanceof TraceError ? error.message : `crash: ${error}`; }
      });
    }""",
        files,
    )
    large = """async () => (await import("/ui/trace.js")).read("x".repeat(2 ** 25 + 1))"""
    with pytest.raises(Exception, match="larger than 32 MiB"):
        blank.evaluate(large)
    for (wanted, given), message in zip(cases, found, strict=True):
        assert wanted in message, (message, str(given)[:80])


def test_files_are_short_and_set_no_html() -> None:
    """A second place that puts HTML into the page; a file that nobody reads to its end."""
    forbidden = [
        "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function",
        'setAttribute("style"', "srcdoc", ".onclick", ".onload",
    ]  # fmt: skip
    wrong = []
    for path in sorted(UI.rglob("*.*")):
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        if path.suffix in (".js", ".css"):
            assert len(lines) <= 400, path.name
            wrong += [f"{path.name}: a long line: {one}" for one in lines if len(one) > 110]
        if path.suffix == ".js":
            assert text.startswith("// @ts-check\n// "), f"{path.name} does not say what it is"
        if path.name not in ("markdown.js", "preview.html"):
            wrong += [f"{path.name}: {one}" for one in forbidden if one in text]
    assert wrong == []
