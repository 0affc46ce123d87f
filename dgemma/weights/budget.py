"""Makes plans of memory from a config and the headers of the files, before anything is read.

Knows what `load_weights` does with a tensor; knows nothing about how a network computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from dgemma.byte_sizes import in_gb
from dgemma.errors import InvalidRequest
from dgemma.model.cache import CacheDtypes
from dgemma.model.config import ModelConfig
from dgemma.model.layers import Linear
from dgemma.model.size import asked_dtypes, page_bytes, page_counts, peak, window_pages
from dgemma.quant.eight_bit import EIGHT_BIT, pack_eight_bit
from dgemma.quant.modules import PackedLinear, PackedModule
from dgemma.quant.offload import BUFFERS
from dgemma.types import PAGE
from dgemma.weights.files import Checkpoint
from dgemma.weights.load import MAP_FROM_BYTES, arrange
from dgemma.weights.names import pattern
from dgemma.weights.plan import ATTENTION, DENSE, EXPERTS, KINDS, Held, MemoryPlan
from dgemma.weights.source import DTYPES

CONTEXT = 8192
"""Tokens of a request that a budget must have room for, where nobody says."""
CHUNK = 1024
"""Prompt tokens of a forward: the engine's."""
UNPACKING = 14
"""Bytes a number while a matrix is unpacked: codes, scales and biases in fp32, and the result."""
FORMATS = {"fp8": 8.1, "int4": 4.63, "mxfp4": 4.25}
"""What `dgemma quantize` writes, and its bits a number, scales included."""


def held(
    model: nn.Module, checkpoint: Checkpoint, dtype: torch.dtype, device: str = "cpu"
) -> list[Held]:
    """How every tensor will lie in memory.

    Args:
        model: on the meta device; packed modules are in their places.
        dtype: of plain weights.

    Raises:
        CheckpointError: see `load_weights`.
    """
    source, found = checkpoint.source, []
    state = model.state_dict()
    for name, parts in arrange(model, checkpoint).items():
        known, layer = pattern(name)
        numbers, stored = state[name].numel(), [source.tensors[part] for part in parts]
        packed = all(one.format for one in stored)
        form = stored[0].format
        common = {"name": name, "kind": _kind(known), "layer": int(layer or -1), "numbers": numbers}
        owner = model.get_submodule(name.rpartition(".")[0])
        if packed and form is not None and isinstance(owner, PackedModule):
            if device == "cpu":
                owner.choose(torch.device(device), dtype, False, 0.0)
            like = [source.packed_like(part).fit(device) for part in parts]
            made = sum(map(owner.nbytes, like))
            sizes = [[part.nbytes for part in one.parts.values()] for one in like]
            whole = tuple(map(sum, zip(*sizes, strict=True)))
            view = len(parts) == 1 and sum(whole) <= stored[0].nbytes
            matrix = state[name].shape[-2:].numel()
            found.append(
                Held(
                    **common,
                    precision=owner.kernel.name if made else form.name,
                    parts=whole,
                    made=made,
                    unpacked=matrix,
                    view=view,
                )  # fmt: skip
            )
            continue
        plain = DTYPES.get(stored[0].dtype, torch.float32)
        becomes = dtype if plain.is_floating_point or form else plain
        view = len(parts) == 1 and form is None and plain == becomes
        precision = str(becomes).removeprefix("torch.")
        size = numbers * becomes.itemsize
        found.append(Held(**common, precision=precision, parts=(size,), view=view))
    return found


def _kind(name: str) -> str:
    """The kind of a tensor, by its name with `N` for the layer."""
    if name.startswith("embed."):
        return KINDS[3]
    if "norm" in name or "router" in name or "scalar" in name:
        return KINDS[5]
    words = {".experts.": EXPERTS, ".attention.": ATTENTION, ".mlp.": DENSE}
    return next((kind for word, kind in words.items() if word in name), KINDS[4])


def in_eight_bit(
    model: nn.Module, weights: Sequence[Held], dtype: torch.dtype, device: str = "cpu"
) -> dict[str, Held]:
    """The plain weights of attention and the dense MLP as they are in 8 bit, by their names."""
    out = {}
    for one in weights:
        owner = model.get_submodule(one.name.rpartition(".")[0])
        if one.kind in (ATTENTION, DENSE) and type(owner) is Linear:
            module = PackedLinear(owner, {"weight": EIGHT_BIT})
            if device == "cpu":
                module.choose(torch.device(device), dtype, False, 0.0)
            like = pack_eight_bit(owner.weight)
            made = module.nbytes(like)
            out[one.name] = replace(
                one, precision=module.kernel.name if made else EIGHT_BIT.name, made=made,
                parts=tuple(part.nbytes for part in like.parts.values()), unpacked=one.numbers,
                view=False,
            )  # fmt: skip
    return out


def make_plan(
    model: nn.Module, checkpoint: Checkpoint, dtype: torch.dtype, *, device: str = "cpu",
    budget: int | None = None, context: int | None = None, requests: int = 1,
    cache_bytes: int | None = None, running: int = 32, streams: bool | None = None,
    cache_dtype: str = "auto",
) -> MemoryPlan:  # fmt: skip
    """Find the first of these that fits a budget.

    1. Every weight on the device as the files have it.
    2. Plain weights of attention and the dense MLP packed in 8 bit.
    3. Also the experts of some layers away, as few as possible.

    What the budget leaves over is for keys and values.

    Args:
        model, dtype: see `held`.
        device: its type.
        context, requests: tokens of a request and requests at once that it must have room for.
        cache_bytes: for keys and values, in place of these two.
        running: most requests that the engine works on.
        streams: whether experts can be copied from the host; None: on CUDA.
        cache_dtype: see `choose_cache`.

    Raises:
        InvalidRequest: nothing fits; it names what is needed, and the file that would fit.
        CheckpointError: see `load_weights`.
    """
    config = checkpoint.config
    most = config.max_position_embeddings
    context = min(context or CONTEXT, most)
    cached = asked_dtypes(dtype, cache_dtype)
    least = (
        cache_bytes if cache_bytes is not None else _least_cache(config, cached, context, requests)
    )
    weights = held(model, checkpoint, dtype, device)
    prompt = max(1, context - config.canvas_length)
    run = peak(config, dtype, prompt, requests, CHUNK, cache_dtype=cache_dtype)
    plan = MemoryPlan(
        device=device, budget=budget, held=tuple(weights), context=context, requests=requests,
        mapped=device == "cpu" and checkpoint.nbytes >= MAP_FROM_BYTES,
        work=run.work + _unpacking(weights),
        cache=_reserved(config, cached, least, running), cache_bytes=cache_bytes,
    )  # fmt: skip
    if budget is None:
        return plan
    eight = in_eight_bit(model, weights, dtype, device)
    smaller = [eight.get(one.name, one) for one in weights]
    packed = replace(
        plan, held=tuple(smaller), eight_bit=frozenset(eight),
        work=plan.work - _unpacking(weights) + _unpacking(smaller),
    )  # fmt: skip
    tries = [plan, packed, *_away(packed, device == "cuda" if streams is None else streams)]
    fits = next((one for one in tries if one.total <= budget), None)
    if fits is None:
        raise InvalidRequest(_too_small(checkpoint, tries))
    if cache_bytes is not None:
        return fits
    more = least + budget - fits.total
    return replace(fits, cache_bytes=more, cache=_reserved(config, cached, more, running))


def _away(plan: MemoryPlan, streams: bool) -> list[MemoryPlan]:
    """With the experts of ever more layers away, spread evenly, so that copies never crowd."""
    can = sorted({one.layer for one in plan.held if one.kind == EXPERTS})
    if plan.device == "cpu" and not streams:  # they stay in the file, if that has them as they are
        fixed = {one.layer for one in plan.held if one.kind == EXPERTS and not one.view}
        can, first = [layer for layer in can if layer not in fixed], 1
        plan = replace(plan, mapped=True)
    else:
        first = BUFFERS + 1  # fewer take more room in buffers than they leave
        can = can if streams else []
        plan = replace(plan, streams=streams)
    plans = []
    for count in range(first, len(can) + 1):
        chosen = tuple(can[(2 * i + 1) * len(can) // (2 * count)] for i in range(count))
        plans.append(replace(plan, away=chosen))
    return plans


def _least_cache(config: ModelConfig, dtypes: CacheDtypes, context: int, requests: int) -> int:
    """What `context` tokens of each request take."""
    one, window = page_bytes(config, dtypes), window_pages(config, CHUNK)
    pages = max(window, -(-context // PAGE))
    return requests * (pages * one["full_attention"] + window * one["sliding_attention"])


def _reserved(config: ModelConfig, dtypes: CacheDtypes, budget: int, running: int) -> int:
    """What the engine takes when it is told so many bytes: whole pages, and one that fills up."""
    one = page_bytes(config, dtypes)
    full, sliding = page_counts(config, dtypes, budget, running, CHUNK)
    return (full + 1) * one["full_attention"] + (sliding + 1) * one["sliding_attention"]


def _unpacking(weights: Sequence[Held]) -> int:
    return UNPACKING * max((one.unpacked for one in weights), default=0)


def _too_small(checkpoint: Checkpoint, tries: Sequence[MemoryPlan]) -> str:
    """What is needed, rung by rung, and what would fit."""
    plan, packed, *away = tries
    budget = plan.budget or 0
    said = (
        f"{checkpoint.path} does not fit a memory of {in_gb(budget)}: it takes "
        f"{in_gb(plan.total)} with a context of {plan.context:,}"
    )
    if packed.eight_bit:
        said += f", {in_gb(packed.total)} with attention and dense MLP in 8 bit"
    if away:
        where = "in the file" if plan.device == "cpu" else "in the host's memory"
        said += f", {in_gb(min(one.total for one in away))} with all experts {where}"
    return f"{said}; {_advice(packed) or 'give it more memory, or a shorter context'}"


def _advice(plan: MemoryPlan) -> str:
    """What would fit without anything away, in words; "" if nothing is known."""
    base = replace(plan, away=())
    experts = [one for one in plan.held if one.kind == EXPERTS]
    now, numbers = sum(one.nbytes for one in experts), sum(one.numbers for one in experts)
    for name, bits in FORMATS.items():
        size = int(numbers * bits / 8)
        if size < now and base.total - now + size <= (plan.budget or 0):
            return (
                f"its experts in {name} would fit: `dgemma quantize MODEL OUT --format {name}` "
                "writes such a file"
            )
    return ""
