"""Save and resume a training run: weights, their average, optimiser state and step, in one file.

`safetensors` only; written to a temporary name and renamed, so a run that is killed while saving
loses nothing. Knows nothing about the released layout (`weights/` writes that).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from dgemma.errors import CheckpointError
from dgemma.files.read import check_regular


def save_run(
    path: Path, step: int, model: nn.Module, average: dict[str, Tensor], optimizers: list[Optimizer]
) -> None:
    """Write everything a run needs to go on exactly where it stopped."""
    tensors = {f"model/{k}": v.detach().contiguous() for k, v in model.state_dict().items()}
    tensors |= {f"average/{k}": v.contiguous() for k, v in average.items()}
    names: dict[Tensor, str] = {p: n for n, p in model.named_parameters()}
    for i, optimizer in enumerate(optimizers):
        for p, state in optimizer.state.items():
            for key, value in state.items():
                tensor = value if isinstance(value, Tensor) else torch.tensor(value)
                tensors[f"optimizer{i}/{names[p]}/{key}"] = tensor.contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    save_file(tensors, temporary, metadata={"run": json.dumps({"step": step})})
    os.replace(temporary, path)


def load_run(
    path: Path, model: nn.Module, average: dict[str, Tensor], optimizers: list[Optimizer]
) -> int:
    """Fill model, average and optimisers from `save_run`'s file; returns the step.

    Raises:
        CheckpointError: the file does not belong to this model or cannot be read.
    """
    try:
        check_regular(path)
        with safe_open(path, "pt") as file:
            step = int(json.loads(file.metadata()["run"])["step"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model/")})
        for key in average:
            average[key].copy_(tensors[f"average/{key}"])
        parameters = dict(model.named_parameters())
        for name, tensor in tensors.items():
            if name.startswith("optimizer"):
                head, parameter, key = name.split("/")
                state = optimizers[int(head[9:])].state[parameters[parameter]]
                state[key] = tensor
    except (OSError, KeyError, RuntimeError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is not a saved run of this model ({error}); remove it to start afresh"
        ) from error
    return step


def load_average(path: Path, state: dict[str, Tensor]) -> int:
    """Copy the averaged weights of a saved run into `state`; returns the run's step.

    Raises:
        CheckpointError: the file is missing or does not belong to this model.
    """
    try:
        check_regular(path)
        with safe_open(path, "pt") as file:
            for key, value in state.items():
                value.copy_(file.get_tensor(f"average/{key}"))
            return int(json.loads(file.metadata()["run"])["step"])
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a saved run of this model ({error})") from error
