"""Gemma's own layout ("gemma" in transformers): integers with a scale a row.

Source: transformers' `gemma_quant` and its config.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dgemma.errors import CheckpointError
from dgemma.quant.integers import Integers
from dgemma.quant.packed import Packed
from dgemma.weights.packed import Group, Read
from dgemma.weights.schemes.parts import FLOATS, Stored, activations, beside, matrix_shape, need

TABLE = ".embedding_quantized"


def read_scheme(config: Mapping[str, Any], tensors: Stored, read: Read) -> dict[str, Group]:
    """See `Scheme`. Activations are not rounded here, whatever their scales."""
    groups = {}
    for name, info in tensors.items():
        if info.dtype not in ("U8", "I8") or not name.endswith((".weight", TABLE)):
            continue
        module = name.removesuffix(TABLE).removesuffix(".weight")
        word = "embedding_scale" if name.endswith(TABLE) else "weight_scale"
        bits = _bits(config, module) if info.dtype == "U8" else 8
        groups[f"{module}.weight"] = _group(tensors, f"{module}.weight", name, word, bits)
    return groups


def _group(tensors: Stored, plain: str, codes: str, word: str, bits: int) -> Group:
    *lead, rows, width = matrix_shape(tensors, codes)
    columns, scale = width * 8 // bits, beside(plain, word)
    need(tensors, scale, codes, FLOATS, [(*lead, rows, 1)])
    form = Integers(bits, 0, 0 if bits == 8 else 1 << (bits - 1))

    def build(read: Read) -> Packed:
        parts = {"codes": read(codes), "scale": read(scale).view(*lead, rows, 1)}
        return Packed(form, columns, parts)

    stored = (codes, scale, *activations(tensors, plain))
    return Group(form, (*lead, rows, columns), stored, build)


def _bits(config: Mapping[str, Any], module: str) -> int:
    """Of codes in bytes: the config's, or those of the first pattern that is in the name."""
    own = config.get("module_quant_configs")
    found: object = config.get("num_bits")
    for pattern, rule in own.items() if isinstance(own, dict) else ():
        if isinstance(rule, dict) and _in(pattern, module):
            found = rule.get("num_bits", found)
            break
    if found not in (2, 4):
        raise CheckpointError(
            f"{module} is packed in bytes, and the config says {str(found)[:40]} bits; 2 and 4 are "
            "read: restore config.json, or take the BF16 checkpoint"
        )
    assert isinstance(found, int)
    return found


def _in(pattern: str, module: str) -> bool:
    """Whether a pattern is anywhere in a name; one that could take for ever is nowhere."""
    if len(pattern) > 1000 or sum(pattern.count(sign) for sign in "*+{") > 4:
        return False
    try:
        return not re.search(r"\)[*+{]", pattern) and re.search(pattern, module) is not None
    except (re.error, RecursionError, OverflowError):
        return False
