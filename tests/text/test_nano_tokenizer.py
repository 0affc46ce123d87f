"""The bundled tokenizer: what the tasks count on, and that it is rebuilt to the byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dgemma.tasks import TASKS, make_example
from dgemma.text.tokenizer import Tokenizer
from recipes.nano.tokenizer import (
    FRAME_WORDS,
    VOCAB_SIZE,
    build_nano_tokenizer,
    task_texts,
    write_nano_tokenizer,
)  # fmt: skip


def test_same_texts_same_file(tmp_path: Path) -> None:
    """Training must be reproducible: the order of a hash table or of the texts must not show."""
    texts = list(task_texts(20))
    one, other = build_nano_tokenizer(texts), build_nano_tokenizer(reversed(texts))
    assert one.to_str() == other.to_str()
    write_nano_tokenizer(tmp_path, one)
    assert Tokenizer.from_directory(tmp_path).vocab_size == VOCAB_SIZE
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["bos_token"] == "<bos>"


def test_few_texts_still_fill_the_vocabulary() -> None:
    """The model's size is fixed, whatever the texts."""
    for texts in ([], ["ab ab ab"], ["\t\r\n\u2581 é"]):
        tokenizer = build_nano_tokenizer(texts)
        ids = sorted(tokenizer.get_vocab().values())
        assert ids == list(range(VOCAB_SIZE))


def test_single_characters(nano: Tokenizer) -> None:
    """A Sudoku row is nine tokens; digits, marks, spaces and newlines never merge with anything."""
    assert nano.vocab_size == VOCAB_SIZE
    for row in ("53..7....", "123456789", ".........", "..34.6..9"):
        assert len(nano.encode(row)) == 9
    marks = '{"a":[1,2.50,-3],"b":null}\n\n  .,;:!?()[]<>|\\/_-+=*&^%$#@~`'
    letters_joined = marks.replace("null", "n")
    assert len(nano.encode(marks)) <= len(marks)
    for char in sorted(set(letters_joined) - set("nab")):
        token_id = nano.encode(char)
        assert len(token_id) == 1
        assert nano.encode(f"x{char}x{char}{char}é{char}").count(token_id[0]) == 4


def test_a_word_is_the_same_after_a_space_and_a_quote(nano: Tokenizer) -> None:
    """Names are copied out of sentences into JSON; other tokens there would have to be learnt."""
    for word in ("Mira", "Zukro", "lamp", "Koneč", "tickets"):
        ids = nano.encode(word)
        assert nano.encode(f" {word}.")[1:-1] == ids == nano.encode(f'"{word}"')[1:-1]


def test_words_of_the_tasks_are_short(nano: Tokenizer) -> None:
    """Words that the template writes are one token; task texts are well under two per word."""
    for word in FRAME_WORDS.split():
        assert len(nano.encode(word)) == 1, word
    words = tokens = 0
    for task in TASKS:
        for index in range(100):
            question = make_example(task, "train", 1, index).question
            for word in filter(str.isalpha, question.split()):
                words += 1
                tokens += len(nano.encode(word))
    assert tokens / words < 2


@pytest.mark.oracle
def test_transformers_agrees(nano: Tokenizer, nano_directory: Path) -> None:
    """The directory loads elsewhere and gives the same ids: it is in the released layout."""
    transformers = pytest.importorskip("transformers", reason="the oracle is not installed")
    theirs = transformers.AutoTokenizer.from_pretrained(nano_directory)
    text = "<bos><|turn>user\nJSON: Mira paid 12.50 euros 🦙<turn|>\n"
    assert theirs.encode(text, add_special_tokens=False) == nano.encode(text, control=True)
    assert theirs.decode(nano.encode("a  b , 🦙")) == "a  b , 🦙"
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (2, 1, 0)
