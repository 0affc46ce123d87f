"""Values that fill the sentences: names, dates, amounts, things, numbers.

Each value belongs to exactly one split, by its hash (each word of a name by its own), so no value
of a held-out slot is ever a value of that kind in training. Knows nothing about sentences.
Closed sets of words (currencies, days, feelings) are not slots: they belong to the tasks' forms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dgemma.tasks.draw import Draw, Split, split_of

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr",
           "kr", "st", "tr")  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("n", "l", "r", "s", "k", "t", "m", "d")
_ACCENTS = ("č", "é", "ö", "ñ", "š")
_ITEM_WORDS = """
    lamp chair book bike phone table clock ring hat coat bag cup plate fork spoon pen desk door
    key bell drum flute guitar piano ball kite doll robot tent rope boat car truck train wheel
    motor pump saw hammer nail screw brick tile pipe wire mirror carpet blanket pillow towel
    basket bottle jar pan pot kettle fan radio camera laptop tablet printer cable magnet candle
    map stamp letter ticket coin wallet belt shirt scarf glove sock shoe boot jacket helmet sail
    paddle ladder bucket broom sponge soap
"""
ITEMS = tuple(_ITEM_WORDS.split())
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September",
          "October", "November", "December")  # fmt: skip
_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


@dataclass(frozen=True, slots=True)
class TaskSlot:
    """A value as the question says it and as the answer writes it.

    Attributes:
        kind: separates the splits together with `key`, for example "date".
        said: in the question, for example "3 May 2024".
        written: in the answer as JSON, for example '"2024-05-03"'.
    """

    kind: str
    said: str
    written: str

    @property
    def bare(self) -> str:
        """The answer's form without JSON quotes."""
        return self.written.strip('"')


Maker = Callable[[Draw, Split], TaskSlot]


def drawn(kind: str, split: Split, make: Callable[[], str]) -> str:
    """A value of `make`, made again until it belongs to the split."""
    while True:
        value = make()
        if split_of(kind, value) == split:
            return value


def in_split(slot: TaskSlot, split: Split) -> bool:
    """Whether the slot's value, or each word of a name, belongs to the split."""
    values = slot.said.split() if slot.kind == "name" else [slot.bare]
    return all(split_of(slot.kind, value) == split for value in values)


def _quoted(kind: str, said: str) -> TaskSlot:
    return TaskSlot(kind, said, f'"{said}"')


def word(draw: Draw, split: Split, syllables: int = 2) -> str:
    """A made-up lower-case word, such as "kovar"."""

    def make() -> str:
        stem = _syllables(draw, syllables)
        end = draw.below(20)
        return stem + ("" if end < 8 else draw.pick(_CODAS if end < 19 else _ACCENTS))

    return drawn("name", split, lambda: make().capitalize()).lower()


def first_name(draw: Draw, split: Split) -> TaskSlot:
    """One made-up name, such as "Mira"."""
    return _quoted("name", word(draw, split).capitalize())


def person(draw: Draw, split: Split) -> TaskSlot:
    """A first and a last name, such as "Mira Kovar"."""
    both = word(draw, split).capitalize(), word(draw, split).capitalize()
    return _quoted("name", " ".join(both))


city = company = first_name  # people, cities and companies share their pool of names


def item(draw: Draw, split: Split) -> TaskSlot:
    """A thing one can hold or buy; its plural ends in s, its article is "a".

    Held-out things are real words. Of a short list a model learns the list, not to copy, so two
    thirds of those in training are made up: syllables, or the head of one thing on the tail of
    another ("spork").
    """
    kind = draw.below(3) if split == "train" else 0
    make = (lambda: draw.pick(ITEMS), lambda: _made_up(draw), lambda: _blend(draw))[kind]
    return _quoted("item", drawn("item", split, make if kind == 0 else lambda: _unlisted(make)))


def _syllables(draw: Draw, count: int) -> str:
    return "".join(draw.pick(_ONSETS) + draw.pick(_VOWELS) for _ in range(count))


def _made_up(draw: Draw) -> str:
    return _syllables(draw, draw.between(1, 2)) + draw.pick(_CODAS)


def _blend(draw: Draw) -> str:
    """The head of one training thing on the tail of another: 3 to 8 letters, no s at the end."""
    known = [thing for thing in ITEMS if split_of("item", thing) == "train"]
    head, tail = draw.pick(known), draw.pick(known)
    return head[: draw.between(1, len(head) - 1)] + tail[draw.between(1, len(tail) - 1) :]


def _unlisted(make: Callable[[], str]) -> str:
    """A value of `make`, made again until it fits a sentence and is not a listed thing."""
    while True:
        word = make()
        if 3 <= len(word) <= 8 and word not in ITEMS and word[-1] != "s" and word[0] not in _VOWELS:
            return word


def number(draw: Draw, split: Split, least: int, most: int) -> TaskSlot:
    """A whole number; all whole numbers share one split."""
    said = drawn("number", split, lambda: str(draw.between(least, most)))
    return TaskSlot("number", said, said)


def numbers(least: int, most: int) -> Maker:
    """A maker of whole numbers in a range."""
    return lambda draw, split: number(draw, split, least, most)


count = numbers(2, 99)


def amount(draw: Draw, split: Split, last_digits: str = "0123456789") -> TaskSlot:
    """Money with two digits after the point, 2.00 to 999.99."""

    def make() -> str:
        top = draw.pick((10, 100, 1000))
        return f"{draw.between(2, top - 1)}.{draw.below(10)}{draw.pick(last_digits)}"

    said = drawn("amount", split, make)
    return TaskSlot("amount", said, said)


def pair_slot(a: int, b: int) -> TaskSlot:
    """Two numbers as one slot value, in whichever order."""
    return _quoted("pair", f"{min(a, b)} {max(a, b)}")


def pair(draw: Draw, split: Split, least: int, most: int) -> tuple[int, int]:
    """Two numbers whose pair, in either order, belongs to the split."""
    while True:
        a, b = draw.between(least, most), draw.between(least, most)
        if in_split(pair_slot(a, b), split):
            return a, b


def plain_amount(draw: Draw, split: Split) -> TaskSlot:
    """An amount whose shortest form is the one that is said: it does not end in 0."""
    return amount(draw, split, "123456789")


def date(draw: Draw, split: Split) -> TaskSlot:
    """A day of 2000..2039, said "3 May 2024" and written "2024-05-03"."""

    def make() -> str:
        month = draw.below(12)
        return f"{draw.between(2000, 2039)}-{month + 1:02}-{draw.between(1, _DAYS[month]):02}"

    iso = drawn("date", split, make)
    year, month, day = map(int, iso.split("-"))
    return TaskSlot("date", f"{day} {MONTHS[month - 1]} {year}", f'"{iso}"')


def time(draw: Draw, split: Split) -> TaskSlot:
    """A time of day in steps of five minutes, such as "09:35"."""

    def make() -> str:
        return f"{draw.between(0, 23):02}:{5 * draw.below(12):02}"

    return _quoted("time", drawn("time", split, make))


def phone(draw: Draw, split: Split) -> TaskSlot:
    """A made-up number, such as "555-0123"."""
    return _quoted("phone", drawn("phone", split, lambda: f"555-{draw.below(10000):04}"))
