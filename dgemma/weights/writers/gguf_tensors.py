"""The tensors of a GGUF file of arch `diffusion-gemma`: which type each has, and its bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dgemma.model.config import ModelConfig
from dgemma.quant.gguf_blocks import FORMATS
from dgemma.quant.gguf_rounding import BLOCK, gguf_blocks
from dgemma.weights.gguf_names import ROPE, ours_to_gguf
from dgemma.weights.writers.gguf_container import Entry
from dgemma.weights.writers.tally import Tally
from dgemma.weights.writers.tensors import PACKED, VISION, Tensors, class_of

PLAIN = {torch.float32: ("F32", 0), torch.float16: ("F16", 1), torch.bfloat16: ("BF16", 30)}
"""ggml's word and number for a dtype."""
EXACT = ("router", "norms and scalars")
"""Classes that are stored in fp32, as in all published files."""
NEVER = 1e30
"""Divides the frequency of a pair that does not turn."""


class GgufTensors:
    """Plans the tensors of one file.

    Attributes:
        entries: what to write.
        tally: what is found while they are written.
    """

    def __init__(
        self, tensors: Tensors, config: ModelConfig, kind: str | None,
        kept: Callable[[str], bool] = lambda name: False,
    ) -> None:  # fmt: skip
        """
        Args:
            kind: "Q8_0" or "Q4_0"; None: 16 bits.
            kept: whether a tensor of ours stays in 16 bits, though it could be packed.
        """
        self.tensors, self.tally = tensors, Tally()
        self._forms = {form.name: form for form in FORMATS.values()}
        self._left: list[int] = []
        self.entries = [self._rope(config)]
        for name, shape in tensors.shapes.items():
            packable = class_of(name) in PACKED and len(shape) > 1 and not kept(name)
            if packable and kind and shape[-1] % BLOCK:
                self._left.append(shape[-1])
            fits = packable and kind is not None and not shape[-1] % BLOCK
            self.entries.append(self._entry(name, kind if fits else None))
        self._remark(kind)

    def _remark(self, kind: str | None) -> None:
        if self._left:
            wide = ", ".join(map(str, sorted(set(self._left))))
            self.tally.remarks.append(
                f"{len(self._left)} tensors have rows of {wide}, no whole blocks of {BLOCK} of "
                f"{kind}: they stay in 16 bits"
            )
        held = sum(self.tensors.source.tensors[name].nbytes for name in self.tensors.vision)
        if held:
            self.tally.size(VISION, held, 0)
            self.tally.remarks.append(
                f"{len(self.tensors.vision)} vision tensors are left out: a GGUF file has text only"
            )

    def _rope(self, config: ModelConfig) -> Entry:
        """What divides the frequencies of full layers: the share that turns is nowhere else."""
        pairs = config.full.head_dim // 2
        turning = int(config.full.partial_rotary_factor * config.full.head_dim // 2)
        values = torch.cat((torch.ones(turning), torch.full((pairs - turning,), NEVER)))
        return Entry(ROPE, (pairs,), 0, 4 * pairs, lambda: iter([values]))

    def _entry(self, name: str, kind: str | None) -> Entry:
        shape = self.tensors.shapes[name]
        dtype = torch.float32 if class_of(name) in EXACT else self.tensors.dtype
        if kind is None:
            word, number = PLAIN[dtype]
            nbytes = math.prod(shape) * dtype.itemsize
        else:
            form = self._forms[kind]
            word, number = kind, form.number
            nbytes = math.prod(shape) // form.elements * form.size
        self.tally.size(class_of(name), self.tensors.nbytes(name), nbytes)
        self.tally.stored[word] += 1

        def chunks() -> Iterator[Tensor]:
            for expert in range(shape[0]) if len(shape) == 3 else (None,):
                weight = self.tensors.read(name, expert)
                if kind is not None:
                    yield self._blocks(name, kind, weight)
                else:
                    exact = dtype == torch.float32
                    yield weight if exact else self.tensors.short(name, weight)

        return Entry(ours_to_gguf(name), shape, number, nbytes, chunks)

    def _blocks(self, name: str, kind: str, weight: Tensor) -> Tensor:
        blocks = gguf_blocks(kind, weight)
        numbers = self._forms[kind].unpack({"blocks": blocks}, weight.shape[-1])
        self.tally.error(class_of(name), name, weight, numbers)
        return blocks
