"""From ids to an answer: stop strings across pushes, thoughts apart, nothing lost."""

from __future__ import annotations

import pytest

from dgemma.text.answer import AnswerReader
from dgemma.text.tokenizer import Tokenizer
from dgemma.weights.files import bundled_models


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Nano's."""
    return Tokenizer.from_directory(bundled_models()["nano"])


def read(reader: AnswerReader, ids: list[int], size: int) -> str:
    """The text of ids pushed in pieces, as a stream of commits would give it."""
    parts = [reader.push(ids[low : low + size]) for low in range(0, len(ids), size)]
    return "".join(parts) + reader.finish()


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_pieces(tokenizer: Tokenizer, size: int) -> None:
    """A character or a word is lost where two canvases meet."""
    text = "Zwölf Boxkämpfer 🥊 say <stop> twice: <stop>"
    ids = tokenizer.encode(text)
    reader = AnswerReader(tokenizer)
    assert read(reader, ids, size) == reader.text == text
    assert reader.kept == len(ids) and not reader.stopped


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("chat", [False, True])
def test_stop(tokenizer: Tokenizer, size: int, chat: bool) -> None:
    """A stop string that begins in one canvas and ends in the next is missed, or half shown."""
    before, after = "One, two, ST and ", "STOP, three STOP"
    ids = tokenizer.encode(before + after)
    reader = AnswerReader(tokenizer, stop=["three", "STOP"], chat=chat)
    assert read(reader, ids, size) == reader.text == before
    assert reader.stopped and reader.push(ids) == "" and reader.finish() == ""
    kept = tokenizer.decode(ids[: reader.kept])
    assert before.startswith(kept) and len(before) - len(kept) < 8


def test_half_a_stop_string_at_the_end(tokenizer: Tokenizer) -> None:
    """Text held back because it might become a stop string is never given."""
    reader = AnswerReader(tokenizer, stop=["STOP"])
    assert read(reader, tokenizer.encode("to be ST"), 1) == "to be ST"
    assert not reader.stopped


def test_thought(tokenizer: Tokenizer) -> None:
    """A stop string within a thought ends the answer, or the thought is part of the text."""
    text = "<|channel>thought\nSTOP here?\n<channel|>No. STOP"
    ids = tokenizer.encode(text, control=True)
    reader = AnswerReader(tokenizer, stop=["STOP"], chat=True)
    assert read(reader, ids, 2) == "No. "
    assert reader.thinking == "STOP here?" and reader.stopped
    plain = AnswerReader(tokenizer, chat=True, thought_open=True)
    assert read(plain, tokenizer.encode("so be it\n<channel|>Yes", control=True), 3) == "Yes"
    assert plain.thinking == "so be it"
