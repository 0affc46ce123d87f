"""Fixtures of the tokenizers and templates that these tests read."""

from tests.support.tokenizers import (
    conversation,
    gemma,
    gemma_source,
    gemma_template,
    nano,
    nano_directory,
    nano_template,
    tokenizer,
    vectors,
    vocab_file,
)

__all__ = [
    "conversation", "gemma", "gemma_source", "gemma_template", "nano", "nano_directory",
    "nano_template", "tokenizer", "vectors", "vocab_file",
]  # fmt: skip
