"""Questions with a fixed set of answers, and the token of each answer.

Knows how a question is put to a model, by which single token each choice is told from the others,
and which questions a JSON schema asks. Knows nothing about probabilities.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from dgemma.constrain.json_schema import accepted_schema
from dgemma.constrain.schema_numbers import form
from dgemma.constrain.schema_proofs import (
    Conjunction,
    SchemaReader,
    bounds,
    kinds,
    lists,
    member,
    within_bounds,
)
from dgemma.errors import InvalidRequest
from dgemma.text.tokenizer import Tokenizer

Kind = Literal["predicate", "choice", "score"]
MOST_CHOICES = 255
_CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Predicate:
    """Is it so? Answered by the probability of yes.

    Attributes:
        name: the answer's.
        instructions: the question; empty: the state asks it already.
    """

    name: str
    instructions: str


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of these? `choices` are values, or values with their descriptions."""

    name: str
    instructions: str
    choices: Sequence[str] | Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Score:
    """How much? `levels` from the least to the most, worth 1, 2, 3, ..."""

    name: str
    instructions: str
    levels: Sequence[str] | Mapping[str, str]


Question = Predicate | Choice | Score


@dataclass(frozen=True, slots=True)
class Labels:
    """How the choices of a question stand on the canvas.

    Attributes:
        values: the choices.
        lead: ids in front of the slot that all choices share.
        first: id of each choice at the slot.
        rest: most tokens that may follow at the slot, 0 where each choice is one token.
        codes: what stands for each choice; empty where they stand for themselves.
    """

    values: tuple[str, ...]
    lead: tuple[int, ...]
    first: tuple[int, ...]
    rest: int
    codes: tuple[str, ...] = ()


def kind_of(question: Question) -> Kind:
    """What a calibration calls it."""
    if isinstance(question, Predicate):
        return "predicate"
    return "choice" if isinstance(question, Choice) else "score"


def options(question: Question) -> dict[str, str]:
    """The values of a question with their descriptions ("" where there is none).

    Raises:
        InvalidRequest: fewer than two, too many, an empty one, or one that comes twice.
    """
    if isinstance(question, Predicate):
        return {"yes": "", "no": ""}
    given = question.choices if isinstance(question, Choice) else question.levels
    if isinstance(given, str) or not isinstance(given, Collection):
        raise InvalidRequest(
            f"question {question.name!r}: give a list of choices, not one {type(given).__name__}"
        )
    if not all(isinstance(value, str) and value for value in given):
        raise InvalidRequest(f"question {question.name!r}: choices must be texts, none empty")
    found = dict(given) if isinstance(given, Mapping) else dict.fromkeys(given, "")
    if len(found) != len(given):
        raise InvalidRequest(f"question {question.name!r}: a choice comes twice; name each once")
    if not 2 <= len(found) <= MOST_CHOICES:
        raise InvalidRequest(
            f"question {question.name!r} has {len(found)} choices; give 2 to {MOST_CHOICES}"
        )
    return found


def questions_of(schema: Mapping[str, Any]) -> list[Question]:
    """The questions that a JSON schema of an object asks, one for each property.

    A boolean becomes a predicate, any other property with a short list of values a choice. What is
    asked is the property's description, its title, or its name.

    Args:
        schema: checked in the same way as `json_schema` and the schema of a strict tool.

    Raises:
        InvalidRequest: a schema that cannot be kept to, or a property without a list of values.
    """
    if not isinstance(schema, Mapping):
        raise InvalidRequest(f"schema must be an object; got {schema!r}", field="schema")
    try:
        checked = accepted_schema(schema, "schema")
    except InvalidRequest as error:
        error.field = "schema"
        raise
    reader = SchemaReader(checked, within_bounds)
    alternatives = list(reader.alternatives((checked,)))
    names = dict.fromkeys(name for flat in alternatives for node in flat
                          for name in node.get("properties", ()))  # fmt: skip
    if len(alternatives) != 1 or not names or "object" not in kinds(alternatives[0]):
        raise InvalidRequest(
            "schema #: decisions need one object; give it properties", field="schema"
        )
    found: list[Question] = []
    for name in names:
        values = _values(reader, member(alternatives[0], name)) or ()
        if not 2 <= len(values) <= MOST_CHOICES:
            raise InvalidRequest(
                f"schema #/properties/{name}: its values are not a list of 2 to {MOST_CHOICES}; "
                "use boolean, enum, const, null, or an integer with minimum and maximum",
                field="schema",
            )
        given = schema.get("properties", {}).get(name)
        notes = given if isinstance(given, Mapping) else {}
        text = str(notes.get("description", notes.get("title", name)))
        if values == [True, False]:
            found.append(Predicate(name, text))
        else:
            written = [
                v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values
            ]
            found.append(Choice(name, text, written))
    return found


def _values(reader: SchemaReader, schemas: Conjunction) -> list[Any] | None:
    """All values in the order of the schema; None if they have no end, or too many."""
    found: dict[str, Any] = {}
    for flat in reader.alternatives(schemas):
        if lists(flat):
            values = reader.listed(flat)
        else:
            left, (lowest, highest) = kinds(flat), bounds(flat)
            if left - {"boolean", "integer", "null"} or (
                "integer" in left and highest - lowest > MOST_CHOICES
            ):
                return None
            values = [True, False] * ("boolean" in left)
            if "integer" in left:
                values += range(math.ceil(lowest), math.floor(highest) + 1)
            values += [None] * ("null" in left)
            values = [value for value in values if reader.allowed(value, flat)]
        found |= {form(value): value for value in values}
    return list(found.values())


def labels(tokenizer: Tokenizer, question: Question, before: str, *, whole: bool) -> Labels:
    """The tokens by which the choices are told apart.

    The choices' own words if the first tokens after what they share differ, else codes: 1, 2, ...
    for levels, letters for choices. A question without instructions cannot explain codes.

    Args:
        before: the text in front of the slot.
        whole: each choice must be one token.

    Raises:
        InvalidRequest: choices that no token tells apart.
    """
    values = tuple(options(question))
    if not isinstance(question, Score) or not question.instructions:
        found = _apart(tokenizer, before, values, whole)
        if found is not None:
            return found
        if not question.instructions:
            raise InvalidRequest(
                f"question {question.name!r}: choices begin with the same token; write "
                "instructions, under which they are told apart by letters"
            )
    codes = _codes(tokenizer, before, len(values), isinstance(question, Score))
    coded = _apart(tokenizer, before, codes, True) if codes else None
    if coded is None:
        raise InvalidRequest(
            f"question {question.name!r}: the vocabulary has too few letters that are one token "
            f"for {len(values)} choices; ask in several questions"
        )
    return Labels(values, coded.lead, coded.first, 0, codes)


def _apart(tokenizer: Tokenizer, before: str, texts: Sequence[str], whole: bool) -> Labels | None:
    """The labels if each text's token after what they share is its own."""
    ids = [tokenizer.encode(before + text) for text in texts]
    shared = 0
    while all(len(row) > shared for row in ids) and len({row[shared] for row in ids}) == 1:
        shared += 1
    if any(len(row) <= shared for row in ids):
        return None
    first = tuple(row[shared] for row in ids)
    rest = max(len(row) for row in ids) - shared - 1
    if len(set(first)) < len(first) or (whole and rest):
        return None
    return Labels(tuple(texts), tuple(ids[0][:shared]), first, rest)


def _codes(tokenizer: Tokenizer, before: str, count: int, numbers: bool) -> tuple[str, ...]:
    """Texts that are one token at the slot, as many as there are choices if there are enough."""
    if numbers and count <= 9:
        return tuple(map(str, range(1, count + 1)))
    size = len(tokenizer.encode(before))
    alike: dict[int, list[str]] = {size: [], size + 1: []}  # with the blank before it, or alone
    for code in (*_CAPITALS, *_CAPITALS.lower(), *map("".join, product(_CAPITALS, _CAPITALS))):
        if (found := alike.get(len(tokenizer.encode(before + code)))) is not None:
            found.append(code)
            if len(found) == count:
                return tuple(found)
    return ()


def asking(question: Question, found: Labels) -> str:
    """The question as a part of the user's message."""
    described = options(question)
    if not found.codes and not any(described.values()):
        return f"{question.instructions}\nAnswer with one of: {', '.join(described)}."
    lines = []
    for number, (value, description) in enumerate(described.items()):
        name = f"{found.codes[number]}: {value}" if found.codes else value
        lines.append(f"{name} - {description}" if description else name)
    what = "the letter or number" if found.codes else "the word"
    return "\n".join((question.instructions, f"Answer with {what} of one of these:", *lines))
