"""From a name to a model that is ready to run, and back: files, network, kernels, weights, text.

Below everything that uses a model. Knows nothing about requests, engines or training.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from dgemma.byte_sizes import in_gb, parse_bytes
from dgemma.device import DeviceChoice, choose, choose_dtype, free_bytes
from dgemma.errors import CheckpointError, InvalidRequest
from dgemma.frontend import read_text_files
from dgemma.model.hf_generation import OWN
from dgemma.model.size import measure
from dgemma.model.transformer import DiffusionGemma
from dgemma.quant.eight_bit import EIGHT_BIT
from dgemma.quant.modules import PackedModule, keeps_packed, swap
from dgemma.quant.offload import Mover, mover_of, offload
from dgemma.text.chat import ChatTemplate
from dgemma.text.gguf_export import text_files
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import ModelAbout
from dgemma.weights.budget import make_plan
from dgemma.weights.files import GENERATION_CONFIG, Checkpoint, open_checkpoint
from dgemma.weights.find import CONFIG, find_model
from dgemma.weights.load import load_weights, packed_formats
from dgemma.weights.plan import MemoryPlan
from dgemma.weights.safetensors import INDEX
from dgemma.weights.save import KINDS, save_weights
from dgemma.weights.schemes import QUANT_CONFIG

logger = logging.getLogger("dgemma")

TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
              "chat_template.jinja", "README.md")  # fmt: skip
FITTED = "calibration.json"
"""What was fitted for the very weights; see `dgemma calibrate`."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A network with all that its checkpoint says.

    Attributes:
        model: the network; its `kernels` say how each part computes, and why.
        checkpoint: the config, the sampler's defaults, and the source of the weights.
        choice: device and dtype with their reasons.
        tokenizer, template: None if the checkpoint has none.
        plan: where its memory goes; None: no budget was given.
        cache_bytes: of keys and values, to tell an engine; None: its own choice.
    """

    model: DiffusionGemma
    checkpoint: Checkpoint
    choice: DeviceChoice
    tokenizer: Tokenizer | None
    template: ChatTemplate | None
    plan: MemoryPlan | None = None
    cache_bytes: int | None = None


def about(checkpoint: Checkpoint, choice: DeviceChoice, running: int) -> ModelAbout:
    """A model in plain values; `running`: most answers at a time."""
    generation = checkpoint.generation
    return ModelAbout(
        device=str(choice.device), dtype=str(choice.dtype).removeprefix("torch."),
        parameters=measure(checkpoint.config).parameters, running=running,
        single_turn=generation.single_turn, code=generation.code, examples=generation.examples,
    )  # fmt: skip


def load_model(
    name: str | Path, *, device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto", strict: bool = True,
    weights: bool = True, grad: bool = False, attention: str = "auto",
    cache_dtype: str = "auto", memory: str | int | None = None, cache_bytes: int | None = None,
    running: int = 32,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LoadedModel:  # fmt: skip
    """Find, open, build and fill a model.

    Args:
        name, device, dtype, strict, progress: see `dgemma.llm.load`.
        weights: False leaves the network on the meta device: every choice is made, in no time.
        grad: the weights are to be trained, and the kernels have gradients.
        attention, cache_dtype: see `DiffusionGemma.choose_kernels`.
        memory: most bytes on the device, or such as "18GB"; see `make_plan`. The plan is written to
            the log before anything is read.
        cache_bytes, running: see `make_plan`.

    Raises:
        InvalidRequest: nothing fits the memory.
        ModelNotFound, ConfigError, CheckpointError, TokenizerError, TemplateError, DeviceError,
        MissingExtra: the fault and its remedy; nothing is half loaded.
    """
    path, _ = find_model(name)
    checkpoint = open_checkpoint(path, strict=strict)
    tokenizer, template = read_text_files(path)
    with torch.device("meta"):
        model = DiffusionGemma(checkpoint.config)
    count = sum(p.numel() for p in model.parameters())
    choice = choose(device, dtype, count, checkpoint.dtype)
    if not grad:
        swap(model, packed_formats(model, checkpoint))
    mover = mover_of(choice.device) if memory is not None and not grad else None
    plan = None
    if memory is not None:
        plan = make_plan(
            model, checkpoint, choice.dtype, device=choice.device.type,
            budget=parse_bytes(memory), cache_bytes=cache_bytes, running=running,
            streams=mover is not None, cache_dtype=cache_dtype,
        )  # fmt: skip
        for line in plan.lines():
            logger.info("%s", line)
        _check_host(plan)
        swap(model, dict.fromkeys(plan.eight_bit, EIGHT_BIT))
    model.choose_kernels(
        choice.device, choice.dtype, grad=grad, attention=attention, cache_dtype=cache_dtype,
        room=None if plan is None else 0.0,  # what the plan has not counted stays as it is
    )  # fmt: skip
    if plan is not None and mover is None:
        for layer in plan.away:  # views of the file, not copies of it
            experts = model.get_submodule(f"layers.{layer}.experts")
            if isinstance(experts, PackedModule):
                experts.stay()
    if weights:
        _fill(model, checkpoint, choice, plan, mover, progress)
        model.prepare()
    model.eval().requires_grad_(grad)
    return LoadedModel(
        model, checkpoint, choice, tokenizer, template, plan,
        cache_bytes if plan is None else plan.cache_bytes,
    )  # fmt: skip


def plan_model(
    name: str | Path, *, device: str, dtype: str | torch.dtype = "auto", strict: bool = True,
    memory: str | int | None = None, context: int | None = None,
) -> MemoryPlan:  # fmt: skip
    """Where the memory of a model would go; nothing is read but headers.

    Args:
        device: "cpu", "cuda" or "mps", which need not be there.
        name, dtype, strict, memory: see `load_model`.
        context: see `make_plan`.

    Raises:
        InvalidRequest: nothing fits the memory.
        ModelNotFound, ConfigError, CheckpointError, DeviceError: see `load_model`.
    """
    checkpoint = open_checkpoint(find_model(name)[0], strict=strict)
    with torch.device("meta"):
        model = DiffusionGemma(checkpoint.config)
    count = sum(p.numel() for p in model.parameters())
    number, _ = choose_dtype(dtype, torch.device(device), count, checkpoint.dtype)
    swap(model, packed_formats(model, checkpoint))
    return make_plan(
        model, checkpoint, number, device=device, context=context,
        budget=None if memory is None else parse_bytes(memory),
    )  # fmt: skip


def _check_host(plan: MemoryPlan) -> None:
    """Refuse experts that the host has no room for."""
    free = free_bytes(torch.device("cpu"))
    if plan.streams and plan.host > free:
        raise InvalidRequest(
            f"the plan keeps {in_gb(plan.host)} of experts in the host's memory, which has "
            f"{in_gb(free)} free; end other programs, give the device more memory, or take a "
            "checkpoint with smaller experts"
        )


def _fill(
    model: DiffusionGemma, checkpoint: Checkpoint, choice: DeviceChoice, plan: MemoryPlan | None,
    mover: Mover | None, progress: Callable[[int, int], None],
) -> None:  # fmt: skip
    """Read the weights, each to its place."""
    load_weights(
        model, checkpoint, device=choice.device, dtype=choice.dtype, progress=progress,
        mapped=None if plan is None else plan.mapped,
        host=plan.host_names if mover is not None and plan is not None else (),
    )  # fmt: skip
    if plan is not None and mover is not None:
        offload(model, [f"layers.{layer}.experts" for layer in plan.away], mover)
    checkpoint.source.close()


def save_model(
    model: DiffusionGemma, checkpoint: Checkpoint, directory: str | Path, *,
    overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write a model in the released layout, with everything else that its checkpoint has.

    Args:
        overwrite: replace the checkpoint that is there, as a whole.

    Raises:
        CheckpointError: the directory holds a checkpoint that is to stay, or something else, or
            cannot be written.
    """
    if any(map(keeps_packed, model.modules())):
        raise CheckpointError(
            f"{checkpoint.path} holds packed weights, or memory= had them packed, which cannot be "
            "written; copy the files instead"
        )
    if checkpoint.path.is_file():
        raise CheckpointError(
            f"{checkpoint.path} holds its tokenizer in a way that a directory does not; load the "
            "checkpoint that it was made from to save a changed one"
        )
    target = os.path.expanduser(directory)
    if not overwrite and os.path.isdir(target) and os.listdir(target):
        raise CheckpointError(
            f"{directory} is not empty; save to a new directory, or pass overwrite=True to replace "
            "a checkpoint"
        )
    source = checkpoint.directory
    files = {n: source / n for n in (*TEXT_FILES, FITTED) if (source / n).exists()}
    return save_weights(
        model, directory, config=checkpoint.config, generation=checkpoint.generation,
        files=files, aside=checkpoint,
    )  # fmt: skip


def copied_files(path: Path) -> dict[str, Path | str]:
    """The files beside the weights of a checkpoint, for another one: tokenizer, template, cards,
    processors, licences; not the configs, nor what was fitted for the very weights.

    Args:
        path: a directory, or a GGUF file, whose text side is made into files.
    """
    if path.is_file():
        return dict(text_files(path))
    left = (CONFIG, GENERATION_CONFIG, OWN, QUANT_CONFIG, INDEX, FITTED)
    return {
        file.name: file for file in sorted(path.iterdir())
        if file.is_file() and file.name not in left and not file.name.startswith(".")
        and file.suffix != ".safetensors"
        and (file.suffix in KINDS or file.name.startswith(("LICENSE", "NOTICE")))
    }  # fmt: skip
