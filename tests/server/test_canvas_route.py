"""The native route: segments, seeds, pins, readings and what is told of them."""

from __future__ import annotations

from typing import Any

import pytest

from dgemma.compose.fill import Hole
from dgemma.params import SamplingParams
from dgemma.server.apis.canvas.schema import CanvasRequest
from dgemma.server.settings import ServerLimits
from tests.support.client import Recorder, serve
from tests.support.field_walk import FILLING, NO_FILLING, QUICK, assert_each_counts, post
from tests.support.nano import nano

pytestmark = pytest.mark.model

PATH = "/v1/canvas"
FAST: dict[str, Any] = {"seed": 1, "diffusion": {"max_steps": 2}}
OPEN = [{"text": "Dear "}, {"role": "hole", "max_length": 3}, {"text": ", this is for you."}]
FIXED = [{"text": "Dear "}, {"min_length": 2, "max_length": 2}, {"text": ", this is for you."}]
SEEDED = [{"text": "Dear "}, {"text": "Mira", "role": "seed"}, {"text": ", this is for you."}]


def encode(text: str) -> list[int]:
    return nano().frontend.tokenizer.encode(text)


def test_text_with_holes_is_filled() -> None:
    """Catches lengths that are not looked for, and a table that is another hole's."""
    body = serve().post(PATH, {"segments": OPEN, "prompt": "A letter."} | FAST).json()
    expected = nano().fill(
        ["Dear ", Hole(max_tokens=3), ", this is for you."],
        SamplingParams(seed=1, max_steps=2), context="A letter.",
    )  # fmt: skip
    hole = body["segments"][1]
    assert body["text"] == expected.text and hole["text"] == expected.holes[0].text
    assert [row["tokens"] for row in hole["length_search"]] == [
        trial.tokens for trial in expected.holes[0].lengths
    ]
    assert sum(row["chosen"] for row in hole["length_search"]) == 1
    assert body["usage"]["completion_tokens"] == len(hole["tokens"])


def test_a_canvas_of_fixed_segments_tells_everything() -> None:
    """Catches values of other positions, and pinned text that changed."""
    asked = {"segments": FIXED, "return": {"logprobs": True, "alternatives": 2, "trace": True}}
    model = Recorder()
    body = serve(model).post(PATH, asked | FAST).json()
    request = model.asked[0]
    assert len(model.asked) == 1 and request.canvas is not None
    first, hole, last = body["segments"]
    assert (first["text"], last["text"]) == ("Dear ", ", this is for you.")
    assert first["tokens"] == encode("Dear ") and len(hole["tokens"]) == 2
    for part in body["segments"]:
        assert [score["id"] for score in part["logprobs"]] == part["tokens"]
        assert all(len(score["alternatives"]) == 2 for score in part["logprobs"])
    assert len(body["trace"]) == body["diffusion_usage"]["steps"] <= 2
    at = len(first["tokens"])
    assert all(set(step["accepted"][:at]) == {2} for step in body["trace"])
    assert body["text"] == "".join(part["text"] for part in body["segments"])


def test_seeds_begin_at_their_strength() -> None:
    """Catches a seed that is pinned, or drowned in noise, whatever was asked."""
    kept = serve().post(PATH, {"segments": SEEDED, "strength": 0.0} | FAST).json()
    assert kept["segments"][1]["tokens"] and kept["status"]["finish_reason"] == "stop"
    controls = []
    for noise, strength in ((None, 0.25), (1.0, 0.25), (0.9, None), (None, None)):
        model = Recorder()
        seed = SEEDED[1] | ({} if noise is None else {"noise": noise})
        asked = {"segments": [SEEDED[0], seed, SEEDED[2]], "strength": strength}
        assert serve(model).post(PATH, asked | FAST).status_code == 200
        controls.append(model.asked[0].canvas)
    at, size = len(encode("Dear ")), len(encode("Mira"))
    own = [control.ids[at : at + size] for control in controls]
    assert list(own[0]) == encode("Mira") and set(own[1]) == {-1}
    assert [control.strength for control in controls] == [0.25, 0.25, 0.9, 0.6]


def test_masks_hold() -> None:
    """Catches a hole that holds what it may not."""
    pool = encode("a") + encode("e")
    segments = [{"text": "Dear"}, {"min_length": 3, "max_length": 3, "allowed_token_ids": pool},
                {"tokens": encode("!")}]  # fmt: skip
    body = serve().post(PATH, {"segments": segments} | FAST).json()
    assert set(body["segments"][1]["tokens"]) <= set(pool)
    choice = [{"text": "Dear"}, {"choices": ["!", "?"]}]
    for more in ({}, {"return": {"logprobs": True}}):
        filled = serve().post(PATH, {"segments": choice} | FAST | more).json()
        assert filled["segments"][1]["text"] in ("!", "?")


def test_a_reading_commits_nothing() -> None:
    """Catches a reading that makes all the steps, or counts what it read as written."""
    asked = {"segments": FIXED, "read_only": True, "seed": 1, "return": {"logprobs": True}}
    body = serve().post(PATH, asked).json()
    assert body["diffusion_usage"]["steps"] == 1 and body["usage"]["completion_tokens"] == 0
    assert len(body["segments"][1]["logprobs"]) == 2


def test_what_the_canvas_follows() -> None:
    """Catches messages or ids that are wrapped in another prompt."""
    messages = [{"role": "user", "content": "Write to Mira."}]
    whole = tuple(nano().chat_ids(messages, None, False))
    for segments in (OPEN, FIXED):
        for given, prompt in ((messages, whole), ([2, 300, 301], (2, 300, 301))):
            model = Recorder()
            name = "messages" if given is messages else "prompt"
            serve(model).post(PATH, {"segments": segments, name: given} | FAST)
            assert {request.token_ids for request in model.asked} == {prompt}


@pytest.mark.parametrize("segments, more, field", [
    ([], {}, "segments"), ([{"text": "a"}], {}, "nothing to write"),
    ([{"text": "a", "tokens": [300]}], {}, "text and tokens"), ([{"role": "seed"}], {}, "seed"),
    ([{"text": "a", "role": "hole"}], {}, "hole"), ([{"role": "pinned"}], {}, "pinned"),
    ([{"text": "a", "noise": 0.5}, {}], {}, "noise"), ([{"noise": 0.5}], {}, "noise"),
    ([{"text": "a", "max_length": 2}, {}], {}, "max_length"),
    ([{"text": "a", "role": "seed", "choices": ["a"]}], {}, "choices"),
    ([{"text": "a", "role": "seed", "noise": 0.1}], {"strength": 0.5}, "noise"),
    ([{"min_length": 3, "max_length": 2}], {}, "min_length"),
    ([{"choices": ["a"], "allowed_token_ids": [300]}], {}, "choices"),
    ([{"choices": ["hello out there"]}], {}, "choices"),
    ([{"choices": ["a"], "max_length": 2, "min_length": 2}], {}, "choices"),
    ([{"allowed_token_ids": [10**6], "min_length": 1, "max_length": 1}],
     {"read_only": True}, "allowed_token_ids"),
    ([{"tokens": [10**6]}, {"min_length": 1, "max_length": 1}], {}, "tokens"),
    ([{"tokens": [300]}, {"max_length": 2}], {}, "min_length"),
    ([{"max_length": 2}], {"return": {"trace": True}}, "min_length"),
    ([{"max_length": 2}], {"strength": 0.5}, "strength"),
    ([{"tokens": [300]}, {"min_length": 96, "max_length": 96}], {}, "97"),
    ([{"text": ""}, {"text": "", "role": "seed"}], {}, "no token"),
    ([{"max_length": 2}], {"messages": [], "prompt": "a"}, "messages"),
    ([{"max_length": 2}], {"messages": []}, "messages"),
    ([{"max_length": 2}], {"prompt": []}, "prompt"),
    ([{"max_length": 2}], {"return": {"alternatives": 65}}, "alternatives"),
    ([{"max_length": 2}], {"returns": {}}, "did you mean 'return'"),
    ([{"max_len": 2}], {}, "did you mean 'max_length'"),
    (FIXED, {"read_only": True, "max_tokens": 3}, "max_tokens"),
    (OPEN, {"max_tokens": 3}, "max_tokens"),
])  # fmt: skip
def test_what_cannot_be_is_refused(segments: Any, more: dict[str, Any], field: str) -> None:
    """Catches segments that contradict themselves: a 500, or a canvas nobody asked for."""
    response, _ = post(PATH, {"segments": segments, **FAST, **more})
    assert response.status_code == 400, response.text
    assert field in response.json()["error"]["message"], response.text


def test_a_hole_above_the_servers_limit_is_named() -> None:
    """Catches an error of all segments where one hole is too long."""
    client = serve(limits=ServerLimits(max_tokens=2))
    refused = client.post(PATH, {"segments": OPEN} | FAST)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["param"], error["code"]) == ("segments[1].max_length", "limit")


def test_every_field_counts() -> None:
    """Catches a field that is accepted and ignored, and one that is refused without its name."""
    changed = FILLING | {
        "model": "other", "segments": [OPEN[0], {}, {"text": "!"}], "prompt": "A letter.",
        "messages": [{"role": "user", "content": "Hm."}], "stream": True,
    }  # fmt: skip
    refused = NO_FILLING | {
        "strength": 0.5, "stop": "x", "allowed_token_ids": [300], "read_only": True,
        "return": {"trace": True},
    }  # fmt: skip
    said = {"read_only": "min_length", "return": "min_length"}  # what they need
    for name in refused:
        changed.pop(name, None)
    needy = {name: refused.pop(name) for name in said}
    for name, value in needy.items():
        response, _ = post(PATH, {"segments": OPEN, name: value})
        assert response.status_code == 400 and said[name] in response.text
    fixed = {"segments": FIXED, "seed": 1, "diffusion_max_steps": 2}
    plain = post(PATH, fixed)[1]
    assert post(PATH, fixed | {"read_only": True})[1] != plain
    assert post(PATH, fixed | {"return": {"trace": True}})[1] != plain
    free = [OPEN[0], {"role": "hole"}, OPEN[2]]
    assert_each_counts(PATH, CanvasRequest, {"segments": free} | QUICK, changed=changed,
         refused=refused | {"read_only": "yes", "return": 1})  # fmt: skip
