"""`dgemma decide`: typed questions about a text, answered with probabilities by one reading."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgemma.cli.files import read_argument, read_text
from dgemma.cli.options import add_calibration, add_model, open_model, say
from dgemma.errors import InvalidRequest, nearest

if TYPE_CHECKING:
    from dgemma.compose.questions import Question


SMALL_MASS = 0.1
"""Below this share of the probability on all choices together, their own shares mean nothing."""
KEYS = ("type", "name", "instructions", "choices", "levels")


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser, then="TEXT")
    parser.add_argument("text", metavar="TEXT", help="the text, - for standard input, or @FILE")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add = parser.add_argument_group("questions, each repeatable").add_argument
    more: dict[str, Any] = {"action": "append", "default": []}
    add("--predicate", **more, metavar="QUESTION", help="a yes-no question")
    choice = "a question, then its choices; '' is the question that TEXT asks itself"
    add("--choice", **more, nargs="+", metavar="WORDS", help=choice)
    score = "a question, then its levels, the least first"
    add("--score", **more, nargs="+", metavar="WORDS", help=score)
    keys = 'JSON list of {"type", "name", "instructions", "choices" or "levels"}'
    add("--questions", type=Path, metavar="FILE", help=keys)
    schema = "JSON schema of an object: each property is a question, in place of all others"
    add("--schema", type=Path, metavar="FILE", help=schema)
    add = parser.add_argument_group("sampler").add_argument
    add("--samples", type=int, metavar="N", default=1, help="draws to average (1)")
    add("--seed", type=int, metavar="N", default=0, help="of the first draw (0)")
    add("--joint", action="store_true", help="ask all questions on one canvas")
    add_calibration(parser)
    parser.epilog = "example:\n  dgemma decide nano 'Parity: 3182' --choice '' even odd"


def _text(entry: dict[str, Any], key: str, default: str, where: str) -> str:
    """A text of an object; the default if there is none."""
    value = entry.get(key, default)
    if not isinstance(value, str):
        raise InvalidRequest(f"{key} of {where} must be a text, got {json.dumps(value)}")
    return value


def _values(entries: Any, key: str) -> Any:
    """Choices or levels: plain texts, or objects with a value or label and a description."""
    if not isinstance(entries, list) or not entries:
        raise InvalidRequest(f"a question needs {key}, a list that is not empty")
    if all(isinstance(entry, str) for entry in entries):
        return entries
    found: dict[str, str] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not ("value" in entry or "label" in entry):
            raise InvalidRequest(f"{key} must be texts, or objects with a value or label")
        value = _text(entry, "value" if "value" in entry else "label", "", f"one of the {key}")
        if value in found:
            raise InvalidRequest(f"{key}: {value!r} comes twice; name each once")
        found[value] = _text(entry, "description", "", f"{value!r} of the {key}")
    return found


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path} is not valid JSON: {error}") from error


def read_questions(arguments: argparse.Namespace) -> list[Question]:
    """All questions, those of the file first.

    Raises:
        InvalidRequest: none, or one that is malformed.
    """
    from dgemma.compose.questions import Choice, Predicate, Score, questions_of

    entries: Any = [] if arguments.questions is None else _read_json(arguments.questions)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InvalidRequest(f"{arguments.questions} must hold a JSON list of questions")
    entries = list(entries)
    entries += [{"type": "predicate", "instructions": q} for q in arguments.predicate]
    for question, *choices in (*arguments.choice, *arguments.score):
        if question and not re.search(r"\s|[?:.]$", question):  # one of the choices, most likely
            words = " ".join(map(shlex.quote, (question, *choices)))
            raise InvalidRequest(
                f"the question comes before its choices, and {question!r} does not look like one; "
                f"write '{question}?', or '' {words}"
            )
    entries += [{"type": "choice", "instructions": q, "choices": c} for q, *c in arguments.choice]
    entries += [{"type": "score", "instructions": q, "levels": c} for q, *c in arguments.score]
    if arguments.schema is not None:
        if entries:
            raise InvalidRequest("--schema asks all its questions; give no others beside it")
        return questions_of(_read_json(arguments.schema))
    out: list[Question] = []
    for number, entry in enumerate(entries, 1):
        kind, where = entry.get("type"), f"question {number}"
        if unknown := [key for key in entry if key not in KEYS]:
            near = nearest(unknown[0], KEYS)
            raise InvalidRequest(f"{where}: {unknown[0]!r} is not known{near}; use {KEYS}")
        name = _text(entry, "name", f"q{number}", where)
        text = _text(entry, "instructions", "", where)
        if kind == "predicate":
            out.append(Predicate(name, text))
        elif kind == "choice":
            out.append(Choice(name, text, _values(entry.get("choices"), "choices")))
        elif kind == "score":
            out.append(Score(name, text, _values(entry.get("levels"), "levels")))
        else:
            raise InvalidRequest(f"type of a question must be predicate, choice or score: {kind!r}")
    if not out:
        raise InvalidRequest(
            "there is no question; give --predicate, --choice, --score or --schema"
        )
    return out


def run(arguments: argparse.Namespace) -> int:
    """Print the answers with their probabilities."""
    questions = read_questions(arguments)
    state: Any = read_argument(arguments.text)
    llm = open_model(arguments)
    if not any(question.instructions for question in questions):
        state = [{"role": "user", "content": state}]
    decision = llm.decide(
        state, questions, samples=arguments.samples, joint=arguments.joint, seed=arguments.seed,
    )  # fmt: skip
    if arguments.json:
        print(json.dumps(asdict(decision), ensure_ascii=False))
        return 0
    for answer in decision.answers:
        shares = ", ".join(f"{value} {p:.3f}" for value, p in answer.probabilities)
        spread = "" if answer.stderr is None else f" (+- {answer.stderr:.3f})"
        level = "" if answer.score is None else f" at {answer.score:.2f}"
        print(f"{answer.name}: {answer.choice}{level}{spread}  [{shares}]")
        if answer.label_mass < SMALL_MASS:
            say(
                f"warning: the model gives all answers to {answer.name} together a probability of "
                f"{answer.label_mass:.4f}; it did not understand the question, and the figures "
                "above mean nothing"
            )
    return 0
