"""The rules of sampling parameters: bounds, and from a value as it was given to its plain form.

Must not know the parameters by name, tensors (no torch), files or HTTP.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dgemma.errors import bad_field
from dgemma.errors import refused as refused

MOST_ALTERNATIVES = 64

COLDEST, HOTTEST, MOST_BIAS = 1e-3, 1e3, 1e9
"""Temperatures and additions to logits beyond these overflow, or vanish, in 32 bits."""

BYTES = (bytes, bytearray, memoryview)
"""Sequences of integers that nobody means as token ids."""

MOST_STRINGS, LONGEST_STRING = {"stop": 32, "bad_words": 1000}, 256
"""Most strings of a list, and most characters of each: every commit is searched for them."""

MOST_IDS = {"allowed_token_ids": 2**18, "logprob_token_ids": 1024}
"""Most ids of a list, each counted once: a vocabulary, and as many as a canvas reports quickly."""

WORD = 2**31 - 1


@dataclass(frozen=True, slots=True)
class SamplingOption:
    """The rule of one field of `SamplingParams`.

    Attributes:
        check: from name, value and rule to the value's plain form.
        help: one line for people.
        least, most: bounds of a number; `most` members of a list; None: no end.
        refused_by: "autoregressive" (it is greedy, so it draws nothing; it has neither steps nor
            canvases; and as the plain baseline it is not steered), "fill" (parts of a text are
            written between others, so nothing may be said of the whole), "edit" (the text that is
            there may hold any id).
        words: that are values as well as numbers.
    """

    check: Callable[[str, Any, SamplingOption], object]
    help: str
    least: float = 0
    most: float | None = None
    refused_by: tuple[str, ...] = ("autoregressive",)
    words: tuple[str, ...] = ()


def option(*rule: Any, **more: Any) -> Any:
    """A field of `SamplingParams` with its rule; None where it is not given."""
    return dataclasses.field(default=None, metadata={"option": SamplingOption(*rule, **more)})


def integer(name: str, value: Any, option: SamplingOption) -> object:
    if value in option.words:
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        words = "".join(f" or {word!r}" for word in option.words)
        raise refused(name, f"be an integer{words}", value)
    if value < option.least:
        raise refused(name, f"be at least {option.least}", value)
    if option.most is not None and value > option.most:
        raise refused(name, f"be at most {option.most}", value)
    return value


def number(name: str, value: Any, option: SamplingOption) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise refused(name, "be a number", value)
    least, most = option.least, option.most
    if most == HOTTEST:
        fits = COLDEST <= value <= HOTTEST or value == least == 0
        must = f"{'' if least else '0, or '}{COLDEST} to {HOTTEST:.0f}"
    elif most is None:
        fits, must = least <= value <= sys.float_info.max, f"at least {least} and finite"
    elif name == "top_p":
        fits, must = least < value <= most, f"above {least} and at most {most}"
    else:
        fits, must = least <= value <= most, f"{least} to {most}"
    if not fits:
        raise refused(name, f"be {must}", value)
    return value


def strings(name: str, value: Any, option: SamplingOption) -> object:
    strings = (value,) if isinstance(value, str) else value
    if (
        isinstance(value, BYTES)
        or not isinstance(strings, Sequence)
        or not all(isinstance(s, str) and s for s in strings)
    ):
        raise refused(name, "be a list of strings that are not empty")
    longest = max(map(len, strings), default=0)
    if option.most is not None and longest > LONGEST_STRING:
        why = f"holds a string of {longest} characters, more than {LONGEST_STRING}; shorten it"
        raise bad_field(name, why)
    return _few(name, tuple(strings), "strings", option)


def id_list(name: str, value: Any, option: SamplingOption) -> object:
    given = isinstance(value, Sequence) and not isinstance(value, (str, *BYTES))
    ids = tuple(value) if given else ()
    if not ids or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise refused(name, "be a list of token ids that is not empty")
    if max(map(abs, ids)) > WORD:
        raise refused(name, f"hold ids of at most {WORD}")
    return _few(name, tuple(dict.fromkeys(ids)), "ids", option)


def _few(name: str, values: tuple[object, ...], kind: str, option: SamplingOption) -> object:
    if option.most is not None and len(values) > option.most:
        raise bad_field(name, f"holds {len(values)} {kind}, more than {option.most}; give fewer")
    return values


def bias_map(name: str, value: Any, option: SamplingOption) -> object:
    given: Mapping[Any, Any] = value if isinstance(value, Mapping) else {None: None}
    known = all(type(i) in (int, str) and type(added) in (int, float) for i, added in given.items())
    try:
        bias = {int(i): float(added) for i, added in given.items()} if known else None
    except (ValueError, OverflowError):
        bias = None
    if bias is None:
        raise refused(name, "map token ids to numbers")
    if not all(abs(i) <= WORD and abs(added) <= MOST_BIAS for i, added in bias.items()):
        raise refused(name, f"hold ids of at most {WORD} and numbers of {MOST_BIAS:.0e} at most")
    return bias


def of_type(said: str, *types: type, echo: bool = True) -> Any:
    """A value of one of these types; `said` completes "must be"."""

    def check(name: str, value: Any, option: SamplingOption) -> object:
        if isinstance(value, types):
            return value
        raise refused(name, f"be {said}", *[value] * echo)

    return check


def one_word(*words: str) -> Any:
    """One of some words."""

    def check(name: str, value: Any, rule: SamplingOption) -> object:
        if value in words:
            return value
        raise refused(name, f"be {' or '.join(map(repr, words))}", value)

    return check


flag = of_type("true or false", bool)
text = of_type("a string", str)
schema = of_type("a JSON object, its text, or true", Mapping, str, bool, echo=False)
