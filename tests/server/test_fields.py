"""Every field of a chat request changes what the model is asked or the client is told, or is
refused by name, or is one of the four that are documented to change nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from dgemma.server.apis.chat.schema import (
    ChatRequest,
    JsonSchema,
    ResponseFormat,
    StructuredOutputs,
    TemplateOptions,
)
from dgemma.server.apis.meta.schema import DetokenizeRequest, TemplateRequest, TokenizeRequest
from dgemma.server.choices import StreamOptions
from dgemma.server.request_body import Ignorable
from dgemma.server.sampling_fields import Diffusion, Prediction, TextPart
from tests.support.client import ASK, QUESTION, Recorder, events, serve, written
from tests.support.nano import nano

pytestmark = pytest.mark.model

TOOL = {
    "type": "function",
    "function": {"name": "find", "description": "", "parameters": {"type": "object"}},
}
SCHEMA = {"type": "object", "properties": {}, "additionalProperties": False}
BASE = {**ASK, "max_tokens": 24}
STREAM = {"stream": True}
SHOWN = {"stream": True, "diffusion": {"stream": "text", "max_steps": 4}}
SEEDED = {"diffusion_seed_canvas": [300, 301]}
SCORED = {"logprobs": True}

Case = tuple[Mapping[str, Any], Any]
"""What else must be in the request, and the field's value."""

CHANGED: dict[str, Case] = {
    "messages": ({}, [{"role": "user", "content": "Hello"}]),
    "model": ({}, "other"),
    "tools": ({}, [TOOL]),
    "tool_choice": ({"tools": [TOOL]}, "none"),
    "parallel_tool_calls": ({"tools": [TOOL]}, False),
    "n": ({}, 2),
    "mode": ({"seed": None, "diffusion": None}, "autoregressive"),
    "stream": ({}, True),
    "stream_options": (STREAM, {"include_usage": True}),
    "stream_options.include_usage": (STREAM | {"stream_options": {}}, True),
    "max_tokens": ({}, 3),
    "max_completion_tokens": ({"max_tokens": None}, 3),
    "logprobs": ({}, True),
    "top_logprobs": (SCORED, 2),
    "logprob_token_ids": (SCORED, [300]),
    "return_tokens_as_token_ids": (SCORED, True),
    "response_format": ({}, {"type": "json_object"}),
    "response_format.type": ({"response_format": {"type": "text"}}, "json_object"),
    "response_format.json_schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        {"schema": SCHEMA},
    ),
    "response_format.json_schema.schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, SCHEMA,
    ),
    "structured_outputs": ({}, {"choice": ["yes", "no"]}),
    "structured_outputs.json": ({"structured_outputs": {}}, SCHEMA),
    "structured_outputs.json_object": ({"structured_outputs": {}}, True),
    "structured_outputs.regex": ({"structured_outputs": {}}, "a+"),
    "structured_outputs.choice": ({"structured_outputs": {}}, ["a", "b"]),
    "structured_outputs.grammar": ({"structured_outputs": {}}, "code-fence"),
    "structured_outputs.structure": ({"structured_outputs": {}}, "list:2"),
    "guided_json": ({}, SCHEMA),
    "guided_regex": ({}, "a+"),
    "guided_grammar": ({}, "code-fence"),
    "guided_choice": ({}, ["a", "b"]),
    "reasoning_effort": ({}, "low"),
    "thinking_token_budget": ({}, 7),
    "chat_template_kwargs": ({}, {"enable_thinking": True}),
    "chat_template_kwargs.enable_thinking": ({"chat_template_kwargs": {}}, True),
    "prediction": ({}, {"type": "content", "content": "I am"}),
    "prediction.content": ({"prediction": {"type": "content", "content": "I am"}}, "You are"),
    "diffusing": (STREAM, True),
    "seed": ({}, 2),
    "temperature": ({}, 0.5),
    "top_p": ({}, 0.5),
    "top_k": ({}, 1),
    "min_p": ({}, 0.5),
    "stop": ({}, "nano"),
    "min_tokens": ({}, 20),
    "logit_bias": ({}, {"300": 5.0}),
    "bad_words": ({}, ["nano"]),
    "allowed_token_ids": ({}, [300, 301]),
    "diffusion": ({}, {"max_steps": 2}),
    "diffusion.max_steps": ({}, 2),
    "diffusion.entropy_bound": ({}, 1.0),
    "diffusion.t_min": ({}, 0.1),
    "diffusion.t_max": ({}, 2.0),
    "diffusion.confidence_threshold": ({}, 1.0),
    "diffusion.stability_threshold": ({}, 3),
    "diffusion.ignore_tail": ({}, True),
    "diffusion.stable_prefix": ({}, True),
    "diffusion.structure": ({}, "list:2"),
    "diffusion.canvas_length": ({}, 32),
    "diffusion.restart_after": ({}, 2),
    "diffusion.tries": ({}, 2),
    "diffusion.race": ({}, 2),
    "diffusion.verdict": ({}, True),
    "diffusion.quality": ({}, "careful"),
    "diffusion.strength": ({"prediction": {"type": "content", "content": "I am"}}, 0.9),
    "diffusion.edits": ({}, [{"step": 1, "position": 3, "do": "pin", "id": 300}]),
    "diffusion.stream": (STREAM, "text"),
    "diffusion.stream_interval": (SHOWN, 2),
    "diffusion.stream_alternatives": (
        {"stream": True, "diffusion": {"stream": "ids", "max_steps": 4}}, 2,
    ),
    "diffusion_max_steps": ({"diffusion": None}, 2),
    "diffusion_canvas_length": ({}, 32),
    "diffusion_restart_after": ({}, "auto"),
    "diffusion_tries": ({}, 2),
    "diffusion_race": ({}, 2),
    "diffusion_verdict": ({}, True),
    "diffusion_quality": ({}, "careful"),
    "diffusion_seed_canvas": ({}, [300, 301]),
    "diffusion_pinned": (SEEDED, [0]),
    "diffusion_read_only": ({}, True),
    "vllm_xargs": ({}, {"diffusion_canvas_length": 32}),
}  # fmt: skip

REFUSED: dict[str, Case] = {
    "stream_options.include_obfuscation": (STREAM, True),
    "diffusion.stream_search": (SHOWN, True),
    "chat_template_kwargs.preserve_thinking": ({"chat_template_kwargs": {}}, True),
    "presence_penalty": ({}, 0.5),
    "frequency_penalty": ({}, -0.5),
    "repetition_penalty": ({}, 1.1),
    "modalities": ({}, ["text", "audio"]),
    "prediction.type": ({"prediction": {"type": "content", "content": "x"}}, "audio"),
}

NEUTRAL: dict[str, Any] = {
    "presence_penalty": 0, "frequency_penalty": 0.0, "repetition_penalty": 1, "n": 1,
    "temperature": 1, "top_p": 1, "top_k": -1, "min_p": 0, "logit_bias": {},
    "reasoning_effort": "none", "thinking_token_budget": 0, "tool_choice": "auto",
    "response_format": {"type": "text"}, "stream": False, "logprobs": False, "diffusing": False,
    "user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto",
    "prompt_cache_key": "a", "safety_identifier": "b",
    "diffusion_canvas_length": None, "vllm_xargs": {}, "min_tokens": 0, "tools": [],
    "modalities": ["text"], "max_tokens": 24, "stop": None, "seed": 1, "model": "nano",
}  # fmt: skip
"""Values that change nothing, whatever their field does otherwise."""

SAYING = {"response_format.json_schema.name", "response_format.json_schema.description",
          "response_format.json_schema.strict", "prediction.content.type",
          "prediction.content.text"}  # fmt: skip
"""Names and descriptions; `strict`, since answers always keep to the schema; and the parts of a
text that are tested with it as a whole."""

SCHEMAS = {
    "": ChatRequest, "diffusion.": Diffusion, "prediction.": Prediction,
    "prediction.content.": TextPart, "response_format.": ResponseFormat,
    "response_format.json_schema.": JsonSchema, "structured_outputs.": StructuredOutputs,
    "stream_options.": StreamOptions, "chat_template_kwargs.": TemplateOptions,
}  # fmt: skip


def put(body: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The body with a field, which may be an inner one, set."""
    name, _, inner = path.partition(".")
    old = body.get(name)
    new = put(old if isinstance(old, dict) else {}, inner, value) if inner else value
    return {**body, name: new}


def sent(body: Mapping[str, Any]) -> tuple[httpx.Response, str]:
    """The reply, and all that the model was asked and the client was told, as one text."""
    model = Recorder()
    response = serve(model, names=("nano", "other")).post("/v1/chat/completions", dict(body))
    streamed = "event-stream" in response.headers["content-type"]
    replies = events(response) if streamed else [response.json()]
    for part in replies:
        for name in ("id", "created", "timings"):
            part.pop(name, None)
    return response, json.dumps([repr(model.asked), replies], sort_keys=True)


def test_every_field_is_in_a_table() -> None:
    """Catches a new field that nobody has shown to do anything."""
    names = {
        prefix + (field.alias or name)
        for prefix, schema in SCHEMAS.items()
        for name, field in schema.model_fields.items()
    }
    idle = set(Ignorable.model_fields)
    assert names == {*CHANGED, *REFUSED, *SAYING} | idle


@pytest.mark.parametrize("name", sorted(CHANGED))
def test_a_field_changes_something(name: str) -> None:
    """Catches a field that is accepted and ignored."""
    if name.startswith(("guided", "structured", "response")):
        pytest.importorskip("llguidance")
    more, value = CHANGED[name]
    base = {**BASE, **more}
    if name == "parallel_tool_calls":
        check_parallel(base)
        return
    before, plain = sent(base)
    after, changed = sent(put(base, name, value))
    assert (before.status_code, after.status_code) == (200, 200), after.text
    if name != "model":  # one model under two names: it is looked up, which test_errors shows
        assert changed != plain


def check_parallel(base: dict[str, Any]) -> None:
    """Of two calls only the first is told."""
    call = '<|tool_call>call:find{a:<|"|>b<|"|>}<tool_call|>'
    ids = nano().frontend.tokenizer.encode(call * 2, control=True)
    client = serve(Recorder(lambda request: written(request, [ids])))
    for value, count in ((True, 2), (False, 1)):
        reply = client.post("/v1/chat/completions", {**base, "parallel_tool_calls": value})
        assert len(reply.json()["choices"][0]["message"]["tool_calls"]) == count


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_field_is_refused_by_name(name: str) -> None:
    """Catches a refusal that does not say of what, or no refusal."""
    more, value = REFUSED[name]
    response, _ = sent(put({**BASE, **more}, name, value))
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == name and name in error["message"]


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_neutral_values_change_nothing(name: str) -> None:
    """Catches a client turned away for a value that every client sends, or treated otherwise."""
    response, found = sent({**BASE, name: NEUTRAL[name]})
    assert response.status_code == 200, response.text
    changed, plain = json.loads(found), json.loads(sent(BASE)[1])
    assert changed[1:] == plain[1:]


@pytest.mark.parametrize(("fields", "param"), [
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprob_token_ids": [3]}, "logprob_token_ids"),
    ({"return_tokens_as_token_ids": True}, "return_tokens_as_token_ids"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"diffusing": True}, "diffusing"),
    ({"diffusion": {"stream": "text"}}, "diffusion.stream"),
    ({"diffusion": {"stream_interval": 2}}, "diffusion.stream_interval"),
    ({**SHOWN, "diffusing": True}, "diffusing"),
    ({"stream": True, "diffusing": True, "n": 2}, "n"),
    ({"parallel_tool_calls": False}, "parallel_tool_calls"),
    ({"diffusion_max_steps": 3}, "diffusion_max_steps"),
    ({"diffusion": {"race": 2}, "diffusion_race": 2}, "diffusion_race"),
    ({"diffusion": {"race": 2, "stable_prefix": True}}, "diffusion.race"),
    ({"diffusion_quality": "careful", "diffusion": {"stable_prefix": True}}, "diffusion_quality"),
    ({"mode": "autoregressive", "stream": True, "diffusing": True}, "diffusing"),
    ({"mode": "exact", **SHOWN, "diffusion": {"stream": "tokens"}}, "diffusion.stream"),
    ({"mode": "exact", **SHOWN, "diffusion": {"stream": "text", "stream_interval": 2}},
     "diffusion.stream_interval"),
    ({"mode": "autoregressive", "diffusion": None}, "seed"),
    ({"mode": "autoregressive", "seed": None}, "diffusion.max_steps"),
    ({"mode": "autoregressive", "seed": None, "diffusion_verdict": True, "diffusion": None},
     "diffusion_verdict"),
    ({"mode": "autoregressive", "prediction": {"type": "content", "content": "x"}}, "prediction"),
    ({"mode": "autoregressive", **SEEDED}, "diffusion_seed_canvas"),
    ({"mode": "autoregressive", "diffusion_read_only": True}, "diffusion_read_only"),
    ({"vllm_xargs": {"diffusion_read_only": True}, "diffusion_read_only": True},
     "vllm_xargs.diffusion_read_only"),
    ({"diffusion": {"strength": 0.5}}, "strength"),
    ({"stream": True, "diffusion": {"stream": "tokens", "stream_alternatives": 2}},
     "diffusion.stream_alternatives"),
    ({"diffusion": {"edits": [{"step": 0, "position": 0, "do": "pin"}]}}, "diffusion.edits"),
    ({"diffusion": {"edits": [{"step": 0, "position": 99, "do": "renoise"}]}}, "diffusion.edits"),
    ({"diffusion": {"edits": [{"step": 0, "position": -1, "do": "renoise"}]}},
     "diffusion.edits[0].position"),
    ({"guided_regex": "a+", "diffusion": {"edits": [{"step": 0, "position": 0, "do": "renoise"}]}},
     "diffusion.edits"),
    ({"reasoning_effort": "none", "thinking_token_budget": 5}, "thinking_token_budget"),
    ({"reasoning_effort": "low", "prediction": {"type": "content", "content": "x"}}, "prediction"),
    ({**SEEDED, "prediction": {"type": "content", "content": "x"}}, "prediction"),
    ({"guided_choice": ["a"], "response_format": {"type": "json_object"}}, "response_format"),
    ({"tools": [TOOL], "tool_choice": "required", "guided_choice": ["a"]}, "response_format"),
    ({"stop": ["x"], "guided_choice": ["a"]}, "stop"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
])  # fmt: skip
def test_fields_that_contradict_one_another(fields: dict[str, Any], param: str) -> None:
    """Catches one of two fields that wins in silence."""
    response, _ = sent({**BASE, **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert param in (error["param"], error["message"].split(" ")[0]) or param in error["message"]


@pytest.mark.parametrize(("path", "schema", "base", "changed"), [
    ("/tokenize", TokenizeRequest, {"messages": QUESTION}, {
        "messages": [{"role": "user", "content": "x"}], "tools": [TOOL],
        "chat_template_kwargs": {"enable_thinking": True}, "with_pieces": True, "model": "x",
        "content": "x", "prompt": "x", "add_special": True,
    }),
    ("/detokenize", DetokenizeRequest, {"tokens": [300]}, {"tokens": [301], "model": "x"}),
    ("/apply-template", TemplateRequest, {"messages": QUESTION}, {
        "messages": [{"role": "user", "content": "x"}], "tools": [TOOL],
        "chat_template_kwargs": {"enable_thinking": True}, "model": "x",
    }),
])  # fmt: skip
def test_fields_of_the_tokenizer_routes(
    path: str, schema: Any, base: dict[str, Any], changed: dict[str, Any]
) -> None:
    """Catches a field of the small routes that is accepted and ignored."""
    client = serve()
    assert set(changed) == set(schema.model_fields)
    plain = client.post(path, base).text
    for name, value in changed.items():
        assert client.post(path, base | {name: value}).text != plain, name
