"""`--memory`: the plan is shown before anything is read, and it is kept to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dgemma.llm import load
from dgemma.weights.safetensors import Safetensors
from tests.support.commands import Ran
from tests.support.layered import checkpoint

pytestmark = pytest.mark.model


def unreadable(*_: object, **__: object) -> None:
    """A source that must not be read."""
    raise AssertionError("weights are read")


def test_info_reads_no_weights(
    tmp_path: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line for each kind, the sum within the budget, in JSON too, for a device that is absent."""
    monkeypatch.setattr(Safetensors, "read", unreadable)
    path = str(checkpoint(tmp_path, "nvfp4"))
    code, out, _ = run(
        "info", path, "--prompt", "9", "--context", "100", "--device", "cuda", "--json"
    )
    whole = json.loads(out)["plan"]
    assert code == 0 and whole["budget"] is None and whole["context"] == 100
    memory = whole["total"] + 50_000
    words = (
        "info",
        path,
        "--prompt",
        "9",
        "--memory",
        str(memory),
        "--device",
        "cuda",
        "--context",
        "100",
    )
    plan = json.loads(run(*words, "--json")[1])["plan"]
    assert plan["kinds"]["experts"]["precision"] == "fp4 in groups of 16"
    sizes = sum(kind["device"] for kind in plan["kinds"].values())
    assert sizes + plan["cache"] + plan["work"] == plan["total"] <= memory == plan["budget"]
    code, out, _ = run(*words)
    shown = [line.split(maxsplit=1)[1] for line in out.splitlines() if line.startswith("  plan")]
    assert shown == plan["lines"]


def test_info_refuses_a_device_without_a_plan(run: Callable[..., Ran]) -> None:
    """An option without effect."""
    code, _, err = run("info", "nano", "--device", "cuda")
    assert code == 2 and "give --memory or --context too" in err


def test_too_little_memory(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    """One error before anything is read, in every command that loads."""
    monkeypatch.setattr(Safetensors, "read", unreadable)
    commands = (
        ("generate", "x"), ("chat",), ("doctor",), ("info",), ("bench", "step"), ("demo",),
        ("evaluate", "-n", "1"), ("decide", "x", "--predicate", "y"),
    )  # fmt: skip
    for words in commands:
        code, _, err = run(*words, "--model", "nano", "--memory", "5MB")
        assert code == 2, words
        assert "does not fit a memory of 5.00 MB: it takes 54" in err, (words, err)


def test_a_size_that_is_none(run: Callable[..., Ran]) -> None:
    """Before torch is loaded, with the forms that are read."""
    code, _, err = run("generate", "--memory", "18XB", "x")
    assert code == 2 and "such as 18GB, 16GiB or 900MB, got '18XB'" in err


def test_doctor_shows_the_plan(run: Callable[..., Ran]) -> None:
    """With the kernels that such a load takes."""
    rows = json.loads(run("doctor", "--memory", "60MB", "--device", "cpu", "--json")[1])
    plan = {row["value"]: row["reason"] for row in rows if row["what"] == "plan"}
    assert plan["memory on cpu"].endswith("of 60.00 MB")
    assert plan["experts"] == "1.77 MB, float32"


def test_less_memory_fewer_pages() -> None:
    """What is left over is for keys and values, within the budget; the tokens stay the same."""
    found = []
    for memory in (None, "80MB", "60MB"):
        with load("nano", device="cpu", dtype="float32", memory=memory) as llm:
            cache = sum(buffer.nbytes for buffer in llm.engine.memory.buffers)
            output = llm.generate([2, 5, 9], max_tokens=8, max_steps=3, seed=0)
        found.append((cache, output.token_ids))
    assert found[1][0] > found[2][0] and found[1][0] < 80e6
    assert {ids for _, ids in found} == {found[0][1]}
    weights = sum(part.nbytes for part in llm.model.parameters())
    assert found[2][0] + weights < 60e6 and llm.choice.dtype == torch.float32
