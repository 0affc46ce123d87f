"""The bytes of each id of a vocabulary of the Gemma family."""

from __future__ import annotations

from tokenizers import Tokenizer as Backend

from dgemma.errors import TokenizerError
from dgemma.text.lossless import SPACE

REMEDY = "take the tokenizer files from the model's own page"


def byte_table(backend: Backend, special: frozenset[int], size: int, source: str) -> list[bytes]:
    """The bytes of every id; none for special ones.

    Raises:
        TokenizerError: `source` has ids that are missing, or two tokens with one id.
    """
    table = [b""] * size
    vocab: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    if len(set(vocab.values())) < len(vocab):
        first: dict[int, str] = {}
        for token, token_id in vocab.items():
            if first.setdefault(token_id, token) != token:
                raise TokenizerError(
                    f"{source}: {token[:99]!r} and {first[token_id][:99]!r} have one id, "
                    f"{token_id}; {REMEDY}"
                )
    if max(vocab.values(), default=-1) >= size:
        raise TokenizerError(f"{source}: ids have gaps; {REMEDY}")
    for token, token_id in vocab.items():
        table[token_id] = token.replace(SPACE, " ").encode("utf-8", "replace")
    missing = 0
    for byte in range(256):
        found = vocab.get(f"<0x{byte:02X}>")
        if found is None:
            missing += 1
        else:
            table[found] = bytes((byte,))
    if missing:
        raise TokenizerError(
            f"{source}: {missing} of the 256 byte tokens <0x00>..<0xFF> are missing; only "
            "vocabularies of the Gemma family are supported"
        )
    for token_id in special:
        table[token_id] = b""
    return table
