"""The part of a canvas that a request fixes: its start, the ids allowed where, the scores reported.

Turns plain values (`SamplingParams`, `CanvasControl`, what a grammar leaves open) into the first
`Canvas` and the `Controls` of its rows. Knows nothing about networks, engines or text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgemma.diffusion.canvas import Canvas, CanvasSpec
from dgemma.diffusion.random import Purpose, stream_keys, uniforms
from dgemma.diffusion.sampler import start
from dgemma.diffusion.schedule import Schedule
from dgemma.errors import InvalidRequest
from dgemma.kernels.controls import WORD, Bias, Controls, Filters, Masks
from dgemma.params import SamplingParams
from dgemma.types import CanvasControl

Bitset = NDArray[np.int32]
"""[ceil(V / 32)]: bit j of word w stands for id 32 w + j."""


@dataclass(frozen=True, slots=True, eq=False)
class CanvasPrefix:
    """The demands of a grammar on a canvas before its first step.

    Attributes:
        pins: ids that must stand at the first positions.
        first: the ids that may follow them; None: any.
        alphabet: the ids that may stand anywhere after them; None: any.
    """

    pins: tuple[int, ...] = ()
    first: Bitset | None = None
    alphabet: Bitset | None = None


EMPTY_PREFIX = CanvasPrefix()


def check_control(control: CanvasControl, spec: CanvasSpec) -> None:
    """Refuse what does not fit the model.

    Raises:
        InvalidRequest: more positions than the canvas has, or an id outside the vocabulary.
    """
    for what, count in (("ids", len(control.ids)), ("masks", len(control.masks)),
                        ("bias", max((p + 1 for p, _, _ in control.bias), default=0))):  # fmt: skip
        if count > spec.length:
            raise InvalidRequest(
                f"the canvas control has {what} for {count} positions, but the canvas has "
                f"{spec.length}; give fewer or a wider canvas_length",
                field=what,
            )
    _inside([i for i in control.ids if i != -1], spec, "ids")
    _inside([i for _, i, _ in control.bias], spec, "bias")


def controls_for(
    params: SamplingParams, spec: CanvasSpec, control: CanvasControl | None, answered: int,
    prefix: CanvasPrefix = EMPTY_PREFIX, shown: int = 0,
) -> Controls:  # fmt: skip
    """The controls of one canvas, for its C rows.

    Args:
        control: of this very canvas: None for all but the first of a request.
        answered: tokens of the answer before this canvas.
        prefix: the demands of the answer's grammar.
        shown: how many of the likeliest ids a frame has for each position.

    Raises:
        InvalidRequest: an id outside the vocabulary, or a position where nothing is allowed.
    """
    pins = [-1] * spec.length
    pins[: len(prefix.pins)] = prefix.pins[: spec.length]
    for position in control.pinned if control else ():
        pins[position] = control.ids[position] if control else -1
    if params.allowed_token_ids is not None:
        known = {*params.allowed_token_ids, *spec.end_ids, spec.pad_id, -1}
        if wrong := [i for i in pins if i not in known]:
            raise InvalidRequest(
                f"id {wrong[0]} is pinned but not among allowed_token_ids; drop one of the two",
                field="allowed_token_ids",
            )
    device = spec.device
    asked = params.logprob_token_ids
    if asked is not None:
        _inside(asked, spec, "logprob_token_ids")
    scores = None if asked is None else torch.tensor(asked, device=device).repeat(spec.length, 1)
    held = torch.tensor(pins, device=device) if max(pins) >= 0 else None
    wanted = params.logprobs is not None or asked is not None
    wanted = wanted or (control is not None and control.read_only)
    if wanted and held is not None:  # pinned ids are scored like the rest
        column = held.clamp(min=0)[:, None]
        scores = column if scores is None else torch.cat((scores, column), 1)
    return Controls(
        bias=_bias(params, spec, control),
        masks=_masks(params, spec, control, answered, prefix, pins),
        filters=_filters(params, spec),
        pinned=held,
        logprobs=wanted,
        alternatives=max(params.logprobs or 0, shown),
        score_ids=scores,
    )


def begin(
    seed: int, index: int, spec: CanvasSpec, schedule: Schedule, controls: Controls,
    control: CanvasControl | None = None, attempt: int = 0,
) -> Canvas:  # fmt: skip
    """A try of a canvas before its first step: noise, and the given ids in its place.

    A given id that is not pinned gives way to noise with probability `strength`; the schedule
    begins where that share of its steps is left.
    """
    canvas = start(seed, index, spec, controls, attempt)
    ids, step = canvas.ids, 0
    if control is not None and any(i >= 0 for i in control.ids):
        given = torch.full_like(ids, -1)
        given[: len(control.ids)] = torch.tensor(control.ids, device=ids.device)
        keys = stream_keys([seed], [index], [0], Purpose.SEED, spec.device, [attempt])
        kept = uniforms(keys, spec.length)[0] >= control.strength
        ids = torch.where((given >= 0) & kept, given, ids)
        if len(control.pinned) < sum(i >= 0 for i in control.ids):
            done = round((1 - control.strength) * schedule.max_steps)
            step = min(done, schedule.max_steps - 1)
    if controls.pinned is not None:
        ids = torch.where(controls.pinned >= 0, controls.pinned, ids)
    return replace(canvas, ids=ids, step=step, begun=step)


def _inside(ids: Sequence[int], spec: CanvasSpec, name: str) -> None:
    wrong = next((i for i in ids if not 0 <= i < spec.vocab_size), None)
    if wrong is not None:
        raise InvalidRequest(
            f"{name}: id {wrong} is outside the vocabulary of {spec.vocab_size}", field=name
        )


def _bias(params: SamplingParams, spec: CanvasSpec, control: CanvasControl | None) -> Bias | None:
    entries = list(control.bias) if control else []
    if params.logit_bias:
        _inside(list(params.logit_bias), spec, "logit_bias")
        entries += [(p, i, v) for p in range(spec.length) for i, v in params.logit_bias.items()]
    if not entries:
        return None
    rows, ids, values = zip(*entries, strict=True)
    device = spec.device
    return Bias(
        torch.tensor(rows, device=device), torch.tensor(ids, device=device),
        torch.tensor(values, dtype=torch.float32, device=device),
    )  # fmt: skip


def _filters(params: SamplingParams, spec: CanvasSpec) -> Filters | None:
    top_k, top_p, min_p = params.top_k or 0, params.top_p or 1.0, params.min_p or 0.0
    if not top_k and top_p == 1.0 and not min_p:
        return None
    size, device = (spec.length,), spec.device
    return Filters(
        torch.full(size, top_k, device=device), torch.full(size, top_p, device=device),
        torch.full(size, min_p, device=device),
    )  # fmt: skip


def _masks(
    params: SamplingParams, spec: CanvasSpec, control: CanvasControl | None, answered: int,
    prefix: CanvasPrefix, pins: Sequence[int],
) -> Masks | None:  # fmt: skip
    """Everything that bars ids, as one table: positions under the same bars share a row."""
    size = spec.vocab_size
    layers: list[tuple[list[Bitset], list[int]]] = []  # bitsets, and which holds where
    if control is not None and control.masks:
        index = [*control.masks, *[-1] * (spec.length - len(control.masks))]
        layers.append(([bitset(ids, size) for ids in control.allowed], index))
    if params.allowed_token_ids is not None:
        _inside(params.allowed_token_ids, spec, "allowed_token_ids")
        ids = (*params.allowed_token_ids, *spec.end_ids, spec.pad_id)
        layers.append(([bitset(tuple(ids), size)], [0] * spec.length))
    early = min(spec.length, max(0, (params.min_tokens or 0) - answered))
    if early:
        bars = ~bitset(spec.end_ids, size)
        layers.append(([bars], [0] * early + [-1] * (spec.length - early)))
    if prefix.alphabet is not None:
        ends = bitset((*spec.end_ids, spec.pad_id), size)  # an answer may end anywhere
        layers.append(([prefix.alphabet | ends], [0] * spec.length))
    if prefix.first is not None and len(prefix.pins) < spec.length:
        only = [0 if p == len(prefix.pins) else -1 for p in range(spec.length)]
        layers.append(([prefix.first], only))
    if not layers:
        return None
    table: dict[tuple[int, ...], int] = {}
    rows, index = list[Bitset](), list[int]()
    for position in range(spec.length):
        key = tuple(held[position] for _, held in layers)
        if pins[position] >= 0 or max(key) < 0:
            index.append(-1)
            continue
        if key not in table:
            chosen = [sets[k] for k, (sets, _) in zip(key, layers, strict=True) if k >= 0]
            allowed = np.bitwise_and.reduce(chosen)
            if not allowed.any():
                raise InvalidRequest(f"the controls leave no token for position {position}")
            table[key] = len(rows)
            rows.append(allowed)
        index.append(table[key])
    if not rows:
        return None
    device = spec.device
    return Masks(
        torch.from_numpy(np.stack(rows)).to(device), torch.tensor(index, device=device)
    )  # fmt: skip


@lru_cache(maxsize=64)
def bitset(ids: tuple[int, ...], size: int) -> Bitset:
    """The bitset of some ids below `size`.

    Raises:
        InvalidRequest: an id outside the vocabulary.
    """
    chosen = np.unique(np.asarray(ids, dtype=np.int64))
    if len(chosen) and not 0 <= chosen[0] <= chosen[-1] < size:
        raise InvalidRequest(
            f"an allowed id is outside the vocabulary of {size}", field="allowed_token_ids"
        )
    words = -(-size // WORD)
    bits = np.zeros(words * WORD, dtype=np.uint8)
    bits[chosen] = 1
    packed = np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)
    return packed.view(np.int32)


def is_set(words: Bitset, token: int) -> bool:
    """Whether a bitset holds an id."""
    return bool(int(words[token // WORD]) >> (token % WORD) & 1)


def barred(logits: Tensor, words: Bitset) -> Tensor:
    """fp32 [V] logits with -inf for every id that the bitset does not hold."""
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[: len(logits)]
    held = torch.from_numpy(bits.astype(bool)).to(logits.device)
    return logits.masked_fill(~held, -torch.inf)
