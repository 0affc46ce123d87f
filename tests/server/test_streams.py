"""The finer points of streams: text as it settles, later drafts, scores, side events."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from dgemma.events import EventStream
from dgemma.params import SamplingParams
from dgemma.server.pieces import Frame, Piece, PieceReader, Scores, fold
from dgemma.server.service import Service
from dgemma.server.settings import Settings
from dgemma.tasks import make_example
from dgemma.types import Event, Request, TextDelta, TokenScore
from tests.support.client import (
    Client,
    Recorder,
    Written,
    collected,
    deltas,
    events,
    serve,
    written,
)
from tests.support.nano import nano

pytestmark = pytest.mark.model

CHAT = "/v1/chat/completions"
PUZZLE = make_example("sudoku", "heldout", 1, 1).messages
ASK: dict[str, Any] = {
    "messages": PUZZLE, "seed": 1, "max_tokens": 90,
    "diffusion": {"canvas_length": 32, "max_steps": 12, "stable_prefix": True},
}  # fmt: skip
"""Three canvases, told as they settle."""


@pytest.fixture(scope="module")
def client() -> Client:
    """An app over nano."""
    return serve()


def pieces_of(history: Sequence[Event], *, chat: bool, **params: Any) -> list[Piece]:
    """What a reading makes of these events, and of the end that they lead to."""
    own = SamplingParams(**params)
    request = Request(token_ids=(2, 300), params=own, chat=chat, frames=True)
    return asyncio.run(collected(PieceReader(nano().facts, request, written(request, history))))


def draft(canvas: int, ids: Sequence[int]) -> Event:
    """A frame."""
    size = len(ids)
    return Event(
        type="frame", canvas=canvas, ids=tuple(ids), accepted=bytes(size), entropy=bytes(size)
    )


def commit(canvas: int, ids: Sequence[int], *, whole: bool = True, scored: bool = False) -> Event:
    """A commit, or the beginning of one."""
    scores = tuple(TokenScore(token_id=i, logprob=-1.0) for i in ids) if scored else ()
    return Event(type="commit", canvas=canvas, ids=tuple(ids), whole=whole, scores=scores)


@pytest.mark.parametrize("chat", [False, True])
def test_a_draft_stands_behind_what_was_committed(chat: bool) -> None:
    """Earlier canvases lost from the whole, or the told part of the running one shown twice."""
    encode = nano().frontend.tokenizer.encode
    one, two, three = (encode(text) for text in ("One two ", "three four", " five six"))
    ids = [*two, *three]
    history = [draft(0, one), commit(0, one), draft(1, ids), commit(1, two, whole=False),
            draft(1, ids), commit(1, three)]  # fmt: skip
    pieces = pieces_of(history, chat=chat)
    frames = [piece for piece in pieces if isinstance(piece, Frame)]
    whole = "One two three four five six"
    assert [frame.whole for frame in frames] == ["One two ", whole, whole]
    assert [frame.text for frame in frames] == ["One two ", *["three four five six"] * 2]
    assert "".join(piece.text for piece in pieces if isinstance(piece, TextDelta)) == whole


def test_scores_follow_their_text() -> None:
    """Scores of a thought, all of them at the end, or told of text that a stop string cut off."""
    encode = nano().frontend.tokenizer.encode
    parts = [encode(text, control=True) for text in
             ("<|channel>thought\nhm", "<channel|>One", " two", " STOP three")]  # fmt: skip
    history = [commit(0, ids, whole=k > 2, scored=True) for k, ids in enumerate(parts)]
    pieces = pieces_of(history, chat=True, logprobs=0)
    kinds = [type(piece).__name__ for piece in pieces if isinstance(piece, (TextDelta, Scores))]
    assert kinds[:4] == ["TextDelta", "Scores", "TextDelta", "Scores"]
    scores = [s.token_id for piece in pieces if isinstance(piece, Scores) for s in piece.scores]
    text = nano().frontend.tokenizer.decode(scores)
    assert text == "One two STOP three"
    pieces = pieces_of(history, chat=True, logprobs=0, stop=["STOP"])
    assert "".join(piece.text for piece in pieces if isinstance(piece, TextDelta)) == "One two "
    found = [piece for piece in pieces if isinstance(piece, Scores)]
    assert len(found) == 1 and isinstance(pieces[-2], Scores)
    assert nano().frontend.tokenizer.decode([s.token_id for s in found[0].scores]) in (
        "One two", "One two "
    )  # fmt: skip


async def _replay(pieces: Sequence[Piece]) -> Any:
    for piece in pieces:
        yield piece


def test_the_fold_has_every_score() -> None:
    """A plain reply that lacks the scores its stream has."""
    ids = nano().frontend.tokenizer.encode("One two three")
    history = [commit(0, ids[:2], whole=False, scored=True), commit(0, ids[2:], scored=True)]
    folded = asyncio.run(fold(_replay(pieces_of(history, chat=True, logprobs=0))))
    assert [score.token_id for score in folded.scores] == list(ids)


def test_stable_prefix_in_the_chat(client: Client) -> None:
    """Text that comes with its canvas only, or a stream that is not the plain reply."""
    own = {**ASK, "diffusion": {**ASK["diffusion"], "stream": "text"}, "stream": True}
    found = events(client.post(CHAT, own))
    plain = client.post(CHAT, ASK).json()
    content = plain["choices"][0]["message"]["content"]
    assert "".join(deltas(found, "content")) == content
    sides = [event["diffusion"] for event in found if "diffusion" in event]
    commits = [side for side in sides if side["type"] == "commit"]
    assert sum(side["whole"] for side in commits) == plain["diffusion_usage"]["canvases"]
    assert sum(side["tokens"] for side in commits) == plain["usage"]["completion_tokens"]
    assert any(not side["whole"] for side in commits)
    ended = [side["stop_reason"] for side in commits]
    assert all((reason is not None) == side["whole"] for reason, side in zip(
        ended, commits, strict=True
    ))  # fmt: skip
    assert set(ended) <= {None, "converged", "step_cap"}


def test_stable_prefix_in_the_other_streams(client: Client) -> None:
    """A route that accepts the field and draws as it would without."""
    own = ASK["diffusion"]
    body = {"prompt": PUZZLE[-1]["content"], "seed": 1, "max_tokens": 90, "diffusion": own}
    found = events(client.post("/v1/completions", {**body, "stream": True}))
    plain = client.post("/v1/completions", body).json()
    text = "".join(one["text"] for event in found for one in event["choices"])
    assert text == plain["choices"][0]["text"] and text
    body = {"messages": PUZZLE, "seed": 1, "max_tokens": 90, "diffusion": own}
    plain = client.post("/v1/messages", body).json()
    chat = client.post(CHAT, ASK).json()
    assert plain["content"][0]["text"] == chat["choices"][0]["message"]["content"]
    assert plain["diffusion_usage"] == chat["diffusion_usage"]


def test_logprobs_come_with_the_text(client: Client) -> None:
    """A long answer whose scores a client waits for to the end; other scores than the plain's."""
    own = {**ASK, "logprobs": True, "top_logprobs": 1}
    found = events(client.post(CHAT, {**own, "stream": True}))
    plain = client.post(CHAT, own).json()["choices"][0]["logprobs"]["content"]
    parts = [one["logprobs"]["content"] for event in found for one in event["choices"]
             if one["logprobs"]]  # fmt: skip
    assert len(parts) >= 3 and [one for part in parts for one in part] == plain


def test_status_before_the_first_draft(client: Client) -> None:
    """A client that cannot tell a queue from a long prompt; status events that nobody asked for."""
    own = {**ASK, "stream": True, "diffusion": {"max_steps": 2, "stream": "text"}}
    found = events(client.post(CHAT, own))
    sides = [event for event in found if "diffusion" in event]
    kinds = [side["diffusion"]["type"] for side in sides]
    assert kinds[:3] == ["status", "status", "frame"] and "status" not in kinds[3:]
    assert [side["diffusion"]["state"] for side in sides[:2]] == ["queued", "encoding"]
    last = sides[1]["diffusion"]
    assert 0 <= last["encoded"] < last["prompt_tokens"]
    for more in ({"diffusing": True}, {}):
        own = {**ASK, "stream": True, "diffusion": {"max_steps": 2}, **more}
        assert not any("diffusion" in event for event in events(client.post(CHAT, own)))


@pytest.mark.parametrize(("path", "more", "named"), [
    (CHAT, {"guided_regex": "[a-c]+"}, "regex"),
    (CHAT, {"bad_words": ["x"]}, "bad_words"),
    (CHAT, {"diffusion_read_only": True}, "read_only"),
    ("/v1/completions", {"messages": None, "prompt": "a", "suffix": "b"}, "diffusion"),
])  # fmt: skip
def test_what_it_cannot_be_combined_with(
    client: Client, path: str, more: dict[str, Any], named: str
) -> None:
    """A 500, or a promise that is not kept."""
    if named in ("regex", "bad_words"):
        pytest.importorskip("llguidance")
    body = {key: value for key, value in {**ASK, **more}.items() if value is not None}
    response = client.post(path, body)
    assert response.status_code == 400, response.text
    message = response.json()["error"]["message"]
    assert "stable_prefix" in message and named in message


@pytest.mark.parametrize(("path", "more"), [
    (CHAT, {"messages": PUZZLE}), ("/v1/messages", {"messages": PUZZLE, "max_tokens": 9}),
    ("/v1/completions", {"prompt": "Hello"}),
])  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_the_start(
    path: str, more: dict[str, Any], stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a place that is held while a request is prepared for nobody."""
    client = serve()
    service = client.app.state.service

    async def submit(*given: Any, **named: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(service, "submit", submit)
    body = json.dumps({**more, "stream": stream}).encode()
    sent = [{"type": "http.request", "body": body}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        return sent.pop(0)

    async def send(message: Any) -> None:
        raise AssertionError(message)

    scope = {
        "type": "http", "method": "POST", "path": path, "query_string": b"",
        "headers": [(b"content-type", b"application/json")], "root_path": "",
    }  # fmt: skip
    asyncio.run(asyncio.wait_for(client.app(scope, receive, send), 10))
    assert not sent and service.open_requests == 0


def test_requests_that_were_started_for_nobody_are_ended() -> None:
    """Catches a request that a thread has started while its client left: it would run on."""
    begun, go, streams = threading.Event(), threading.Event(), list[Written]()

    def submit(request: Request) -> EventStream:
        begun.set()
        go.wait(10)
        streams.append(written(request, []))
        return streams[-1]

    service = Service(Recorder(submit), Settings())

    async def leave() -> None:
        task = asyncio.ensure_future(service.submit([Request(token_ids=(5,))], owner=""))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        go.set()
        while not (streams and streams[0].closed):
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(leave(), 10))
    assert len(streams) == 1
