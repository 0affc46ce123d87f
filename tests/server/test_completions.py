"""OpenAI's old API for plain text, with suffix."""

from __future__ import annotations

from typing import Any

import pytest

from dgemma.params import SamplingParams
from dgemma.server.apis.completions.schema import CompletionRequest
from dgemma.server.settings import ServerLimits
from dgemma.tasks import make_example
from tests.support.bodies import MESSAGE
from tests.support.client import events, serve
from tests.support.field_walk import FILLING, NO_FILLING, QUICK, assert_each_counts, post
from tests.support.nano import nano

pytestmark = pytest.mark.model

PATH = "/v1/completions"
PUZZLE = make_example("sudoku", "heldout", 1, 0).messages[-1]["content"]
FAST: dict[str, Any] = {"diffusion": {"max_steps": 2, "canvas_length": 32}, "seed": 1}
PLAIN = {"prompt": "Hello there", "max_tokens": 8, "min_tokens": 6, **FAST}
HOLE = {"prompt": "Dear ", "suffix": ", this is for you, Mira.", "max_tokens": 4, **FAST}


def params(**more: Any) -> SamplingParams:
    values = dict(seed=1, max_steps=2, canvas_length=32, max_tokens=8, min_tokens=6) | more
    return SamplingParams(**values)


def texts(reply: Any) -> list[str]:
    return [choice["text"] for choice in reply.json()["choices"]]


def test_prompts_and_drafts_are_those_of_generate() -> None:
    """Catches choices in another order than prompt by prompt, a chat template put around plain
    text, and a seed that does not count up."""
    prompts = ["Hello there", "Good evening"]
    reply = serve().post(PATH, {**PLAIN, "prompt": prompts, "n": 2})
    assert texts(reply) == [out.text for out in nano().generate(prompts, params(), n=2)]
    body = reply.json()
    assert any(texts(reply)) and body["seeds"] == [1, 2, 1, 2]
    both = sum(len(nano().prompt_ids(prompt)) for prompt in prompts)
    assert body["usage"]["prompt_tokens"] == both
    ids = [nano().prompt_ids(prompt) for prompt in prompts]
    assert texts(serve().post(PATH, {**PLAIN, "prompt": ids, "n": 2})) == texts(reply)
    assert texts(serve().post(PATH, {**PLAIN, "prompt": ids[0]})) == texts(reply)[:1]


def test_best_of_is_generates() -> None:
    """Catches drafts that come back in the order they were made, not the likeliest first."""
    reply = serve().post(PATH, {**PLAIN, "n": 2, "best_of": 3})
    expected = nano().generate("Hello there", params(), n=2, best_of=3)
    assert texts(reply) == [out.text for out in expected]


def test_logprobs_are_in_the_old_form() -> None:
    """Catches lists of different lengths, offsets that do not point into the text, and values
    that are not the engine's."""
    reply = serve().post(PATH, {**PLAIN, "logprobs": 2, "logprob_token_ids": [301]})
    choice = reply.json()["choices"][0]
    found, out = choice["logprobs"], nano().generate("Hello there", params(logprobs=2))
    assert found["token_logprobs"] == pytest.approx([s.logprob for s in out.scores])
    assert "".join(found["tokens"]) == choice["text"] == out.text
    assert len(found["tokens"]) == len(found["top_logprobs"]) == len(found["text_offset"]) > 0
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token)
    name = nano().frontend.tokenizer.token_text(301)
    assert all(name in top for top in found["top_logprobs"])


@pytest.mark.parametrize("body", [PLAIN, {**PLAIN, "n": 2}, HOLE, {**HOLE, "n": 2}])
def test_a_stream_folds_to_the_plain_reply(body: dict[str, Any]) -> None:
    """Catches text that is lost, doubled or given to another choice when streamed."""
    plain = serve().post(PATH, body).json()
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    chunks = events(serve().post(PATH, asked))
    for choice in plain["choices"]:
        own = [c for e in chunks for c in e["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in own) == choice["text"]
        assert [c["finish_reason"] for c in own if c["finish_reason"]] == [choice["finish_reason"]]
    assert chunks[-1]["usage"] == plain["usage"] and chunks[-1]["choices"] == []
    assert chunks[-1]["diffusion_usage"] == plain["diffusion_usage"]


def test_a_suffix_is_what_infill_writes_before() -> None:
    """Catches a suffix that is accepted and ignored, as other servers of this model do."""
    reply = serve().post(PATH, {**HOLE, "n": 2})
    expected = [
        nano().infill("Dear ", ", this is for you, Mira.",
                      params(seed=seed, min_tokens=None, max_tokens=4)).holes[0].text
        for seed in (1, 2)
    ]  # fmt: skip
    assert texts(reply) == expected and any(expected)
    first = expected[0][:1]
    assert texts(serve().post(PATH, {**HOLE, "stop": [first]})) == [""]


def test_drafts_are_side_events() -> None:
    """Catches drafts in the text itself: a client would print each step behind the last."""
    asked = {**PLAIN, "stream": True, "diffusion": {"max_steps": 3, "stream": "tokens"}}
    chunks = events(serve().post(PATH, asked))
    sides = [event for event in chunks if "diffusion" in event]
    assert all(event["choices"][0]["text"] == "" for event in sides)
    frames = [event for event in sides if event["diffusion"]["type"] == "frame"]
    assert {frame["diffusion"]["max_steps"] for frame in frames} == {3}


def test_every_field_counts() -> None:
    """Catches a field that is accepted and ignored, and one that is refused without its name."""
    changed = FILLING | {
        "stop": "e", "prompt": "Hello here", "model": "other", "suffix": "!", "n": 2, "best_of": 2,
        "logprobs": 1, "stream": True, "min_tokens": 3, "bad_words": ["e"],
        "guided_json": {"type": "null"}, "guided_regex": "[a-c]+", "guided_grammar": "code-fence",
        "guided_choice": ["a", "b"],
        "diffusion_seed_canvas": [300], "diffusion_read_only": True, "diffusion_verdict": True,
    }  # fmt: skip
    refused = {name: NO_FILLING[name] for name in NO_FILLING if name not in changed}
    refused |= {"echo": True, "stream_options": {"include_usage": True}}
    refused |= {"mode": "score"}  # the others: tests/server/test_modes_and_tries.py
    base = {"prompt": "Hello there"} | QUICK
    assert_each_counts(PATH, CompletionRequest, base, changed=changed, refused=refused)
    infilled = FILLING | {"prompt": "Dear, ", "n": 2, "stream": True, "suffix": "!"}
    refused = NO_FILLING | {"best_of": 2, "logprobs": 1, "echo": True, "stream_options": {}}
    refused |= {"mode": "exact"}
    base = {"prompt": HOLE["prompt"], "suffix": HOLE["suffix"]} | QUICK
    infilled["stop"] = texts(post(PATH, base)[0])[0][0]
    assert_each_counts(
        PATH, CompletionRequest, base, changed=infilled | {"model": "other"}, refused=refused
    )


@pytest.mark.parametrize("body, field", [
    ({"prompt": []}, "prompt"), ({"prompt": [[]]}, "prompt"), ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": ""}, "prompt"), ({"prompt": [-1]}, "prompt"), ({"prompt": ["a"] * 129}, "prompt"),
    ({"prompt": ["a"], "suffix": "b"}, "suffix"), ({"prompt": None}, "prompt"),
    ({"n": 17}, "n"), ({"best_of": 17}, "best_of"), ({"n": 3, "best_of": 2}, "best_of"),
    ({"best_of": 2, "stream": True}, "best_of"), ({"logprobs": 65}, "logprobs"),
    ({"diffusion": {"stream": "text"}}, "diffusion.stream"),
    ({"suffix": "b", "diffusion": {"stream": "text"}}, "diffusion.stream"),
    ({"suffix": "b", "stream": True, "diffusion": {"stream_search": True}}, "stream_search"),
    ({"stream": True, "diffusion": {"stream": "text", "stream_search": True}}, "stream_search"),
    ({"stream": True, "diffusion": {"stream_interval": 2}}, "stream_interval"),
])  # fmt: skip
def test_what_cannot_be_is_refused(body: dict[str, Any], field: str) -> None:
    """Catches bounds and contradictions that end as a 500, or as half of what was asked."""
    response, _ = post(PATH, {"prompt": "Hello", "max_tokens": 4, **body})
    assert response.status_code == 400 and field in response.json()["error"]["message"]


@pytest.mark.parametrize("path, more", [
    (PATH, HOLE), ("/v1/fim/completions", HOLE),
    ("/v1/canvas", {"segments": [{"text": "Dear "}, {"max_length": 4}, {"text": "!"}], **FAST}),
    ("/v1/edit/completions",
     {"messages": [{"role": "user", "content": MESSAGE}], "max_tokens": 8, **FAST}),
    (PATH, {**PLAIN, "n": 1, "best_of": 2}),
])  # fmt: skip
def test_costs_are_those_of_a_narrow_canvas(path: str, more: dict[str, Any]) -> None:
    """Catches positions that are counted as if the whole canvas had been run."""
    spent = serve().post(path, more).json()["diffusion_usage"]
    assert spent["canvas_tokens"] == spent["canvases"] * 32 > 0


def test_answers_of_one_request_are_bounded() -> None:
    """Catches a bound on n alone: a hundred prompts ask for as many answers, in one place."""
    client = serve(limits=ServerLimits(n=4))
    for more in ({"prompt": ["a"] * 5}, {"prompt": ["a"] * 2, "n": 3},
                 {"prompt": ["a"] * 2, "n": 1, "best_of": 3}):  # fmt: skip
        refused = client.post(PATH, {**PLAIN, **more})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "prompt"
    assert client.post(PATH, {**PLAIN, "prompt": ["a", "b"], "n": 2}).status_code == 200


def test_every_prompt_is_counted() -> None:
    """Catches a metric that knows the first prompt of several alone."""
    client = serve()
    reply = client.post(PATH, {**PLAIN, "prompt": ["Hello there", "Good evening"], "n": 2}).json()
    counted = f"dgemma_prompt_tokens_total {float(reply['usage']['prompt_tokens'])}"
    assert counted in client.get("/metrics").text


def test_what_the_chunks_hold() -> None:
    """Catches chunks without `usage: null`, where the last one has it, and log-probabilities that
    all come at the end, or with other offsets than those of the plain reply."""
    body = {**PLAIN, "prompt": PUZZLE, "max_tokens": 64, "min_tokens": 40, "logprobs": 1,
            "diffusion": {"max_steps": 8, "stable_prefix": True, "canvas_length": 16}}  # fmt: skip
    plain = serve().post(PATH, body).json()["choices"][0]["logprobs"]
    asked = body | {"stream": True, "stream_options": {"include_usage": True}}
    chunks = events(serve().post(PATH, asked))
    assert all(event["usage"] is None for event in chunks[:-1]) and chunks[-1]["usage"]
    parts = [one["logprobs"] for e in chunks for one in e["choices"] if one["logprobs"]]
    assert len(parts) > 1 and chunks[-2]["choices"][0]["logprobs"] is None
    for name, values in plain.items():
        assert [value for part in parts for value in part[name]] == values
    assert all(
        "usage" not in event for event in events(serve().post(PATH, body | {"stream": True}))
    )


def test_a_read_only_canvas_takes_one_step() -> None:
    """Catches frames that promise more steps than are made."""
    asked = {**PLAIN, "min_tokens": 0, "stream": True, "diffusion": {"stream": "text"},
             "diffusion_read_only": True}  # fmt: skip
    chunks = events(serve().post(PATH, asked))
    assert {event["total"] for event in chunks if "total" in event} == {1}
