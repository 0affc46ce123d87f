"""The layouts whose codes are called `qweight`: GPTQ, AWQ and AutoRound, matrices written turned.

They are turned back and packed again at load, once, so that each row has its own codes.
Source: their configs, headers, and packing rules; checked against the packages, see the log.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dgemma.errors import CheckpointError
from dgemma.quant.affine import bit_stream
from dgemma.quant.integers import Integers
from dgemma.quant.packed import Packed
from dgemma.weights.packed import Group, Read
from dgemma.weights.schemes.matching import matches
from dgemma.weights.schemes.parts import (
    FLOATS,
    Stored,
    as_bytes,
    group_order,
    need,
)

BITS = {"gptq": (2, 3, 4, 8), "gptq_v2": (2, 3, 4, 8), "awq": (4,)}
"""GPTQModel has another order for 5, 6 and 7; AutoRound has not."""
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which nibble of a word holds each of its eight columns."""
AUTO_ROUND = {
    "auto_round:auto_gptq": "gptq", "auto_round:gptq": "gptq", "auto_gptq": "gptq",
    "auto": "gptq", "auto_round": "gptq_v2", "auto_round:gptqmodel": "gptq_v2",
    "auto_round:auto_awq": "awq", "auto_round:awq": "awq", "auto_awq": "awq",
}  # fmt: skip
"""Its packing formats, and whose layout each is."""


def read_gptq(config: Mapping[str, Any], tensors: Stored, read: Read) -> dict[str, Group]:
    """See `Scheme`. The first version stores zero points less one."""
    version = config.get("checkpoint_format", "gptq")
    if version not in ("gptq", "gptq_v2"):
        raise _unknown("checkpoint_format", version, "gptq and gptq_v2")
    return _groups(config, tensors, version, BITS[version])


def read_awq(config: Mapping[str, Any], tensors: Stored, read: Read) -> dict[str, Group]:
    """See `Scheme`."""
    version = config.get("version", "gemm")
    if str(version).lower() != "gemm":
        raise _unknown("version", version, "gemm")
    return _groups(config, tensors, "awq", BITS["awq"])


def read_auto_round(config: Mapping[str, Any], tensors: Stored, read: Read) -> dict[str, Group]:
    """See `Scheme`."""
    packing = config.get("packing_format", "auto_round:auto_gptq")
    if not isinstance(packing, str) or packing not in AUTO_ROUND:
        known = f"{', '.join(AUTO_ROUND)}, and its export to compressed-tensors (llm_compressor)"
        raise _unknown("packing_format", packing, known)
    layout = AUTO_ROUND[packing]
    return _groups(config, tensors, layout, BITS["awq"] if layout == "awq" else range(2, 9))


def _unknown(key: str, value: object, known: str) -> CheckpointError:
    return CheckpointError(
        f"quantization_config: {key} is {str(value)[:80]}, which is not supported; these are: "
        f"{known}; or take the BF16 checkpoint"
    )


def _groups(
    config: Mapping[str, Any], tensors: Stored, layout: str, known: Sequence[int]
) -> dict[str, Group]:
    modules = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    return {f"{m}.weight": _group(config, tensors, m, layout, known) for m in modules}


def _group(
    config: Mapping[str, Any], tensors: Stored, module: str, layout: str, known: Sequence[int]
) -> Group:
    codes, zeros, scales, order = (
        f"{module}.{word}" for word in ("qweight", "qzeros", "scales", "g_idx")
    )
    bits, rows, columns = _sizes(tensors, codes, zeros, scales, known, layout == "awq")
    groups = tensors[scales].shape[0]
    group, mixed = _rule(config, module, columns, groups)
    need(tensors, zeros, codes, ("I32",), [(groups, rows * bits // 32)])
    stored = [codes, zeros, scales]
    if order in tensors:
        need(tensors, order, codes, ("I32", "I64"), [(columns,)])
        stored.append(order)
    mixed = mixed and order in tensors
    form = Integers(bits, group, None, ordered=mixed)
    unpacked = awq_codes if layout == "awq" else across
    less = layout == "gptq"

    def build(read: Read) -> Packed:
        found = _turned(read(codes)) if layout != "awq" else nibbles(awq_codes(read(codes)).T)
        zero = unpacked(read(zeros), bits)
        if less:
            zero = zero.to(torch.int16 if bits == 8 else torch.uint8) + 1
        parts = {"codes": found, "zero": zero.T.contiguous()}
        parts["scale"] = read(scales).T.contiguous()
        if order in tensors:
            index = group_order(order, read(order), group, groups)
            if mixed:
                parts["order"] = index.expand(rows, columns)
            elif not index.is_meta and not torch.equal(
                index.long(), torch.arange(columns) // (group or columns)
            ):
                raise CheckpointError(
                    f"{order} has columns in any order, but the config says that they are not "
                    "(desc_act); restore config.json"
                )
        return Packed(form, columns, parts)

    return Group(form, (rows, columns), tuple(stored), build)


def _sizes(
    tensors: Stored, codes: str, zeros: str, scales: str, known: Sequence[int], awq: bool
) -> tuple[int, int, int]:
    """Bits, rows and columns, by the shapes of the files."""
    for name, dtypes in ((codes, ("I32",)), (zeros, ("I32",)), (scales, FLOATS)):
        need(tensors, name, codes, dtypes, [tensors[name].shape] if name in tensors else [])
        if len(tensors[name].shape) != 2 or 0 in tensors[name].shape:
            raise CheckpointError(
                f"{name} is {list(tensors[name].shape)}, but must be a matrix; take the files again"
            )
    rows = tensors[scales].shape[1]
    bits = tensors[zeros].shape[1] * 32 // rows
    high, wide = tensors[codes].shape
    columns = high if awq else high * 32 // max(1, bits)
    if (
        bits not in known
        or rows * bits != tensors[zeros].shape[1] * 32
        or wide != (rows // 8 if awq else rows)
        or (not awq and columns * bits != high * 32)
    ):
        raise CheckpointError(
            f"{codes} is {[high, wide]}, {zeros} is {list(tensors[zeros].shape)} and {scales} is "
            f"{list(tensors[scales].shape)}: these are no codes of {' or '.join(map(str, known))} "
            "bits of one matrix; take the files again, or the BF16 checkpoint"
        )
    return bits, rows, columns


def _rule(config: Mapping[str, Any], module: str, columns: int, groups: int) -> tuple[int, bool]:
    """The size of a group (0: all of a row), and whether columns may be in any order."""
    for rule in (*_own_rules(config, module), config):
        size = rule.get("group_size", config.get("group_size"))
        if type(size) is int and (size > 0 or size == -1):
            size = columns if size == -1 else min(size, columns)
            if math.ceil(columns / size) == groups:
                mixed = bool(rule.get("desc_act", config.get("desc_act")))
                return (size if size < columns else 0), mixed
    raise CheckpointError(
        f"{module} has {columns} columns in {groups} groups, but group_size is "
        f"{str(config.get('group_size'))[:40]} in quantization_config; both must come from one "
        "checkpoint: restore config.json"
    )


def _own_rules(config: Mapping[str, Any], module: str) -> Iterator[Mapping[str, Any]]:
    """What the config says of one module: GPTQModel under "dynamic", AutoRound "extra_config"."""
    for key in ("dynamic", "extra_config"):
        rules = config.get(key)
        for entry, rule in rules.items() if isinstance(rules, dict) else ():
            name = entry.removeprefix("+:")
            if isinstance(rule, dict) and (matches(name, module) or matches(f"re:{name}", module)):
                yield rule


def across(words: Tensor, bits: int) -> Tensor:
    """Codes that are packed along the rows of words: [G, W] -> uint8 [G, 32 W / bits]."""
    return bit_stream(as_bytes(words), bits).to(torch.uint8)


def awq_codes(words: Tensor, bits: int = 4) -> Tensor:
    """Codes of AWQ, eight a word and out of order: [K, W] -> uint8 [K, 8 W]."""
    return across(words, bits).view(*words.shape, 8)[..., AWQ_PLACES].flatten(-2)


def _turned(words: Tensor) -> Tensor:
    """A bit stream down the columns, one for each row of the matrix: [W, N] -> uint8 [N, 4 W]."""
    return as_bytes(words.T)


def nibbles(codes: Tensor) -> Tensor:
    """Two codes a byte, the first one low: uint8 [N, K] -> [N, K / 2]."""
    codes = codes.contiguous()
    if codes.shape[-1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[..., 0::2] | (codes[..., 1::2] << 4)
