"""The text side of a GGUF file: its vocabulary and its chat template.

Source: `tokenizer.*` of the GGUF specification, as llama.cpp writes them for Gemma 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from dgemma.errors import TemplateError, TokenizerError
from dgemma.files.gguf import GgufError, GgufFile, split_files
from dgemma.text.gemma_backend import CONTROL_FORM, gemma_backend

_MODEL = "tokenizer.ggml.model"
_CONTROL, _USER_DEFINED = 3, 4
_NAMES = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}


def has_vocabulary(path: str | Path) -> bool:
    """Whether there is one.

    Raises:
        TokenizerError: it is no GGUF file, or a damaged one.
    """
    return _MODEL in _opened(path)


def read_vocabulary(path: str | Path) -> tuple[Backend, dict[str, str]]:
    """The vocabulary, and the texts of its named tokens; weights in the file are not looked at.

    Raises:
        TokenizerError: no GGUF file, or its vocabulary is not one of Gemma 4.
    """
    metadata = _opened(path)
    kind = metadata.get(_MODEL)
    if kind != "gemma4":
        raise TokenizerError(f"{path}: vocabulary {kind!r} is not 'gemma4'; use tokenizer.json")
    try:
        tokens: list[str] = metadata["tokenizer.ggml.tokens"]
        ids = {key: metadata[f"tokenizer.ggml.{name}_token_id"] for key, name in _NAMES.items()}
        return _backend(tokens, metadata), {key: tokens[i] for key, i in ids.items()}
    except Exception as error:  # the library raises nothing narrower
        text = f"{path}: broken vocabulary ({type(error).__name__}: {error})"
        raise TokenizerError(f"{text}; download the file again") from error


def read_template(path: str | Path) -> str | None:
    """The chat template; None if there is none.

    Raises:
        TemplateError: it is no GGUF file, or a damaged one.
    """
    try:
        source = _opened(path).get("tokenizer.chat_template")
    except TokenizerError as error:
        raise TemplateError(str(error)) from error
    return source if isinstance(source, str) else None


def _opened(path: str | Path) -> GgufFile:
    """The file, of several splits the first."""
    try:
        return GgufFile(split_files(path)[0])
    except GgufError as error:
        raise TokenizerError(str(error)) from error


def _backend(tokens: list[str], metadata: Mapping[str, Any]) -> Backend:
    """Some files call control tokens normal ones, so their spelling counts, too."""
    types: list[int] = metadata["tokenizer.ggml.token_type"]
    merges = [merge.partition(" ")[::2] for merge in metadata["tokenizer.ggml.merges"]]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    control = [
        token
        for token, kind in zip(tokens, types, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
        or (token.startswith("<") and CONTROL_FORM.fullmatch(token))
    ]
    return gemma_backend(vocab, merges, control)
