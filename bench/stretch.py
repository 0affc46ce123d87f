"""The loaded model with other layers or a narrower canvas; weights are shared, not copied."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from dgemma.errors import InvalidRequest
from dgemma.llm import LLM
from dgemma.model.config import LayerType


def stacked(llm: LLM, layer_types: Sequence[LayerType]) -> LLM:
    """The model with other layers: those of its own, each as often as asked for, weights shared.

    Raises:
        InvalidRequest: it has no layer of a kind.
    """
    have = dict(zip(llm.config.layer_types, llm.model.layers, strict=True))  # the last of each
    model = copy.copy(llm.model)
    model._modules = dict(llm.model._modules)
    layers = []
    for number, kind in enumerate(layer_types):
        if kind not in have:
            raise InvalidRequest(f"the model has no {kind} layer to be repeated")
        layer = copy.copy(have[kind])
        attention: Any = copy.copy(layer.attention)
        attention.layer = number
        layer._modules = {**layer._modules, "attention": attention}
        layers.append(layer)
    model.layers = nn.ModuleList(layers)
    model.config = replace(llm.config, layer_types=tuple(layer_types))
    return _with_model(llm, model)


def narrowed(llm: LLM, canvas: int) -> LLM:
    """The model with canvases of another length.

    Raises:
        InvalidRequest: it is not positive, or wider than the context.
    """
    if not 1 <= canvas < llm.config.max_position_embeddings:
        raise InvalidRequest(f"a canvas of {canvas} tokens: the model has no room for it")
    model = copy.copy(llm.model)
    model.config = replace(llm.config, canvas_length=canvas)
    return _with_model(llm, model)


def _with_model(llm: LLM, model: Any) -> LLM:
    checkpoint = replace(llm.checkpoint, config=model.config)
    return LLM(model, checkpoint, llm.choice, llm.tokenizer, llm.template)
