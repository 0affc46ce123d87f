"""Events as neutral pieces: order, fields, and what is held back, on canvases written by hand."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from dgemma.compose.streams import merge
from dgemma.params import SamplingParams
from dgemma.request_parts import ToolUse
from dgemma.server import sse
from dgemma.server.pieces import End, Folded, Piece, PieceReader, fold, words
from dgemma.types import Event, Output, Request, TextDelta, ThoughtDelta, TokenScore, ToolCallDelta
from tests.support.client import QUESTION, Recorder, collected, serve, written
from tests.support.nano import nano

pytestmark = pytest.mark.model

ANSWER = (
    "<|channel>thought\nFirst I look, then\nI call.\n<channel|>Let me see — é 漢. "
    '<|tool_call>call:find{city:<|"|>Oslo<|"|>}<tool_call|> and '
    "<|channel>thought\nagain\n<channel|><|tool_call>call:find{n:2}<tool_call|>done, STOP here."
)


def tools(*names: str) -> ToolUse:
    """These tools may be called."""
    return ToolUse([{"name": name} for name in names], required=False)


def reading_of(ids: list[int], cuts: list[int], stop: tuple[str, ...] = ()) -> PieceReader:
    """An answer that came in canvases cut at given places."""
    prompt = tuple(nano().chat_ids(QUESTION, None, True))
    params = SamplingParams(stop=stop or None)
    request = Request(token_ids=prompt, params=params, chat=True, tool_use=tools("find"))
    edges = [0, *cuts, len(ids)]
    commits = [ids[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    return PieceReader(nano().facts, request, written(request, commits))


def output_of(pieces: list[Piece]) -> Output:
    """The output in the last piece."""
    last = pieces[-1]
    assert isinstance(last, End)
    return last.output


def check_fold(pieces: list[Piece]) -> Output:
    """The pieces say what the output says, field by field."""
    output = output_of(pieces)
    assert "".join(p.text for p in pieces if isinstance(p, TextDelta)) == output.text
    assert "".join(p.text for p in pieces if isinstance(p, ThoughtDelta)) == (output.thinking or "")
    calls = [p for p in pieces if isinstance(p, ToolCallDelta)]
    assert tuple(p.call for p in calls) == output.tool_calls
    assert [p.index for p in calls] == list(range(len(calls)))
    assert all("<|" not in p.text for p in pieces if isinstance(p, (TextDelta, ThoughtDelta)))
    return output


def test_one_canvas_with_thought_call_and_answer_comes_apart_in_order() -> None:
    """Catches a thought in the content, a call as text, or an order that is not the model's."""
    ids = nano().frontend.tokenizer.encode(ANSWER, control=True)
    pieces = asyncio.run(collected(reading_of(ids, [])))
    output = check_fold(pieces)
    assert output.text.startswith("Let me see — é 漢. ") and "Oslo" not in output.text
    kinds = [type(piece).__name__ for piece in pieces]
    order = [k for k, before in zip(kinds, ["", *kinds], strict=False) if k != before]
    assert [name.removesuffix("Delta") for name in order] == [
        "Thought", "Text", "ToolCall", "Text", "Thought", "ToolCall", "Text", "End",
    ]  # fmt: skip


@pytest.mark.parametrize("stop", [(), ("STOP",), ("é",), (" and",), ("zzz",)])
def test_any_cut_into_canvases_folds_to_the_same(stop: tuple[str, ...]) -> None:
    """Catches text lost, doubled or in a wrong field where a canvas ends within a marker's text,
    a character or a stop string, and text behind a stop string that was already sent."""
    ids = nano().frontend.tokenizer.encode(ANSWER, control=True)
    draw = random.Random(repr(stop))
    whole = output_of(asyncio.run(collected(reading_of(ids, [], stop))))
    for _ in range(20):
        cuts = sorted(draw.sample(range(len(ids)), draw.randint(1, 12)))
        output = check_fold(asyncio.run(collected(reading_of(ids, cuts, stop))))
        assert output.text == whole.text
        assert not any(s in output.text for s in stop)


def test_words_are_the_text() -> None:
    """Catches blanks or line breaks lost between deltas, and a delta that is no word."""
    text = "  One two\n\nthree,\tfour  "
    assert "".join(words(text)) == text
    assert list(words(text))[:3] == ["  One", " two", "\n\nthree,"]
    assert list(words("")) == [] and list(words("\n ")) == ["\n "]


def scored(text: str, *, size: int) -> tuple[Folded, str]:
    """A folded answer whose every token has a score, and the text of the scored tokens."""
    tokenizer = nano().frontend.tokenizer
    ids = tokenizer.encode(text, control=True)
    history = list[Event]()
    for canvas, low in enumerate(range(0, len(ids), size)):
        piece = tuple(ids[low : low + size])
        own = tuple(TokenScore(token_id=token_id, logprob=-1.0) for token_id in piece)
        history.append(Event(type="commit", canvas=canvas, ids=piece, scores=own))
    request = Request(
        token_ids=(2, 300), params=SamplingParams(logprobs=0), chat=True,
        tool_use=tools("f"),
    )  # fmt: skip
    reader = PieceReader(nano().facts, request, written(request, history, reason="length"))
    folded = asyncio.run(fold(reader.pieces()))
    shown = tokenizer.decode([score.token_id for score in folded.scores], control=True)
    return folded, shown


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize("text, thought", [
    ("<|channel>thought\nx<channel|>ab<|tool_call>call:f{}<tool_call|>", "x"),
    ("<|channel>thought\nnow<tool_call|> more, and more<channel|>ab", "now more, and more"),
    ("a<|tool_call>no call<tool_call|>b", ""),
    ("a<|tool_call>call:f{n:1", ""),
])  # fmt: skip
def test_scores_are_those_of_the_text(text: str, thought: str, size: int) -> None:
    """Catches log-probabilities of a thought, of a call or of a marker in the content's list, text
    without any, and a thought that is counted otherwise than it is told."""
    folded, shown = scored(text, size=size)
    assert shown == folded.text and folded.thinking == thought
    tokenizer = nano().frontend.tokenizer
    _, _, inside = text.partition("<|channel>")
    inside, _, _ = inside.partition("<channel|>")
    count = sum(1 for i in tokenizer.encode(inside, control=True) if i not in tokenizer.special_ids)
    assert folded.ended.output.usage.thought_tokens == count


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_call_that_is_cut_off_is_no_text(size: int) -> None:
    """Catches a client that shows the user the beginning of a call as the answer."""
    folded, shown = scored("<|tool_call>call:f{n:4399", size=size)
    assert folded.text == shown == "" and not folded.calls
    assert [one.call.text for one in folded.invalid] == ["call:f{n:4399"]
    assert folded.ended.output.finish_reason == "length"


CUT_OFF = "neither a comma nor a closing brace after 'n'"
TOOL = {"name": "f", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}}}


@pytest.mark.parametrize("must", [True, False])
def test_a_call_that_is_cut_off_in_every_api(must: bool) -> None:
    """Catches a route that shows the beginning of a call as text, or not at all."""
    begun = "<|tool_call>call:f{n:4399"
    ids = nano().frontend.tokenizer.encode(begun, control=True)
    model = Recorder(lambda request: written(request, [ids], reason="length"))
    tools = [{"type": "function", "function": TOOL}]
    choice = "required" if must else "auto"
    cut = serve(model).ask(tools=tools, tool_choice=choice).json()["choices"][0]
    sign = [{"name": "f", "text": "call:f{n:4399", "error": CUT_OFF}]
    assert cut["message"]["content"] == ""
    assert cut["message"]["invalid_tool_calls"] == sign
    assert cut["finish_reason"] == "length"
    asked = {
        "messages": QUESTION, "max_tokens": 8, "tool_choice": {"type": "any" if must else "auto"},
        "tools": [{"name": "f", "input_schema": TOOL["parameters"]}],
    }  # fmt: skip
    reply = serve(model).post("/v1/messages", asked).json()
    assert reply["content"] == [] and reply["invalid_tool_calls"] == sign
    assert reply["stop_reason"] == "max_tokens"


def test_closing_ends_the_request() -> None:
    """Catches a reader that goes away and leaves its request running."""
    reader = reading_of(nano().frontend.tokenizer.encode("one two three"), [])

    async def leave() -> None:
        source = reader.pieces()
        await anext(source)
        await source.aclose()

    asyncio.run(leave())
    assert reader._stream.closed  # type: ignore[attr-defined]
    assert asyncio.run(fold(reading_of([], []).pieces())).ended.output.text == ""


def test_silence_has_heartbeats_and_ends_with_its_source() -> None:
    """Catches a proxy that cuts a silent stream, a lost event behind a heartbeat, and a source
    that is left open when its reader goes."""
    closed = []

    async def slow() -> AsyncGenerator[bytes, None]:
        try:
            await asyncio.sleep(0.05)
            yield b"one"
            await asyncio.sleep(60)
            yield b"never"
        finally:
            closed.append(True)

    async def read() -> list[bytes]:
        source = sse.with_heartbeats(slow(), 0.01)
        got = []
        async for piece in source:
            got.append(piece)
            if got.count(sse.HEARTBEAT) >= 2 and b"one" in got and got[-1] != b"one":
                break
        await source.aclose()
        return got

    got = asyncio.run(read())
    assert got[0] == sse.HEARTBEAT and got.count(b"one") == 1 and closed == [True]


def test_a_stream_whose_client_cannot_be_reached_ends_now() -> None:
    """Catches a source that is left to the collection of garbage when a server's send fails."""
    closed = []

    async def source() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"more"
        finally:
            closed.append(True)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            raise OSError("the connection is gone")

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def answer() -> None:
        for version in ("2.3", "2.4"):
            response = sse.EventStreamResponse(source(), 10)
            scope = {"type": "http", "asgi": {"spec_version": version}}
            with pytest.raises((OSError, ClientDisconnect)):
                await response(scope, receive, send)

    async def exchanges() -> list[bool]:
        gc.disable()
        try:
            await answer()
            return list(closed)
        finally:
            gc.enable()

    assert asyncio.run(exchanges()) == [True, True]


def test_merged_streams_end_together_on_an_error() -> None:
    """Catches one failed choice of n that leaves the others running, or hides the failure."""
    closed = []

    async def good() -> AsyncGenerator[int, None]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0.001)
        finally:
            closed.append(True)

    async def bad() -> AsyncGenerator[int, None]:
        yield 2
        raise KeyError("broken")

    async def read() -> None:
        async for _ in merge([good(), bad()]):
            pass

    with pytest.raises(KeyError, match="broken"):
        asyncio.run(read())
    assert closed == [True]
