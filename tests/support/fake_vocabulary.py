"""Small vocabularies of the Gemma family: bytes, letters and the words that a test names."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Backend

from dgemma.text.lossless import SPACE
from dgemma.text.tokenizer import Tokenizer

NAMES = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|channel>", "<channel|>")
LETTERS = " /\n.,:;!?()[]_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789é"


def vocabulary(words: Iterable[str] = ()) -> Tokenizer:
    """A tokenizer that knows these words as single tokens, each built up from its left."""
    pieces = [*CONTROL, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [letter.replace(" ", SPACE) for letter in LETTERS]
    merges: list[tuple[str, str]] = []
    for word in (word.replace(" ", SPACE) for word in words):
        for size in range(2, len(word) + 1):
            if word[:size] not in pieces:
                pieces.append(word[:size])
                merges.append((word[: size - 1], word[size - 1]))
    vocab = {piece: number for number, piece in enumerate(pieces)}
    backend = Backend(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens([AddedToken(c, normalized=False, special=True) for c in CONTROL])
    return Tokenizer(backend, NAMES, "the tests' vocabulary")
