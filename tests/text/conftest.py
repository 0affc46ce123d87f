"""Fixtures of the tokenizers and templates that these tests read."""

from tests.support.tokenizers import (
    conversation,
    diffusion_source,
    diffusion_template,
    gemma,
    gemma_source,
    gemma_template,
    nano,
    nano_directory,
    nano_template,
    open_template,
    released,
    tokenizer,
    vectors,
    vocab_file,
)

__all__ = [
    "conversation", "diffusion_source", "diffusion_template", "gemma", "gemma_source",
    "gemma_template", "nano", "nano_directory", "nano_template", "open_template", "released",
    "tokenizer", "vectors", "vocab_file",
]  # fmt: skip
