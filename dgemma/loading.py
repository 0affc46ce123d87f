"""From a name to a model that is ready to run, and back: files, network, kernels, weights, text.

Below everything that uses a model. Knows nothing about requests, engines or training.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from dgemma.device import DeviceChoice, choose
from dgemma.errors import CheckpointError
from dgemma.frontend import read_text_files
from dgemma.model.hf_generation import OWN
from dgemma.model.transformer import DiffusionGemma
from dgemma.quant.modules import keeps_packed, swap
from dgemma.text.chat import ChatTemplate
from dgemma.text.gguf_export import text_files
from dgemma.text.tokenizer import Tokenizer
from dgemma.weights.files import GENERATION_CONFIG, Checkpoint, open_checkpoint
from dgemma.weights.find import CONFIG, find_model
from dgemma.weights.load import load_weights, packed_formats
from dgemma.weights.safetensors import INDEX
from dgemma.weights.save import KINDS, save_weights
from dgemma.weights.schemes import QUANT_CONFIG

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
    """

    model: DiffusionGemma
    checkpoint: Checkpoint
    choice: DeviceChoice
    tokenizer: Tokenizer | None
    template: ChatTemplate | None


def load_model(
    name: str | Path, *, device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto", strict: bool = True,
    weights: bool = True, grad: bool = False, attention: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LoadedModel:  # fmt: skip
    """Find, open, build and fill a model.

    Args:
        name, device, dtype, strict, progress: see `dgemma.llm.load`.
        weights: False leaves the network on the meta device: every choice is made, in no time.
        grad: the weights are to be trained, and the kernels have gradients.
        attention: see `choose_path`.

    Raises:
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
    model.choose_kernels(choice.device, choice.dtype, grad=grad, attention=attention)
    if weights:
        load_weights(model, checkpoint, device=choice.device, dtype=choice.dtype, progress=progress)
        checkpoint.source.close()
    model.eval().requires_grad_(grad)
    return LoadedModel(model, checkpoint, choice, tokenizer, template)


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
            f"{checkpoint.path} holds packed weights, which cannot be written; copy the files "
            "instead"
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
