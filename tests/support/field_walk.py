"""Walks the fields of a request's schema: each changes something, is refused by name, or is one
of the few that are documented to change nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from typing import Any

import httpx

from dgemma.server.request_body import Body
from tests.support.client import Recorder, serve
from tests.support.nano import light

UNLIKE = ("id", "created", "timings")
"""What differs between two replies to the same request."""
IDLE = {
    "user", "metadata", "store", "service_tier", "prompt_cache_key", "safety_identifier",
}  # fmt: skip

FILLING: dict[str, Any] = {
    "seed": 2, "max_tokens": 1, "temperature": 0.5, "top_p": 0.5, "top_k": 3, "min_p": 0.2,
    "logit_bias": {"300": 5}, "allowed_token_ids": [300, 301],
    "diffusion": {"t_max": 3.0}, "diffusion_max_steps": 3, "diffusion_canvas_length": 48,
    "vllm_xargs": {"diffusion_canvas_length": 40},
    "diffusion_restart_after": 2, "diffusion_tries": 2, "diffusion_race": 2,
    "diffusion_quality": "careful",
}  # fmt: skip
"""Fields of `SamplingFields` that change how a hole is filled."""
QUICK: dict[str, Any] = {"seed": 1, "max_tokens": 4, "diffusion_max_steps": 1}
"""What the requests have that these fields are tried on."""
NO_FILLING: dict[str, Any] = {
    "min_tokens": 2, "bad_words": ["x"], "logprob_token_ids": [300],
    "guided_json": {"type": "null"}, "guided_regex": "a", "guided_grammar": "code-fence",
    "guided_choice": ["a", "b"],
    "presence_penalty": 1.5, "frequency_penalty": 1, "repetition_penalty": 2,
    "diffusion_seed_canvas": [300], "diffusion_pinned": [0], "diffusion_read_only": True,
    "diffusion_verdict": True,
}  # fmt: skip
"""Fields of `SamplingFields` that have no meaning where a hole is filled."""


def post(path: str, body: Mapping[str, Any]) -> tuple[httpx.Response, str]:
    """The reply, and all that the model was asked and the client was told, as one text."""
    model = Recorder(light().submit)
    response = serve(model).post(path, dict(body))
    emitted: Any = response.text
    if "json" in response.headers["content-type"]:
        emitted = {name: v for name, v in response.json().items() if name not in UNLIKE}
    return response, json.dumps([repr(model.asked), emitted], sort_keys=True)


def assert_each_counts(
    path: str, schema: type[Body], base: Mapping[str, Any], *, changed: Mapping[str, Any],
    refused: Mapping[str, Any], idle: Set[str] = frozenset(IDLE),
) -> None:  # fmt: skip
    """Send each field of a schema in turn, on top of `base`."""
    fields = {field.alias or name for name, field in schema.model_fields.items()}
    assert fields == set(changed) | set(refused) | idle, fields ^ {*changed, *refused, *idle}
    first, plain = post(path, base)
    assert first.status_code == 200, first.text
    for name, value in changed.items():
        response, found = post(path, {**base, name: value})
        assert response.status_code == 200 or name == "model", (name, response.text)
        assert found != plain, f"{name} changes nothing"
    for name, value in refused.items():
        response, _ = post(path, {**base, name: value})
        assert response.status_code == 400, (name, response.text)
        assert name in response.json()["error"]["message"], (name, response.text)
    for name in sorted(idle):
        field = {"metadata": {"a": "b"}, "store": True, "service_tier": "auto",
                 "cache_prompt": True, "id_slot": 3}  # fmt: skip
        if path == "/v1/messages":
            field["metadata"] = {"user_id": "me"}
        response, _ = post(path, {**base, name: field.get(name, "me")})
        assert response.status_code == 200, (name, response.text)
    nearly, _ = post(path, {**base, "temprature": 1})
    assert nearly.status_code == 400 and "temprature" in nearly.text
