"""Typed questions in OpenAI's form and in System One's."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from dgemma.compose.calibration import Calibration
from dgemma.compose.questions import Choice, Predicate, Question, Score
from dgemma.server.apis.decisions.schema import DecisionsRequest, SystemOneRequest
from tests.support.bodies import APPLIED, APPLY, EDIT, MESSAGE, NAMED, STATE, said
from tests.support.bodies import DECISIONS as ASK
from tests.support.client import Recorder, serve
from tests.support.field_walk import assert_each_counts, post
from tests.support.nano import light, nano

pytestmark = pytest.mark.model

OPENAI, JEV = "/v1/decisions", "/v1/systemone"
SCHEMA: dict[str, Any] = {"type": "object", "properties": {
    "food": {"type": "boolean", "description": "Is it about food?"},
    "stars": {"type": "integer", "minimum": 1, "maximum": 3},
}}  # fmt: skip
QUESTIONS: list[Question] = [
    Predicate("food", "Is it about food?"),
    Choice("tone", "Which tone?", {"glad": "they liked it", "sad": ""}),
    Score("stars", "How good?", {"bad": "", "fair": "", "good": "very"}),
]


@pytest.mark.parametrize("more", [{}, {"samples": 2, "seed": 3}, {"joint": True}])
def test_answers_are_those_of_decide(more: dict[str, Any]) -> None:
    """Catches questions in another order, and numbers that belong to another option or draw."""
    body = serve().post(OPENAI, ASK | more).json()
    expected = nano().decide(STATE, QUESTIONS, canvas_length=32, **more)
    food, tone, stars = body["answers"]
    assert [answer["name"] for answer in body["answers"]] == ["food", "tone", "stars"]
    assert food["probability"] == expected["food"].probability
    assert (tone["choice"], tone["confidence"]) == (
        expected["tone"].choice, expected["tone"].confidence
    )  # fmt: skip
    pairs = [(one["value"], one["probability"]) for one in tone["probabilities"]]
    assert tuple(pairs) == expected["tone"].probabilities
    assert stars["score"] == expected["stars"].score
    assert [(p["value"], p["label"]) for p in stars["probabilities"]] == [
        (1, "bad"), (2, "fair"), (3, "good")
    ]  # fmt: skip
    for answer in body["answers"]:
        assert answer["label_mass"] == expected[answer["name"]].label_mass
        assert answer["stderr"] == expected[answer["name"]].stderr
    assert body["usage"]["output_tokens"] == 0
    assert body["usage"]["input_tokens"] == expected.usage.prompt_tokens


def test_system_one_says_the_same_in_its_own_words() -> None:
    """Catches a map whose answers are mixed up, or shaped as OpenAI's are."""
    body = serve().post(JEV, NAMED).json()["answers"]
    same = [*QUESTIONS[:2], Score("stars", "How good?", ["bad", "fair", "good"])]
    expected = nano().decide(STATE, same, canvas_length=32)
    assert body["food"]["type"] == "noul" and body["food"]["noul"] == expected["food"].probability
    assert body["tone"]["probabilities"] == dict(expected["tone"].probabilities)
    assert body["stars"]["legend"] == ["bad", "fair", "good"]
    assert body["stars"]["score"] == expected["stars"].score
    meant = {"type": "noul", "instructions": "Is it?", "criteria": {"true": "hot", "false": "cold"}}
    model = Recorder()
    assert serve(model).post(JEV, NAMED | {"questions": {"q": meant}}).status_code == 200
    shown = nano().frontend.tokenizer.decode(model.asked[0].token_ids)
    assert "yes: hot" in shown and "no: cold" in shown


def test_temperatures_of_the_checkpoint_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches fitted temperatures beside a checkpoint that only its limits are read from."""
    question = QUESTIONS[:1]
    plain = nano().decide(STATE, question, calibration=Calibration())["food"]
    monkeypatch.setattr(nano(), "calibration", Calibration({"predicate": 3.0}))
    flat = nano().decide(STATE, question)["food"]
    assert 0.5 < flat.confidence < plain.confidence
    assert nano().decide(STATE, question, calibration=Calibration())["food"] == plain
    [said] = serve().post(OPENAI, ASK | {"questions": ASK["questions"][:1]}).json()["answers"]
    narrow = nano().decide(STATE, question, canvas_length=32)["food"]
    assert said["probability"] == narrow.probability


def test_questions_about_a_conversation() -> None:
    """Catches messages that are asked about as a text, or whose earlier turns are lost."""
    asked = [{"role": "user", "content": "Parity: 3182"}]
    question = {"type": "choice", "name": "parity",
                "choices": [{"value": "even"}, {"value": "odd"}]}  # fmt: skip
    reply = serve().post(OPENAI, {"input": asked, "questions": [question]}).json()
    expected = nano().decide(asked, [Choice("parity", "", ["even", "odd"])])
    assert reply["answers"][0]["confidence"] == expected["parity"].confidence
    model = Recorder()
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, *asked]
    worded = question | {"instructions": "Which?"}
    assert serve(model).post(OPENAI, {"input": turns, "questions": [worded]}).status_code == 200
    shown = nano().frontend.tokenizer.decode(model.asked[0].token_ids, control=True)
    assert shown.index("Yes?") < shown.index("Parity: 3182") < shown.index("Which?")
    assert shown.count("<|turn>user") == 2
    ends = {"input": turns[:2], "questions": [worded]}
    assert post(OPENAI, ends)[0].status_code == 400


def test_a_schema_asks() -> None:
    """Catches a schema's property that is asked in another way than the question it stands for,
    one that is asked though no probabilities of it exist, and more of them than may be asked."""
    body = serve().post(OPENAI, {"input": STATE, "canvas_length": 32, "schema": SCHEMA}).json()
    questions = [Predicate("food", "Is it about food?"), Choice("stars", "stars", ["1", "2", "3"])]
    expected = nano().decide(STATE, questions, canvas_length=32)
    assert expected == nano().decide(STATE, SCHEMA, canvas_length=32)
    food, stars = body["answers"]
    assert food["probability"] == expected["food"].probability
    assert (stars["type"], stars["choice"]) == ("choice", expected["stars"].choice)
    many = {"properties": {f"p{n}": {"type": "boolean"} for n in range(65)}}
    for schema, remark in (({"properties": {"a": {"type": "string"}}}, "#/properties/a"),
                         ({"properties": {"a": {"not": {}}}}, "'not'"), (many, "65")):  # fmt: skip
        response, _ = post(OPENAI, {"input": STATE, "schema": schema})
        error = response.json()["error"]
        assert response.status_code == 400 and remark in error["message"], error
        assert error["param"] == "schema"
    response, _ = post(OPENAI, {"input": STATE})
    assert response.status_code == 400 and "questions or a schema" in response.text


@pytest.mark.parametrize("more, field", [
    ({"questions": []}, "questions"), ({"input": ""}, "state"), ({"samples": 0}, "samples"),
    ({"questions": [ASK["questions"][0]] * 65}, "questions"),
    ({"questions": [ASK["questions"][0]] * 2}, "name"),
    ({"questions": ASK["questions"], "samples": 65}, "samples"),
    ({"questions": [ASK["questions"][0] | {"name": f"q{n}"} for n in range(64)], "samples": 5},
     "samples"),
    ({"questions": [ASK["questions"][1] | {"choices": [{"value": "a"}] * 2}]}, "twice"),
    ({"questions": [ASK["questions"][1] | {"choices": [{"value": "a"}]}]}, "choices"),
    ({"questions": [ASK["questions"][1] | {"choices": [
        {"value": str(n)} for n in range(256)]}]}, "choices"),
    ({"questions": [{"type": "span", "name": "x"}]}, "questions"),
    ({"canvas_length": 500}, "canvas_length"), ({"seed": -1}, "seed"),
    ({"input": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
])  # fmt: skip
def test_what_cannot_be_is_refused(more: dict[str, Any], field: str) -> None:
    """Catches bounds that end as a 500, or as thousands of readings."""
    response, _ = post(OPENAI, ASK | more)
    assert response.status_code == 400, response.text
    assert field in response.json()["error"]["message"], response.text


def test_every_field_counts() -> None:
    """Catches a field that is accepted and ignored."""
    changed: dict[str, Any] = {
        "model": "other", "samples": 2, "joint": True, "seed": 5, "canvas_length": 48,
    }  # fmt: skip
    own = {"input": "The soup was cold.", "questions": ASK["questions"][:1]}
    assert_each_counts(
        OPENAI, DecisionsRequest, ASK, changed=changed | own, refused={"schema": SCHEMA}, idle=set()
    )
    own = {"state": "The soup was cold.", "questions": {"x": NAMED["questions"]["food"]}}
    assert_each_counts(JEV, SystemOneRequest, NAMED, changed=changed | own, refused={}, idle=set())


@pytest.mark.parametrize("path, body, word", [
    (OPENAI, ASK, "soup"), (JEV, NAMED, "tone"), (EDIT, said(MESSAGE), "a.x"),
    (APPLY, said(APPLIED), "a = 2"),
    ("/v1/canvas", {"segments": [{"text": "Dear"}, {"max_length": 1}], "seed": 1}, "Dear"),
])  # fmt: skip
def test_texts_are_logged_where_that_is_wished(
    path: str, body: dict[str, Any], word: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a route that --log-text does not reach, and text in the log without it."""
    caplog.set_level(logging.INFO, "dgemma.server")
    for wished in (True, False):
        caplog.clear()
        model = Recorder(light().submit)
        assert serve(model, log_text=wished).post(path, body).status_code == 200
        assert (word in caplog.records[-1].message) == wished


def test_decisions_are_counted() -> None:
    """Catches readings whose prompts no metric knows."""
    client = serve()
    spent = client.post(OPENAI, ASK).json()["usage"]["input_tokens"]
    assert f"dgemma_prompt_tokens_total {float(spent)}" in client.get("/metrics").text
