"""Gaps that only the text after them decides.

In each kind the prefix is drawn without a look at the gap, and the suffix (the verb, the bracket,
the repeated name) settles it; a model that reads from left to right alone must guess.
Knows nothing about how a gap is filled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dgemma.tasks import slots
from dgemma.tasks.draw import Draw, Split
from dgemma.tasks.example import Example, asked
from dgemma.tasks.slots import TaskSlot

PROMPT = "Fill: "
MARK = "___"

Gap = tuple[str, str, str, tuple[TaskSlot, ...]]
"""Prefix, gap, suffix, slots."""

_ANIMALS = {
    "dog": "barks",
    "cat": "meows",
    "cow": "gives milk",
    "bee": "makes honey",
    "hen": "lays eggs",
    "fish": "swims",
    "bird": "flies",
    "frog": "jumps",
}
_CONTRASTS = {
    "hot": "cold",
    "big": "small",
    "old": "young",
    "fast": "slow",
    "happy": "sad",
    "rich": "poor",
}
_OPPOSITES = {a: b for pair in _CONTRASTS.items() for a, b in (pair, pair[::-1])}
_WEEK = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_ARTICLES = {
    "a": ("pear", "plum", "banana", "melon", "lemon", "cherry", "fig", "carrot"),
    "an": ("apple", "orange", "onion", "egg", "olive", "apricot", "orchid", "acorn"),
}
_BRACKETS = {"(": ")", "[": "]", "{": "}", "<": ">"}
_OWNERS = {"He": "his", "She": "her", "They": "their", "We": "our", "I": "my"}


def _animal(draw: Draw, split: Split) -> Gap:
    name = slots.first_name(draw, split)
    gap = draw.pick(tuple(_ANIMALS))
    prefix = draw.pick(("The {gap} of {name} ", "{name} has a {gap} that "))
    before, after = prefix.replace("{name}", name.said).split("{gap}")
    return before, gap, f"{after}{_ANIMALS[gap]}.", (name,)


def _sum(draw: Draw, split: Split) -> Gap:
    a, b = slots.pair(draw, split, 1, 20)
    prefix = draw.pick(("Total: ", "Sum: ", "I count "))
    return prefix, str(a + b), f" = {a} + {b}", (slots.pair_slot(a, b),)


def _article(draw: Draw, split: Split) -> Gap:
    name = slots.first_name(draw, split)
    gap = draw.pick(tuple(_ARTICLES))
    verb = draw.pick(("saw", "ate", "has", "wants"))
    return f"{name.said} {verb} ", gap, f" {draw.pick(_ARTICLES[gap])}.", (name,)


def _bracket(draw: Draw, split: Split) -> Gap:
    one, two = slots.first_name(draw, split), slots.first_name(draw, split)
    gap = draw.pick(tuple(_BRACKETS))
    return f"{one.said} ", gap, f"{two.said}{_BRACKETS[gap]}", (one, two)


def _repeat(draw: Draw, split: Split) -> Gap:
    name = slots.first_name(draw, split)
    prefix, suffix = draw.pick(
        (
            ("Today ", " is here. Hello, {name}!"),
            ("Dear ", ", this is for you, {name}."),
            ("I met ", ". I like {name}."),
            ("The city of ", " is big. I live in {name}."),
        )
    )
    return prefix, name.said, suffix.format(name=name.said), (name,)


def _day(draw: Draw, split: Split) -> Gap:
    name = slots.first_name(draw, split)
    day = draw.below(7)
    prefix = f"{name.said} says: after "
    return prefix, _WEEK[day], f" comes {_WEEK[(day + 1) % 7]}.", (name,)


def _opposite(draw: Draw, split: Split) -> Gap:
    name = slots.first_name(draw, split)
    gap = draw.pick(tuple(_OPPOSITES))
    return f"{name.said} is not ", gap, f" but {_OPPOSITES[gap]}.", (name,)


def _owner(draw: Draw, split: Split) -> Gap:
    thing, name = slots.item(draw, split), slots.first_name(draw, split)
    gap = draw.pick(tuple(_OWNERS))
    verb = draw.pick(("lost", "sold", "found"))
    return f"In {name.said}, ", gap, f" {verb} {_OWNERS[gap]} {thing.said}.", (name, thing)


_KINDS: Mapping[str, Callable[[Draw, Split], Gap]] = {
    "animal": _animal,
    "sum": _sum,
    "article": _article,
    "bracket": _bracket,
    "repeat": _repeat,
    "day": _day,
    "opposite": _opposite,
    "owner": _owner,
}
KINDS = tuple(_KINDS)


def make_gaps(split: Split, seed: int, index: int) -> Example:
    """A text with one gap; `meta` holds "kind", "prefix", "gap", "suffix" and the slots."""
    draw = Draw("gaps", split, seed, index)
    kind = draw.pick(KINDS)
    prefix, gap, suffix, found = _KINDS[kind](draw, split)
    return Example(
        task="gaps",
        messages=asked(f"{PROMPT}{prefix}{MARK}{suffix}"),
        answer=gap,
        meta={"kind": kind, "prefix": prefix, "gap": gap, "suffix": suffix, "slots": found},
    )
