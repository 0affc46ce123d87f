"""The training loop, top to bottom: batches, noise, loss, step, average, report, save.

Knows nothing about which tasks are trained on; a recipe hands in model, batches and numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dgemma.model.transformer import DiffusionGemma
from dgemma.train.checkpoint import load_run, save_run
from dgemma.train.data import BatchMaker, TrainingBatch
from dgemma.train.loss import objective
from dgemma.train.noise import corrupt, generator_for
from dgemma.train.optimizer import Muon


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """The numbers of a run.

    Attributes:
        steps: in all; the learning rate falls to zero over the last `decay` share of them.
        begin: the first step if nothing is saved.
        warmup: steps of linear warm-up.
        muon_lr, adam_lr: peak rates of the matrices and of the rest.
        canvases: noisy canvases per encoded prompt and step.
        noise_power, full_noise_share: see `noise.corrupt`.
        two_step: whether a conditioned canvas and its belief are those of two steps of the
            sampler, see `loss.canvas_loss`; False: both of one canvas, as in the released recipe.
        encoder_weight: of the next-token loss beside the canvas loss.
        average: decay of the running average of the weights, which is saved in the end.
        clip: largest norm of the gradient.
        bf16: matrix products in bf16 (autocast), weights stay fp32.
        compile: compile the objective with torch.compile.
        save_every: steps between saves.
    """

    seed: int = 0
    steps: int = 20_000
    decay: float = 0.25
    begin: int = 0
    warmup: int = 200
    muon_lr: float = 0.01
    adam_lr: float = 0.002
    canvases: int = 4
    noise_power: float = 0.5
    full_noise_share: float = 0.3
    two_step: bool = True
    encoder_weight: float = 0.25
    average: float = 0.998
    clip: float = 1.0
    bf16: bool = True
    compile: bool = True
    save_every: int = 250

    def rate(self, step: int) -> float:
        """Factor of the learning rates at a step: warm-up, flat, linear decay."""
        left = (self.steps - step) / max(1, int(self.steps * self.decay))
        return min(1.0, (step + 1 - self.begin) / self.warmup, max(0.0, left))


def optimizers_for(model: DiffusionGemma, plan: TrainingPlan) -> list[torch.optim.Optimizer]:
    """Muon for matrices and stacks of them; Adam for embeddings, norms, scalars and the router."""
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        hidden = parameter.dim() >= 2 and "embed" not in name and "router" not in name
        (matrices if hidden else rest).append(parameter)
    adam = torch.optim.AdamW(rest, lr=plan.adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    return [Muon(matrices, lr=plan.muon_lr, weight_decay=0.01), adam]


def batches(
    make: BatchMaker, first: int, last: int, ahead: int = 4
) -> Iterator[list[TrainingBatch]]:
    """The batches of steps first..last-1, made ahead of time by one worker process."""
    with ProcessPoolExecutor(max_workers=1) as pool:
        waiting: list[Future[list[TrainingBatch]]] = []
        for step in range(first, last + ahead):
            if step < last:
                waiting.append(pool.submit(make, step))
            if step >= first + ahead:
                yield waiting.pop(0).result()


def _losses(
    model: DiffusionGemma, plan: TrainingPlan, batch: TrainingBatch, step: int, part: int
) -> tuple[Tensor, Tensor]:
    """Canvas and encoder loss of one batch with this step's own noise."""
    power = plan.noise_power if batch.noise_power is None else batch.noise_power
    noised = corrupt(
        batch, batch.canvases or plan.canvases, model.config.vocab_size, power,
        generator_for(plan.seed, step, part), plan.full_noise_share,
    )  # fmt: skip
    two_steps = (noised.earlier, noised.noise) if plan.two_step else None
    ids = torch.from_numpy(batch.ids)
    encoder_targets = None
    if batch.score_encoder:
        place = torch.arange(ids.shape[1])[None]
        low = torch.from_numpy(batch.prompt_lengths)[:, None]
        encoder_targets = (place >= low) & (place < torch.from_numpy(batch.lengths)[:, None])
    run: Callable[..., tuple[Tensor, Tensor]] = objective
    if plan.compile:
        run = torch.compile(objective, dynamic=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=plan.bf16):
        return run(
            model, ids, encoder_targets, noised.noisy, noised.clean, noised.starts,
            bool((batch.lengths == batch.ids.shape[1]).all()) and encoder_targets is None,
            noised.open, two_steps,
        )  # fmt: skip


def train(
    model: DiffusionGemma,
    make: BatchMaker,
    plan: TrainingPlan,
    directory: Path,
    report: Callable[[str], None] = print,
    until: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Tensor]:
    """Train, resuming from `directory/run.safetensors` where it exists.

    Args:
        make: from a step to its batches.
        report: receives lines: how the run begins, losses every 50 steps, each save.
        until: stop (and save) before this step, the plan unchanged; None: run to the end.
        progress: called after each step with the steps of this call, and how many there will be.

    Returns:
        The averaged weights.
    """
    path = directory / "run.safetensors"
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    optimizers = optimizers_for(model, plan)
    base = [[g["lr"] for g in o.param_groups] for o in optimizers]
    first = load_run(path, model, average, optimizers) if path.exists() else plan.begin
    last = min(plan.steps, until if until is not None else plan.steps)
    beginning = f"going on with {path}" if path.exists() else "training"
    report(f"{beginning} from step {first} to {last} of {plan.steps}")
    if plan.compile and first < last:
        report("compiling before the first step: about 4 minutes on two idle cores")
    smooth: dict[str, float] = {}
    started, prompts = time.monotonic(), 0
    for step, parts in zip(range(first, last), batches(make, first, last), strict=True):
        for optimizer, rates in zip(optimizers, base, strict=True):
            for group, lr in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = lr * plan.rate(step)
            optimizer.zero_grad(set_to_none=True)
        share = sum(len(b.ids) for b in parts)
        for part, batch in enumerate(parts):
            canvas, encoder = _losses(model, plan, batch, step, part)
            loss = (canvas + plan.encoder_weight * encoder) * (len(batch.ids) / share)
            torch.autograd.backward(loss)
            for name, value in ((f"canvas{part}", canvas), (f"encoder{part}", encoder)):
                if not math.isfinite(value.item()):
                    raise FloatingPointError(f"{name} loss is {value.item()} at step {step}")
                smooth[name] = 0.98 * smooth.get(name, value.item()) + 0.02 * value.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        for optimizer in optimizers:
            optimizer.step()
        decay = min(plan.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for key, value in model.state_dict().items():
                average[key].lerp_(value, 1 - decay)
        prompts += share
        if (step + 1) % 50 == 0 or step + 1 == last:
            speed = prompts / (time.monotonic() - started)
            left = (last - step - 1) * share / speed / 60
            losses = " ".join(f"{k} {v:.4f}" for k, v in smooth.items() if v)
            report(f"step {step + 1} {losses} | {speed:.1f} prompts/s, {left:.0f} min left")
        if (step + 1) % plan.save_every == 0 or step + 1 == last:
            save_run(path, step + 1, model, average, optimizers)
            report(f"step {step + 1} saved in {path}")
        progress(step + 1 - first, last - first)
    return average
