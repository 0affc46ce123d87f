"""Which tensors of packed checkpoints belong together: one file for each quantiser's layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dgemma.errors import CheckpointError
from dgemma.weights.packed import PackedSource, Scheme
from dgemma.weights.schemes import compressed_tensors
from dgemma.weights.source import TensorSource, few

SCHEMES: dict[str, Scheme] = {"compressed-tensors": compressed_tensors.read_scheme}
"""By the config's `quant_method`; MLX, which has none, is "mlx"."""


def read_packed(source: TensorSource, extra: Mapping[str, Any]) -> TensorSource:
    """The source of a checkpoint, its packed tensors joined.

    Args:
        extra: what config.json holds beside the sizes.

    Raises:
        CheckpointError: an unknown layout, or one that the tensors do not follow.
    """
    for key in ("quantization_config", "quantization"):
        config = extra.get(key)
        if not config:
            continue
        method = str(config.get("quant_method", "mlx" if "bits" in config else "packed"))
        if method not in SCHEMES:
            raise CheckpointError(
                f"{source.path} holds {few([method])} weights, which are not supported; these are: "
                f"{', '.join(sorted(SCHEMES))}, or take the BF16 checkpoint"
            )
        return PackedSource(source, SCHEMES[method](config, source.tensors))
    return source
