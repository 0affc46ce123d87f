"""The worded tasks one by one: their answers checked by other means than the makers use."""

from __future__ import annotations

import json
import re
import string
from collections import defaultdict
from typing import Any, cast

import pytest

from dgemma.tasks import Example, grade, make_example
from dgemma.tasks.draw import SPLITS
from dgemma.tasks.gaps import KINDS as GAP_KINDS
from dgemma.tasks.gaps import MARK, PROMPT
from dgemma.tasks.json_facts import FORMS
from dgemma.tasks.labels import _FEELINGS, _TOPICS, CHOICES
from dgemma.tasks.slots import MONTHS, TaskSlot
from dgemma.tasks.tool_calls import TOOLS


def many(task: str, count: int = 400) -> list[Example]:
    return [make_example(task, split, 21, index) for split in SPLITS for index in range(count)]


def fields(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def test_json_forms_say_every_key() -> None:
    # A key that the sentence does not say cannot be answered.
    assert len(FORMS) >= 12
    for form in FORMS.values():
        for sentence in form.sentences:
            assert fields(sentence) == set(form.keys)


def test_json_forms_can_be_told_apart() -> None:
    # Two forms with one sentence shape but other keys would make the right answer a guess.
    shapes = [
        "".join(part or "" for part, *_ in string.Formatter().parse(sentence))
        for form in FORMS.values()
        for sentence in form.sentences
    ]
    assert len(set(shapes)) == len(shapes)


def test_json_answers_are_compact_and_hold_the_values() -> None:
    # The model is tiny: an answer must fit about 60 tokens, in one fixed spelling.
    for example in many("json"):
        answer = json.loads(example.answer)
        assert list(answer) == list(FORMS[str(example.meta["kind"])].keys)
        assert len(example.answer) <= 72 and '": ' not in example.answer
        for value in answer.values():
            if isinstance(value, str) and value[:2] == "20" and value[4] == "-":
                year, month, day = value.split("-")
                assert f"{int(day)} {MONTHS[int(month) - 1]} {year}" in example.question
            elif isinstance(value, float):
                assert f"{value:.2f}" in example.question
            else:
                assert str(value) in example.question


def test_json_grading() -> None:
    example = make_example("json", "heldout", 0, 0)
    answer = json.loads(example.answer)
    spaced = json.dumps(dict(reversed(answer.items())), indent=2)
    assert grade(example, spaced) == {"exact": 1.0, "valid": 1.0, "keys": 1.0}
    first = next(iter(answer))
    wrong = grade(example, json.dumps({**answer, first: "no"}))
    assert wrong["exact"] == 0.0 and wrong["valid"] == 1.0 and 0 < wrong["keys"] < 1
    extra = grade(example, json.dumps({**answer, "more": 1}))
    assert extra["exact"] == 0.0 and extra["keys"] == 1.0
    for broken in (example.answer[:-1], "", "[" * 100_000):
        assert grade(example, broken) == {"exact": 0.0, "valid": 0.0, "keys": 0.0}
    assert grade(example, "[]") == {"exact": 0.0, "valid": 1.0, "keys": 0.0}


def test_tools_are_declared_and_called_by_their_declaration() -> None:
    # The call must be what the declaration allows, or the model learns to break schemas.
    counts = set()
    for example in many("tools"):
        declared = {cast(Any, tool)["function"]["name"]: tool for tool in example.tools}
        counts.add(len(declared))
        call = example.tool_call
        assert call is not None and example.answer == ""
        parameters = cast(Any, declared[call["name"]])["function"]["parameters"]
        arguments = cast(dict[str, Any], call["arguments"])
        assert list(arguments) == parameters["required"] == list(parameters["properties"])
        for key, value in arguments.items():
            wanted = {"string": str, "integer": int, "number": float}
            assert type(value) is wanted[parameters["properties"][key]["type"]]
            if isinstance(value, float):  # the spelling a template writes is the one that was said
                assert str(value) in example.question
    assert counts == {1, 2}
    for tool in TOOLS.values():
        assert all(fields(wish) == set(tool.arguments) for wish in tool.wishes)


def test_tools_grading() -> None:
    example = make_example("tools", "heldout", 0, 1)
    call = dict(cast(Any, example.tool_call))
    assert grade(example, "", None, [call]) == {"exact": 1.0, "valid": 1.0, "name": 1.0}
    assert grade(example, "", None, [call, call])["exact"] == 0.0
    assert grade(example, "Sure.", None, [call])["exact"] == 0.0
    assert grade(example, "", None, []) == {"exact": 0.0, "valid": 0.0, "name": 0.0}
    other = {**call, "arguments": {key: "?" for key in call["arguments"]}}
    assert grade(example, "", None, [other]) == {"exact": 0.0, "valid": 1.0, "name": 1.0}
    for bad in ({**call, "name": "rm"}, {**call, "arguments": {}}, {**call, "arguments": "{}"}, {}):
        assert grade(example, "", None, [bad])["valid"] == 0.0


def test_thoughts_lead_to_right_answers() -> None:
    # Worked out again from the question's text alone.
    seen = set()
    for example in many("thought"):
        kind = example.meta["kind"]
        seen.add(kind)
        digits = "".join(char if char.isdigit() else " " for char in example.question).split()
        if kind == "add":
            assert int(example.answer) == int(digits[0]) + int(digits[1])
        elif kind == "larger":
            assert digits[0] != digits[1]
            assert int(example.answer) == max(map(int, digits))
        else:
            words = example.question.split(":")[1].split()
            assert example.answer == "".join(word[-1] for word in words)
        assert example.thinking and len(example.thinking) <= 40
    assert len(seen) == 3


def test_each_step_of_an_addition_holds() -> None:
    # A wrong carry in the thought would teach wrong working behind right answers.
    for example in many("thought"):
        if example.meta["kind"] == "add":
            steps = str(example.thinking).rstrip(".").split(". ")
            for step in steps:
                left, right = step.split("=")
                assert sum(map(int, left.split("+"))) == int(right)
            ones, tens = (int(step.split("=")[1]) for step in steps)
            assert int(example.answer) == 10 * tens + ones % 10


def test_thought_grading_is_about_the_answer() -> None:
    example = make_example("thought", "heldout", 0, 0)
    assert grade(example, example.answer, None) == {"exact": 1.0, "thought": 0.0}
    assert grade(example, "no", example.thinking) == {"exact": 0.0, "thought": 1.0}


def test_gaps_join_and_are_not_decided_by_their_prefix() -> None:
    # With the slots masked, the same prefix must go before several gaps in every kind.
    gaps_after: dict[tuple[str, str], set[str]] = defaultdict(set)
    for example in many("gaps", 1500):
        prefix, gap, suffix = (str(example.meta[key]) for key in ("prefix", "gap", "suffix"))
        assert example.question == f"{PROMPT}{prefix}{MARK}{suffix}"
        assert gap == example.answer and prefix and suffix and MARK not in prefix + gap + suffix
        for slot in cast(tuple[TaskSlot, ...], example.meta["slots"]):
            prefix = prefix.replace(slot.said, "*")
        gaps_after[str(example.meta["kind"]), prefix].add(gap)
    assert {kind for kind, _ in gaps_after} == set(GAP_KINDS)
    assert all(len(gaps) >= 2 for gaps in gaps_after.values())


def test_gaps_are_decided_by_prefix_and_suffix() -> None:
    # The same text around the gap must never have two answers (4000 examples).
    answers: dict[str, str] = {}
    for example in many("gaps", 2000):
        assert answers.setdefault(example.question, example.answer) == example.answer


def test_labels_follow_from_the_text() -> None:
    seen = defaultdict(set)
    for example in many("labels"):
        kind, text = str(example.meta["kind"]), example.question
        assert example.meta["choices"] == list(CHOICES[kind]) and example.answer in CHOICES[kind]
        seen[kind].add(example.answer)
        if kind == "parity":
            assert example.answer == ("odd" if text[-1] in "13579" else "even")
        table = {"sentiment": _FEELINGS, "topic": _TOPICS}.get(kind, {})
        found = {
            label
            for label, words in table.items()
            if any(re.search(rf"\b{word}\b", text) for word in words)
        }
        assert found == (set() if kind == "parity" else {example.answer})
    assert {kind: len(labels) for kind, labels in seen.items()} == {
        kind: len(choices) for kind, choices in CHOICES.items()
    }


@pytest.mark.parametrize("table", [_FEELINGS, _TOPICS], ids=["feelings", "topics"])
def test_label_words_belong_to_one_label(table: dict[str, tuple[str, ...]]) -> None:
    words = [word for group in table.values() for word in group]
    assert len(set(words)) == len(words)
    if table is _FEELINGS:  # the forms say "a {word}"
        assert not any(re.match("[aeio]", word) for word in words)


def test_chat_names_are_given_back() -> None:
    # Recall is the one task with two turns: the answer's name is only in the first message.
    recalls = [example for example in many("chat") if example.meta["kind"] == "recall"]
    assert recalls
    for example in recalls:
        roles = [message["role"] for message in example.messages]
        assert roles == ["user", "assistant", "user"]
        name = example.answer.removeprefix("Your name is ").removesuffix(".")
        assert name in example.messages[0]["content"] and name not in example.question
