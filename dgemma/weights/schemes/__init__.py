"""Which tensors of packed checkpoints belong together: one file for each quantiser's layout."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from dgemma.errors import CheckpointError
from dgemma.weights.names import copy_of, to_ours
from dgemma.weights.packed import Group, PackedSource, Scheme
from dgemma.weights.schemes import (
    bitsandbytes,
    compressed_tensors,
    fbgemm,
    fp8,
    gemma,
    mlx,
    modelopt,
    qweight,
)
from dgemma.weights.schemes.matching import matches
from dgemma.weights.schemes.parts import ACTIVATIONS, CACHE, is_scale
from dgemma.weights.source import TensorSource, few

logger = logging.getLogger("dgemma")

SCHEMES: dict[str, Scheme] = {
    "compressed-tensors": compressed_tensors.read_scheme,
    "fp8": fp8.read_scheme,
    "modelopt": modelopt.read_scheme,
    "mlx": mlx.read_scheme,
    "fbgemm_fp8": fbgemm.read_scheme,
    "gptq": qweight.read_gptq,
    "awq": qweight.read_awq,
    "auto-round": qweight.read_auto_round,
    "intel/auto-round": qweight.read_auto_round,
    "bitsandbytes": bitsandbytes.read_scheme,
    "gemma": gemma.read_scheme,
}
"""By the config's `quant_method`; MLX, which has none, is "mlx"."""

QUANT_CONFIG = "hf_quant_config.json"
"""Where modelopt writes what it did, in place of config.json or beside it."""
MOST_NAME = 1000
"""Characters of a tensor's name, which messages repeat."""
IGNORED = ("ignore", "ignored_layers", "modules_to_not_convert", "exclude_modules")


def read_packed(
    source: TensorSource, extra: Mapping[str, Any], own: Mapping[str, Any] | None = None
) -> TensorSource:
    """The source of a checkpoint, its packed tensors joined.

    What the files hold decides: a module that the config's lists leave out but that is packed is
    unpacked, and one that they name but that is plain is plain. Only a scale without a packed
    weight is refused.

    Args:
        extra: what config.json holds beside the sizes.
        own: what hf_quant_config.json holds.

    Raises:
        CheckpointError: an unknown layout, or one that the tensors do not follow.
    """
    config = _config(extra, own or {})
    if config is None:
        return source
    if long := [name for name in source.tensors if len(name) > MOST_NAME]:
        raise CheckpointError(
            f"{source.path} holds {few(long)}, which is not the name of a weight; take the files "
            "again"
        )
    method = str(
        config.get("quant_method", "mlx" if config.keys() & {"bits", "mode"} else "packed")
    )
    if method == "torchao":
        raise CheckpointError(
            f"{source.path} holds torchao weights, which are pickled objects and never read; take "
            "the BF16 checkpoint, or one that is packed for compressed-tensors"
        )
    if method not in SCHEMES:
        raise CheckpointError(
            f"{source.path} holds {few([method])} weights, which are not supported; these are: "
            f"{', '.join(sorted(SCHEMES))}, or take the BF16 checkpoint"
        )
    groups = SCHEMES[method](config, source.tensors, source.read)
    cache = frozenset(name for name in source.tensors if name.endswith(CACHE))
    _check_scales(source, config, groups, cache)
    if not groups:
        raise CheckpointError(
            f"the config of {source.path} says that its weights are packed ({few([method])}), but "
            "none is; take quantization_config out of it, or the files that belong to it"
        )
    _tell(config, method, groups, len(cache))
    return PackedSource(source, groups, cache)


def _config(extra: Mapping[str, Any], own: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the quantiser wrote, wherever it did."""
    for key in ("quantization_config", "quantization"):
        if extra.get(key):
            config: Mapping[str, Any] = extra[key]
            return config
    inner = own.get("quantization")
    if not isinstance(inner, dict) or not inner.get("quant_algo"):
        return None
    return {"quant_method": "modelopt", **inner}


def _check_scales(
    source: TensorSource, config: Mapping[str, Any], groups: Mapping[str, Group],
    aside: frozenset[str],
) -> None:  # fmt: skip
    """Refuse scales and the like that no weight uses: what they mean would be lost."""
    used = {name for group in groups.values() for name in group.stored} | aside
    left = [
        name for name in source.tensors
        if name not in used and is_scale(name) and not (to_ours(name) or copy_of(name))
    ]  # fmt: skip
    if not left:
        return
    lists = [config.get(key) for key in IGNORED]
    entries = [e for found in lists if isinstance(found, list) for e in found if isinstance(e, str)]
    module = left[0].rpartition(".")[0]
    ignored = any(matches(entry, module) for entry in entries if entry)
    reason = f"; the config says that {module[:200]} is not packed" if ignored else ""
    raise CheckpointError(
        f"{source.path}: no packed weight uses {few(left)}{reason}; restore the files, or take the "
        "BF16 checkpoint"
    )


def _tell(config: Mapping[str, Any], method: str, groups: Mapping[str, Group], cache: int) -> None:
    """Say what was found, and what of it has no effect here."""
    kinds = Counter(group.format.name for group in groups.values())
    stored = (name for group in groups.values() for name in group.stored)
    unused = [
        (sum(name.endswith(ACTIVATIONS) for name in stored), "scales of activations"),
        (cache, "scales of keys and values"),
        (1 if config.get("kv_cache_scheme") or config.get("kv_cache_quant_algo") else 0,
         "rule for an 8-bit cache"),
    ]  # fmt: skip
    said = ", ".join(f"{count} {what}" for count, what in unused if count)
    logger.info(
        "%s: %s%s", method, ", ".join(f"{n} weights {kind}" for kind, n in kinds.items()),
        f"; {said} not used: activations, keys and values are not packed" if said else "",
    )  # fmt: skip
