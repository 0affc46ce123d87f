"""Tokenizer and chat template of a GGUF file that has none, or others."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgemma.errors import TemplateError, TokenizerError
from dgemma.frontend import read_text_files
from dgemma.text.chat import ChatTemplate
from dgemma.text.tokenizer import Tokenizer
from tests.support.gguf_files import Key, gguf


@pytest.mark.fault("Q 21")
def test_other_vocabularies(tmp_path: Path) -> None:
    """A vocabulary that we would cut up wrongly is refused; a broken one names its fault."""
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf({"tokenizer.ggml.model": Key("text", "llama")}))
    with pytest.raises(TokenizerError, match=r"'llama' is not 'gemma4'; use tokenizer\.json"):
        Tokenizer.from_gguf(path)
    path.write_bytes(gguf({"tokenizer.ggml.model": Key("text", "gemma4")}))
    with pytest.raises(TokenizerError, match=r"broken vocabulary.*tokenizer\.ggml\.tokens"):
        Tokenizer.from_gguf(path)


def test_no_text(tmp_path: Path, nano: Tokenizer) -> None:
    """A file without a vocabulary is prompted with ids, as a directory is."""
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf({}))
    assert read_text_files(path) == (None, None)
    with pytest.raises(TemplateError, match="no chat template; prompt with plain text"):
        ChatTemplate.from_gguf(path, nano)
    path.write_bytes(b"GGUF")
    with pytest.raises(TokenizerError, match="broken GGUF header"):
        Tokenizer.from_gguf(path)
    with pytest.raises(TemplateError, match="broken GGUF header"):
        ChatTemplate.from_gguf(path, nano)
