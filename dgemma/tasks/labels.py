"""One label as the answer: the feeling or the topic of a sentence, or a number's parity.

Knows the labels and the words that call for them; knows nothing about how choices are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dgemma.tasks import slots
from dgemma.tasks.draw import Draw, Split
from dgemma.tasks.example import Example, asked
from dgemma.tasks.slots import TaskSlot

Labelled = tuple[str, tuple[TaskSlot, ...]]
"""Text, slots."""

_FEELINGS: Mapping[str, tuple[str, ...]] = {
    "positive": ("good", "great", "lovely", "perfect", "superb", "nice", "wonderful", "splendid"),
    "negative": ("bad", "dreadful", "terrible", "nasty", "broken", "horrible", "useless", "poor"),
    "neutral": ("red", "blue", "round", "square", "wooden", "grey", "metal", "green"),
}
_OPINIONS = (
    "{name} says the {item} is {word}.",
    "The {item} from {name} is {word}.",
    "{name} has a {word} {item}.",
    "This {item} of {name} looks {word}.",
)
_TOPICS: Mapping[str, tuple[str, ...]] = {
    "food": ("cooked soup", "baked bread", "ate pasta", "tasted cheese", "ordered pizza"),
    "sport": ("won the race", "scored a goal", "lost the match", "ran a mile", "joined the team"),
    "travel": ("took a flight", "packed a bag", "booked a hotel", "missed the train", "left home"),
    "music": ("sang a song", "played a tune", "joined the band", "wrote a melody", "danced"),
}
_NEWS = ("{name} {deed}.", "{name} {deed} in {city}.", "In {city}, {name} {deed}.")


def _sentiment(draw: Draw, split: Split, label: str) -> Labelled:
    name, thing = slots.first_name(draw, split), slots.item(draw, split)
    text = draw.pick(_OPINIONS).format(
        name=name.said, item=thing.said, word=draw.pick(_FEELINGS[label])
    )
    return text, (name, thing)


def _topic(draw: Draw, split: Split, label: str) -> Labelled:
    name, city = slots.first_name(draw, split), slots.city(draw, split)
    deed = draw.pick(_TOPICS[label])
    return draw.pick(_NEWS).format(name=name.said, city=city.said, deed=deed), (name, city)


def _parity(draw: Draw, split: Split, label: str) -> Labelled:
    most = draw.pick((99, 999, 9999))
    while True:
        number = slots.number(draw, split, 2, most)
        if int(number.said) % 2 == CHOICES["parity"].index(label):
            return number.said, (number,)


CHOICES: Mapping[str, tuple[str, ...]] = {
    "sentiment": tuple(_FEELINGS),
    "topic": tuple(_TOPICS),
    "parity": ("even", "odd"),
}
_KINDS: Mapping[str, Callable[[Draw, Split, str], Labelled]] = {
    "sentiment": _sentiment,
    "topic": _topic,
    "parity": _parity,
}
KINDS = tuple(_KINDS)


def make_labels(split: Split, seed: int, index: int) -> Example:
    """A text of a random kind; `meta` holds "kind", "choices" (all labels) and the slots."""
    draw = Draw("labels", split, seed, index)
    kind = draw.pick(KINDS)
    label = draw.pick(CHOICES[kind])
    text, found = _KINDS[kind](draw, split, label)
    return Example(
        task="labels",
        messages=asked(f"{kind.capitalize()}: {text}"),
        answer=label,
        meta={"kind": kind, "choices": list(CHOICES[kind]), "slots": found},
    )
