"""What all vocabularies of the Gemma family share: their kind of BPE, and how control tokens look.

Source: the tokenizer of Gemma 4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Backend

from dgemma.text.lossless import SPACE

CONTROL_FORM = re.compile(r"<\|[^<>]+\|?>|<[^<>|]+\|>")


def gemma_backend(
    vocab: dict[str, int], merges: list[tuple[str, str]], control: Iterable[str]
) -> Backend:
    """A BPE of the Gemma family; `control` are the names of its control tokens."""
    backend = Backend(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    return backend
