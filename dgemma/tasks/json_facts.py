"""A sentence to compact JSON with the keys of the sentence's form.

Knows the forms and how an object is graded; knows nothing about where slot values come from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dgemma.tasks import slots
from dgemma.tasks.draw import Draw, Split
from dgemma.tasks.example import Example, asked
from dgemma.tasks.slots import Maker

PROMPT = "JSON: "


@dataclass(frozen=True, slots=True)
class Form:
    """Sentences that say the same things, and the answer's keys in order with their makers."""

    sentences: tuple[str, ...]
    keys: Mapping[str, Maker]


def _form(keys: Mapping[str, Maker], *sentences: str) -> Form:
    return Form(sentences, keys)


FORMS: Mapping[str, Form] = {
    "payment": _form(
        {"payer": slots.person, "amount": slots.amount, "date": slots.date},
        "{payer} paid {amount} euros on {date}.",
        "On {date} {payer} paid {amount} euros.",
        "{amount} euros were paid by {payer} on {date}.",
    ),
    "transfer": _form(
        {"from": slots.person, "to": slots.company, "amount": slots.amount},
        "{from} sent {amount} dollars to {to}.",
        "{to} got {amount} dollars from {from}.",
    ),
    "order": _form(
        {"buyer": slots.person, "item": slots.item, "count": slots.count},
        "{buyer} ordered {count} {item}s.",
        "An order of {count} {item}s came from {buyer}.",
    ),
    "stock": _form(
        {"shop": slots.company, "item": slots.item, "count": slots.count, "city": slots.city},
        "{shop} has {count} {item}s in {city}.",
        "In {city}, {shop} keeps {count} {item}s.",
    ),
    "birth": _form(
        {"name": slots.person, "born": slots.date, "city": slots.city},
        "{name} was born on {born} in {city}.",
        "Born in {city} on {born}: {name}.",
    ),
    "trip": _form(
        {"from": slots.city, "to": slots.city, "date": slots.date},
        "The train from {from} to {to} leaves on {date}.",
        "On {date} a train goes to {to} from {from}.",
    ),
    "meeting": _form(
        {"with": slots.first_name, "date": slots.date, "time": slots.time},
        "Meet {with} on {date} at {time}.",
        "At {time} on {date} we meet {with}.",
    ),
    "job": _form(
        {"name": slots.person, "employer": slots.company, "city": slots.city},
        "{name} works for {employer} in {city}.",
        "{employer} gave {name} a job in {city}.",
    ),
    "address": _form(
        {"street": slots.city, "number": slots.count, "city": slots.city},
        "The house is at {number} {street} Street in {city}.",
        "Send it to {number} {street} Street, {city}.",
    ),
    "contact": _form(
        {"name": slots.person, "phone": slots.phone},
        "Call {name} at {phone}.",
        "The phone number of {name} is {phone}.",
    ),
    "weather": _form(
        {"city": slots.city, "degrees": slots.count, "time": slots.time},
        "It is {degrees} degrees in {city} at {time}.",
        "At {time} {city} has {degrees} degrees.",
    ),
    "price": _form(
        {"item": slots.item, "price": slots.amount, "shop": slots.company},
        "A {item} costs {price} euros at {shop}.",
        "{shop} sells a {item} for {price} euros.",
    ),
    "lost": _form(
        {"name": slots.person, "item": slots.item, "city": slots.city},
        "{name} lost a {item} in {city}.",
        "A {item} was lost in {city} by {name}.",
    ),
    "age": _form(
        {"name": slots.person, "age": slots.count, "city": slots.city},
        "{name} is {age} years old and lives in {city}.",
        "{name} from {city} is {age} years old.",
    ),
    "match": _form(
        {"winner": slots.city, "loser": slots.city, "date": slots.date},
        "{winner} beat {loser} on {date}.",
        "{loser} lost to {winner} on {date}.",
    ),
    "bill": _form(
        {"bill": slots.numbers(1000, 9999), "shop": slots.company, "total": slots.amount},
        "Bill {bill} from {shop} is {total} euros.",
        "{shop} sent bill {bill} over {total} euros.",
    ),
    "booking": _form(
        {"guest": slots.first_name, "room": slots.numbers(100, 999), "until": slots.date},
        "{guest} booked room {room} until {until}.",
        "Room {room} is kept for {guest} until {until}.",
    ),
}
_NAMES = tuple(FORMS)
_THINGS = tuple(name for name in _NAMES if "item" in FORMS[name].keys)
_TRAINED = _NAMES + _THINGS * 2
"""Forms with a thing come three times as often in training: its plural makes them the hardest."""


def make_json(split: Split, seed: int, index: int) -> Example:
    """A sentence of a random form; `meta` holds the form as "kind" and the slots."""
    draw = Draw("json", split, seed, index)
    kind = draw.pick(_TRAINED if split == "train" else _NAMES)
    form = FORMS[kind]
    sentence = draw.pick(form.sentences)
    values = {key: maker(draw, split) for key, maker in form.keys.items()}
    said = {key: slot.said for key, slot in values.items()}
    written = ",".join(f'"{key}":{slot.written}' for key, slot in values.items())
    return Example(
        task="json",
        messages=asked(PROMPT + sentence.format(**said)),
        answer="{" + written + "}",
        meta={"kind": kind, "slots": tuple(values.values())},
    )


def grade_json(example: Example, text: str) -> dict[str, float]:
    """`valid`: it is JSON; `exact`: it is the object wanted; `keys`: part of the keys right."""
    try:
        valid, said = True, json.loads(text)
    except (ValueError, RecursionError):
        valid, said = False, None
    wanted: dict[str, Any] = json.loads(example.answer)
    fields = said if isinstance(said, dict) else {}
    right = sum(key in fields and fields[key] == value for key, value in wanted.items())
    return {
        "exact": float(valid and said == wanted),
        "valid": float(valid),
        "keys": right / len(wanted),
    }
