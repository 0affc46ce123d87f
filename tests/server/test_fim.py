"""Fill in the middle (Mercury, llama.cpp), the next edit, and updates that are applied."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dgemma.params import SamplingParams
from dgemma.server.apis.edit.schema import EditRequest, fenced, unfenced
from dgemma.server.apis.fim.schema import FimRequest, InfillRequest, picked
from dgemma.server.plans import indented
from tests.support.bodies import APPLIED, APPLY, EDIT, MESSAGE, said
from tests.support.client import Recorder, events, serve
from tests.support.field_walk import FILLING, NO_FILLING, QUICK, assert_each_counts, post
from tests.support.nano import nano

pytestmark = pytest.mark.model

FIM, INFILL = "/v1/fim/completions", "/infill"
PREFIX, SUFFIX = "Dear ", ", this is for you, Mira."
FAST: dict[str, Any] = {"seed": 1, "diffusion": {"max_steps": 2, "canvas_length": 32}}
FILL = {"prompt": PREFIX, "suffix": SUFFIX, "max_tokens": 4, "seed": 1}
HURRIED = {"diffusion": {"max_steps": 2}}
LLAMA = {"input_prefix": PREFIX, "input_suffix": SUFFIX, "n_predict": 4, "seed": 1}


def expected(**more: Any) -> str:
    params = SamplingParams(seed=1, max_steps=2, canvas_length=32, max_tokens=4)
    return nano().infill(PREFIX, SUFFIX, params, **more).holes[0].text


def test_fim_is_infill() -> None:
    """Catches a suffix that does not reach the canvas, and a stream with another text."""
    plain = serve().post(FIM, FILL | FAST).json()
    assert plain["choices"][0]["text"] == expected() != ""
    assert plain["choices"][0]["finish_reason"] == "stop"
    chunks = events(serve().post(FIM, FILL | FAST | {"stream": True}))
    assert "".join(event["choices"][0]["text"] for event in chunks) == expected()
    assert chunks[-1]["usage"] == plain["usage"]


def test_llamas_infill() -> None:
    """Catches llama.cpp's fields under other names, and files that the model is not shown."""
    plain = serve().post(INFILL, LLAMA | FAST).json()
    assert (plain["content"], plain["stop"], plain["stop_type"]) == (expected(), True, "eos")
    assert plain["tokens_predicted"] > 0 and plain["timings"]["predicted_n"] > 0
    split = {"input_prefix": PREFIX[:2], "prompt": PREFIX[2:]}
    assert serve().post(INFILL, LLAMA | FAST | split).json()["content"] == expected()
    model = Recorder()
    extra = [{"filename": "a.py", "text": "x = 1"}]
    serve(model).post(INFILL, LLAMA | FAST | {"input_extra": extra})
    prompt = nano().frontend.tokenizer.decode(model.asked[0].token_ids)
    assert "File: a.py\nx = 1" in prompt
    lines = serve().post(INFILL, LLAMA | FAST | {"stream": True}).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    assert "".join(event["content"] for event in chunks) == expected()
    assert [event["stop"] for event in chunks] == [False] * (len(chunks) - 1) + [True]


def test_what_ends_a_text_of_llamas() -> None:
    """Catches stop strings in the text, lines outside the block, and a clock that is not kept."""
    cut = serve().post(INFILL, LLAMA | FAST | {"stop": [expected()[0]]}).json()
    assert (cut["content"], cut["stop_type"], cut["stopping_word"]) == ("", "word", expected()[0])
    late = serve().post(INFILL, LLAMA | {"t_max_predict_ms": 1}).json()
    assert (late["content"], late["stop_type"], late["stop"]) == ("", "limit", True)
    assert indented("a\n  b\n\n  c\nd\n  e", 2) == "a\n  b\n\n  c\n"[:-1]
    assert indented("a\nb", 0) == "a\nb"
    body = {"content": "x", "timings": {"predicted_n": 3}}
    assert picked(body, ["content", "timings/predicted_n", "no/such"]) == {
        "content": "x", "timings/predicted_n": 3
    }  # fmt: skip


def test_llama_vims_requests() -> None:
    """Catches a field that llama.vim sends and is refused, and a reply whose paths it cannot read.

    Its two requests, field by field: a text at the cursor, and files to be kept for later.
    """
    extra = [{"text": "x = 1\n", "time": [12, 345678], "filename": "a.py"}]
    asked = {
        "input_prefix": "Dear \n", "input_suffix": "\nMira.\n", "input_extra": extra,
        "prompt": "this", "n_predict": 8, "n_indent": 0, "top_k": 40, "top_p": 0.99,
        "stream": False, "samplers": ["top_k", "top_p", "infill"], "cache_prompt": True,
        "t_max_prompt_ms": 50_000, "t_max_predict_ms": 50_000,
        "response_fields": [
            "content", "timings/prompt_n", "timings/prompt_ms", "timings/prompt_per_token_ms",
            "timings/prompt_per_second", "timings/predicted_n", "timings/predicted_ms",
            "timings/predicted_per_token_ms", "timings/predicted_per_second", "truncated",
            "tokens_cached",
        ],
    }  # fmt: skip
    reply = serve().post(INFILL, asked)
    assert reply.status_code == 200, reply.text
    assert set(reply.json()) == {
        "content", "timings/prompt_n", "timings/predicted_n", "timings/predicted_ms",
        "timings/predicted_per_second", "truncated",
    }  # fmt: skip
    model = Recorder()
    later = {
        "input_prefix": "", "input_suffix": "", "input_extra": extra, "prompt": "", "n_predict": 0,
        "temperature": 0.0, "stream": False, "samplers": [], "cache_prompt": True,
        "t_max_prompt_ms": 1, "t_max_predict_ms": 1, "response_fields": [""],
    }  # fmt: skip
    kept = serve(model).post(INFILL, later)
    assert (kept.status_code, kept.json()) == (200, {}) and not model.asked
    whole = serve(model).post(INFILL, later | {"response_fields": None}).json()
    assert (whole["content"], whole["stop_type"]) == ("", "limit") and not model.asked


def test_a_failing_stream_says_so() -> None:
    """Catches a stream that just ends when the model fails: it would look like an empty text."""
    long = {"prompt": "word " * 3, "suffix": "", "seed": 1, "max_tokens": 4, "stream": True}

    def broken(request: Any) -> Any:
        raise ValueError("secret")

    chunks = events(serve(Recorder(broken)).post(FIM, long))
    assert "secret" not in json.dumps(chunks) and chunks[-1]["error"]["type"] == "server_error"


def test_next_edit_changes_its_region_alone() -> None:
    """Catches a reply with code from outside the region, or without the fence editors look for."""
    model = Recorder()
    reply = serve(model).post(EDIT, said(MESSAGE) | FAST).json()
    assert reply["id"].startswith("editcmpl-")
    content = reply["choices"][0]["message"]["content"]
    assert content.startswith("```\n") and content.endswith("\n```")
    decode = nano().frontend.tokenizer.decode
    prompt = decode(model.asked[0].token_ids)
    for shown in ("code_snippet_file_path: a.py", "+y = 2", "The cursor is in line 3, column 12."):
        assert shown in prompt
    same = serve().post(EDIT, said(MESSAGE) | {"diffusion": {"strength": 0}}).json()
    kept = "```\ndef f():\n    return a.x\n```"
    assert same["choices"][0]["message"]["content"] == kept


def test_apply_asks_for_the_merged_file() -> None:
    """Catches an update that the model is not shown, and a fence that ends up in the file."""
    model = Recorder()
    reply = serve(model).post(APPLY, said(APPLIED) | FAST).json()
    prompt = nano().frontend.tokenizer.decode(model.asked[0].token_ids)
    assert "a = 1" in prompt and "a = 2" in prompt and model.asked[0].chat
    assert reply["choices"][0]["message"]["role"] == "assistant"
    assert unfenced("```python\nx\n```\n") == "x" and unfenced("x\n```") == "x\n```"
    assert fenced("a```b") == "````\na```b\n````" and unfenced(fenced("a```b")) == "a```b"


@pytest.mark.parametrize("path, tags", [
    (EDIT, ("code_to_edit", "current_file_content", "edit_diff_history")),
    (APPLY, ("original_code", "update_snippet")),
])  # fmt: skip
def test_a_malformed_message_is_400_with_the_tag(path: str, tags: tuple[str, ...]) -> None:
    """Catches a 500, or an edit of the wrong place, for a message whose tags do not pair."""
    whole = MESSAGE if path == EDIT else APPLIED
    for tag in tags:
        response, _ = post(path, said(whole.replace(f"<|/{tag}|>", "")))
        assert response.status_code == 400
        error = response.json()["error"]
        assert f"<|/{tag}|> is missing" in error["message"], error
    twice = {"messages": said(whole)["messages"] * 2}
    assert post(path, twice)[0].status_code == 400


def test_every_field_of_fim_counts() -> None:
    """Catches a field that is accepted and ignored, and one that is refused without its name."""
    changed = FILLING | {"prompt": "Dear, ", "suffix": "!", "stream": True, "model": "other"}
    changed["stop"] = post(FIM, FILL | QUICK)[0].json()["choices"][0]["text"][0]
    assert_each_counts(
        FIM, FimRequest, FILL | QUICK, changed=changed, refused=NO_FILLING | {"n": 2}
    )


def test_every_field_of_infill_counts() -> None:
    """The same for llama.cpp's."""
    changed = {
        "input_prefix": "Dear, ", "input_suffix": "!", "input_extra": [{"text": "x"}],
        "prompt": "dear ", "n_predict": 1, "stream": True, "seed": 2, "model": "x",
        "temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.2, "t_max_predict_ms": 1,
        "t_max_prompt_ms": 1, "response_fields": ["content"], "diffusion": {"max_steps": 3},
    }  # fmt: skip
    changed["stop"] = [post(INFILL, LLAMA | HURRIED)[0].json()["content"][0]]
    refused = {
        "repeat_penalty": 2, "presence_penalty": 1, "frequency_penalty": 1, "n_indent": -1,
        "samplers": ["mirostat"],
    }  # fmt: skip
    idle = {"cache_prompt", "id_slot"}
    assert_each_counts(
        INFILL, InfillRequest, LLAMA | HURRIED, changed=changed, refused=refused, idle=idle
    )
    asked = LLAMA | HURRIED | {"top_k": 3}
    assert post(INFILL, asked)[1] != post(INFILL, asked | {"samplers": ["top_p"]})[1]
    assert post(INFILL, asked)[1] == post(INFILL, asked | {"samplers": ["top_k"]})[1]


def test_every_field_of_edit_counts() -> None:
    """The same for Mercury's edits."""
    changed = FILLING | {
        "messages": [{"role": "user", "content": MESSAGE.replace("y = 2", "y = 3")}],
        "model": "other", "stream": True,
    }  # fmt: skip
    refused = NO_FILLING | {"n": 2, "stop": "x", "allowed_token_ids": [300]}
    for name in refused:
        changed.pop(name, None)
    assert_each_counts(EDIT, EditRequest, said(MESSAGE) | QUICK, changed=changed, refused=refused)
    changed |= {
        "messages": [{"role": "user", "content": APPLIED.replace("2", "3")}], "stop": "e",
        "allowed_token_ids": [300, 301], "min_tokens": 2, "bad_words": ["o"],
        "guided_json": {"type": "null"}, "guided_regex": "a", "guided_choice": ["a", "b"],
        "guided_grammar": "code-fence",
    }  # fmt: skip
    refused = {name: v for name, v in refused.items() if name not in changed}
    assert_each_counts(APPLY, EditRequest, said(APPLIED) | QUICK, changed=changed, refused=refused)
