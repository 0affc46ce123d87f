"""Whether a tokenizer keeps all of a text. Only then its length says something about its tokens.

Source: the states of the parts of a tokenizer.json, as `tokenizers` 0.23 gives them.
"""

from __future__ import annotations

import json

from tokenizers import Tokenizer as Backend

SPACE = "\u2581"
"""How the vocabulary writes a space."""


def keeps_all(backend: Backend, special: frozenset[int]) -> bool:
    """Whether the tokens of a text stand for all of it: nothing is left out, nothing joined."""
    states = [
        None if part is None else json.loads(part.__getstate__())
        for part in (backend.normalizer, backend.pre_tokenizer)
    ]
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    splits = states[1] is None or (
        states[1]["type"] == "Split" and states[1]["behavior"] != "Removed"
    )
    others = (t for i, t in backend.get_added_tokens_decoder().items() if i not in special)
    swallows = any(token.lstrip or token.rstrip for token in others)
    falls_back = getattr(backend.model, "byte_fallback", False)
    return states[0] in (None, spaces) and splits and bool(falls_back) and not swallows
