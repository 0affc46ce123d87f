"""`dgemma decide`: the questions that it reads, and what it says of the answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dgemma.cli import decide
from tests.support.commands import Ran


@pytest.mark.model
def test_decide(run: Callable[..., Ran], tmp_path: Path) -> None:
    """Probabilities that are not, questions out of order, a file that is not read."""
    questions = tmp_path / "questions.json"
    levels = [{"label": "bad"}, {"label": "good", "description": "all is well"}]
    questions.write_text(
        json.dumps(
            [
                {"type": "score", "name": "taste", "instructions": "How good?", "levels": levels},
                {"type": "choice", "instructions": "What?", "choices": ["soup", "lamp"]},
            ]
        )
    )
    code, out, err = run("decide", "The soup was good.", "--questions", str(questions),
                         "--predicate", "Is it food?", "--samples", "2", "--json")  # fmt: skip
    answers = json.loads(out)["answers"]
    assert (code, err) == (0, "")
    assert [answer["name"] for answer in answers] == ["taste", "q2", "q3"]
    for answer in answers:
        assert sum(p for _, p in answer["probabilities"]) == pytest.approx(1)
        assert answer["stderr"] is not None
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"properties": {"food": {"type": "boolean"}}}))
    code, out, _ = run("decide", "The soup was good.", "--schema", str(schema))
    assert code == 0 and out.startswith(("food: yes", "food: no"))
    code, _, err = run("decide", "x", "--schema", str(schema), "--predicate", "Is it food?")
    assert code == 2 and "--schema" in err
    code, out, _ = run("decide", "Parity: 3182", "--choice", "", "even", "odd")
    assert code == 0 and out.startswith("q1: ")


@pytest.mark.fault("N 10")
@pytest.mark.model
@pytest.mark.parametrize("mass", [0.0, 1.1])
def test_decide_warns_of_a_question_that_was_not_understood(
    mass: float, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """95.8 % for an answer of which the model has no idea; programs read `label_mass`."""
    monkeypatch.setattr(decide, "SMALL_MASS", mass)
    words = ("decide", "Parity: 3182", "--choice", "", "even", "odd")
    code, out, err = run(*words)
    assert code == 0 and out.startswith("q1: ")
    assert ("did not understand the question" in err) == bool(mass)
    code, out, err = run(*words, "--json")
    assert 0 < json.loads(out)["answers"][0]["label_mass"] <= 1 and err == ""
