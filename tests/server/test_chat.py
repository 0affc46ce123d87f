"""`/v1/chat/completions`: the answers of `LLM.chat`, plain and streamed; drafts, tools, ends."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest

from dgemma.params import SamplingParams
from dgemma.server.apis.chat.reply import logprobs
from dgemma.server.apis.chat.schema import ChatReply
from dgemma.server.choices import LEAST
from dgemma.types import Output, Request, TokenScore
from tests.support.client import ASK, QUESTION, Client, Recorder, deltas, events, serve, written
from tests.support.nano import nano

pytestmark = pytest.mark.model

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find", "description": "Finds a city.",
            "parameters": {
                "type": "object", "properties": {"city": {"type": "string"}},
                "required": ["city"], "additionalProperties": False,
            },
        },
    }
]  # fmt: skip
LONG = {"min_tokens": 200, "max_tokens": 260, "diffusion": {"max_steps": 2}}


def call_ids() -> list[int]:
    """An answer of one thought, a text and two calls."""
    calls = "".join(
        f'<|tool_call>call:find{{city:<|"|>{city}<|"|>}}<tool_call|>' for city in ("Oslo", "Rome")
    )
    text = f"<|channel>thought\nhm<channel|>So: {calls}"
    return nano().frontend.tokenizer.encode(text, control=True)


@pytest.fixture(scope="module")
def client() -> Client:
    """An app over nano."""
    return serve()


@pytest.mark.parametrize(("fields", "params"), [
    ({}, {}),
    ({"temperature": 0.0, "max_tokens": 9}, {"temperature": 0.0, "max_tokens": 9}),
    ({"stop": ["nano"]}, {"stop": ["nano"]}),
    ({"top_k": 3, "logit_bias": {"45": -5}}, {"top_k": 3, "logit_bias": {45: -5.0}}),
    ({"guided_choice": ["yes", "no"]}, {"choices": ["yes", "no"]}),
    (LONG, {"min_tokens": 200, "max_tokens": 260, "max_steps": 2}),
])  # fmt: skip
def test_answers_equal_those_of_chat(
    client: Client, fields: dict[str, Any], params: dict[str, Any]
) -> None:
    """Catches a field that is lost on its way, a second sampler, and a stream that is not the
    plain reply in pieces."""
    own = {"seed": 1, "max_steps": 4} | params
    expected: Output = nano().chat(QUESTION, SamplingParams(**own))
    plain = client.ask(**fields).json()
    text = plain["choices"][0]["message"]["content"]
    assert (text, plain["seeds"]) == (expected.text, [1])
    assert plain["usage"]["completion_tokens"] == expected.usage.completion_tokens
    assert plain["diffusion_usage"]["steps"] == expected.usage.steps
    streamed = events(client.ask(**fields, stream=True))
    assert "".join(deltas(streamed, "content")) == expected.text
    reason = "length" if expected.finish_reason == "length" else "stop"
    assert plain["choices"][0]["finish_reason"] == reason
    assert streamed[-1]["choices"][0]["finish_reason"] == reason
    ChatReply.model_validate(plain)


def test_answers_are_the_same_under_load(client: Client) -> None:
    """Catches a request whose answer depends on those beside it, and replies that are swapped."""
    seeds = [1, 2, 3, 4, 5, 6]

    async def together() -> list[str]:
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            asked = [ASK | {"seed": seed, "stream": seed % 2 == 0} for seed in seeds]
            replies = await asyncio.gather(
                *(http.post("/v1/chat/completions", json=body) for body in asked)
            )
        return [
            "".join(deltas(events(reply), "content"))
            if seed % 2 == 0
            else reply.json()["choices"][0]["message"]["content"]
            for seed, reply in zip(seeds, replies, strict=True)
        ]

    alone = [nano().chat(QUESTION, SamplingParams(seed=seed, max_steps=4)).text for seed in seeds]
    assert asyncio.run(together()) == alone


def test_text_comes_word_by_word(client: Client) -> None:
    """Catches a canvas that arrives as one delta: speed meters of clients then show nothing."""
    found = events(client.ask(stream=True))
    parts = deltas(found, "content")
    assert len(parts) == len("".join(parts).split())
    assert found[0]["choices"][0]["delta"] == {"role": "assistant"}
    assert {event["object"] for event in found} == {"chat.completion.chunk"}
    assert len({(event["id"], event["model"]) for event in found}) == 1


def test_usage_comes_where_it_is_asked_for(client: Client) -> None:
    """Catches a client that breaks on a chunk without choices, or that waits for its usage."""
    found = events(client.ask(stream=True, stream_options={"include_usage": True}))
    assert found[-1]["choices"] == [] and found[-1]["usage"]["total_tokens"] > 0
    assert all(event["usage"] is None for event in found[:-1])
    spent, times = found[-1]["diffusion_usage"], found[-1]["timings"]
    assert spent["canvases"] == 1 and spent["canvas_tokens"] == nano().facts.canvas
    assert times["ttft_ms"] <= times["total_ms"] and times["step_tok_s"] >= times["canvas_tok_s"]
    assert all("usage" not in event for event in events(client.ask(stream=True)))


def test_several_choices(client: Client) -> None:
    """Catches choices with one seed, deltas under a wrong index, and a usage of one of them."""
    plain = client.ask(n=3, temperature=4.0).json()
    assert plain["seeds"] == [1, 2, 3]
    texts = [choice["message"]["content"] for choice in plain["choices"]]
    found = events(client.ask(n=3, temperature=4.0, stream=True))
    assert ["".join(deltas(found, "content", k)) for k in range(3)] == texts
    alone = [client.ask(seed=s, temperature=4.0).json() for s in (1, 2, 3)]
    assert [one["choices"][0]["message"]["content"] for one in alone] == texts
    total = sum(one["usage"]["completion_tokens"] for one in alone)
    assert plain["usage"]["completion_tokens"] == total


def test_thought_calls_and_text_stand_in_their_fields() -> None:
    """Catches a thought in the content or a call as text, plain and streamed."""
    client = serve(Recorder(lambda request: written(request, [call_ids()])))
    choice = client.ask(tools=TOOLS, reasoning_effort="high").json()["choices"][0]
    said = choice["message"]
    assert (said["reasoning_content"], said["content"]) == ("hm", "So: ")
    calls = [json.loads(call["function"]["arguments"]) for call in said["tool_calls"]]
    assert calls == [{"city": "Oslo"}, {"city": "Rome"}]
    assert choice["finish_reason"] == "tool_calls"
    found = events(client.ask(tools=TOOLS, reasoning_effort="high", stream=True))
    assert "".join(deltas(found, "reasoning_content")) == "hm"
    assert "".join(deltas(found, "content")) == "So: "
    streamed = [call for part in deltas(found, "tool_calls") for call in part]
    assert [call["index"] for call in streamed] == [0, 1]
    assert len({call["id"] for call in streamed}) == 2
    assert found[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_stream_without_text_folds_to_the_plain_content() -> None:
    """Catches an empty text where the plain reply has none, and none where it has an empty one."""
    encode = nano().frontend.tokenizer.encode
    call = encode('<|tool_call>call:find{city:<|"|>Oslo<|"|>}<tool_call|>', control=True)
    for ids, content in ((call, None), ([], ""), (encode("One"), "One")):
        client = serve(Recorder(lambda request, ids=ids: written(request, [ids])))
        assert client.ask(tools=TOOLS).json()["choices"][0]["message"]["content"] == content
        parts = [
            event["choices"][0]["delta"] for event in events(client.ask(tools=TOOLS, stream=True))
        ]
        contents = [part["content"] for part in parts if "content" in part]
        assert ("".join(contents) if contents else None) == content


def test_one_call_where_calls_may_not_be_parallel() -> None:
    """Catches `parallel_tool_calls: false` that is taken and ignored."""
    client = serve(Recorder(lambda request: written(request, [call_ids()])))
    ask = {"tools": TOOLS, "parallel_tool_calls": False}
    assert len(client.ask(**ask).json()["choices"][0]["message"]["tool_calls"]) == 1
    assert len(deltas(events(client.ask(**ask, stream=True)), "tool_calls")) == 1


def test_a_required_call_is_made(client: Client) -> None:
    """Catches a tool_choice that does not reach the model's grammar."""
    pytest.importorskip("llguidance")
    named = {"type": "function", "function": {"name": "find"}}
    for choice in ("required", named):
        reply = client.ask(tools=TOOLS, tool_choice=choice).json()["choices"][0]
        (call,) = reply["message"]["tool_calls"]
        assert call["function"]["name"] == "find"
        assert set(json.loads(call["function"]["arguments"])) == {"city"}
        expected = nano().chat(
            QUESTION, SamplingParams(seed=1, max_steps=4), tools=TOOLS, tool_choice=choice
        )
        assert json.loads(call["function"]["arguments"]) == expected.tool_calls[0].arguments


STRICT = {"type": "function", "function": {
    "name": "set_timer", "strict": True, "description": "Set a timer.",
    "parameters": {
        "type": "object", "required": ["minutes"], "additionalProperties": False,
        "properties": {"minutes": {"type": "string", "enum": ["one", "two"]}},
    },
}}  # fmt: skip


def test_strict_tools_may_be_called(client: Client) -> None:
    """Catches a strict tool that is refused where the model may choose, as the openai client sends
    it; a call outside its schema; and one that is forced where none was asked for."""
    pytest.importorskip("llguidance")
    begun = nano().frontend.tokenizer.encode("<|tool_call>call:set_timer{minutes:", control=True)
    pins = {"diffusion_seed_canvas": begun, "diffusion_pinned": list(range(len(begun)))}
    for tools in ([STRICT], [*TOOLS, STRICT]):
        reply = client.ask(**pins, tools=tools, max_tokens=64)
        assert reply.status_code == 200, reply.text
        choice = reply.json()["choices"][0]
        call = choice["message"]["tool_calls"][0]
        assert json.loads(call["function"]["arguments"])["minutes"] in ("one", "two")
        assert choice["finish_reason"] == "tool_calls"
    no_call = {"logit_bias": {str(begun[0]): -1000}, "tools": [STRICT]}
    text = client.ask(**no_call).json()["choices"][0]
    assert text["message"]["content"] and "tool_calls" not in text["message"]
    cut = client.ask(**no_call, max_tokens=3).json()["choices"][0]
    assert cut["finish_reason"] == "length"
    least = client.ask(**no_call, min_tokens=3)
    assert least.status_code == 400 and least.json()["error"]["param"] == "min_tokens"
    both = client.ask(tools=[STRICT], response_format={"type": "json_object"}).json()
    assert isinstance(json.loads(both["choices"][0]["message"]["content"]), dict)
    lark = client.ask(tools=[STRICT], guided_grammar="start: <|tool_call>")
    assert lark.status_code == 400 and "strict tools" in lark.text


def test_a_tools_result_goes_back(client: Client) -> None:
    """Catches the second half of a tool loop: the ids that we gave must be taken back."""
    call = {"id": "call_1", "type": "function",
            "function": {"name": "find", "arguments": '{"city": "Oslo"}'}}  # fmt: skip
    said = [
        {"role": "developer", "content": "Be short."}, *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "It is there."},
    ]  # fmt: skip
    reply = client.ask(messages=said, tools=TOOLS).json()
    expected = nano().chat(said, SamplingParams(seed=1, max_steps=4), tools=TOOLS)
    assert (reply["choices"][0]["message"]["content"] or "") == expected.text


def test_drafts_as_side_events(client: Client) -> None:
    """Catches drafts that reach the content of a strict client, and frames without their state."""
    found = events(client.ask(stream=True, diffusion={"max_steps": 4, "stream": "tokens"}))
    frames = [event for event in found if event.get("type") == "diffusion_frame"]
    assert frames and all(f["choices"][0]["delta"] == {} for f in frames)
    width = nano().facts.canvas
    for number, frame in enumerate(frames):
        own = frame["diffusion"]
        assert (frame["step"], frame["total"], own["max_steps"]) == (number, 4, 4)
        assert own["accepted"] + own["renoised"] + own["pinned"] == width == len(own["tokens"])
        states = [token["state"] for token in own["tokens"]]
        assert states.count("accepted") == own["accepted"]
        assert own["text"] == frame["text"] and "<|" not in own["text"]
    plain = client.ask().json()["choices"][0]["message"]["content"]
    assert "".join(deltas(found, "content")) == plain
    some = events(client.ask(stream=True, diffusion={"max_steps": 4, "stream": "text"}))
    some = [one for one in some if one.get("diffusion", {}).get("type") == "frame"]
    assert some and all("tokens" not in one["diffusion"] for one in some)
    assert found[-1]["timings"]["ttf_frame_ms"] <= found[-1]["timings"]["ttft_ms"]


def test_drafts_in_the_dialect_of_mercury(client: Client) -> None:
    """Catches a draft that is not marked as one, or a last content that is not the answer."""
    long = {**LONG, "min_tokens": 150, "max_tokens": 150}
    found = events(client.ask(stream=True, diffusing=True, **long))
    drafts = [event for event in found if "diffusion_meta" in event]
    assert {event["diffusion_meta"]["canvas"] for event in drafts} == {0, 1}
    assert all(event["diffusion_meta"]["diffusion_content"] is True for event in drafts)
    final = [text for event in found if event not in drafts for text in deltas([event], "content")]
    plain = client.ask(**long).json()
    assert final == [plain["choices"][0]["message"]["content"]]
    second = [event for event in drafts if event["diffusion_meta"]["canvas"] == 1]
    assert len(deltas(second, "content")[0]) > nano().facts.canvas // 2


def test_frames_may_be_rarer(client: Client) -> None:
    """Catches a stream_interval that is taken and ignored."""
    every = {"stream": "text", "max_steps": 8, "confidence_threshold": 0.0}
    found = events(client.ask(stream=True, diffusion=every | {"stream_interval": 3}))
    assert [event["step"] for event in found if "step" in event] == [0, 3, 6]


def test_logprobs(client: Client) -> None:
    """Catches log-probabilities that are not the answer's, or differ in a stream."""
    ask = {"logprobs": True, "top_logprobs": 2}
    plain = client.ask(**ask).json()["choices"][0]
    content = plain["logprobs"]["content"]
    assert "".join(token["token"] for token in content) == plain["message"]["content"]
    assert all(len(token["top_logprobs"]) == 2 for token in content)
    assert (
        bytes(b for token in content for b in token["bytes"]).decode()
        == (plain["message"]["content"])
    )
    streamed = [
        token
        for event in events(client.ask(**ask, stream=True))
        for token in (event["choices"][0]["logprobs"] or {}).get("content", [])
    ]
    assert streamed == content


def test_a_probability_of_zero_is_json() -> None:
    """Catches an infinite logarithm, which no JSON can hold: the reply would be a 500."""
    score = TokenScore(token_id=45, logprob=0.0, top=((46, float("-inf")),), asked=(-1.0,))
    token = logprobs([score], [47], nano().frontend.tokenizer, as_ids=True)["content"][0]
    assert [one["logprob"] for one in token["top_logprobs"]] == [LEAST, -1.0]
    assert token["token"] == "token_id:45"
    json.dumps(token, allow_nan=False)


def test_a_read_only_canvas(client: Client) -> None:
    """Catches pins that move, or a canvas that is not reported position by position."""
    ids = nano().frontend.tokenizer.encode("I am nano")
    reply = client.ask(
        diffusion=None, diffusion_seed_canvas=ids, diffusion_pinned=list(range(len(ids))),
        diffusion_read_only=True, diffusion_canvas_length=16, logprobs=True,
    ).json()  # fmt: skip
    assert reply["choices"][0]["message"]["content"].startswith("I am nano")
    assert len(reply["choices"][0]["logprobs"]["content"]) == 16
    assert reply["diffusion_usage"]["steps"] == 1


def test_a_prediction_saves_steps_and_is_not_binding(client: Client) -> None:
    """Catches a prediction that is ignored, and one that is copied."""
    recorder = Recorder()
    seeded = serve(recorder).ask(prediction={"type": "content", "content": "I am nano."})
    request: Request = recorder.asked[0]
    assert seeded.status_code == 200 and request.canvas is not None
    assert 0 < request.canvas.strength < 1 and not request.canvas.pinned
    text = nano().frontend.tokenizer.decode(request.canvas.ids[:8])
    assert text.startswith("I am nano.")
    half = client.ask(
        prediction={"type": "content", "content": "I am nano."},
        diffusion={"max_steps": 8, "confidence_threshold": 0.0},
    ).json()
    assert half["diffusion_usage"]["steps"] == 4


# -- ends ------------------------------------------------------------------------------------------


def test_a_failure_in_mid_stream_is_an_event(caplog: pytest.LogCaptureFixture) -> None:
    """Catches a stream that just stops: a client could take half an answer for a whole one; and a
    log in which it was a success."""
    caplog.set_level(logging.INFO, "dgemma.server")
    client = serve(
        Recorder(lambda r: written(r, [call_ids()], reason="error", error="no memory left"))
    )
    found = events(client.ask(stream=True))
    assert found[-1]["error"]["message"] == "no memory left"
    assert found[-1]["error"]["code"] == "engine_error"
    assert json.loads(caplog.records[-1].message)["error"] == "engine_error"
    plain = client.ask()
    assert (plain.status_code, plain.json()["error"]["message"]) == (500, "no memory left")
    ended = serve(Recorder(lambda r: written(r, [call_ids()], reason="cancelled")))
    assert events(ended.ask(stream=True))[-1]["error"]["code"] == "cancelled"
    assert ended.ask().status_code == 503


def test_anthropics_side_of_calls_and_systems() -> None:
    """Catches `disable_parallel_tool_use` that is refused or ignored, and a system prompt of no
    block that adds a turn."""
    client = serve(Recorder(lambda request: written(request, [call_ids()])))
    tools = [{"name": "find", "input_schema": TOOLS[0]["function"]["parameters"]}]  # type: ignore[index]
    body: dict[str, Any] = {"messages": QUESTION, "max_tokens": 64, "tools": tools}
    for one, count in ((True, 1), (False, 2)):
        choice = {"type": "auto", "disable_parallel_tool_use": one}
        found = client.post("/v1/messages", {**body, "tool_choice": choice}).json()["content"]
        assert [block["type"] for block in found].count("tool_use") == count
    path, plain = "/v1/messages/count_tokens", {"messages": QUESTION}
    assert client.post(path, {**plain, "system": []}).json() == client.post(path, plain).json()
