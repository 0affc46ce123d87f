"""Bodies: read once, large ones beside the event loop, counted before they are read."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from dgemma.server import json_body, readers
from dgemma.server.errors import Refusal
from dgemma.server.json_body import check_values, is_large, parse_json
from dgemma.server.readers import Readers
from dgemma.server.request_body import MOST_MESSAGES, MOST_TOOLS
from dgemma.server.sampling_fields import MOST_BIASED, MOST_TOKENS
from dgemma.server.settings import ServerLimits
from tests.support.client import ASK, QUESTION, Client, serve

CHAT, COMPLETIONS, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
LIMITS = ServerLimits(json_values=1000)


def values_of(value: Any) -> int:
    """Values and names, counted one by one."""
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(values_of, value.values()))
    return 1 + (sum(map(values_of, value)) if isinstance(value, list) else 0)


@pytest.mark.fault("R H3")
@pytest.mark.parametrize("value", [
    1, "a", [], {}, [1, 2], {"a": 1, "b": [1, {"c": 2}]}, ["[{,:"] * 5, {"a\\\"[,": "\\"},
    [[], {}, [[]]], {"a": {"b": {"c": "d,e"}}}, "\\\"\\\\", ["\\", ",", "\"", "[[[["],
])  # fmt: skip
def test_values_are_counted_without_reading(value: Any) -> None:
    """Catches a text whose marks count as values, and a bound that lets more of them through."""
    body, count = json.dumps(value).encode(), values_of(value)
    empty = json.dumps(value).count("[]") + json.dumps(value).count("{}")
    check_values(body, count + empty)
    if count > 1:
        with pytest.raises(Refusal, match="values and names"):
            check_values(body, count - 1)


@pytest.mark.fault("R H3")
@pytest.mark.parametrize("body", [
    b'{"metadata": {"a": [' + b"[]," * 2000 + b"[]]}}",
    b'{"metadata": {' + b",".join(b'"%d":{}' % k for k in range(1000)) + b"}}",
    b'["",' * 2000,
])  # fmt: skip
def test_too_many_values_are_refused_unread(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a body of a million lists that is made into objects, only to be refused."""
    monkeypatch.setattr(json_body.json, "loads", None)
    with pytest.raises(Refusal, match="1000 values") as refused:
        parse_json(body, LIMITS)
    assert refused.value.status == 400


@pytest.mark.fault("R H3")
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_values_are_counted_chunk_by_chunk(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a string over the border of two chunks whose marks count, or a quote that is lost."""
    monkeypatch.setattr(json_body, "_CHUNK", chunk)
    body = b'{"a": "x, [{:", "b\\\\": [1, "\\",[", 2]}'
    assert json.loads(body) == {"a": "x, [{:", "b\\": [1, '",[', 2]}
    check_values(body, 8)  # {, :, a comma, :, [, two commas, and one more
    with pytest.raises(Refusal, match="values and names"):
        check_values(body, 7)


def test_texts_are_no_values() -> None:
    """Catches a long text with commas that is refused as too many values, or read on the loop for
    its length alone."""
    body = json.dumps({"a": "x, y: [z] {" * 5000}).encode()
    check_values(body, 3)
    assert is_large(body) and not is_large(b'{"a": "x, y"}')
    assert is_large(b"[" + b"1," * 5000 + b"1]")


@pytest.mark.model
@pytest.mark.fault("R H3")
def test_large_bodies_are_read_once_and_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a large body that is read, or whose fields are checked, on the event loop, and one
    that is read twice."""
    client = serve()
    read: list[tuple[int, bool]] = []
    checked: list[bool] = []
    loads = json.loads

    def counted(text: Any, **how: Any) -> Any:
        read.append((len(text), threading.current_thread() is main))
        return loads(text, **how)

    main = threading.current_thread()
    monkeypatch.setattr(json, "loads", counted)
    from dgemma.server.apis.chat.schema import ChatRequest

    validate = ChatRequest.model_validate

    def noted(value: Any) -> Any:
        checked.append(threading.current_thread() is main)
        return validate(value)

    monkeypatch.setattr(ChatRequest, "model_validate", noted)
    for size, large in ((10, False), (70_000, True)):
        read.clear()
        checked.clear()
        body = ASK | {"metadata": {"a": "x" * size}, "max_tokens": 1}
        reply = client.post(CHAT, body)
        assert reply.status_code == 200
        ours = [one for one in read if one[0] > size]
        assert len(ours) == 1 and ours[0][1] is not large
        assert checked == ([False] if large else [])


@pytest.mark.model
@pytest.mark.fault("R H3")
def test_faults_of_large_bodies_read_the_same() -> None:
    """Catches another message, or another name of the field, for a body that is checked aside."""
    client = serve()
    for fields in (
        {"seed": "x"}, {"sed": 1}, {"max_tokens": 10**30}, {"guided_regex": "(", "seed": 1},
        {"diffusion": {"strength": 0.5}}, {"messages": 5}, {"logit_bias": {"a": 1}},
    ):  # fmt: skip
        large = {"metadata": {"a": "x" * 70_000}}
        small, aside = (client.ask(**fields | more) for more in ({}, large))
        assert small.status_code == aside.status_code == 400
        assert small.json() == aside.json()
    text = json.dumps(ASK | {"metadata": {"a": "x" * 70_000}}).encode()
    plain = client.post(CHAT, content=text, headers={"content-type": "text/plain"})
    assert plain.status_code == 400 and "application/json" in plain.json()["error"]["message"]


@pytest.mark.model
@pytest.mark.fault("R H3", "R H4")
@pytest.mark.parametrize(("path", "field", "value"), [
    (CHAT, "allowed_token_ids", [5] * (MOST_TOKENS + 1)),
    (CHAT, "logprob_token_ids", [5] * (MOST_TOKENS + 1)),
    (CHAT, "diffusion_seed_canvas", [5] * (MOST_TOKENS + 1)),
    (CHAT, "logit_bias", {str(k): 1 for k in range(MOST_BIASED + 1)}),
    (CHAT, "stop", ["a"] * 33),
    (CHAT, "bad_words", ["a"] * 1001),
    (CHAT, "messages", QUESTION * (MOST_MESSAGES + 1)),
    (CHAT, "tools", [{}] * (MOST_TOOLS + 1)),
    (MESSAGES, "messages", QUESTION * (MOST_MESSAGES + 1)),
    (MESSAGES, "tools", [{}] * (MOST_TOOLS + 1)),
    (MESSAGES, "system", [{"type": "text", "text": "a"}] * (MOST_MESSAGES + 1)),
    (COMPLETIONS, "prompt", [5] * (MOST_TOKENS + 1)),
    (COMPLETIONS, "prompt", ["a"] * (MOST_TOKENS + 1)),
    ("/detokenize", "tokens", [5] * (MOST_TOKENS + 1)),
    ("/tokenize", "messages", QUESTION * (MOST_MESSAGES + 1)),
    ("/v1/canvas", "messages", QUESTION * (MOST_MESSAGES + 1)),
    ("/infill", "response_fields", ["content"] * 257),
])  # fmt: skip
def test_lists_are_bounded(path: str, field: str, value: Any, bounded: Client) -> None:
    """Catches a list whose members are looked at one by one before anybody counts them."""
    bodies: dict[str, Any] = {
        CHAT: ASK, COMPLETIONS: {"prompt": "Hi"}, "/detokenize": {"tokens": [5]},
        MESSAGES: {"messages": QUESTION, "max_tokens": 8}, "/tokenize": {"content": None},
        "/v1/canvas": {"segments": [{"text": "a"}, {"max_length": 1}]}, "/infill": {},
    }  # fmt: skip
    refused = bounded.post(path, bodies[path] | {field: value})
    assert refused.status_code == 400
    message = refused.json()["error"]["message"]
    assert message.startswith(field) and str(len(value)) in message


@pytest.fixture(scope="module")
def bounded() -> Client:
    """An app over nano."""
    return serve()


@pytest.mark.model
@pytest.mark.fault("R M1")
@pytest.mark.parametrize(("path", "fields"), [
    (CHAT, {"logit_bias": {"9" * 5000: 1}}),
    (CHAT, {"logit_bias": {"9" * 4000: 1}}),
    (CHAT, {"logit_bias": {"\u0663": 1}}), (CHAT, {"logit_bias": {"5": 1, "05": 2}}),
    (CHAT, {"guided_json": '{"type": "integer", "minimum": ' + "9" * 5000 + "}"}),
    (CHAT, {"temperature": 10**400}), (CHAT, {"guided_json": {"minimum": 10**4000}}),
    (COMPLETIONS, {"prompt": [10**400]}), (COMPLETIONS, {"prompt": "Hi", "best_of": 10**400}),
    ("/detokenize", {"tokens": [10**400]}), ("/detokenize", {"tokens": [-1]}),
    ("/infill", {"input_prefix": "a", "t_max_predict_ms": 10**400}),
    ("/infill", {"input_prefix": "a", "n_indent": 10**400, "id_slot": 10**400}),
    ("/v1/decisions", {"input": "a", "questions": [{"type": "predicate", "name": "a"}],
                       "canvas_length": 10**400}),
])  # fmt: skip
def test_numbers_of_thousands_of_digits(path: str, fields: Any, bounded: Client) -> None:
    """Catches a 500 for a number that no float, or no integer of a length, can hold."""
    base = ASK if path == CHAT else {}
    reply = bounded.post(path, base | fields)
    assert reply.status_code == 400, reply.text


@pytest.mark.model
@pytest.mark.fault("R L7")
@pytest.mark.parametrize("value", [10**401, MOST_TOKENS + 1])
@pytest.mark.parametrize("name", ["max_length", "min_length"])
def test_lengths_of_a_segment_have_an_end(name: str, value: int, bounded: Client) -> None:
    """Catches a length that no canvas has, and that is cut in silence."""
    body = {"segments": [{"text": "Mira has a "}, {"max_length": MOST_TOKENS} | {name: value}]}
    refused = bounded.post("/v1/canvas", body)
    assert refused.status_code == 400 and name in refused.json()["error"]["message"]


# -- bodies that are being sent --------------------------------------------------------------------


async def send(table: Readers, whose: str, size: int, lost: list[str]) -> None:
    """A body that never ends; `lost` gets its owner if it gives way."""
    try:
        async with table.reading(whose, 60) as reader:
            reader.add(size)
            await asyncio.sleep(60)
    except TimeoutError:
        lost.append(whose)


async def crowd(senders: list[tuple[str, int]]) -> list[str]:
    """The owners of the bodies that gave way when these were sent in order."""
    table, lost = Readers(), list[str]()
    tasks = []
    for whose, size in senders:
        tasks.append(asyncio.create_task(send(table, whose, size, lost)))
        await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (table._count, table._bytes, table._of) == (0, 0, {})
    return lost


@pytest.mark.fault("R H7")
def test_the_key_with_most_bodies_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a key that opens many bodies and throws out the single one of another."""
    monkeypatch.setattr(readers, "READERS", 4)
    assert asyncio.run(crowd([("b", 1), *[("a", 1)] * 6])) == ["a"] * 3
    assert asyncio.run(crowd([("a", 1)] * 4)) == []


@pytest.mark.fault("R H7", "R M5")
def test_the_key_with_most_bytes_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches bodies that fill the memory, each within its own bound and none complete."""
    monkeypatch.setattr(readers, "READING_BYTES", 100)
    assert asyncio.run(crowd([("b", 30), ("a", 40), ("a", 30), ("b", 5)])) == ["a"]
    assert asyncio.run(crowd([("a", 50), ("a", 50)])) == []


@pytest.mark.fault("R M6")
def test_a_body_in_crumbs_takes_its_own_size() -> None:
    """Catches a body that is kept as a million objects of some dozens of bytes each."""
    from starlette.datastructures import Headers

    from dgemma.server.middleware import read_body

    sent = [{"body": b"ab", "more_body": True}] * 1000 + [{"body": b"", "more_body": False}]
    messages = iter(sent)

    async def receive() -> Any:
        return {"type": "http.request", **next(messages)}

    async def scene() -> bytearray:
        async with Readers().reading("a", 60) as reader:
            return await read_body(receive, Headers({}), 4000, reader)

    body = asyncio.run(scene())
    assert isinstance(body, bytearray) and body == b"ab" * 1000
