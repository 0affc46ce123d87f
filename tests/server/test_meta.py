"""Models, health, metrics, the tokenizer over HTTP, the OpenAPI document, and the log."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from typing import Any

import pytest

from dgemma.server import service as service_module
from dgemma.server.threads import THREADS
from dgemma.text.messages import ROLES
from tests.support.client import QUESTION, Client, numbers, serve
from tests.support.nano import nano

pytestmark = pytest.mark.model

TOOL = {"type": "function", "function": {"name": "find", "description": "", "parameters": None}}


@pytest.fixture(scope="module")
def client() -> Client:
    """An app over nano, under two names."""
    return serve(names=("nano", "org/nano"))


def test_models(client: Client) -> None:
    """Catches a name that is listed and not served, or served and not listed."""
    listed = client.get("/v1/models").json()["data"]
    assert [card["id"] for card in listed] == ["nano", "org/nano"]
    for card in listed:
        assert client.get(f"/v1/models/{card['id']}").json() == card
        assert client.ask(model=card["id"]).json()["model"] == "nano"
    assert listed[0]["max_model_len"] == nano().facts.context
    assert client.get("/v1/models/gpt-4").json()["error"]["code"] == "model_not_found"


def test_health_says_when_the_server_is_about_to_stop() -> None:
    """Catches a balancer that sends requests to a server that turns them away."""
    client = serve()
    assert client.get("/health").json() == {"status": "ok"}
    client.app.state.service.turn_away()
    assert client.get("/health").status_code == 503
    refused = client.ask()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")


@pytest.mark.fault("R L6")
def test_health_says_when_no_thread_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a balancer that sends requests to a server of which all threads hang."""
    client, free, hanging = serve(), threading.Event(), threading.Semaphore(0)
    service = client.app.state.service
    monkeypatch.setattr(service_module, "ALIVE_S", 0.01)

    def hang() -> None:
        hanging.release()
        free.wait()

    async def scene() -> None:
        jobs = [asyncio.create_task(service.in_thread("", hang)) for _ in range(THREADS)]
        try:
            # One that hangs is enough: a key holds no more than half of the threads.
            assert await asyncio.to_thread(hanging.acquire, timeout=60)
            refused = await asyncio.to_thread(client.get, "/health")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert "the threads that prepare requests" in refused.json()["error"]["message"]
        finally:
            free.set()
            await asyncio.gather(*jobs)

    asyncio.run(scene())
    monkeypatch.undo()
    assert client.get("/health").json() == {"status": "ok"}


def test_metrics_count(client: Client) -> None:
    """Catches a metric that stands still, and one that counts a request twice or by its path."""
    before = numbers(client)
    client.ask()
    client.ask(stream=True)
    client.ask(seed=-1)
    client.post("/nowhere/at/all", {})
    after = numbers(client)

    def grown(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    route = "/v1/chat/completions"
    assert grown(f"dgemma_http_requests_total['{route}', '200', 'POST']") == 2
    assert grown(f"dgemma_http_requests_total['{route}', '400', 'POST']") == 1
    assert sum(grown(name) for name in after if "nowhere" in name) == 0
    assert grown("dgemma_http_request_seconds_count['/v1/chat/completions']") == 3
    assert grown("dgemma_first_text_seconds_count[]") == 2
    assert grown("dgemma_steps_total[]") > 0 and grown("dgemma_completion_tokens_total[]") > 0
    assert after["dgemma_running[]"] == 0 and after["dgemma_http_open_requests[]"] == 0


def test_tokenize_and_back(client: Client) -> None:
    """Catches a text that does not come back, or that becomes a control token."""
    text = "Hello <turn|> é 漢"
    for name in ("content", "prompt"):
        found = client.post("/tokenize", {name: text}).json()
        assert found["count"] == len(found["tokens"])
        assert client.post("/detokenize", {"tokens": found["tokens"]}).json() == {"content": text}
    tokenizer = nano().frontend.tokenizer
    assert tokenizer.id_of("<turn|>") not in found["tokens"]
    headed = client.post("/tokenize", {"content": text, "add_special": True}).json()["tokens"]
    assert headed == [tokenizer.bos_id, *found["tokens"]]
    pieces = client.post("/tokenize", {"content": text, "with_pieces": True}).json()["tokens"]
    assert [piece["id"] for piece in pieces] == found["tokens"]


def test_a_conversation_as_the_model_reads_it(client: Client) -> None:
    """Catches a count of tokens that is not the prompt's, or options that are passed over."""
    body: dict[str, Any] = {"messages": QUESTION}
    for more, expected in (
        ({}, nano().chat_ids(QUESTION, None, False)),
        (
            {"chat_template_kwargs": {"enable_thinking": True}},
            nano().chat_ids(QUESTION, None, True),
        ),
        ({"tools": [TOOL]}, nano().chat_ids(QUESTION, [TOOL], False)),
    ):
        assert client.post("/tokenize", body | more).json()["tokens"] == expected
        prompt = client.post("/apply-template", body | more).json()["prompt"]
        assert prompt == nano().frontend.tokenizer.decode(expected, control=True)


@pytest.mark.parametrize(("path", "body", "said"), [
    ("/tokenize", {}, "give one of"),
    ("/tokenize", {"content": "a", "prompt": "b"}, "give one of"),
    ("/tokenize", {"content": "a", "tools": [TOOL]}, "tools needs messages"),
    ("/tokenize", {"messages": QUESTION, "add_special": True}, "add_special"),
    ("/tokenize", {"contents": "a"}, "did you mean 'content'?"),
    ("/detokenize", {"tokens": [10**6]}, "outside the vocabulary"),
    ("/detokenize", {"tokens": [-1]}, "outside the vocabulary"),
    ("/detokenize", {"tokens": ["1"]}, "tokens[0]"),
    ("/apply-template", {"messages": []}, "messages is empty"),
])  # fmt: skip
def test_refused_in_the_plain_shape(
    client: Client, path: str, body: dict[str, Any], said: str
) -> None:
    """Catches an error in OpenAI's shape where llama.cpp's clients look for their own."""
    refused = client.post(path, body)
    assert refused.status_code == 400
    assert set(refused.json()["error"]) == {"code", "message", "type"}
    assert said in refused.json()["error"]["message"]


def test_no_tokens_are_no_text(client: Client) -> None:
    """Catches a crash at the empty list."""
    assert client.post("/detokenize", {"tokens": []}).json() == {"content": ""}


def test_the_document_tells_the_truth(client: Client) -> None:
    """Catches an error that is sent and not documented, and a 422 that is never sent."""
    document = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in json.dumps(document)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            statuses = set(operation["responses"])
            assert {"200", "401", "500", "503"} <= statuses, path
            assert "422" not in statuses
            assert method == "get" or {"400", "413", "429"} <= statuses, path
    fields = document["components"]["schemas"]["ChatRequest"]
    assert fields["additionalProperties"] is False and fields["required"] == ["messages"]


def test_the_document_knows_what_a_message_may_hold(client: Client) -> None:
    """Catches a field that the document allows in a message and the server refuses, and one that
    it forbids and that is taken."""
    document = client.get("/openapi.json").json()
    kinds = document["components"]["schemas"]["ChatRequest"]["properties"]["messages"]["items"]
    parts = [(role, kind) for kind in kinds["anyOf"] for role in kind["properties"]["role"]["enum"]]
    assert sorted(role for role, _ in parts) == sorted(ROLES)
    fields = {field for _, kind in parts for field in kind["properties"]}
    for role, kind in parts:
        assert kind["additionalProperties"] is False
        for field in fields - {"role", "content"}:
            call = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
            value: Any = call if field == "tool_calls" else "a"
            message = {"role": role, "content": "Hi", field: value}
            asked = {"role": "assistant", "content": "", "tool_calls": call}
            before = [*QUESTION, asked] if role == "tool" else []
            reply = client.post("/apply-template", {"messages": [*before, message, *QUESTION]})
            said = f"messages[{len(before)}].{field} is not known" in reply.text
            assert said == (field not in kind["properties"]), (role, field, reply.text)


def test_the_log_has_no_text_of_users(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """Catches prompts in a log that nobody asked for, and a reply that cannot be found in it."""
    secret = [{"role": "user", "content": "my secret"}]
    with caplog.at_level(logging.INFO, "dgemma.server"):
        reply = client.ask(messages=secret)
        client.post("/v1/chat/completions", {"messages": secret, "my secret": 1})
    assert "secret" not in caplog.text
    line = json.loads(caplog.records[0].message)
    assert line["request_id"] == reply.headers["x-request-id"]
    assert (line["route"], line["status"]) == ("/v1/chat/completions", 200)
    assert line["completion_tokens"] == reply.json()["usage"]["completion_tokens"]
    mine = client.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"]
    forged = client.get("/health", headers={"x-request-id": 'a"\tb'}).headers["x-request-id"]
    assert mine == "mine-1" and forged.startswith("req_")
    caplog.clear()
    with caplog.at_level(logging.INFO, "dgemma.server"):
        serve(log_text=True).ask(messages=secret)
    assert "my secret" in caplog.text


@pytest.mark.fault("N 44")
@pytest.mark.parametrize(("path", "said"), [
    ("/v1/responses", "use /v1/chat/completions"),
    ("/v1/responses/resp_1", "use /v1/chat/completions"),
    ("/v1/embeddings", "no embeddings"),
    ("/v1/images/generations", "text alone"),
    ("/v1/chat/completion", "(did you mean '/v1/chat/completions'?)"),
    ("/chat/completions", "(did you mean '/v1/chat/completions'?)"),
    ("/v1/model", "(did you mean '/v1/models'?)"),
    ("/v1/health", "(did you mean '/health'?)"),
])  # fmt: skip
def test_absent_paths_have_a_remedy(path: str, said: str) -> None:
    """Catches a hint that leads to another API only because its path begins alike."""
    message = serve().post(path, {}).json()["error"]["message"]
    assert message.startswith(f"there is no {path}") and message.endswith(said)


@pytest.mark.fault("N 44")
@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/edits", "/v1/compute", "/x"])
def test_unknown_paths_have_no_hint(path: str) -> None:
    """Catches a guess that leads nowhere."""
    assert serve().get(path).json()["error"]["message"] == f"there is no {path}"
