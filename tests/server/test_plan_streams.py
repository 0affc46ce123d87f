"""Plans as streams: drafts and text of holes, regions and canvases, and their fold.

How the runner itself orders its events is tested in `tests/compose/test_run.py`.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import httpx
import pytest

from dgemma.compose.fill import Filled, FilledHole
from dgemma.compose.run import PlanEvent
from dgemma.events import EventStream
from dgemma.server.pieces import End, Times, fold
from dgemma.server.plans import indented, infill_pieces
from dgemma.text.answer import first_stop
from dgemma.types import Event, Output, Request, Usage
from tests.support.bodies import APPLIED, APPLY, EDIT, MESSAGE, said
from tests.support.client import Recorder, Written, numbers, serve
from tests.support.nano import light, nano

pytestmark = pytest.mark.model

FIM, INFILL, CANVAS, OLD = "/v1/fim/completions", "/infill", "/v1/canvas", "/v1/completions"
SHOWN: dict[str, Any] = {"stream": True, "diffusion": {"max_steps": 3, "stream": "tokens"}}
SEGMENTS = [
    {"text": "Dear "}, {"role": "hole", "max_length": 3}, {"text": ", this is for "},
    {"min_length": 1, "max_length": 2}, {"text": "."},
]  # fmt: skip
LETTERS = nano().frontend.tokenizer.encode("aeiou")
MASKED = [
    {"text": "Dear"}, {"min_length": 3, "max_length": 3, "allowed_token_ids": LETTERS},
    {"text": "!"}, {"choices": ["a", "b"]},
]  # fmt: skip
ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "fim": (FIM, {"prompt": "Dear ", "suffix": ", this is for you.", "max_tokens": 4}),
    "fim, cut": (FIM, {"prompt": "Dear ", "suffix": ", Mira.", "max_tokens": 9, "stop": " "}),
    "fim, long": (FIM, {"prompt": "Dear ", "suffix": ", this is for you.", "max_tokens": 150}),
    "suffix": (OLD, {"prompt": "Dear ", "suffix": ".", "max_tokens": 4, "n": 2}),
    "infill": (INFILL, {"input_prefix": "Dear ", "input_suffix": ".", "n_predict": 4}),
    "edit": (EDIT, said(MESSAGE)),
    "apply": (APPLY, said(APPLIED)),
    "canvas": (CANVAS, {"segments": SEGMENTS}),
    "canvas, masked": (CANVAS, {"segments": MASKED}),
    "canvas, fixed": (CANVAS, {"segments": [*MASKED[:3], {"tokens": [300]}]}),
    "canvas, read": (CANVAS, {"segments": MASKED[:3], "read_only": True}),
}
"""Paths and bodies of everything that streams a plan."""
TIMED = ("id", "created", "timings")


def told(response: httpx.Response) -> list[dict[str, Any]]:
    """A stream's events, with or without OpenAI's last line."""
    assert response.status_code == 200, response.text
    blocks = [block for block in response.text.split("\n\n") if block and block[0] != ":"]
    return [json.loads(b.removeprefix("data: ")) for b in blocks if b != "data: [DONE]"]


def part(event: dict[str, Any]) -> tuple[int, str]:
    """Where an event's text belongs, and the text."""
    if "choices" in event:
        (choice,) = event["choices"]
        return choice["index"], choice.get("text") or choice.get("delta", {}).get("content") or ""
    if "content" in event:
        return 0, event["content"]
    return event.get("delta", {}).get("segment", -1), event.get("delta", {}).get("text", "")


def texts(found: Sequence[dict[str, Any]]) -> dict[int, str]:
    """The text of each choice or segment."""
    out: dict[int, str] = {}
    for number, text in map(part, found):
        out[number] = out.get(number, "") + text
    return {number: text for number, text in out.items() if text}


def whole(reply: dict[str, Any]) -> dict[int, str]:
    """The same of a plain reply."""
    if "choices" in reply:
        shown = {c["index"]: c.get("text") or c["message"]["content"] for c in reply["choices"]}
    elif "content" in reply:
        shown = {0: reply["content"]}
    else:
        shown = {
            n: one["text"] for n, one in enumerate(reply["segments"]) if "length_search" in one
        }
    return {number: text for number, text in shown.items() if text}


@pytest.mark.parametrize("name", ROUTES)
def test_a_stream_folds_to_the_plain_reply(name: str) -> None:
    """Catches text that is lost, doubled or of another hole when streamed, and another cost."""
    path, body = ROUTES[name]
    asked = body | {"seed": 1, "diffusion": {"max_steps": 3}}
    model = Recorder(light().submit)
    plain = serve(model).post(path, asked).json()
    for drafts in (False, True):
        check_stream(name, asked, drafts, plain, model.asked)


def check_stream(
    name: str, asked: dict[str, Any], drafts: bool, plain: dict[str, Any],
    requests: Sequence[Request],
) -> None:  # fmt: skip
    """The stream has the text, the requests and the usage of the plain reply."""
    fields, path = SHOWN if drafts else {"stream": True}, ROUTES[name][0]
    other = Recorder(light().submit)
    client = serve(other)
    found = told(client.post(path, asked | fields))
    assert texts(found) == whole(plain)
    sent = [
        [repr((r.token_ids, r.params, r.canvas)) for r in some] for some in (requests, other.asked)
    ]
    assert sorted(sent[0]) == sorted(sent[1])  # two plans may take turns in another order
    last = found[-1]
    for field in ("diffusion_usage", "seeds", "segments", "text", "status"):
        if field in plain and field in last and name != "suffix":
            assert last[field] == plain[field]
    if name not in ("suffix", "infill"):
        assert last["usage"] == plain["usage"]
    shown = [event for event in found if "diffusion" in event]
    assert bool(shown) == drafts
    counts = numbers(client)
    key = "dgemma_completion_tokens_total[]"
    usage = plain.get("usage", {"completion_tokens": plain.get("tokens_predicted")})
    assert counts[key] == usage["completion_tokens"]


@pytest.mark.parametrize("name", [name for name in ROUTES if name != "apply"])
def test_frames_keep_to_their_places(name: str) -> None:
    """Catches a draft of another hole, of a search, or of a mask's forbidden ids; steps out of
    order; text around a hole that moves."""
    path, body = ROUTES[name]
    found = told(serve(Recorder(light().submit)).post(path, body | {"seed": 1} | SHOWN))
    shown = [event for event in found if event.get("type") == "diffusion_frame"]
    assert shown
    steps: dict[Any, list[int]] = {}
    for event in shown:
        frame = event["diffusion"]
        choice = event["choices"][0]["index"] if "choices" in event else 0
        steps.setdefault((choice, frame["request"]), []).append(frame["step"])
        assert frame["places"]
        for at in frame["places"]:
            inside = frame["tokens"][at["start"] : at["stop"]]
            assert all(token["state"] != "pinned" for token in inside)
            allowed = body.get("segments", [{}] * 9)[at["part"]].get("allowed_token_ids")
            assert allowed is None or {token["id"] for token in inside} <= set(allowed)
        if "long" not in name:  # there free canvases come first
            held = sum(at["stop"] - at["start"] for at in frame["places"])
            assert frame["pinned"] == len(frame["tokens"]) - held
    assert all(one == sorted(set(one)) for one in steps.values())
    commits = [e["diffusion"] for e in found if e.get("diffusion", {}).get("type") == "commit"]
    assert ("read" in name) == (not commits)
    assert {commit["request"] for commit in commits} <= {request for _, request in steps}


def test_drafts_of_a_search_are_shown_on_request() -> None:
    """Catches readings that are shown to all, or to nobody."""
    path, body = ROUTES["canvas"]
    for search in (False, True):
        shown = {"stream": True, "diffusion": {"stream": "text", "stream_search": search}}
        model = Recorder(light().submit)
        found = told(serve(model).post(path, body | {"seed": 1} | shown))
        frames = [e["diffusion"] for e in found if e.get("type") == "diffusion_frame"]
        assert any(not frame["places"] for frame in frames) == search
        readings = [request for request in model.asked if request.canvas.read_only]
        assert readings and all(request.frames == search for request in readings)


def test_only_every_so_many_steps() -> None:
    """Catches an interval that is taken and ignored."""
    path, body = ROUTES["canvas, masked"]
    shown = {"stream": "text", "stream_interval": 2, "max_steps": 6, "stability_threshold": 9}
    found = told(serve().post(path, body | {"seed": 1, "stream": True, "diffusion": shown}))
    steps = [e["step"] for e in found if e.get("type") == "diffusion_frame"]
    assert steps == [0, 2, 4]


def test_finished_text_comes_before_the_rest_is_begun() -> None:
    """Catches a hole whose text waits for a hole on a later canvas."""
    far = [SEGMENTS[0], SEGMENTS[3], {"text": ", this is for you" * 9}, SEGMENTS[3], SEGMENTS[4]]
    fields = {"seed": 1, "diffusion": {"max_steps": 2, "stream": "text", "canvas_length": 32}}
    found = told(serve().post(CANVAS, {"segments": far, "stream": True} | fields))
    first = next(n for n, event in enumerate(found) if part(event)[0] == 1)
    frames = [n for n, event in enumerate(found) if event.get("type") == "diffusion_frame"]
    before = {at["part"] for n in frames if n < first for at in found[n]["diffusion"]["places"]}
    after = {at["part"] for n in frames if n > first for at in found[n]["diffusion"]["places"]}
    assert (before, after) == ({1}, {3})


def failing(after: int) -> Callable[[Request], EventStream]:
    """A model whose requests fail after so many frames."""

    def answer(request: Request) -> EventStream:
        if request.canvas is not None and request.canvas.read_only:
            return nano().submit(request)
        size = len(request.canvas.ids) if request.canvas else 4
        frame = Event(
            type="frame", ids=(300,) * size, accepted=bytes(size), entropy=bytes(size)
        )  # fmt: skip
        output = Output(finish_reason="error", error="the numbers were not finite")
        return Written([frame] * after + [Event(type="done", output=output)])

    return answer


@pytest.mark.parametrize("name", ["fim", "infill", "edit", "canvas", "canvas, masked"])
def test_an_error_after_the_first_frame(name: str) -> None:
    """Catches a stream that just ends when a request of the plan fails."""
    path, body = ROUTES[name]
    fields = {"seed": 1, "stream": True, "diffusion": {"stream": "text"}}
    found = told(serve(Recorder(failing(2))).post(path, body | fields))
    assert [event.get("type") for event in found].count("diffusion_frame") == 2
    assert "error" in found[-1] and "not finite" in found[-1]["error"]["message"]


@pytest.mark.parametrize("path, body, field", [
    (CANVAS, {"segments": [{"text": "a"}, {"allowed_token_ids": [2]}]}, "no text"),
    (FIM, {"prompt": "a", "diffusion": {"canvas_length": 7, "stream": "text"}}, "canvas"),
    (EDIT, said(MESSAGE) | {"diffusion": {"stream": "text", "canvas_length": 4}}, "canvas"),
    (CANVAS, {"segments": SEGMENTS, "stream": False, "diffusion": {"stream": "text"}}, "stream"),
    (INFILL, {"stream": False, "diffusion": {"stream": "text"}}, "stream"),
    (EDIT, said(MESSAGE) | {"diffusion": {"stream_interval": 2}}, "stream_interval"),
])  # fmt: skip
def test_a_refusal_has_its_own_status(path: str, body: dict[str, Any], field: str) -> None:
    """Catches a 200 whose stream holds nothing but an error that was known before."""
    response = serve().post(path, {"stream": True} | body)
    assert response.status_code == 400 and field in response.json()["error"]["message"]


class Told:
    """A run of a plan whose text comes in given pieces."""

    seconds = 1.0

    def __init__(self, pieces: Sequence[str]) -> None:
        self._pieces = pieces

    async def events(self) -> AsyncGenerator[PlanEvent[Filled], None]:
        """The pieces, and the hole."""
        for piece in self._pieces:
            yield PlanEvent(type="text", text=piece)
        holes = (FilledHole(text="".join(self._pieces)),)
        yield PlanEvent(type="done", result=Filled(
            text="", holes=holes, seed=1, outputs=(), usage=Usage(),
        ))  # fmt: skip

    def tokens(self, text: str) -> int:
        """Not looked at."""
        return 1

    def end_of(self, found: Filled, text: str, tokens: int, by: str | None, text_s: float) -> End:
        """The end, with the text and the stop string."""
        return End(Output(text=text, stopped_by=by), Times(text_s=text_s), 32)


def test_a_text_ends_at_the_same_place_however_it_comes() -> None:
    """Catches text that is sent and then cut by a stop string or a line's indentation. Random
    texts of few letters: a cut that is a character off shows within a few of them."""
    draw = random.Random(1)
    for _ in range(2000):
        text = "".join(draw.choice("ab  \n") for _ in range(draw.randrange(1, 14)))
        stop = [draw.choice(("ab", "b\n", "aab", "  a")) for _ in range(draw.randrange(3))]
        indent = draw.randrange(3)
        cuts = sorted(draw.randrange(len(text) + 1) for _ in range(draw.randrange(4)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        run: Any = Told(pieces)
        folded = asyncio.run(fold(infill_pieces(run, stop=stop, indent=indent)))
        found = first_stop(text, stop)
        assert folded.text == indented(text[: found[0]] if found else text, indent)
        assert folded.ended.output.stopped_by == (found[1] if found else None)
