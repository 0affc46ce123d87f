"""Experts that stay in the host's memory and come to the device layer by layer.

Every step uses all experts, so the order is known: while a layer computes, the next one is copied.
Two buffers are on the device, whatever the number of layers; a pass copies each layer once, for all
canvases in it. Knows nothing about how experts compute or how they are packed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dgemma.quant.modules import packed_weights

BUFFERS = 2
ALIGNMENT = 256
"""Bytes: each part of a layer begins at a multiple, as the allocator of a device has it."""


class Mover(Protocol):
    """A device that copies beside its computations."""

    def hold(self, part: Tensor) -> Tensor:
        """A copy in memory of the host that the device can read by itself."""

    def allocate(self, nbytes: int) -> Tensor:
        """Memory of the device, uint8 [nbytes]."""

    def copy(self, source: Sequence[Tensor], target: Sequence[Tensor]) -> Any:
        """Begin to copy, once all that was computed so far is done; returns what to wait for."""

    def wait(self, copied: Any) -> None:
        """Let nothing be computed from now on before this copy has ended."""


class CudaMover:
    """A stream beside the one that computes, and an event for each copy."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def hold(self, part: Tensor) -> Tensor:
        """See `Mover`. The system never moves pinned memory."""
        return part.pin_memory()

    def allocate(self, nbytes: int) -> Tensor:
        """See `Mover`."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def copy(self, source: Sequence[Tensor], target: Sequence[Tensor]) -> torch.cuda.Event:
        """See `Mover`."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for there, here in zip(source, target, strict=True):
                here.copy_(there, non_blocking=True)
            copied: torch.cuda.Event = self.stream.record_event()
        return copied

    def wait(self, copied: torch.cuda.Event) -> None:
        """See `Mover`."""
        torch.cuda.current_stream(self.device).wait_event(copied)


def mover_of(device: torch.device) -> Mover | None:
    """How a device takes experts from the host; None: its memory is the host's."""
    return CudaMover(device) if device.type == "cuda" else None


def pinned_bytes(nbytes: int) -> int:
    """What a part takes in pinned memory: torch rounds up to a power of two."""
    return 1 << (nbytes - 1).bit_length()


def padded(nbytes: int) -> int:
    """What a part takes in a buffer."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True)
class Coming:
    """A layer in a buffer, or on its way there."""

    layer: int
    buffer: Tensor
    parts: Mapping[str, Tensor]
    copied: Any


class ExpertStream:
    """The layers in the host's memory, in the order in which a pass needs them."""

    def __init__(self, mover: Mover) -> None:
        self.mover = mover
        self.layers: list[dict[str, Tensor]] = []
        self._buffers: list[Tensor] = []
        self._coming: deque[Coming] = deque()

    def take(self, layer: int) -> Mapping[str, Tensor]:
        """The parts of a layer on the device; their copy was begun long ago."""
        if not self._coming or self._coming[0].layer != layer:
            self._begin(layer)  # the first pass, or one after a pass that broke off
        self.mover.wait(self._coming[0].copied)
        return self._coming[0].parts

    def done(self) -> None:
        """What computes with the layer taken last is under way: its buffer takes another one."""
        used, last = self._coming.popleft(), self._coming[-1].layer
        self._copy((last + 1) % len(self.layers), used.buffer)

    def _begin(self, layer: int) -> None:
        if not self._buffers:
            most = max(sum(padded(part.nbytes) for part in parts.values()) for parts in self.layers)
            with torch.inference_mode(False):
                self._buffers = [self.mover.allocate(most) for _ in range(BUFFERS)]
        self._coming.clear()
        for number, buffer in enumerate(self._buffers):
            self._copy((layer + number) % len(self.layers), buffer)

    def _copy(self, layer: int, buffer: Tensor) -> None:
        parts, start = {}, 0
        for name, there in self.layers[layer].items():
            here = buffer[start : start + there.nbytes]
            parts[name] = here.view(there.dtype).view(there.shape)
            start += padded(there.nbytes)
        copied = self.mover.copy(list(self.layers[layer].values()), list(parts.values()))
        self._coming.append(Coming(layer, buffer, parts, copied))


class OffloadedExperts(nn.Module):
    """Experts of any kind whose numbers are on the host."""

    def __init__(self, inner: nn.Module, stream: ExpertStream) -> None:
        super().__init__()
        self.inner, self.stream, self.layer = inner, stream, len(stream.layers)
        stream.layers.append(
            {name: part.detach() for name, part in inner.named_parameters()}
            | dict(inner.named_buffers())
            | {
                f"{leaf}.{word}": part
                for leaf, packed in packed_weights(inner).items()
                for word, part in packed.parts.items()
            }
        )

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:  # [N, D] -> [N, D]
        parts = dict(self.stream.take(self.layer))
        for leaf, packed in packed_weights(self.inner).items():
            here = {word: parts.pop(f"{leaf}.{word}") for word in packed.parts}
            setattr(self.inner, leaf, replace(packed, parts=here))
        out: Tensor = functional_call(self.inner, parts, (x, index, weight))
        self.stream.done()
        return out


def offload(model: nn.Module, paths: Iterable[str], mover: Mover) -> ExpertStream:
    """Let modules of experts compute on the device while their numbers stay on the host.

    Their parts are moved to memory of `mover` one by one, so that no more than one is there twice.

    Args:
        paths: of the modules, in the order of a pass; they are filled, on the host.
    """
    stream = ExpertStream(mover)
    for path in paths:
        inner = model.get_submodule(path)
        for name in [n for n, _ in (*inner.named_parameters(), *inner.named_buffers())]:
            owner, _, leaf = name.rpartition(".")
            module = inner.get_submodule(owner)
            part = getattr(module, leaf)
            kept = mover.hold(part.detach())
            is_parameter = isinstance(part, nn.Parameter)
            setattr(module, leaf, nn.Parameter(kept, requires_grad=False) if is_parameter else kept)
        for leaf, packed in packed_weights(inner).items():
            held = {word: mover.hold(part) for word, part in packed.parts.items()}
            setattr(inner, leaf, replace(packed, parts=held))
        model.set_submodule(path, OffloadedExperts(inner, stream))
    return stream
