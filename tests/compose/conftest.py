"""Vocabularies that the tests of the compose room share."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgemma.text.tokenizer import Tokenizer
from tests.support.fake_vocabulary import vocabulary

NANO = Path(__file__).parents[2] / "dgemma" / "assets" / "nano"
WORDS = (" Mira", " the", "then", "there", " jumps", "()", "):", "\n    ", "éé", "123", "://", " A")


@pytest.fixture(scope="session")
def wordy() -> Tokenizer:
    """A vocabulary in which words go on over nearly every border."""
    return vocabulary(WORDS)


@pytest.fixture(scope="session")
def tokenizers(wordy: Tokenizer) -> list[Tokenizer]:
    """Letters alone, words, and the bundled model's."""
    return [vocabulary(), wordy, Tokenizer.from_directory(NANO)]
