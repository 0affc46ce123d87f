"""What one request may bring of strings, ids and numbers: the same bounds on every route."""

from __future__ import annotations

from typing import Any

import pytest

from dgemma.param_rules import COLDEST, HOTTEST, LONGEST_STRING, MOST_IDS, MOST_STRINGS
from dgemma.params import SamplingParams, bounds
from dgemma.server.apis.fim.schema import InfillRequest
from dgemma.server.apis.messages.schema import MessagesRequest
from dgemma.server.sampling_fields import Diffusion, SamplingFields
from tests.support.client import ASK, Client, serve

CHAT, COMPLETIONS, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
FIM, INFILL = "/v1/fim/completions", "/infill"
LONG = ["a" * (LONGEST_STRING + 1)]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: ASK,
    COMPLETIONS: {"prompt": "Hi"},
    MESSAGES: {"messages": ASK["messages"], "max_tokens": 8},
    FIM: {"prompt": "Hi"},
    INFILL: {"input_prefix": "Hi"},
}


@pytest.fixture(scope="module")
def client() -> Client:
    """An app over nano."""
    return serve()


def refused(client: Client, path: str, fields: dict[str, Any]) -> str:
    """The message of a 400."""
    reply = client.post(path, BODIES[path] | fields)
    assert reply.status_code == 400, reply.text
    message: str = reply.json()["error"]["message"]
    assert len(message) < 1000
    return message


@pytest.mark.model
@pytest.mark.parametrize("path, name", [
    (CHAT, "stop"), (COMPLETIONS, "stop"), (MESSAGES, "stop_sequences"), (FIM, "stop"),
    (INFILL, "stop"),
])  # fmt: skip
def test_stop_strings(path: str, name: str, client: Client) -> None:
    """Catches a stop string whose every beginning is looked for while all others wait."""
    assert name in refused(client, path, {name: LONG})
    many = [f"s{k}" for k in range(MOST_STRINGS["stop"] + 1)]
    assert str(MOST_STRINGS["stop"]) in refused(client, path, {name: many})


@pytest.mark.model
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_barred_words(path: str, client: Client) -> None:
    """Catches a list of words each of which is looked for in the whole vocabulary."""
    assert "bad_words" in refused(client, path, {"bad_words": LONG})
    many = [f"w{k}" for k in range(MOST_STRINGS["bad_words"] + 1)]
    assert "bad_words" in refused(client, path, {"bad_words": many})


@pytest.mark.model
@pytest.mark.parametrize("name", sorted(MOST_IDS))
def test_ids(name: str, client: Client) -> None:
    """Catches ids without number; the same id many times is one."""
    asked = {name: [5, 300, 5] * 2000, "logprobs": True, "max_tokens": 4}
    reply = client.post(CHAT, ASK | asked)
    assert reply.status_code == 200, reply.text
    if name == "logprob_token_ids":
        shown = reply.json()["choices"][0]["logprobs"]["content"]
        assert shown and all(len(one["top_logprobs"]) == 2 for one in shown)
    assert name in refused(client, CHAT, asked | {name: list(range(MOST_IDS[name] + 1))})


@pytest.mark.parametrize("name", sorted(MOST_IDS))
def test_ids_are_one_each(name: str) -> None:
    """Catches a bound that counts repeats, and one that the library does not have."""
    found = SamplingParams(**{name: [7, 3, 7, 3] * MOST_IDS[name]})
    assert getattr(found, name) == (7, 3)


@pytest.mark.model
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_least_above_most(path: str, client: Client) -> None:
    """Catches an answer that can never be as long as was asked."""
    assert "min_tokens" in refused(client, path, {"min_tokens": 9, "max_tokens": 8})
    asked = {"min_tokens": 8, "max_tokens": 8}
    assert client.post(path, BODIES[path] | asked).status_code == 200


def property_of(model: Any, name: str) -> dict[str, Any]:
    """The number in the JSON schema of a field."""
    found = model.model_json_schema()["properties"][name]
    [number] = [one for one in found["anyOf"] if one.get("type") in ("number", "integer")]
    return dict(number)


@pytest.mark.parametrize("model, names", [
    (SamplingFields, ("max_tokens", "seed", "temperature", "top_p", "min_p", "min_tokens")),
    (Diffusion, ("max_steps", "entropy_bound", "t_min", "t_max", "confidence_threshold",
                 "stability_threshold", "restart_after", "tries", "race")),
    (InfillRequest, ("temperature", "top_p", "min_p")),
    (MessagesRequest, ("seed", "top_p", "top_k")),
])  # fmt: skip
def test_documented_bounds_are_those_of_params(model: Any, names: tuple[str, ...]) -> None:
    """Catches a number that the OpenAPI document allows and the server refuses, or the reverse."""
    for name in names:
        least, most = bounds(name)
        shown = property_of(model, name)
        if name == "top_p":
            assert shown["exclusiveMinimum"] == least == 0
        else:
            assert shown["minimum"] == least
        assert shown.get("maximum") == most


@pytest.mark.model
@pytest.mark.parametrize("name", ["t_min", "t_max"])
def test_ends_of_a_bound_are_allowed(name: str, client: Client) -> None:
    """Catches a bound that the schema tells and the parameters do not keep to."""
    for value in bounds(name):
        other = {"t_min": "t_max", "t_max": "t_min"}[name]
        drawn = {name: value, other: value, "max_steps": 1}
        assert client.ask(max_tokens=1, diffusion=drawn).status_code == 200
    assert bounds(name) == (COLDEST, HOTTEST)
