"""One program on one model, measured in a process of its own; prints one JSON line.

`python -m dgemma.bench.child ours|transformers JOB`, started by `compare`; JOB is a `CompareRun` as
JSON. Both programs make one canvas of the same size from the same ids with the same number of
steps, and neither may stop early.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dgemma.bench.clock import now_ms, status_bytes
from dgemma.bench.compare import CompareRun
from dgemma.bench.drive import Where, prompt_ids, run
from dgemma.diffusion.schedule import Schedule
from dgemma.errors import DGemmaError
from dgemma.evaluate.parity import reference_config, reference_model
from dgemma.params import RELEASED
from dgemma.weights.files import load_config

NEVER = 1e-30
"""Mean entropy in nats that no canvas falls below: the reference refuses zero."""


def ours(job: CompareRun) -> dict[str, Any]:
    """Prefill and steps of the engine."""
    llm = Where(
        job.directory, job.device, job.dtype, job.threads, strict=False, attention=job.attention,
        cache_dtype=job.cache_dtype,
    ).open()  # fmt: skip
    prompts = [prompt_ids(llm.config, job.prompt)]
    run(llm, prompts, 1)  # reads the weights from the disk
    timeline = run(llm, prompts, job.steps)
    return {
        "prefill_ms": timeline.prefill_ms,
        "first_frame_ms": timeline.first_frame_ms,
        "step_ms": timeline.step_ms,
    }


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
def theirs(job: CompareRun) -> dict[str, Any]:
    """Prefill and steps of the reference's own `generate`."""
    torch.set_num_threads(job.threads)
    directory, device = Path(job.directory), torch.device(job.device)
    model = reference_model(directory, getattr(torch, job.dtype), device, eager=False)
    prefill: list[float] = []
    steps: list[float] = []
    timed(model.model.encoder, "forward", device, prefill)
    timed(model, "_denoising_step", device, steps)
    torch.manual_seed(0)
    ids = prompt_ids(load_config(directory, strict=False), job.prompt)
    tokens = torch.tensor([ids], device=device)
    more = {"cache_implementation": "static"} if job.cache == "static" else {}
    # Reads the weights from the disk; compiled, the first step and the others are two programs.
    warm = 3 if job.cache == "static" else 1
    for count in (warm, job.steps):
        prefill.clear()
        steps.clear()
        schedule = Schedule.of(replace(RELEASED, max_steps=count, confidence_threshold=NEVER))
        config = reference_config(schedule, model.config.canvas_length, **more)
        model.generate(tokens, generation_config=config)
    assert len(steps) == job.steps, "it stopped early"
    return {"prefill_ms": prefill[0], "first_frame_ms": prefill[0] + steps[0], "step_ms": steps}


PROGRAMS = {"ours": ours, "transformers": theirs}


def main(program: str, job: str) -> int:
    """Measure, print a JSON line; 2 and one line of text where that failed."""
    try:
        found = PROGRAMS[program](CompareRun(**json.loads(job)))
    except DGemmaError as error:
        print(str(error), file=sys.stderr)
        return 2
    print(json.dumps({**found, "peak_bytes": status_bytes("VmHWM")}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
