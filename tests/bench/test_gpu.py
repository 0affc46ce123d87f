"""`dgemma bench gpu` as a user meets it, and the prediction of a step by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from dgemma.bench import gpu, roofline
from dgemma.bench.ceilings import products
from dgemma.bench.gpu import GpuJob, GpuJobResult, compile_all, compile_job
from dgemma.bench.gpu_packed import PACKED
from dgemma.bench.precisions import BF16, PRECISIONS, held_bytes, weight_bytes
from dgemma.bench.shapes import REAL
from dgemma.errors import InvalidRequest
from dgemma.llm import LLM
from dgemma.model.size import measure
from tests.support.commands import Ran
from tests.support.live import hear_interrupts

Run = Callable[..., Ran]
ASKED = ("kernel", "target", "config", "dtype", "shared_bytes", "limit_bytes", "registers",
         "spill_bytes", "occupancy")  # fmt: skip


@pytest.mark.slow
@pytest.mark.process
def test_report(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report without one of its figures, or with figures of another device."""
    pytest.importorskip("triton", reason="the kernels need the triton package")

    def heads(jobs: Sequence[GpuJob]) -> list[GpuJobResult]:
        assert {(job.model, job.dtype) for job in jobs} == {
            (model, dtype) for model in gpu.MODELS for dtype in gpu.DTYPES
        }
        packed = {(job.part, job.target) for job in jobs if job.part in PACKED}
        assert packed == {(part, target) for part in PACKED for target in (89, 120)}
        return [compile_job(job) for job in jobs if job.part == "head"]

    monkeypatch.setattr(gpu, "compile_all", heads)
    path = tmp_path / "gpu.json"
    code, out, err = run("gpu", "--targets", "89,120", "--json", str(path))
    assert code == 0, err
    values = json.loads(path.read_text())["values"]
    rows = values["launches"]
    assert len(rows) == 2 * 2 * 2 and all(name in row for row in rows for name in ASKED)
    assert {row["target"] for row in rows} == {"sm_89", "sm_120"}
    assert all(row["limit_bytes"] == 99 * 1024 and row["registers"] > 16 for row in rows)
    assert [one["canvases"] for one in values["roofline"]] == [1, 4, 16]
    assert [one["precision"] for one in values["precisions"]] == [one.name for one in PRECISIONS]
    assert out.startswith("## ") and "compiles for sm_89, sm_120 and fits; nothing was run" in out
    assert out.count("```") == 4 and "| none |" in out
    assert out.count("| head block | sm_120 |") in (1, 2) and "RTX 5090, ms" in out


@pytest.mark.slow
@pytest.mark.process
def test_refused_calls_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch that a device has no room for is left out, and the table looks fine."""
    pytest.importorskip("triton", reason="the kernels need the triton package")
    small = gpu.LIMITS[90].__class__(90, 300, 1024, 64, 32, 1)
    monkeypatch.setitem(gpu.LIMITS, 90, small)
    result = compile_job(GpuJob("26B", "head", 90, "bfloat16"), 1)
    assert len(result.refused) == 1 and "Required: 512" in result.refused[0]
    words = "Calls of kernels without room on sm_90: 1. Nothing was run on a GPU."
    assert gpu.result_in_words([result], [90]) == words
    assert [one.occupancy for one in result.launches if one.shared_bytes > 300] == [0]
    row = gpu.refused_table([result]).rows[0]
    assert row[:5] == ["26B", "head", "sm_90", "bfloat16", 1]


@pytest.mark.slow
@pytest.mark.process
def test_a_process_of_its_own_compiles() -> None:
    """A worker that cannot be started, or that compiles for another device."""
    pytest.importorskip("triton", reason="the kernels need the triton package")
    job = GpuJob("26B", "head", 90, "float16")
    (result,) = compile_all([job])
    assert result == compile_job(job) and result.launches[0].target == "sm_90"


@pytest.mark.slow
@pytest.mark.process
def test_an_interrupt_ends_quietly() -> None:
    """Each worker prints a traceback, or the command goes on until they have compiled all."""
    command = [sys.executable, "-m", "dgemma", "bench", "gpu", "--targets", "90"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=hear_interrupts,
    ) as process:  # fmt: skip
        assert process.stderr is not None and process.stdout is not None
        assert process.stderr.readline().startswith("compiling; ")
        while process.poll() is None and not importing_torch(process.pid):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        assert (process.stdout.read(), process.stderr.read()) == ("", "interrupted\n")
    assert process.returncode == 130


def importing_torch(pid: int) -> bool:
    """Whether a child of a process has begun to import torch, which takes it seconds."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        at = Path("/proc", child)  # before its own program begins it has its parent's maps
        if "spawn_main" in (at / "cmdline").read_text() and "torch" in (at / "maps").read_text():
            return True
    return False


def test_wrong_use(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Options that change nothing, and targets without limits."""
    for words, remedy in (
        (("--targets", "70"), "known: 80, 86"),
        (("--dtype", "float16"), "leave out --dtype"),
        (("--threads", "2"), "leave out --threads"),
        (("--attention", "paged"), "leave out --attention"),
        (("--json", str(tmp_path)), "is a directory"),
        (("mini",), "takes no model and runs none; leave out mini"),
        (("nano",), "takes no model and runs none; leave out nano"),
        (("--model", "nano"), "takes no model and runs none; leave out nano"),
        (("--targets", "sm_9.1"), "unknown target 'sm_9.1'"),
        (("--steps", "2"), "belongs to step"),
    ):
        code, out, err = run("gpu", *words)
        assert (code, out) == (2, "") and remedy in err
    assert gpu.targets_of("90, 80,90") == [90, 80]
    assert gpu.targets_of("sm_90,12.0,8.9,sm_80,90") == [90, 120, 89, 80]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(InvalidRequest, match="unset it"):
        compile_job(GpuJob("26B", "head", 90, "float16"))


def test_step_cost_against_the_products_of_a_step(llm: LLM) -> None:
    """Operations by formula and those of the products that `bench step` times, part by part."""
    config, prompt = llm.config, 40
    window = min(prompt, config.sliding_window - 1)
    keys = {
        layer: config.canvas_length + (prompt if kind == "full_attention" else window)
        for layer, kind in enumerate(config.layer_types)
    }
    rows = 2 * config.canvas_length
    routed = [rows * config.top_k_experts] + [0] * (config.num_experts - 1)
    with torch.inference_mode():
        timed = products(llm.model, rows, keys, [routed] * config.num_layers)
    for cost in roofline.step_cost(config, 2, prompt):
        assert cost.flop == sum(one.flop for one in timed if one.part == cost.part), cost.part


def test_step_cost_reads_every_weight_once() -> None:
    """Many canvases touch every expert: all weights, the table twice, and the keys."""
    cost = roofline.step_cost(REAL, 64, 0)
    weights = 2 * measure(REAL).parameters
    table = 2 * REAL.vocab_size * REAL.hidden_size
    sliding, full = REAL.sliding, REAL.full
    wide = 25 * sliding.num_key_value_heads * sliding.head_dim
    wide += 5 * full.num_key_value_heads * full.head_dim
    keys = 64 * 256 * 2 * 2 * wide
    assert sum(part.bytes for part in cost) == pytest.approx(weights + table + keys, rel=1e-3)
    few = {part.part: part.bytes for part in roofline.step_cost(REAL, 1, 0)}
    assert few["experts"] < {part.part: part.bytes for part in cost}["experts"]


def test_a_part_takes_the_longer_of_the_two() -> None:
    """Bytes over bandwidth in other units than operations over the rate."""
    unit = roofline.GpuRate("unit", gb_s=1000, tflop_s=100, memory_gb=1, tflop8_s=200)
    assert roofline.StepCost("x", flop=1e12, bytes=1e9).ms(unit) == (10.0, "rate")
    assert roofline.StepCost("x", flop=1e12, bytes=2e10).ms(unit) == (20.0, "memory")
    assert roofline.StepCost("x", flop=1e12, bytes=0, flop8=5e11).ms(unit) == (7.5, "rate")
    first = roofline.predictions(REAL)[0]
    assert first.ms["H200"] < first.ms["H100"] < first.ms["RTX 4090"] < first.ms["RTX 3090"]


def test_bytes_of_each_precision() -> None:
    """Against the files' own sizes, which have a 16-bit embedding here."""
    size = {one.name: one for one in PRECISIONS}
    parameters = measure(REAL).parameters
    held = {name: held_bytes(REAL, one, parameters) / 1e9 for name, one in size.items()}
    assert held["bf16"] == pytest.approx(2 * parameters / 1e9)
    assert held["Q4_K_M"] == pytest.approx(17.66, abs=0.1)  # 16.81 with the embedding in Q6_K
    assert held["NVFP4"] == pytest.approx(17.67, abs=0.1)
    assert held["FP8"] == pytest.approx(26.0, abs=0.2)
    bits = {name: 8 * weight_bytes(one.expert_up, 2816) for name, one in size.items()}
    assert bits["Q4_K_M"] == 4.5 and bits["bf16"] == 16 and bits["8-bit"] == 8.5
    assert bits["NVFP4"] == pytest.approx(4.5, abs=0.02)
    assert bits["int4"] == 4.5 and bits["MLX 4-bit"] == 4.5


def test_a_step_reads_what_its_precision_holds() -> None:
    """Many canvases read every weight once, in each precision."""
    parameters = measure(REAL).parameters
    plain = sum(part.bytes for part in roofline.step_cost(REAL, 64, 0))
    for one in PRECISIONS:
        cost = roofline.step_cost(REAL, 64, 0, one)
        saved = 2 * parameters - held_bytes(REAL, one, parameters)
        assert plain - sum(part.bytes for part in cost) == pytest.approx(saved, rel=1e-3, abs=1)
        assert [part.flop for part in cost] == [
            part.flop for part in roofline.step_cost(REAL, 64, 0, BF16)
        ]
    eight = roofline.step_cost(REAL, 1, 0, PRECISIONS[1])
    assert [part.flop8 > 0 for part in eight] == [True, True, False, False]
