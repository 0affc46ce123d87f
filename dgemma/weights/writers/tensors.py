"""The tensors of a network as a checkpoint holds them, read one matrix at a time.

Whatever is packed is unpacked. Knows nothing about the formats that are written.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from dgemma.errors import CheckpointError
from dgemma.model.transformer import DiffusionGemma
from dgemma.weights.files import Checkpoint
from dgemma.weights.load import Layout, arrange, aside_names
from dgemma.weights.source import DTYPES, few

EXPERTS, VISION = "experts", "vision"
CLASSES = (
    ("embedding", r"embed\."),
    ("self-conditioning", r"self_conditioning\..*_proj"),
    ("router", r".*\.router\."),
    (EXPERTS, r".*\.experts\."),
    ("attention", r".*\.attention\.._proj"),
    ("dense MLP", r".*\.mlp\."),
    ("norms and scalars", r""),
)
"""What a tensor of ours belongs to, and a pattern for its name; the first that fits counts."""
PACKED = (EXPERTS, "attention", "dense MLP")
"""What is packed. Errors of the others reach every token, and they are small, but for the
embedding: it is the head as well, and a coarse one costs passes."""


def class_of(name: str) -> str:
    """What a tensor of ours belongs to."""
    return next(kind for kind, pattern in CLASSES if re.match(pattern, name))


class Tensors:
    """The tensors of one checkpoint.

    Attributes:
        shapes: of the text part, by our names.
        vision: names in the files of the tensors that no engine of ours reads.
        dtype: 16 bits: that of the files, or bf16 if they have another.
        rounded: our names of tensors that `short` has changed.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """
        Raises:
            CheckpointError: see `load_weights`.
        """
        with torch.device("meta"):
            model = DiffusionGemma(checkpoint.config)
        self.source = checkpoint.source
        self.shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
        self.vision = aside_names(self.source)
        self._parts: dict[str, Layout] = arrange(model, checkpoint)
        dtype = DTYPES.get({"bfloat16": "BF16", "float16": "F16"}.get(checkpoint.dtype, ""))
        self.dtype = dtype or torch.bfloat16
        self.rounded: set[str] = set()

    def packed(self) -> dict[str, int]:
        """How many stored weights of the text part have each packed format."""
        found: dict[str, int] = {}
        for parts in self._parts.values():
            for part in parts:
                form = self.source.tensors[part].format
                if form is not None:
                    found[form.name] = found.get(form.name, 0) + 1
        return found

    def short(self, name: str, numbers: Tensor) -> Tensor:
        """The numbers of a tensor in 16 bits; see `rounded`."""
        found = numbers.to(self.dtype)
        if not torch.equal(found.to(numbers.dtype), numbers):
            self.rounded.add(name)
        return found

    def nbytes(self, name: str) -> int:
        """Of a tensor of ours in the files."""
        return sum(self.source.tensors[part].nbytes for part in self._parts[name])

    def read(self, name: str, expert: int | None = None) -> Tensor:
        """A tensor of ours, or a matrix of a stack: fp32.

        Raises:
            CheckpointError: it holds NaN or infinity.
        """
        shape = self.shapes[name]
        out = torch.empty(shape if expert is None else shape[1:])
        for part, place in self._parts[name].items():
            first, rows = (*place, slice(None), slice(None))[:2]
            if expert is None:
                out[place].copy_(self._stored(part))
            elif not isinstance(first, int):  # part of a stack
                out[rows].copy_(self._stored(part, expert))
            elif first == expert:
                out[rows].copy_(self._stored(part))
        return finite(name, out)

    def read_vision(self, name: str) -> Tensor:
        """A tensor of the vision part; see `vision`."""
        if self.source.tensors[name].format is not None:
            return finite(name, self.source.packed(name, keep=False).dequantise(self.dtype))
        return self.source.read(name, keep=False)

    def _stored(self, part: str, expert: int | None = None) -> Tensor:
        index = slice(None) if expert is None else expert
        if self.source.tensors[part].format is None:
            return self.source.read(part, keep=False)[index]
        packed = self.source.packed(part, keep=False)
        return (packed if expert is None else packed[expert]).dequantise()


def finite(name: str, numbers: Tensor) -> Tensor:
    """The same numbers.

    Raises:
        CheckpointError: there are NaN or infinite ones among them.
    """
    if not bool(torch.isfinite(torch.stack(torch.aminmax(numbers))).all()):
        raise CheckpointError(
            f"{few([name])} holds NaN or infinity; the file is damaged or the training diverged: "
            "take another checkpoint"
        )
    return numbers
