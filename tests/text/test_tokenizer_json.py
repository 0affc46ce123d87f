"""What a tokenizer.json may ask for: nothing that grows, backtracks or panics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dgemma.errors import TokenizerError
from dgemma.text.tokenizer import Tokenizer

GROW = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}


def split(pattern: str) -> dict[str, Any]:
    """A pre-tokenizer that searches for an expression."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def load(directory: Path, nano_directory: Path, **changes: Any) -> Tokenizer:
    """nano's tokenizer with other parts; `model__x` is a key of the model."""
    values = json.loads((nano_directory / "tokenizer.json").read_text(encoding="utf-8"))
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        (values[section] if section else values)[key] = value
    (directory / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    return Tokenizer.from_directory(directory)


@pytest.mark.fault("R K8")
@pytest.mark.parametrize(
    "normalizer",
    [
        {"type": "Sequence", "normalizers": [GROW] * 6},
        {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [GROW] * 3}] * 2},
        GROW,
        GROW | {"pattern": {"Regex": "a"}},
        GROW | {"pattern": {"Regex": "(a|aa)+$"}, "content": ""},
        GROW | {"pattern": {"String": ""}},
        {"type": "Prepend", "prepend": "a" * 1000},
        {"type": "Sequence", "normalizers": [{"type": "NFKD"}] * 3},
        {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 1000},
        {"type": "Sequence", "normalizers": 5},
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        {"type": ["Replace"]},
        [GROW],
    ],
)
def test_normalizers_that_grow_a_text(
    normalizer: Any, tmp_path: Path, nano_directory: Path
) -> None:
    """Six of them make a terabyte of one letter, and the process is ended."""
    with pytest.raises(TokenizerError, match=r"tokenizer\.json (has|asks|prepends)"):
        load(tmp_path, nano_directory, normalizer=normalizer)


@pytest.mark.fault("R K7")
@pytest.mark.parametrize(
    "pattern",
    ["(a+a+)+$", "(a|aa)*b", "a*a*b", "a+b", ".*", "(?=a)", r"(a)\1", "a{1,999}{1,999}", "[a&&[b]]",
     "", "[", "a" * 2000],
)  # fmt: skip
def test_patterns_that_backtrack(pattern: str, tmp_path: Path, nano_directory: Path) -> None:
    """The library panics in the middle of a request, past every `except Exception`."""
    with pytest.raises(TokenizerError, match="pattern"):
        load(tmp_path, nano_directory, pre_tokenizer=split(pattern))
    with pytest.raises(TokenizerError, match="pattern"):
        parts = {"type": "Sequence", "pretokenizers": [split(pattern)]}
        load(tmp_path, nano_directory, pre_tokenizer=parts)


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        split(r"[\p{L}\p{M}]+|[\s\S]"),
        split("[^\n]+|[\n]+"),
        split(r"\p{N}|\s+|ab"),
        {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
         "invert": False},
        {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}]},
        None,
    ],
)  # fmt: skip
def test_parts_of_real_files(pre_tokenizer: Any, tmp_path: Path, nano_directory: Path) -> None:
    """A rule so strict that no tokenizer passes."""
    tokenizer = load(tmp_path, nano_directory, pre_tokenizer=pre_tokenizer)
    text = "Ab 12\n\nčau"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__type": "Unigram"}, "model of type 'Unigram'"),
        ({"model__dropout": 0.5}, "dropout"),
        ({"model__end_of_word_suffix": "a" * 9999}, "end_of_word_suffix"),
        ({"model": None}, "no model"),
        ({"pre_tokenizer": {"type": "Magic"}}, "'Magic'"),
        ({"model__merges": [["zzz", "y"]]}, "cannot be read"),
    ],
)
def test_other_tokenizers(
    changes: dict[str, Any], message: str, tmp_path: Path, nano_directory: Path
) -> None:
    """A file that gives other ids each time, or none that belong to its bytes."""
    with pytest.raises(TokenizerError, match=message):
        load(tmp_path, nano_directory, **changes)


@pytest.mark.fault("R K13")
@pytest.mark.parametrize("where", ["vocab", "added"])
def test_two_tokens_with_one_id(where: str, tmp_path: Path, nano_directory: Path) -> None:
    """The model says one word, and the user reads another."""
    values = json.loads((nano_directory / "tokenizer.json").read_text(encoding="utf-8"))
    vocab, added = values["model"]["vocab"], values["added_tokens"]
    if where == "vocab":
        changes = {"model__vocab": vocab | {"zzz": vocab["a"]}}
        message = "'zzz' and 'a' have one id|'a' and 'zzz' have one id"
    else:
        changes = {"added_tokens": [*added, dict(added[0], id=vocab["a"], content="zzz")]}
        message = "gives 'zzz' the id"
    with pytest.raises(TokenizerError, match=message):
        load(tmp_path, nano_directory, **changes)


def test_what_follows_the_ids_is_left_out(tmp_path: Path, nano_directory: Path) -> None:
    """A post-processor that doubles BOS, or a padding of a gigabyte."""
    plain = Tokenizer.from_directory(nano_directory)
    template = {
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
    }  # fmt: skip
    found = load(tmp_path, nano_directory, post_processor=template)
    assert found.encode("Hello", bos=True) == plain.encode("Hello", bos=True)


def test_many_long_control_tokens(tmp_path: Path, nano_directory: Path) -> None:
    """Each `<` of a text is compared with all of them."""
    values = json.loads((nano_directory / "tokenizer.json").read_text(encoding="utf-8"))
    added = values["added_tokens"]
    more = [dict(added[0], id=1024 + i, content=f"<|{i}{'x' * 900}|>") for i in range(200)]
    with pytest.raises(TokenizerError, match="names of its control tokens"):
        load(tmp_path, nano_directory, added_tokens=added + more)


def test_blanks_before_a_token_take_one_pass(tmp_path: Path, nano_directory: Path) -> None:
    """A token that swallows blanks makes the search of a text of blanks quadratic."""
    values = json.loads((nano_directory / "tokenizer.json").read_text(encoding="utf-8"))
    added = values["added_tokens"]
    token = dict(added[0], id=1024, content="[gap]", lstrip=True, rstrip=True)
    found = load(tmp_path, nano_directory, added_tokens=[*added, token])
    assert "*" not in found._pattern.pattern and "+" not in found._pattern.pattern
    assert found.pieces("a \n[gap] \t[gap][gap] b") == ["a", 1024, 1024, 1024, "b"]
    assert found.pieces(" [gap] ") == [1024]
