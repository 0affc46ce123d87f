"""Opens a tokenizer.json, after a look at what it would have the tokenizer do.

A file may name normalizers that make a text a billion times longer, or patterns that backtrack for
ever, and the library then ends the process. So only parts with a bounded cost are let through.
Knows the format's parts. Knows nothing about control tokens or what an id means.
Source: the tokenizers library, `tokenizers/src/{normalizers,pre_tokenizers}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from dgemma.errors import TokenizerError
from dgemma.files.read import MIB, parse_json, read_text, reason

MOST_BYTES = 128 * MIB
"""Of a tokenizer.json; Gemma's has 32 MiB."""
MOST_PARTS = 32
"""Normalizers, or pre-tokenizers, in a sequence."""
MOST_GROWTH = 64
"""Times that the normalizers together may lengthen a text."""
MOST_PREFIX = 16
"""Characters that a normalizer may put in front of a text."""
MOST_PATTERN = 1000
NORMALIZERS: Mapping[str, int] = {
    "Replace": 1, "Prepend": 1, "Strip": 1, "StripAccents": 1, "Nmt": 1, "Lowercase": 3, "NFC": 3,
    "NFD": 4, "NFKC": 18, "NFKD": 18,
}  # fmt: skip
"""Normalizers that are let through, and how many times they may lengthen a text by themselves."""
PRE_TOKENIZERS = frozenset({
    "Split", "Metaspace", "Whitespace", "WhitespaceSplit", "Punctuation", "Digits",
    "UnicodeScripts", "CharDelimiterSplit",
})  # fmt: skip
_ATOM = r"(?:\[(?:\\.|[^\]\[\\])+\]|\\[pP]\{\w+\}|\\[sSdDwWnrt]|[^\\()\[\]{}.*+?^$|])"
_LINEAR = re.compile(rf"{_ATOM}{{1,4}}\+?(?:\|{_ATOM}{{1,4}}\+?)*")
"""Patterns that never go back: each alternative is a few characters, the last perhaps repeated."""


class _Refused(Exception):
    """A part that is not let through; the text goes on from "tokenizer.json"."""


def read_backend(file: Path) -> Backend:
    """The library's tokenizer of a file.

    Raises:
        TokenizerError: it cannot be read, or asks for more than is let through.
    """
    remedy = "take the tokenizer files from the model's own page"
    try:
        text = read_text(file, MOST_BYTES)
        values = parse_json(text)
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{file} cannot be read ({reason(error)}); {remedy}") from error
    try:
        _check(values)
    except _Refused as error:
        raise TokenizerError(f"{file} {error}; {remedy}") from error
    try:
        backend = Backend.from_str(text)
        backend.post_processor = None  # it would only add tokens that are added by name here
        _check_ids(backend, values)
        return backend
    except _Refused as error:
        raise TokenizerError(f"{file} {error}; {remedy}") from error
    except BaseException as error:  # the library raises nothing narrower, and panics beside it
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{file} cannot be read ({str(error)[:300]}); {remedy}") from error


def _check(values: Any) -> None:
    """Refuse what could take without end, or what the library takes and then panics at."""
    if not isinstance(values, dict):
        raise _Refused("is not a JSON object")
    model = values.get("model")
    if not isinstance(model, dict):
        raise _Refused("has no model")
    if model.get("type", "BPE") != "BPE":
        raise _Refused(f"has a model of type {_short(model['type'])}, not 'BPE'")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _Refused(f"asks for {key}, which vocabularies of the Gemma family do not have")
    growth = 1.0
    for part in _parts(values.get("normalizer"), "normalizers", "normalizer"):
        growth *= _growth(part)
        if growth > MOST_GROWTH:
            raise _Refused(f"has normalizers that lengthen a text more than {MOST_GROWTH} times")
    for part in _parts(values.get("pre_tokenizer"), "pretokenizers", "pre_tokenizer"):
        if part.get("type") not in PRE_TOKENIZERS:
            raise _Refused(f"has a pre_tokenizer {_short(part.get('type'))}, which is not known")
        if part.get("type") == "Split":
            _pattern(part, "pre_tokenizer")


def _check_ids(backend: Backend, values: Mapping[str, Any]) -> None:
    """Refuse a token whose id is another's: the library would give it a new one."""
    for token in values.get("added_tokens") or ():
        if backend.token_to_id(token["content"]) != token["id"]:
            raise _Refused(
                f"gives {_short(token['content'])} the id {token['id']}, which is another token's, "
                "or not the next one"
            )


def _parts(root: Any, inner: str, what: str) -> Iterator[dict[str, Any]]:
    """The single parts of a tree of sequences."""
    waiting, seen = [root] if root is not None else [], 0
    while waiting:
        part, seen = waiting.pop(), seen + 1
        if not isinstance(part, dict):
            raise _Refused(f"has a {what} that is not a JSON object")
        if seen + len(waiting) > MOST_PARTS:
            raise _Refused(f"has more than {MOST_PARTS} parts in its {what}")
        if part.get("type") != "Sequence":
            yield part
            continue
        listed = part.get(inner)
        if not isinstance(listed, list):
            raise _Refused(f"has a sequence without {inner}")
        waiting += listed[: MOST_PARTS + 1]


def _growth(part: Mapping[str, Any]) -> float:
    """How many times a normalizer may lengthen a text."""
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in NORMALIZERS:
        raise _Refused(f"has a normalizer {_short(kind)}, which is not known")
    if kind == "Prepend" and len(str(part.get("prepend"))) > MOST_PREFIX:
        raise _Refused(f"prepends more than {MOST_PREFIX} characters to every text")
    if kind != "Replace":
        return NORMALIZERS[kind]
    pattern = _pattern(part, "normalizer")
    return max(1.0, len(str(part.get("content")).encode()) / max(len(pattern.encode()), 1))


def _pattern(part: Mapping[str, Any], what: str) -> str:
    """The shortest text that a pattern matches; refused if matching it may not end."""
    pattern = part.get("pattern")
    found = pattern if isinstance(pattern, dict) else {}
    text, regex = found.get("String"), found.get("Regex")
    if isinstance(text, str) and text:
        return text
    if not isinstance(regex, str):
        raise _Refused(f"has a pattern in its {what} that is neither a text nor an expression")
    if len(regex) > MOST_PATTERN or not _LINEAR.fullmatch(regex):
        raise _Refused(
            f"has the pattern {_short(regex)} in its {what}; only characters and classes are let "
            "through, the last of an alternative perhaps with a +"
        )
    return regex[:1]


def _short(value: object) -> str:
    """A value in a message."""
    return repr(value)[:100]
