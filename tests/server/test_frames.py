"""What a stream says of each draft: ids once told, times, temperatures, bytes that are no text."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest

from dgemma.engine.engine import Engine
from dgemma.server.frames import STATES, FrameWriter
from dgemma.server.pieces import Frame
from dgemma.server.plans import PlanRun
from dgemma.server.sampling_fields import Diffusion
from dgemma.types import ENTROPY_PER_NAT, Event
from tests.support.client import QUESTION, Recorder, events, serve
from tests.support.engines import request, run, tiny
from tests.support.nano import nano, nano_engine

pytestmark = pytest.mark.model

CHAT, COMPLETIONS, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
SHORT: dict[str, Any] = {"seed": 3, "stream": True}
SHOWN: dict[str, dict[str, Any]] = {
    CHAT: {"messages": QUESTION, "n": 2, "max_tokens": 60},
    COMPLETIONS: {"prompt": ["Hello", "Who are you?"], "max_tokens": 60},
    "/v1/canvas": {"segments": [{"text": "Dear "}, {"max_length": 3}, {"text": "."}]},
    "/v1/fim/completions": {"prompt": "Dear ", "suffix": "."},
    "/infill": {"input_prefix": "Dear ", "input_suffix": ".", "n_predict": 4, "seed": 3},
}  # fmt: skip


def told(path: str, detail: str, **more: Any) -> list[dict[str, Any]]:
    """The events of a route that shows drafts in one way."""
    shown = {"diffusion": {"max_steps": 5, "canvas_length": 32, "stream": detail, **more}}
    body = (SHOWN[path] if path == "/infill" else SHORT | SHOWN[path]) | shown
    response = serve().post(path, body | {"stream": True})
    assert response.status_code == 200, response.text
    text = response.text
    blocks = [block.removeprefix("data: ") for block in text.split("\n\n") if block]
    return [json.loads(block) for block in blocks if block[0] == "{"]


@pytest.mark.parametrize("path", SHOWN)
def test_ids_say_what_tokens_say(path: str) -> None:
    """A state, an entropy or an id of another position; a piece told twice, or never."""
    tokens, ids = ([e["diffusion"] for e in told(path, detail) if "diffusion" in e]
                   for detail in ("tokens", "ids"))  # fmt: skip
    kinds = [side["type"] for side in ids]
    assert sorted(kinds) == sorted(side["type"] for side in tokens) and "frame" in kinds
    pieces: dict[str, Any] = {}
    found = []
    for side in (side for side in ids if side["type"] == "frame"):
        assert not pieces.keys() & side["pieces"].keys()
        pieces |= side["pieces"]
        columns = zip(side["ids"], side["state"], side["entropy"], strict=True)
        found.append([
            {"position": position, "id": token, "text": pieces[str(token)],
             "state": STATES[int(state)], "entropy": entropy / ENTROPY_PER_NAT}
            for position, (token, state, entropy) in enumerate(columns)
        ])  # fmt: skip
    whole = [json.dumps(side["tokens"]) for side in tokens if side["type"] == "frame"]
    assert sorted(whole) == sorted(json.dumps(rows).replace("\ufffd", "") for rows in found)
    assert {int(token) for token in pieces} == {row["id"] for rows in found for row in rows}
    short = ("ids", "state", "entropy", "pieces")
    sizes = [len(json.dumps([side[name] for side in part if side["type"] == "frame"
                             for name in names], separators=(",", ":")))
             for part, names in ((tokens, ("tokens",)), (ids, short))]  # fmt: skip
    assert 4 * sizes[1] < sizes[0]


def test_bytes_that_are_no_text() -> None:
    """Halves of a character that a client cannot join, or bytes of what is text already."""
    tokenizer = nano().frontend.tokenizer
    ids = tokenizer.encode("a é ب 🙂", bos=True)
    raw = {i: tokenizer.token_bytes(i) for i in ids}
    broken = {i for i in ids if raw[i].decode("utf-8", "ignore").encode() != raw[i]}
    assert broken and raw.keys() - broken
    size = len(ids)
    event = Event(type="frame", ids=tuple(ids), accepted=bytes(size), entropy=bytes(size))
    written = {
        detail: FrameWriter(Diffusion(stream=detail), tokenizer).draft(Frame(event, "", "", ""))
        for detail in ("tokens", "ids")
    }
    tokens = written["tokens"]["diffusion"]["tokens"]
    assert {one["id"]: one.get("bytes") for one in tokens} == {
        i: list(raw[i]) if i in broken else None for i in ids
    }
    assert b"".join(bytes(one.get("bytes", [])) or one["text"].encode() for one in tokens[1:]) == (
        "a é ب 🙂".encode()
    )
    assert tokens[0]["text"] == "<bos>"
    assert written["ids"]["diffusion"]["pieces"] == {
        i: {"bytes": list(raw[i])} if i in broken else tokenizer.token_text(i) for i in ids
    }
    assert "text" not in written["ids"] and written["tokens"]["type"] == "diffusion_frame"


class Counter:
    """A clock that goes on by an eighth of a second whenever it is read."""

    def __init__(self, began: float = 1000.0) -> None:
        self._ticks: Iterator[float] = (began + n / 8 for n in itertools.count())
        self.last = began

    def __call__(self) -> float:
        self.last = next(self._ticks)
        return self.last


def test_every_event_has_its_time_and_every_frame_its_temperature() -> None:
    """A time that is the clock's and not the request's, or that stands still; a temperature of
    another step."""
    clock = Counter()
    one = Engine(tiny(), end_ids=(), clock=clock)
    for mode in ("diffusion", "autoregressive"):
        began = clock.last
        asked = replace(request(mode=mode), status=True)
        stream, seen = one.submit(asked), []
        while not seen or seen[-1].type != "done":
            seen.append(next(stream))
            assert 0 < seen[-1].t_ms <= 1000 * (clock.last - began)
        times = [event.t_ms for event in seen]
        assert times == sorted(times) and len(set(times)) == len(times)
        assert all(t % 125 == 0 for t in times)
        frames = [event.temperature for event in seen if event.type == "frame"]
        assert seen[-1].output is not None
        assert frames == [step.temperature for step in seen[-1].output.trace]
        assert bool(frames) == (mode == "diffusion") and len(set(frames)) in (0, 3)


def test_equal_events_may_differ_in_time() -> None:
    """Events of the same request that compare as different because they came later."""
    first, _ = run(Engine(tiny(), end_ids=()).submit(request()))
    second, _ = run(Engine(tiny(), end_ids=(), clock=Counter(5.0)).submit(request()))
    assert first == second and [e.t_ms for e in first] != [e.t_ms for e in second]
    assert [f.name for f in fields(Event) if not f.compare] == ["t_ms"]


def counted() -> tuple[Any, list[Event]]:
    """A client of nano whose engine's clock counts, and the events of its last request."""
    engine, seen = nano_engine(clock=Counter()), list[Event]()
    engine.frontend = nano().frontend

    def submit(asked: Any) -> Any:
        stream = engine.submit(asked)
        put = stream._events._put

        def noted(event: Event | None) -> None:
            seen.extend([] if event is None else [event])
            put(event)

        stream._events._put = noted  # type: ignore[method-assign]
        return stream

    return serve(Recorder(submit)), seen


def test_side_events_have_the_engines_times() -> None:
    """Times of the server's own loop, or of another event."""
    client, seen = counted()
    body = {"messages": QUESTION, "seed": 1, "stream": True, "max_tokens": 24}
    shown = {"max_steps": 4, "restart_after": 0, "stream": "text"}
    sides = [e["diffusion"] for e in events(client.post(CHAT, body | {"diffusion": shown}))
             if "t_ms" in e.get("diffusion", {})]  # fmt: skip
    kept = [e for e in seen if e.type != "done"]
    assert {side["type"] for side in sides} >= {"status", "frame", "commit"}
    times = [(side["type"], side["t_ms"]) for side in sides[1:]]  # the first was put before
    assert times == [(event.type, event.t_ms) for event in kept]
    frames = [(side["step"], side["temperature"]) for side in sides if side["type"] == "frame"]
    assert frames == [(e.step, round(e.temperature, 6)) for e in kept if e.type == "frame"]
    assert frames[0][1] == 0.8 > frames[1][1] > 0.4


@pytest.mark.parametrize(("path", "body"), [
    (CHAT, {"messages": QUESTION}), (COMPLETIONS, {"prompt": "Who are you?"}),
    (MESSAGES, {"messages": QUESTION}),
])  # fmt: skip
@pytest.mark.parametrize("mode", ["autoregressive", "exact", "diffusion"])
def test_deltas_of_the_twin_have_times(path: str, body: dict[str, Any], mode: str) -> None:
    """A race whose one side has no times of its own; times on deltas of a canvas."""
    client, seen = counted()
    text = client.post(path, body | {"stream": True, "max_tokens": 12, "mode": mode}).text
    blocks = [block.partition("data: ")[2] for block in text.split("\n\n")]
    chunks = [json.loads(block) for block in blocks if block and block[0] == "{"]
    deltas = [one for one in chunks if one.get("type") == "content_block_delta"
              or any(c.get("text") or c.get("delta", {}).get("content")
                     for c in one.get("choices", ()))]  # fmt: skip
    times = [one.get("t_ms") for one in deltas]
    made = [event.t_ms for event in seen if event.deltas]
    assert times and set(times) == ({None} if mode == "diffusion" else set(made))
    assert all("t_ms" not in one for one in chunks if one not in deltas)


def test_times_of_a_plan_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second request of a plan whose times begin at zero again."""
    monkeypatch.setattr(PlanRun, "seconds", property(lambda run: 1000.0 + len(run._started_ms)))
    client, _ = counted()
    body = SHORT | SHOWN["/v1/fim/completions"]
    shown = {"max_steps": 3, "stream": "text", "stream_search": True}
    text = client.post("/v1/fim/completions", body | {"diffusion": shown}).text
    chunks = [json.loads(b.removeprefix("data: ")) for b in text.split("\n\n") if b[6:7] == "{"]
    sides = [c["diffusion"] for c in chunks if "t_ms" in c.get("diffusion", {})]
    begun: dict[float, int] = {}  # the first request of each round
    for side in sides:
        if side.get("state") == "queued":
            begun.setdefault(side["t_ms"], side["request"])
    assert len(begun) > 2
    assert [t - 1000 * number for t, number in begun.items()] == [1e6 + 250] * len(begun)


def sides(path: str, body: dict[str, Any], **shown: Any) -> list[dict[str, Any]]:
    """The frames of a stream of ids."""
    whole = body | {"seed": 1, "stream": True}
    asked = {"max_steps": 4, "stream": "ids"} | shown
    response = serve().post(path, whole | {"diffusion": asked})
    assert response.status_code == 200, response.text
    blocks = [block.removeprefix("data: ") for block in response.text.split("\n\n")]
    chunks = [json.loads(block) for block in blocks if block[:1] == "{"]
    found = [chunk["diffusion"] for chunk in chunks if "diffusion" in chunk]
    return [side for side in found if side["type"] == "frame"]


@pytest.mark.parametrize(("path", "body"), [
    (CHAT, {"messages": QUESTION, "max_tokens": 24}),
    ("/v1/canvas", {"segments": [{"text": "Dear "}, {"min_length": 4, "max_length": 4},
                                 {"tokens": [300]}]}),
])  # fmt: skip
def test_alternatives_and_edits(path: str, body: dict[str, Any]) -> None:
    """Alternatives whose text is never told, or that JSON cannot hold; an edit that is lost on the
    way to the engine, or that changes what was before it."""
    plain = sides(path, body, stream_alternatives=3)
    pieces: dict[str, Any] = {}
    for frame in plain:
        pieces |= frame["pieces"]
        assert len(frame["alternatives"]) == len(frame["ids"])
        for token, likely, state in zip(frame["ids"], frame["alternatives"], frame["state"],
                                        strict=True):  # fmt: skip
            assert all(str(i) in pieces and -99 < value <= 0 for i, value in likely)
            assert likely == sorted(likely, key=lambda one: -one[1]) and len(likely) <= 3
            assert state == "2" or token == likely[0][0]
    at = plain[1]["state"].index("1")
    other = next(i for i, _ in plain[1]["alternatives"][at] if i != plain[1]["ids"][at])
    edit = {"step": 1, "position": at, "do": "pin", "id": other}
    fork = sides(path, body, stream_alternatives=3, edits=[edit])
    for frame in (*plain, *fork):
        del frame["t_ms"]
    assert fork[0] == plain[0] and fork[1] != plain[1]
    assert all(one["ids"][at] == other and one["state"][at] == "2" for one in fork[1:])
