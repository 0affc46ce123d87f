"""The OpenAPI document: whole, and true of what every route replies."""

from __future__ import annotations

from typing import Any

import httpx
import jsonschema
import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel

from dgemma.server.apis import ROUTERS
from dgemma.server.apis.fim.schema import InfillReply
from tests.support.bodies import BODIES, DECISIONS, NAMED, QUICK, TOOLS
from tests.support.client import ASK, QUESTION, serve

pytestmark = pytest.mark.model

ROUTES = {route.path: route for router in ROUTERS for route in router.routes
          if isinstance(route, APIRoute)}  # fmt: skip
TOOL = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
SEGMENTS: list[dict[str, Any]] = [
    {"text": "a"}, {"role": "seed", "text": "Mira", "noise": 0.5}, {"choices": ["!"]},
]  # fmt: skip
BLIND: dict[str, Any] = {
    "type": "choice", "name": "blind", "choices": [{"value": "even"}, {"value": "even more"}],
}  # fmt: skip

CALLS: dict[str, list[dict[str, Any] | None]] = {
    "/v1/chat/completions": [
        ASK, ASK | {"n": 2, "logprobs": True, "top_logprobs": 2},
        ASK | {"tools": TOOL, "tool_choice": "required"},
        ASK | {"reasoning_effort": "minimal", "max_tokens": 8},
        ASK | {"logprobs": True, "diffusion": {"verdict": True}},
    ],
    "/v1/completions": [
        BODIES["/v1/completions"],
        BODIES["/v1/completions"] | {"logprobs": 2, "n": 2, "best_of": 2},
        BODIES["/v1/completions"] | {"suffix": "."},
        BODIES["/v1/completions"] | {"diffusion_verdict": True},
    ],
    "/v1/fim/completions": [BODIES["/v1/fim/completions"]],
    "/infill": [
        BODIES["/infill"], BODIES["/infill"] | {"stop": ["a", "e"]},
        BODIES["/infill"] | {"response_fields": ["content", "timings/predicted_n"]},
        BODIES["/infill"] | {"t_max_predict_ms": 1},
    ],
    "/v1/edit/completions": [BODIES["/v1/edit/completions"]],
    "/v1/apply/completions": [BODIES["/v1/apply/completions"]],
    "/v1/messages": [
        BODIES["/v1/messages"],
        BODIES["/v1/messages"] | {"tools": TOOLS, "tool_choice": {"type": "any"},
                                  "max_tokens": 60},
        BODIES["/v1/messages"] | {"diffusion": {"verdict": True}},
        BODIES["/v1/messages"] | {"thinking": {"type": "enabled", "budget_tokens": 3}},
    ],
    "/v1/messages/count_tokens": [{"messages": QUESTION}],
    "/v1/decisions": [
        DECISIONS, DECISIONS | {"samples": 2},
        DECISIONS | {"questions": [*DECISIONS["questions"], BLIND]},
    ],
    "/v1/systemone": [NAMED],
    "/v1/canvas": [
        BODIES["/v1/canvas"],
        BODIES["/v1/canvas"] | {"segments": [{"text": "Dear "}, {"max_length": 4}, {"text": "."}]},
        {"segments": SEGMENTS, "return": {"trace": True, "alternatives": 2}} | QUICK
        | {"max_tokens": None},
        {"segments": SEGMENTS, "read_only": True, "seed": 1},
    ],
    "/v1/models": [None],
    "/v1/models/{name}": [None],
    "/health": [None],
    "/metrics": [None],
    "/tokenize": [{"content": "Hello"}, {"content": "Hello", "with_pieces": True}],
    "/detokenize": [{"tokens": [300, 301]}],
    "/apply-template": [{"messages": QUESTION}],
    "/props": [None],
    "/ui/render": [{"markdown": "*a*"}],
}  # fmt: skip
"""Bodies whose replies show every field there is; None: the route is read, not posted to."""


def call(path: str, body: dict[str, Any] | None) -> httpx.Response:
    client = serve()
    if body is None:
        return client.get(path.replace("{name}", "nano"))
    return client.post(path, body)


def document() -> dict[str, Any]:
    found: dict[str, Any] = serve().get("/openapi.json").json()
    return found


def schema_of(found: dict[str, Any], path: str, status: str) -> dict[str, Any]:
    """What the document says of a reply in JSON, with all it refers to."""
    [operation] = found["paths"][path].values()
    schema = operation["responses"][status]["content"]["application/json"]["schema"]
    return {**schema, "components": found["components"]}


def test_every_route_is_described() -> None:
    """Catches a route whose reply a client in a typed language knows nothing of."""
    found = document()
    assert {path.replace("{name:path}", "{name}") for path in ROUTES} == set(CALLS)
    assert set(found["paths"]) == set(CALLS)
    for path in set(CALLS) - {"/metrics"}:
        for status in ("200", "400", "401", "413", "429", "500", "503"):
            schema = schema_of(found, path, status)
            jsonschema.Draft202012Validator.check_schema(schema)
            assert "$ref" in schema, (path, status)
        [operation] = found["paths"][path].values()
        assert "422" not in operation["responses"]
    for operation in (one for path in found["paths"].values() for one in path.values()):
        assert operation.get("summary") or operation.get("description")


@pytest.mark.parametrize(
    "path, number", [(path, k) for path, bodies in CALLS.items() for k in range(len(bodies))]
)
def test_replies_are_as_described(path: str, number: int) -> None:
    """Catches a field of a reply that is not described, or has another type than it says."""
    body = CALLS[path][number]
    response = call(path, body)
    assert response.status_code == 200, response.text
    if path == "/metrics":
        assert response.headers["content-type"].startswith("text/plain")
        return
    reply = response.json()
    jsonschema.validate(reply, schema_of(document(), path, "200"))
    model = ROUTES[path.replace("{name}", "{name:path}")].response_model
    assert issubclass(model, BaseModel)
    again = model.model_validate_json(response.text, strict=True)
    assert again.model_dump(mode="json", exclude_unset=True, by_alias=True) == reply
    if model is InfillReply and "response_fields" not in (body or {}):
        missing = set() if reply["stop_type"] != "limit" else {"seed", "timings", "diffusion_usage"}
        assert set(reply) == set(InfillReply.model_fields) - missing


@pytest.mark.parametrize("path", [path for path, bodies in CALLS.items() if bodies[0]])
def test_errors_are_as_described(path: str) -> None:
    """Catches an error in the shape of another API than the document says."""
    response = call(path, {"nonsense": 1})
    assert response.status_code == 400
    jsonschema.validate(response.json(), schema_of(document(), path, "400"))


def test_a_question_that_cannot_be_answered_is_refused_alone() -> None:
    """Catches one question that spoils all answers, and answers that change their places."""
    asked = DECISIONS["questions"]
    reply = call("/v1/decisions", DECISIONS | {"questions": [asked[0], BLIND, asked[1]]}).json()
    alone = call("/v1/decisions", DECISIONS | {"questions": [asked[0], asked[1]]}).json()
    first, refused, last = reply["answers"]
    assert [first, last] == alone["answers"] and reply["usage"] == alone["usage"]
    assert (refused["type"], refused["name"]) == ("refusal", "blind")
    assert "write instructions" in refused["refusal"]
    none = call("/v1/decisions", DECISIONS | {"questions": [BLIND]}).json()
    assert [one["type"] for one in none["answers"]] == ["refusal"]
    assert none["usage"]["total_tokens"] == 0
    twice = call("/v1/decisions", DECISIONS | {"questions": [BLIND, BLIND]})
    assert twice.status_code == 400 and "twice" in twice.json()["error"]["message"]
