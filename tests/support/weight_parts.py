"""All tensors that a network's weights are kept as, whatever its modules make of them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from dgemma.quant.modules import PackedModule, kept_bytes, packed_weights


def weight_parts(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and the parts of packed numbers, by their names."""
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for name, part in (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ):
            yield prefix + name, part
        for leaf, packed in packed_weights(module).items():
            for word, part in packed.parts.items():
                yield f"{prefix}{leaf}.{word}", part


def weight_bytes(model: nn.Module) -> int:
    """Of all of them, and of what kernels made of others."""
    plain = sum(part.nbytes for part in (*model.parameters(), *model.buffers()))
    return plain + sum(kept_bytes(m) for m in model.modules() if isinstance(m, PackedModule))
