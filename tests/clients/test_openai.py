"""OpenAI's own client, as it is, against `dgemma serve nano` over a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import jsonschema
import openai
import pydantic
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionChunk

from dgemma.tasks import make_example
from tests.support.live import KEY, Live, running
from tests.support.nano import nano

pytestmark = pytest.mark.process

WHO: list[Any] = [{"role": "user", "content": "Who are you?"}]
SHORT: dict[str, Any] = {
    "model": "nano", "messages": WHO, "seed": 3, "max_tokens": 48,
    "extra_body": {"diffusion": {"max_steps": 6}},
}  # fmt: skip
TOOLS: list[Any] = [{
    "type": "function",
    "function": {
        "name": "get_time", "description": "Time in a city",
        "parameters": {
            "type": "object", "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"], "additionalProperties": False,
        },
    },
}]  # fmt: skip
SCHEMA: dict[str, Any] = {
    "type": "object", "additionalProperties": False, "required": ["age", "kind"],
    "properties": {"age": {"type": "integer"}, "kind": {"enum": ["cow", "goat"]}},
}  # fmt: skip


class Animal(pydantic.BaseModel):
    """What the client's own parser is asked for."""

    model_config = pydantic.ConfigDict(extra="forbid")
    age: int
    tame: bool


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    """A server with short answers."""
    with running("--max-tokens", "64") as live:
        yield live


@pytest.fixture
def client(server: Live) -> Iterator[OpenAI]:
    """The client, which tries nothing twice: a request that fails must show."""
    with OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=60) as found:
        yield found


def folded(chunks: list[ChatCompletionChunk]) -> tuple[str, str | None]:
    """Text and finish reason of a stream of one choice."""
    choices = [choice for chunk in chunks for choice in chunk.choices]
    reasons = [choice.finish_reason for choice in choices if choice.finish_reason]
    assert len(reasons) == 1 and choices[-1].finish_reason
    return "".join(choice.delta.content or "" for choice in choices), reasons[0]


def test_chat_plain_and_streamed(client: OpenAI) -> None:
    """Catches a reply the client cannot read, a seed that is not honoured, a stream that says
    something else than the plain reply, and usage that does not add up."""
    reply = client.chat.completions.create(**SHORT)
    choice = reply.choices[0]
    assert choice.message.role == "assistant" and choice.message.content
    assert reply.usage and reply.usage.completion_tokens_details
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    again = client.chat.completions.create(**SHORT)
    assert again.choices[0].message.content == choice.message.content
    options: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(**SHORT, stream=True, stream_options=options))
    assert folded(chunks) == (choice.message.content, choice.finish_reason)
    assert len([c for chunk in chunks for c in chunk.choices if c.delta.content]) > 1
    assert chunks[-1].choices == [] and chunks[-1].usage == reply.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_clients_own_fold_of_a_stream(client: OpenAI) -> None:
    """Catches chunks that the client's accumulator cannot put together."""
    plain = client.chat.completions.create(**SHORT)
    with client.chat.completions.stream(**SHORT) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == plain.choices[0].message.content
    assert final.choices[0].finish_reason == plain.choices[0].finish_reason


def test_choices_stop_and_temperature(client: OpenAI) -> None:
    """Catches choices that are one answer twice over, and a stop string that is told."""
    reply = client.chat.completions.create(**SHORT | {"n": 2, "temperature": 0})
    assert [choice.index for choice in reply.choices] == [0, 1]
    text = reply.choices[0].message.content or ""
    second = client.chat.completions.create(**SHORT | {"seed": 4, "temperature": 0})
    assert reply.choices[1].message.content == second.choices[0].message.content
    cut = text[len(text) // 2]
    stopped = client.chat.completions.create(**SHORT | {"temperature": 0, "stop": [cut]})
    assert stopped.choices[0].message.content == text[: text.index(cut)]
    assert stopped.choices[0].finish_reason == "stop"


def test_log_probabilities(client: OpenAI) -> None:
    """Catches log-probabilities of other tokens than the answer's, or out of order."""
    reply = client.chat.completions.create(**SHORT, logprobs=True, top_logprobs=3)
    choice = reply.choices[0]
    assert choice.logprobs and choice.logprobs.content
    told = b"".join(bytes(token.bytes or ()) for token in choice.logprobs.content)
    assert told.decode() == choice.message.content
    for token in choice.logprobs.content:
        values = [top.logprob for top in token.top_logprobs]
        assert len(values) == 3 and values == sorted(values, reverse=True)
        assert token.logprob <= values[0] <= 0
    chunks = list(client.chat.completions.create(**SHORT, logprobs=True, stream=True))
    streamed = [
        token.token for chunk in chunks for c in chunk.choices if c.logprobs
        for token in c.logprobs.content or ()
    ]  # fmt: skip
    assert streamed == [token.token for token in choice.logprobs.content]


def test_tools_that_must_be_called(client: OpenAI) -> None:
    """Catches a call that does not fit the tool, plain or streamed in the client's own fold."""
    for choice in ("required", {"type": "function", "function": {"name": "get_time"}}):
        asked: Any = SHORT | {"tools": TOOLS, "tool_choice": choice}
        reply = client.chat.completions.create(**asked).choices[0]
        assert reply.finish_reason == "tool_calls" and reply.message.tool_calls
        call: Any = reply.message.tool_calls[0]
        assert (call.type, call.function.name) == ("function", "get_time") and call.id
        jsonschema.validate(json.loads(call.function.arguments), TOOLS[0]["function"]["parameters"])
        with client.chat.completions.stream(**asked) as stream:
            final: Any = stream.get_final_completion().choices[0]
        assert final.finish_reason == "tool_calls"
        [streamed] = final.message.tool_calls
        assert streamed.function.name == call.function.name
        assert streamed.function.arguments == call.function.arguments


def test_tools_that_may_be_called(client: OpenAI) -> None:
    """Catches a free call that is lost, and a conversation with its result that is refused."""
    called: list[Any] = []
    for number in range(4):
        example = make_example("tools", "heldout", 1, number)
        asked: Any = SHORT | {
            "messages": list(example.messages), "tools": list(example.tools),
            "tool_choice": "auto", "max_tokens": 64, "extra_body": {},
        }  # fmt: skip
        choice = client.chat.completions.create(**asked).choices[0]
        calls = choice.message.tool_calls
        assert (choice.finish_reason == "tool_calls") == bool(calls), choice
        chunks = list(client.chat.completions.create(**asked, stream=True))
        parts: list[Any] = [
            call for chunk in chunks for c in chunk.choices for call in c.delta.tool_calls or ()
        ]
        told: list[Any] = list(calls or ())
        assert "".join(p.function.arguments for p in parts) == "".join(
            c.function.arguments for c in told
        )
        if calls:
            called.append((asked, choice.message))
    assert called, "of four questions that need a tool none led to a call"
    asked, message = called[0]
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "12:30"} for call in message.tool_calls
    ]
    after = [*asked["messages"], message.model_dump(exclude_none=True), *results]
    assert client.chat.completions.create(**asked | {"messages": after}).choices


class Timer(pydantic.BaseModel):
    """Set a timer."""

    minutes: Literal[5, 10]
    label: str | None = None


def test_strict_tools_of_the_clients_own_making(client: OpenAI) -> None:
    """Catches `pydantic_function_tool`, which always says strict, refused under `auto`; and a call
    that the client's own parser cannot take."""
    begun = nano().frontend.tokenizer.encode("<|tool_call>call:set_timer{", control=True)
    asked: Any = SHORT | {
        "tools": [openai.pydantic_function_tool(Timer, name="set_timer")], "max_tokens": 64,
        "extra_body": {"diffusion_seed_canvas": begun, "diffusion_pinned": list(range(len(begun)))},
    }  # fmt: skip
    choice = client.chat.completions.parse(**asked).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
    assert isinstance(choice.message.tool_calls[0].function.parsed_arguments, Timer)


def test_json_schema(client: OpenAI) -> None:
    """Catches an answer outside its schema, plain, streamed and through the client's parser."""
    form: Any = {
        "type": "json_schema",
        "json_schema": {"name": "animal", "schema": SCHEMA, "strict": True},
    }
    reply = client.chat.completions.create(**SHORT, response_format=form)
    text = reply.choices[0].message.content or ""
    jsonschema.validate(json.loads(text), SCHEMA)
    chunks = list(client.chat.completions.create(**SHORT, response_format=form, stream=True))
    assert folded(chunks)[0] == text

    parsed = client.chat.completions.parse(**SHORT, response_format=Animal)
    assert isinstance(parsed.choices[0].message.parsed, Animal)


def test_completions(client: OpenAI) -> None:
    """Catches plain text that is gone on with wrongly, and a suffix that is not looked at."""
    asked: Any = {"model": "nano", "prompt": "The goat ", "seed": 1, "max_tokens": 12,
                  "extra_body": {"diffusion": {"max_steps": 4}}}  # fmt: skip
    plain = client.completions.create(**asked, logprobs=2)
    assert plain.object == "text_completion" and plain.usage
    assert plain.choices[0].logprobs and plain.choices[0].logprobs.tokens
    chunks = list(client.completions.create(**asked, stream=True))
    assert "".join(c.text for chunk in chunks for c in chunk.choices) == plain.choices[0].text
    filled = client.completions.create(**asked, suffix=" of Mira gives milk.")
    streamed = list(client.completions.create(**asked, suffix=" of Mira gives milk.", stream=True))
    told = "".join(c.text for chunk in streamed for c in chunk.choices)
    assert filled.choices[0].text == told != plain.choices[0].text
    assert filled.choices[0].finish_reason == "stop"


def test_models(client: OpenAI) -> None:
    """Catches a list that the client cannot page through, and a name that is a path."""
    assert [model.id for model in client.models.list()] == ["nano"]
    assert client.models.retrieve("nano").owned_by == "dgemma"
    for name in ("nan", "../nano", "/etc/passwd", "..%2fnano"):
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(name)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(**SHORT | {"model": name})


def test_errors_become_the_clients_own(server: Live, client: OpenAI) -> None:
    """Catches a status or a body by which the client would tell its user the wrong thing."""
    with pytest.raises(openai.BadRequestError, match="penalties are not built in") as found:
        client.chat.completions.create(**SHORT, presence_penalty=1.5)
    assert found.value.param == "presence_penalty" and found.value.code == "refused_field"
    with pytest.raises(openai.BadRequestError, match="temprature.*did you mean 'temperature'"):
        client.chat.completions.create(**SHORT | {"extra_body": {"temprature": 1}})
    with pytest.raises(openai.BadRequestError, match="n 17 is above"):
        client.chat.completions.create(**SHORT, n=17)
    stranger = OpenAI(base_url=f"{server.url}/v1", api_key="sk-a-wrong-key", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.chat.completions.create(**SHORT)


def test_what_cannot_change_a_result(client: OpenAI) -> None:
    """Catches a refusal of what clients and frameworks send by default."""
    plain = client.chat.completions.create(**SHORT)
    reply = client.chat.completions.create(
        **SHORT, user="me", metadata={"a": "b"}, store=False, service_tier="auto",
        presence_penalty=0, frequency_penalty=0, n=1, top_p=1,
    )  # fmt: skip
    assert reply.choices[0].message.content == plain.choices[0].message.content


def test_leaving_a_stream(client: OpenAI) -> None:
    """Catches a server that goes on for a client that is gone, or lets it break the next one."""
    endless: Any = SHORT | {"max_tokens": 64, "extra_body": {"min_tokens": 64}}
    for _ in range(3):
        with client.chat.completions.create(**endless, stream=True) as stream:
            next(iter(stream))
    assert client.chat.completions.create(**SHORT).choices


def test_the_client_in_an_event_loop(server: Live) -> None:
    """Catches replies that are mixed up between requests that run at once."""

    async def many() -> list[str | None]:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key=KEY, max_retries=0
        ) as client:
            replies = await asyncio.gather(
                *(client.chat.completions.create(**SHORT | {"seed": seed}) for seed in (5, 6, 7, 5))
            )
            return [reply.choices[0].message.content for reply in replies]

    found = asyncio.run(many())
    assert found[0] == found[3]
    alone = OpenAI(base_url=f"{server.url}/v1", api_key=KEY)
    with alone:
        for seed, text in zip((5, 6, 7), found, strict=False):
            reply = alone.chat.completions.create(**SHORT | {"seed": seed})
            assert reply.choices[0].message.content == text
