"""A wish that one of one or two declared tools can fulfil; the answer is the call.

Knows the tools' declarations and the wishes; knows nothing about how a call is written as text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dgemma.tasks import slots
from dgemma.tasks.draw import Draw, Split
from dgemma.tasks.example import Example, asked
from dgemma.tasks.slots import Maker, TaskSlot

CURRENCIES = ("euros", "dollars", "pounds", "francs")


def _currency(draw: Draw, split: Split) -> TaskSlot:
    name = draw.pick(CURRENCIES)
    return TaskSlot("currency", name, f'"{name}"')


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool's description, the wishes that call for it, and its arguments with their makers."""

    description: str
    wishes: tuple[str, ...]
    arguments: Mapping[str, Maker]


TOOLS: Mapping[str, ToolSpec] = {
    "get_weather": ToolSpec(
        "Weather of a city",
        (
            "What is the weather in {city}?",
            "How is the weather in {city}?",
            "Will it rain in {city}?",
        ),
        {"city": slots.city},
    ),
    "get_time": ToolSpec(
        "Time in a city",
        ("What time is it in {city}?", "Tell me the time in {city}.", "How late is it in {city}?"),
        {"city": slots.city},
    ),
    "set_timer": ToolSpec(
        "Set a timer",
        (
            "Set a timer for {minutes} minutes.",
            "Wake me in {minutes} minutes.",
            "Start a timer of {minutes} minutes.",
        ),
        {"minutes": slots.count},
    ),
    "convert": ToolSpec(
        "Convert euros to other money",
        (
            "Convert {amount} euros to {to}.",
            "How much are {amount} euros in {to}?",
            "Change {amount} euros into {to}.",
        ),
        {"amount": slots.plain_amount, "to": _currency},
    ),
    "call": ToolSpec(
        "Call a person",
        ("Call {name}.", "Please call {name}.", "I want to talk to {name}."),
        {"name": slots.first_name},
    ),
    "send_money": ToolSpec(
        "Send money to a person",
        ("Send {amount} euros to {name}.", "Pay {name} {amount} euros."),
        {"name": slots.first_name, "amount": slots.plain_amount},
    ),
    "find_item": ToolSpec(
        "Find an item in a city",
        ("Find a {item} in {city}.", "Where can I buy a {item} in {city}?"),
        {"item": slots.item, "city": slots.city},
    ),
    "book_room": ToolSpec(
        "Book a room",
        ("Book a room in {city} for {date}.", "I need a room in {city} on {date}."),
        {"city": slots.city, "date": slots.date},
    ),
}
_NAMES = tuple(TOOLS)
_NUMBERS = {"minutes": "integer", "amount": "number"}


def declaration(name: str) -> Mapping[str, object]:
    """The OpenAI-style declaration of a tool of ours."""
    tool = TOOLS[name]
    properties = {key: {"type": _NUMBERS.get(key, "string")} for key in tool.arguments}
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": tool.description,
            "parameters": {
                "type": "object",
                "properties": properties,
                "required": list(properties),
            },
        },
    }


def make_tools(split: Split, seed: int, index: int) -> Example:
    """A wish with its tool declared, half the time beside another one."""
    draw = Draw("tools", split, seed, index)
    names = draw.sample(_NAMES, draw.between(1, 2))
    chosen = names[0]
    tool = TOOLS[chosen]
    wish = draw.pick(tool.wishes)
    values = {key: maker(draw, split) for key, maker in tool.arguments.items()}
    said = {key: slot.said for key, slot in values.items()}
    arguments = {key: json.loads(slot.written) for key, slot in values.items()}
    return Example(
        task="tools",
        messages=asked(wish.format(**said)),
        answer="",
        tools=tuple(declaration(name) for name in draw.shuffled(names)),
        tool_call={"name": chosen, "arguments": arguments},
        meta={
            "kind": chosen,
            "slots": tuple(slot for slot in values.values() if slot.kind != "currency"),
        },
    )


def grade_tools(
    example: Example, text: str, tool_calls: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """`exact`: the one call wanted and no text beside it; `name`: the right tool; `valid`:
    one call or more, each of a declared tool with the arguments it requires and no others."""
    wanted = example.tool_call
    assert wanted is not None, "an example of tools has a call"
    one = dict(tool_calls[0]) if len(tool_calls) == 1 else {}
    return {
        "exact": float(one == dict(wanted) and not text.strip()),
        "valid": float(bool(tool_calls) and all(_fits(example, call) for call in tool_calls)),
        "name": float(one.get("name") == wanted["name"]),
    }


def _fits(example: Example, call: Mapping[str, Any]) -> bool:
    declared = [name for name in TOOLS if declaration(name) in example.tools]
    name, arguments = call.get("name"), call.get("arguments")
    if name not in declared or not isinstance(arguments, Mapping):
        return False
    return set(arguments) == set(TOOLS[str(name)].arguments)
