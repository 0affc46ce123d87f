"""What `dgemma check` finds; whole generations are compared in tests/diffusion/test_parity_nano.

A limit that is too narrow refuses right programs on checkpoints that round badly; one that is too
wide passes wrong ones. Both directions are shown on nano, which rounds well, and on a random
checkpoint, on which two right programs differ by more than the narrowest limit.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dgemma
from dgemma.cli import check
from dgemma.diffusion.canvas import Generation
from dgemma.evaluate import agreement, parity
from dgemma.evaluate.agreement import LARGEST_LIMIT, SPREADS, Agreement, compare
from dgemma.llm import LLM
from dgemma.model.config import AttentionShape, ModelConfig
from dgemma.model.hf_generation import GenerationDefaults
from dgemma.model.transformer import DiffusionGemma
from dgemma.params import RELEASED, SamplingParams
from dgemma.weights.save import save_weights
from tests.support.commands import run_command

pytestmark = [pytest.mark.model, pytest.mark.oracle]

NARROWEST = 2e-5
GOOD = Agreement("5.17", "float32", 1e-6, 1e-6, NARROWEST, 96, (2,), 0, True)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight layers of random numbers: rounding grows from each to the next."""
    config = ModelConfig(
        vocab_size=300, hidden_size=128, intermediate_size=128, moe_intermediate_size=32,
        num_experts=8, top_k_experts=2, num_attention_heads=4,
        layer_types=(*["sliding_attention"] * 3, "full_attention") * 2,  # type: ignore[arg-type]
        sliding=AttentionShape(head_dim=32, num_key_value_heads=2, rope_theta=1e4),
        full=AttentionShape(
            head_dim=64, num_key_value_heads=1, rope_theta=1e6, partial_rotary_factor=0.25
        ),
        sliding_window=16, max_position_embeddings=512, canvas_length=32,
    )  # fmt: skip
    model, generator = DiffusionGemma(config), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.state_dict().values():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(
                1 + 0.3 * noise if value.dim() < 2 else 1.5 * noise / value.shape[-1] ** 0.5
            )
    generation = GenerationDefaults(replace(RELEASED, max_steps=6), (1,), 0)
    path = tmp_path_factory.mktemp("random") / "model"
    return save_weights(model, path, config=config, generation=generation, files={})


def load(name: str | Path) -> LLM:
    """A model of its own, to be broken."""
    return dgemma.load(name, device="cpu", dtype="float32")


def test_nano_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    """A comparison that compares nothing, or a command that hides the verdict."""
    code, out, _ = run_command(
        ("check", "nano", "--device", "cpu", "--dtype", "float32", "--json"), capsys
    )
    result = json.loads(out)
    assert 0 < result["step_difference"] <= result["tolerance"] == NARROWEST
    assert 0 < result["reference_spread"] < NARROWEST and result["tokens"] == 96
    # In a hesitating canvas rounding may turn a token; then the command must say so.
    same = result["same_steps"] and result["same_tokens"]
    assert result["passed"] == bool(same or result["reference_differing_tokens"]) == (code == 0)


@pytest.mark.fault("N 3")
def test_a_checkpoint_that_rounds_badly_is_no_alarm(random_model: Path) -> None:
    """A limit for all checkpoints: this one's rounding alone is beyond it."""
    found = compare(load(random_model), "Hello", 0)
    assert NARROWEST < found.step_difference <= found.tolerance == SPREADS * found.reference_spread
    assert found.same_tokens or found.reference_differing_tokens
    assert found.passed and found.tolerance < LARGEST_LIMIT


def scalar(llm: LLM) -> None:
    """A scalar of one layer is wrong by 0.1 %."""
    layer: Any = llm.model.layers[3]
    layer.denoise_scalar.mul_(1.001)


def unscaled(llm: LLM) -> None:
    """The embedding is not multiplied by the root of its width."""
    embed, width = llm.model.head.embed, llm.config.hidden_size
    llm.model.head.embed = lambda ids: embed(ids) / width**0.5  # type: ignore[method-assign]


def flat_belief(llm: LLM) -> None:
    """The soft embedding is that of a flatter distribution; the first step does not read it."""
    soft = llm.model.head.soft_embedding
    llm.model.head.soft_embedding = lambda x: soft(x / 2)  # type: ignore[method-assign]


def weight(llm: LLM) -> None:
    """A row of one matrix is lost."""
    layer: Any = llm.model.layers[1]
    layer.attention.q_proj.weight[0] = 0


@pytest.mark.parametrize("wrong", [scalar, unscaled, flat_belief, weight])
@pytest.mark.parametrize("name", ["nano", "random"])
def test_a_wrong_program_is_found(
    name: str, wrong: Callable[[LLM], None], random_model: Path
) -> None:
    """A limit so wide that the check finds nothing."""
    llm = load("nano" if name == "nano" else random_model)
    with torch.no_grad():
        wrong(llm)
    found = compare(llm, "Hello", 0, step_only=True)
    assert found.step_difference > 2 * found.tolerance and not found.passed


def test_another_sampler_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is right and the loop is wrong: only the generation tells."""

    def hot(llm: LLM, ids: list[int], params: SamplingParams, **more: Any) -> Generation:
        return parity.our_generate(llm, ids, replace(params, seed=1, t_max=3.0), **more)

    monkeypatch.setattr(agreement, "our_generate", hot)
    found = compare(load("nano"), "Hello", 0)
    assert found.same_step and not (found.same_tokens and found.same_steps)
    assert found.reference_differing_tokens == 0 and not found.passed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_step_alone(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes of a generation that was not asked for, or whose outcome does not count (16 bit)."""
    monkeypatch.setattr(agreement, "_generations", None)
    llm = dgemma.load("nano", device="cpu", dtype=dtype)
    found = compare(llm, "Hello", 0, step_only=dtype == "float32")
    assert found.passed and found.same_tokens is None


def test_steps_are_reported() -> None:
    """Twenty minutes without a word."""
    said: list[tuple[str, int, int]] = []
    compare(load("nano"), "Hello", 0, report=lambda *told: said.append(told))
    assert [what for what, _, total in said if not total] == [
        "transformers loads the checkpoint", "one denoising step"
    ]  # fmt: skip
    for who in ("dgemma generates", "transformers generates"):
        steps = [(done, total) for what, done, total in said if what == who]
        assert steps == [(i, 96) for i in range(len(steps))] and len(steps) > 1


@pytest.mark.parametrize(("found", "ends", "row"), [
    (GOOD, "agree", "same 96 tokens in 2 steps"),
    (replace(GOOD, tokens=None, steps=None, differing_tokens=None), "agree", "limit 2.0e-05"),
    (replace(GOOD, differing_tokens=3, reference_differing_tokens=9),
     "even within transformers", "3 of 96 tokens differ, 2 steps; 9 differ within"),
    (replace(GOOD, differing_tokens=3, reference_differing_tokens=0), "disagree", "none differ"),
    (replace(GOOD, step_difference=1e-3), "disagree", "differ by 1.0e-03"),
    (replace(GOOD, tolerance=0.4), "changes the logits of this checkpoint too much", "4.0e-01"),
])  # fmt: skip
@pytest.mark.fault("N 30")
def test_the_verdict_is_a_sentence(
    found: Agreement,
    ends: str,
    row: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A verdict that a reader has to find among figures."""
    monkeypatch.setattr(agreement, "compare", lambda *_, **__: found)
    code, out, _ = run_command(("check",), capsys)
    assert code == int(not found.passed) == int(ends not in ("agree", "even within transformers"))
    assert out.splitlines()[-1] == f"nano: dgemma and transformers 5.17 {check.verdict(found)}"
    assert out.endswith(f"{ends}\n") and row in out


@pytest.mark.process
@pytest.mark.fault("N 30")
def test_nothing_but_the_comparison_is_printed() -> None:
    """The report of `transformers` on its missing vision tensors, and its bars."""
    command = [sys.executable, "-m", "dgemma", "check", "nano", "--step-only"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    first, last = done.stdout.splitlines()
    assert first.startswith("one step") and last.startswith("nano: dgemma and transformers 5.17")
