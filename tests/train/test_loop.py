"""Noise, optimiser, batches, and a run that is stopped and resumed."""

from __future__ import annotations

import logging
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dgemma.errors import CheckpointError
from dgemma.model.config import AttentionShape, ModelConfig
from dgemma.model.transformer import DiffusionGemma
from dgemma.train import loop
from dgemma.train.checkpoint import load_average, load_run
from dgemma.train.data import Sample, TrainingBatch, make_batch
from dgemma.train.loop import TrainingPlan, batches, optimizers_for, train
from dgemma.train.noise import Noised, corrupt, generator_for
from dgemma.train.optimizer import orthogonalise
from recipes.nano import __main__ as recipe

PLAN = TrainingPlan(
    steps=4, warmup=1, canvases=2, bf16=False, compile=False, save_every=100, muon_lr=0.02,
    adam_lr=0.01,
)  # fmt: skip


def tiny() -> DiffusionGemma:
    """A network of a few thousand numbers."""
    model = DiffusionGemma(
        ModelConfig(
            vocab_size=24, hidden_size=16, intermediate_size=16, moe_intermediate_size=8,
            num_experts=2, top_k_experts=1, num_attention_heads=2,
            layer_types=("sliding_attention", "full_attention"),
            sliding=AttentionShape(head_dim=8, num_key_value_heads=1, rope_theta=1e2),
            full=AttentionShape(head_dim=8, num_key_value_heads=1, rope_theta=1e2),
            sliding_window=8, max_position_embeddings=64, canvas_length=4,
        )
    )  # fmt: skip
    model.reset_parameters(0)
    return model


def copying(step: int) -> list[TrainingBatch]:
    """Say the prompt's only word three times; the second batch scores the encoder too."""
    draw = np.random.default_rng(step)
    samples = [
        Sample([2, word, 3], [word] * 3 + [1]) for word in draw.integers(4, 8, size=8).tolist()
    ]
    longer = [Sample([2, 2, *sample.prompt], sample.response) for sample in samples[:2]]
    return [
        make_batch(samples[:6], 4, eos=1, pad=0, score_encoder=False),
        make_batch(samples[6:] + longer, 4, eos=1, pad=0, score_encoder=True),
    ]


def four_on_the_first(step: int) -> list[TrainingBatch]:
    """The same, with four canvases of each row of the first batch."""
    first, second = copying(step)
    return [replace(first, canvases=4), second]


@pytest.mark.slow
def test_resume_is_exact(tmp_path: Path) -> None:
    """A run that is stopped and resumed becomes another run: a state that is not saved."""
    no_mask, halves = tiny(), tiny()
    average = train(no_mask, copying, PLAN, tmp_path / "whole", report=lambda line: None)
    train(halves, copying, PLAN, tmp_path / "halves", report=lambda line: None, until=2)
    halves = tiny()
    other = train(halves, copying, PLAN, tmp_path / "halves", report=lambda line: None)
    for key, value in no_mask.state_dict().items():
        assert torch.equal(value, halves.state_dict()[key]), key
        assert torch.equal(average[key], other[key]), key
    state = tiny().state_dict()
    assert load_average(tmp_path / "halves" / "run.safetensors", state) == 4
    assert all(torch.equal(state[key], average[key]) for key in state)


@pytest.mark.fault("N 28", "N 29")
@pytest.mark.slow
def test_what_a_run_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes of compiling without a word, and a file that is "saved" before it exists."""
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)
    path, lines, steps = tmp_path / "run.safetensors", list[str](), list[tuple[int, int]]()

    def report(line: str) -> None:
        assert str(path) not in line or path.is_file()
        lines.append(line)

    plan = replace(PLAN, compile=True)
    for until in (1, 3):
        train(tiny(), copying, plan, tmp_path, report, until, lambda *told: steps.append(told))
    assert [line for line in lines if "canvas0" not in line] == [
        "training from step 0 to 1 of 4",
        "compiling before the first step: about 4 minutes on two idle cores",
        f"step 1 saved in {path}",
        f"going on with {path} from step 1 to 3 of 4",
        "compiling before the first step: about 4 minutes on two idle cores",
        f"step 3 saved in {path}",
    ]
    assert steps == [(1, 1), (1, 2), (2, 2)]


@pytest.mark.fault("N 29")
@pytest.mark.model
def test_the_recipe_prints_no_raw_warnings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first thing that a training shows is a warning of torch, which nobody can act on."""

    def noisy(*given: Any, progress: Any) -> None:
        warnings.warn("Mismatch dtype between input and weight: input dtype", stacklevel=1)
        logging.getLogger("torch.utils.cpp_extension").warning("No CUDA runtime is found")
        given[4]("step 1")
        progress(1, 2)

    monkeypatch.setattr(recipe, "train", noisy)
    monkeypatch.setattr(sys, "argv", ["recipes.nano", "--until", "1"])
    recipe.main()
    assert capsys.readouterr() == ("", "step 1\n")


def test_a_foreign_run_is_refused(tmp_path: Path) -> None:
    """A file of another model is half loaded, or ends in a traceback."""
    path = tmp_path / "run.safetensors"
    path.write_bytes(b"no such thing")
    model = tiny()
    with pytest.raises(CheckpointError, match="remove it"):
        load_run(path, model, model.state_dict(), optimizers_for(model, PLAN))


@pytest.mark.slow
def test_loss_falls(tmp_path: Path) -> None:
    """A sign, a mask or a rate that keeps the network from learning the simplest task.

    Chance is -log(1/24) = 3.2 nats; knowing the fixed end and the four words is below 1.2.
    """
    lines: list[str] = []
    plan = replace(PLAN, steps=120)
    train(tiny(), copying, plan, tmp_path, report=lines.append)
    losses = [float(line.split("canvas0 ")[1].split()[0]) for line in lines if "canvas0" in line]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
def test_a_batch_names_its_canvases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that asks for other than the plan's canvases of a prompt gets the plan's."""
    counts: list[int] = []

    def counted(batch: TrainingBatch, canvases: int, *rest: Any) -> Noised:
        counts.append(canvases)
        return corrupt(batch, canvases, *rest)

    monkeypatch.setattr(loop, "corrupt", counted)
    train(tiny(), four_on_the_first, replace(PLAN, steps=1), tmp_path, report=lambda line: None)
    assert counts == [4, PLAN.canvases]


@pytest.mark.process
def test_batches_come_in_order() -> None:
    """The worker's batches are late, early, or lost at the end."""
    made = list(batches(copying, 3, 9, ahead=4))
    assert len(made) == 6 and list(batches(copying, 3, 3)) == []
    for step, parts in zip(range(3, 9), made, strict=True):
        for ours, theirs in zip(copying(step), parts, strict=True):
            assert np.array_equal(ours.ids, theirs.ids)


def test_make_batch() -> None:
    """Padding takes the place of tokens, or the fill of a last canvas is not EOS."""
    samples = [Sample([2, 5], [6, 7, 8, 9, 9, 1]), Sample([2, 5, 5], [6, 1])]
    batch = make_batch(samples, 4, eos=1, pad=0, score_encoder=True)
    assert batch.ids.shape == (2, 128) and batch.lengths.tolist() == [8, 5]
    assert batch.ids[1, :6].tolist() == [2, 5, 5, 6, 1, 0]
    assert batch.blocks.tolist() == [2, 1] and batch.prompt_lengths.tolist() == [2, 3]
    assert batch.targets[0].tolist() == [[6, 7, 8, 9], [9, 1, 1, 1]]
    assert batch.targets[1, 0].tolist() == [6, 1, 1, 1]


def test_noise() -> None:
    """Another share of kept tokens than 1 - t, or noise that is not uniform.

    60,000 positions of 24 ids: a share is off by 0.02, or a count by a quarter, with a chance
    below 1e-9; the seed is fixed besides.
    """
    samples = [Sample([2, 5], [30] * 12)] * 50
    batch = make_batch(samples, 4, eos=30, pad=0, score_encoder=True)
    noised = corrupt(batch, 300, 24, 1.0, generator_for(0, 1, 2))
    kept = noised.noisy == 30  # no id of the noise
    low, high = noised.t < 0.25, noised.t > 0.75
    for part in (low, high):
        expected = 1 - noised.t[part].mean()
        assert abs(kept[part].float().mean() - expected) < 0.02
    counts = torch.bincount(noised.noisy[~kept], minlength=24).float()
    assert len(counts) == 24 and ((counts / counts.mean() - 1).abs() < 0.25).all()
    assert noised.t.min() >= 0.001 and noised.t.max() <= 1
    assert set(noised.starts.tolist()) == {2, 6, 10}
    assert noised.rows.tolist() == list(range(50)) * 300
    assert abs(noised.t.mean() - 0.5) < 0.02
    hot = corrupt(batch, 300, 24, 0.5, generator_for(0, 1, 2))
    assert abs(hot.t.mean() - 2 / 3) < 0.02


def test_noise_of_two_steps() -> None:
    """A canvas of the step before with less noise, with the same noise, or noise where closed."""
    samples = [Sample([2, 5], [30] * 11 + [31], open=tuple(range(8)))] * 50
    batch = make_batch(samples, 12, eos=30, pad=0, score_encoder=False)
    noised = corrupt(batch, 300, 24, 1.0, generator_for(0, 1, 2), full_noise_share=0.25)
    hit, before = noised.noisy != noised.clean, noised.earlier != noised.clean
    assert (before | ~hit).all() and not before[:, 8:].any()
    more = (before & ~hit)[:, :8].float().sum() / (~hit)[:, :8].float().sum()
    assert abs(more - 0.5) < 0.02
    both = (hit & before)[:, :8]
    same = (noised.noisy == noised.earlier)[:, :8][both].float().mean()
    assert same < 0.06  # 1 in 24
    assert torch.equal(noised.noisy[hit], noised.noise[hit])
    assert abs((noised.t == 1).float().mean() - 0.25) < 0.02
    assert before[noised.t == 1][:, :8].all()


def test_noise_is_a_function_of_step_and_part() -> None:
    """A resumed run draws other noise, or two parts of a step draw the same."""
    batch = copying(0)[0]
    draws = [
        corrupt(batch, 4, 24, 1.0, generator_for(*key)).noisy
        for key in ((0, 1, 0), (0, 1, 0), (0, 1, 1), (0, 2, 0), (1, 1, 0))
    ]
    assert torch.equal(draws[0], draws[1])
    assert not any(torch.equal(draws[0], other) for other in draws[2:])


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 16, 64), (2, 64, 16)])
def test_orthogonalise(shape: tuple[int, int, int]) -> None:
    """Muon's update is not near an orthogonal matrix, or mixes the matrices of a stack.

    Five steps of these coefficients leave singular values between about 0.7 and 1.2; a square
    random matrix has a few that are nearly zero, so only the larger ones are looked at.
    """
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    out = orthogonalise(matrices)
    values = torch.linalg.svdvals(out)
    assert values.max() < 1.3 and values.median() > 0.65
    torch.testing.assert_close(out[:1], orthogonalise(matrices[:1]), atol=1e-5, rtol=1e-4)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    near = torch.nn.functional.cosine_similarity(out.flatten(1), (u @ v).flatten(1))
    assert near.min() > 0.9


def test_every_parameter_has_one_optimizer() -> None:
    """A parameter that no optimiser moves, or that two do."""
    model = tiny()
    held = [
        p for o in optimizers_for(model, PLAN) for group in o.param_groups for p in group["params"]
    ]
    assert len(held) == len({id(p) for p in held}) == len(list(model.parameters()))


def test_rate() -> None:
    """The rate does not reach zero at the end, or a resumed run follows another curve."""
    plan = TrainingPlan(steps=100, warmup=10, decay=0.5)
    assert plan.rate(0) == 0.1 and plan.rate(9) == plan.rate(50) == 1
    assert plan.rate(75) == 0.5 and plan.rate(99) == 0.02


def test_padding_is_never_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of different lengths, padded, take the short cut in which canvases see everything."""
    given: list[bool] = []

    def watched(*args: object) -> tuple[torch.Tensor, torch.Tensor]:
        given.append(bool(args[6]))
        return torch.zeros(()), torch.zeros(())

    monkeypatch.setattr(loop, "objective", watched)
    mixed = [Sample([2, 5], [6, 1]), Sample([2, 5, 5], [6, 1])]
    for samples in (mixed, mixed[:1]):
        batch = make_batch(samples, 4, eos=1, pad=0, score_encoder=False)
        loop._losses(tiny(), PLAN, batch, 0, 0)
    assert given == [False, True]


@pytest.mark.parametrize("two_step", [False, True])
@pytest.mark.parametrize("full_noise_share", [0.0, 1.0])
def test_the_noise_of_a_plan(
    two_step: bool, full_noise_share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan says how its canvases are noised, and they are noised another way."""
    given: list[object] = []

    def watched(*args: object) -> tuple[torch.Tensor, torch.Tensor]:
        given.extend(args[-1] if isinstance(args[-1], tuple) else (args[-1], args[3]))
        return torch.zeros(()), torch.zeros(())

    monkeypatch.setattr(loop, "objective", watched)
    plan = replace(PLAN, two_step=two_step, full_noise_share=full_noise_share)
    batch = make_batch([Sample([2, 5], [30] * 4)] * 8, 4, eos=30, pad=0, score_encoder=False)
    loop._losses(tiny(), plan, batch, 0, 0)
    noised = corrupt(
        batch, 2, 24, plan.noise_power, generator_for(plan.seed, 0, 0), full_noise_share
    )
    wanted = (noised.earlier, noised.noise) if two_step else (None, noised.noisy)
    for ours, theirs in zip(given, wanted, strict=True):
        assert ours is theirs or torch.equal(ours, theirs)  # type: ignore[arg-type]
