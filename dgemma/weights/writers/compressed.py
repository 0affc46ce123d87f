"""Writes packed checkpoints in the layouts of compressed-tensors, as RedHat's and cyankiwi's are.

Experts are written one by one, gate and up apart, which is what vLLM reads. What is not packed
keeps its released name.
Source: the configs and headers of RedHatAI's FP8-dynamic and cyankiwi's AWQ-INT4 files, and
compressed-tensors 0.20.1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from dgemma.quant.rounding import Float8Rows, Mxfp4, PackedInts, Rounding
from dgemma.weights.names import layouts, to_checkpoint
from dgemma.weights.source import CODES, DTYPES
from dgemma.weights.writers.stream import Piece, Shapes
from dgemma.weights.writers.tally import Tally
from dgemma.weights.writers.tensors import EXPERTS, PACKED, VISION, Tensors, class_of

GROUP, GROUPS = 32, (32, 16, 8)
"""Columns that share a scale of int4; and those that do where rows are no whole groups."""

Importance = Callable[[str], Tensor | None]
"""How much errors in the columns of a tensor of ours count: [K], or [E, K] for a stack."""


def rounding_of(form: str, columns: int, symmetric: bool, kind: str = EXPERTS) -> Rounding:
    """How a matrix of so many columns is packed in "fp8", "int8", "int4", "int4-all" or "mxfp4".

    Args:
        kind: of `class_of`. In "int4" attention and MLP have 8 bits: they are few, and count.
    """
    if form == "int4-all" or (form == "int4" and kind == EXPERTS):
        # compressed-tensors wants whole groups: rows of 24 get one scale each.
        group = 0 if columns <= GROUP else next((g for g in GROUPS if columns % g == 0), 0)
        return PackedInts(4, group, symmetric=symmetric, search=True)
    if form in ("int8", "int4"):
        return PackedInts(8, 0, symmetric=True, search=False)
    return Float8Rows() if form == "fp8" else Mxfp4()


class CompressedTensors:
    """Plans a checkpoint in one format, and makes its pieces.

    Attributes:
        tally: what is found while the pieces are made.
    """

    def __init__(
        self, tensors: Tensors, form: str, *, kept: Callable[[str], bool],
        symmetric: bool = False, importance: Importance = lambda name: None,
    ) -> None:  # fmt: skip
        """
        Args:
            form: see `rounding_of`.
            kept: whether a tensor of ours stays in 16 bits, though it could be packed.
            importance: for 4 bits.
        """
        self.tensors, self.form, self.symmetric = tensors, form, symmetric
        self.importance = importance
        self.tally = Tally()
        self._shapes: dict[tuple[Rounding, int, int], Shapes] = {}
        self._rules: dict[Rounding, dict[str, int]] = {}  # modules and their columns
        self._plain: list[str] = []
        self.pieces = list(self._planned(kept))
        for rule, modules in self._rules.items():
            self._remark(rule, modules)
        experts = any(".experts." in module for found in self._rules.values() for module in found)
        if form.startswith("int4") and not symmetric and experts:
            self.tally.remarks.append(
                "vLLM computes experts with symmetric integers only: for it, use --symmetric"
            )

    def config(self) -> dict[str, Any]:
        """The value of "quantization_config"."""
        layout = next(iter(self._rules)).layout
        named = sorted(self._rules, key=lambda rule: -len(self._rules[rule]))
        groups = {f"group_{i}": self._group(rule, i == 0) for i, rule in enumerate(named)}
        return {
            "quant_method": "compressed-tensors",
            "format": layout,
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": self._ignored(),
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }

    def _group(self, rule: Rounding, first: bool) -> dict[str, Any]:
        weights = {"dynamic": False, "group_size": None, **rule.rule}
        tokens = {**weights, "strategy": "token", "dynamic": True}
        return {
            "targets": ["Linear"] if first else self._targets(rule),
            "weights": weights,
            "input_activations": tokens if self.form == "fp8" else None,
            "output_activations": None,
            "format": rule.layout,
        }

    def _targets(self, rule: Rounding) -> list[str]:
        """Patterns that name these modules and none of the others."""
        others = [m for other, found in self._rules.items() if other != rule for m in found]
        targets: dict[str, None] = {}
        for module in self._rules[rule]:
            end = re.sub(r"\d+", r"\\d+", re.escape(module.removeprefix("model.decoder.")))
            alike = any(re.fullmatch(rf".*\.{end}", other) for other in others)
            targets[module if alike else rf"re:.*\.{end}$"] = None
        return list(targets)

    def _ignored(self) -> list[str]:
        """Every linear module that is not packed, by each name that a program may have for it."""
        start, twin = "model.decoder.layers.", "model.encoder.language_model.layers."
        twins = [m.replace(start, twin, 1) for m in self._plain if m.startswith(start)]
        return [*self._plain, *twins, "lm_head"]

    def _planned(self, kept: Callable[[str], bool]) -> Iterator[Piece]:
        for name, shape in self.tensors.shapes.items():
            kind = class_of(name)
            can = kind in PACKED and len(shape) > 1
            self.tally.size(kind, self.tensors.nbytes(name), 0)
            for expert in range(shape[0]) if len(shape) == 3 else (None,):
                modules = self._modules(name, expert)
                if can and not kept(name):
                    piece = self._packed(name, expert, modules)
                else:
                    piece = self._whole(name, expert, modules)
                    if len(shape) > 1 and kind != "embedding":
                        self._plain += [m.removesuffix(".weight") for m in modules]
                self.tally.size(kind, 0, piece.nbytes)
                yield piece
        for name in self.tensors.vision:
            held = self.tensors.source.tensors[name]
            piece = vision_piece(self.tensors, name)
            self.tally.size(VISION, held.nbytes, piece.nbytes)
            if len(held.shape) == 2 and name.endswith(".weight"):
                self._plain.append(name.removesuffix(".weight"))
            yield piece

    def _modules(self, name: str, expert: int | None) -> dict[str, slice]:
        """The stored matrices of a tensor of ours, and the rows of each."""
        shape = self.tensors.shapes[name]
        if expert is None:
            return {to_checkpoint(name): slice(None)}
        single = layouts(name, shape)[1]
        return {
            part: rows for part, (number, rows) in single.items()
            if number == expert and isinstance(rows, slice)
        }  # fmt: skip

    def _packed(self, name: str, expert: int | None, modules: Mapping[str, slice]) -> Piece:
        columns = self.tensors.shapes[name][-1]
        rule = rounding_of(self.form, columns, self.symmetric, class_of(name))
        places = {m.removesuffix(".weight"): rows for m, rows in modules.items()}
        self._rules.setdefault(rule, {}).update(dict.fromkeys(places, columns))
        rows = self.tensors.shapes[name][-2] // len(places)
        shapes = self._announced(rule, rows, columns)
        self.tally.stored[rule.layout] += len(places)

        def make() -> dict[str, Tensor]:
            weight = self.tensors.read(name, expert)
            counts = self.importance(name)
            counts = counts if counts is None or expert is None else counts[expert]
            out: dict[str, Tensor] = {}
            for module, rows in places.items():
                made = rule.round(weight[rows], counts)
                self.tally.error(class_of(name), module, weight[rows], made.numbers)
                out |= {f"{module}.{word}": part for word, part in made.parts.items()}
            return out

        return Piece({f"{m}.{word}": held for m in places for word, held in shapes.items()}, make)

    def _announced(self, rule: Rounding, rows: int, columns: int) -> Shapes:
        if (rule, rows, columns) not in self._shapes:
            parts = rule.round(torch.empty(rows, columns, device="meta")).parts
            held = {word: (part.dtype, tuple(part.shape)) for word, part in parts.items()}
            self._shapes[rule, rows, columns] = held
        return self._shapes[rule, rows, columns]

    def _whole(self, name: str, expert: int | None, modules: Mapping[str, slice]) -> Piece:
        shape = self.tensors.shapes[name]
        rows = () if expert is None else (shape[1] // len(modules), shape[2])
        held = {module: (self.tensors.dtype, rows or shape) for module in modules}
        self.tally.stored[str(self.tensors.dtype).removeprefix("torch.")] += len(held)

        def make() -> dict[str, Tensor]:
            numbers = self.tensors.short(name, self.tensors.read(name, expert))
            return {module: numbers[place].contiguous() for module, place in modules.items()}

        return Piece(held, make)

    def _remark(self, rule: Rounding, modules: Mapping[str, int]) -> None:
        """Say where the format does not fit the widths as it usually does."""
        columns = sorted(set(modules.values()))
        wide = ", ".join(map(str, columns))
        if isinstance(rule, PackedInts) and rule.bits == 4 and rule.group != GROUP:
            each = f"groups of {rule.group}" if rule.group else "one group a row"
            self.tally.remarks.append(
                f"{len(modules)} matrices have rows of {wide}, no whole groups of {GROUP}: {each}"
            )
        if isinstance(rule, Mxfp4) and (short := [str(c) for c in columns if c % GROUP]):
            self.tally.remarks.append(
                f"rows of {', '.join(short)} end in a short group; programs that "
                "want whole groups of 32 refuse such files"
            )


def vision_piece(tensors: Tensors, name: str) -> Piece:
    """A tensor of the vision part as it is, or unpacked."""
    held = tensors.source.tensors[name]
    kind = tensors.dtype if held.format else {**CODES, **DTYPES}[held.dtype]
    return Piece({name: (kind, held.shape)}, lambda: {name: tensors.read_vision(name).to(kind)})
