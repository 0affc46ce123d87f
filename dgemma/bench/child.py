"""One program on one model, measured in a process of its own; prints one JSON line.

`python -m dgemma.bench.child ours|transformers ...`, started by `compare`. Both programs make one
canvas of the same size from the same ids with the same number of steps, and neither may stop early.
Knows how `transformers` is loaded and where its steps are. Knows nothing about pairs or medians.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dgemma.bench.clock import now_ms, status_bytes
from dgemma.bench.drive import open_llm, prompt_ids, run
from dgemma.errors import DGemmaError, MissingExtra
from dgemma.evaluate.parity import TINY_VISION
from dgemma.params import RELEASED
from dgemma.weights.files import load_config, read_json

NEVER = 1e-30
"""Mean entropy in nats that no canvas falls below: the reference refuses zero."""


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prefill and steps of the engine."""
    llm = open_llm(
        arguments.model, arguments.device, arguments.dtype, arguments.threads, strict=False
    )
    prompts = [prompt_ids(llm.config, arguments.prompt)]
    run(llm, prompts, 1)  # reads the weights from the disk
    timeline = run(llm, prompts, arguments.steps)
    return {
        "prefill_ms": timeline.prefill_ms,
        "first_frame_ms": timeline.first_frame_ms,
        "step_ms": timeline.step_ms,
    }


def load_reference(directory: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The checkpoint loaded by `transformers` with its own choice of kernels.

    Raises:
        MissingExtra: `transformers` is not installed.
    """
    try:
        from transformers import DiffusionGemmaConfig
        from transformers.models.diffusion_gemma.modeling_diffusion_gemma import (
            DiffusionGemmaForBlockDiffusion,
        )
    except ImportError as error:
        raise MissingExtra(
            "the comparison needs transformers 5.17: pip install 'dgemma[check]'"
        ) from error
    values = read_json(directory / "config.json")
    if values.get("vision_config") is None:
        values["vision_config"] = dict(TINY_VISION)
    config = DiffusionGemmaConfig.from_dict(values)
    model: Any = DiffusionGemmaForBlockDiffusion.from_pretrained(
        str(directory), config=config, dtype=dtype, local_files_only=True
    )
    return model.to(device).eval()


def timed(owner: Any, function: str, device: torch.device, into: list[float]) -> None:
    """Append the milliseconds of each call of `owner.function` to `into`, from now on."""
    inner: Callable[..., Any] = getattr(owner, function)

    def outer(*args: Any, **kwargs: Any) -> Any:
        start = now_ms(device)
        result = inner(*args, **kwargs)
        into.append(now_ms(device) - start)
        return result

    setattr(owner, function, outer)


@torch.inference_mode()
def theirs(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prefill and steps of the reference's own `generate`."""
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    directory, device = Path(arguments.model), torch.device(arguments.device)
    model = load_reference(directory, getattr(torch, arguments.dtype), device)
    from transformers.models.diffusion_gemma import generation_diffusion_gemma as reference

    ids = prompt_ids(load_config(directory, strict=False), arguments.prompt)
    make: Any = reference.DiffusionGemmaGenerationConfig
    sampler: Any = reference.EntropyBoundSamplerConfig
    settings: dict[str, Any] = dict(
        max_new_tokens=model.config.canvas_length,
        sampler_config=sampler(entropy_bound=RELEASED.entropy_bound),
        t_min=RELEASED.t_min,
        t_max=RELEASED.t_max,
        stability_threshold=RELEASED.stability_threshold,
        confidence_threshold=NEVER,
    )
    prefill: list[float] = []
    steps: list[float] = []
    timed(model.model.encoder, "forward", device, prefill)
    timed(model, "_denoising_step", device, steps)
    torch.manual_seed(0)
    tokens = torch.tensor([ids], device=device)
    if arguments.cache == "static":
        settings["cache_implementation"] = "static"
    # Reads the weights from the disk; compiled, the first step and the others are two programs.
    warm = 3 if arguments.cache == "static" else 1
    for count in (warm, arguments.steps):
        prefill.clear()
        steps.clear()
        config = make(**settings, max_denoising_steps=count)
        model.generate(tokens, generation_config=config)
    assert len(steps) == arguments.steps, "it stopped early"
    return {"prefill_ms": prefill[0], "first_frame_ms": prefill[0] + steps[0], "step_ms": steps}


PROGRAMS = {"ours": ours, "transformers": theirs}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a JSON line; 2 and one line of text where that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("model", help="a directory")
    parser.add_argument("--prompt", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cache", choices=("dynamic", "static"), default="dynamic")
    arguments = parser.parse_args(argv)
    try:
        found = PROGRAMS[arguments.program](arguments)
    except DGemmaError as error:
        print(str(error), file=sys.stderr)
        return 2
    print(json.dumps({**found, "peak_bytes": status_bytes("VmHWM")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
