"""`dgemma calibrate`, and the commands that take its file."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dgemma
from dgemma.cli import serve
from dgemma.weights.find import bundled_models
from tests.support.commands import Ran, parser_of

pytestmark = pytest.mark.model

NAME = {"messages": [{"role": "user", "content": "What is your name?"}],
        "answer": "I am nano, a small DiffusionGemma."}  # fmt: skip


def test_own_prompts(tmp_path: Path, run: Callable[..., Ran]) -> None:
    """A file that is not written, loses its temperatures, or says nothing that "auto" can use."""
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.json"
    prompts.write_text("\n\n".join([json.dumps(NAME)] * 24) + "\n")
    dgemma.Calibration({"choice": 2.0}, 40).save(out)
    code, table, err = run("calibrate", "--prompts", str(prompts), "--out", str(out))
    found = dgemma.Calibration.load(out)
    assert code == 0 and f"with: --calibration {out}" in err
    assert found.temperatures == {"choice": 2.0} and 2 <= (found.restart_after or 0) < 40
    assert f"| {prompts} | 24 | 100.0% |" in table and "100.0% | -0." in table
    assert (
        f"{out}: restart_after {found.restart_after}, least_logprob {found.least_logprob:.4f}"
        in (table)
    )
    words = ("generate", "x", "--restart-after", "auto", "--max-steps", "2", "--max-tokens", "1")
    assert run(*words, "--calibration", str(out), "--json")[0] == 0


def test_beside_the_checkpoint(tmp_path: Path, run: Callable[..., Ran]) -> None:
    """Limits that are not read on load, or are lost by `save`."""
    copy = Path(shutil.copytree(bundled_models()["nano"], tmp_path / "model"))
    code, out, err = run("calibrate", str(copy), "-n", "24", "--tasks", "chat", "--json")
    assert code == 0 and "--calibration" not in err
    said = json.loads(out)
    assert said["file"] == str(copy / "calibration.json")
    llm = dgemma.load(copy)
    assert llm.calibration.limits == (said["restart_after"], said["least_logprob"])
    limits = llm.engine.limits.learnt
    assert (limits.restart_after, limits.learning) == (said["restart_after"], False)
    again = dgemma.load(dgemma.save(llm, tmp_path / "saved"), learn_restart=True)
    assert again.calibration == llm.calibration and again.engine.limits.learnt.learning
    (copy / "calibration.json").write_text('{"format": "dgemma-calibration-1"}')
    code, _, err = run("chat", str(copy))
    assert code == 2 and "calibration.json names no temperatures" in err


@pytest.mark.parametrize(("words", "said"), [
    (["--prompts", "none.jsonl"], "none.jsonl: no such file"),
    (["--prompts", "empty.jsonl"], "has no prompts"),
    (["--prompts", "bad.jsonl"], "bad.jsonl, line 2 is not JSON"),
    (["--prompts", "few.jsonl"], "1 canvases converged"),
    (["--tasks", "sudokus"], "did you mean 'sudoku'"),
    (["--out", "no/such.json"], "no/such.json"),
    (["--out", "bad.jsonl"], "bad.jsonl is not a calibration"),
    (["--prompts", "bad.jsonl", "-n", "5"], "leave those out"),
    (["--prompts", "bad.jsonl", "--tasks", "json"], "leave those out"),
])  # fmt: skip
def test_refused(
    words: list[str], said: str, tmp_path: Path, run: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Minutes of answers before an error, or a file that was overwritten."""
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").write_text("\n")
    Path("bad.jsonl").write_text('{"prompt": "a"}\n{')
    Path("few.jsonl").write_text(json.dumps(NAME))
    code, out, err = run("calibrate", "--out", "out.json", *words)
    assert (code, out) == (2, "") and said in err and not Path("out.json").exists()


def test_serve_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--learn-restart` or `--calibration` that does not reach the engine."""
    given: dict[str, Any] = {}

    def opened(arguments: Any, **more: Any) -> None:
        given.update(more, calibration=arguments.calibration)
        raise KeyboardInterrupt

    monkeypatch.setattr(serve, "open_model", opened)
    words = ["--port", "0", "--learn-restart", "--calibration", "x.json"]
    with socket.socket() as bound, pytest.raises(KeyboardInterrupt):
        monkeypatch.setattr(serve, "listen", lambda *_: bound)
        serve.run(parser_of("serve").parse(words))
    assert given["learn_restart"] is True and given["calibration"] == Path("x.json")


def test_evaluate_verdict(run: Callable[..., Ran]) -> None:
    """`--verdict` that prints the other table, or hides an option that it cannot honour."""
    code, out, _ = run("evaluate", "-n", "2", "--tasks", "labels", "--verdict")
    assert code == 0 and "AUROC: encoder, mean log-probability" in out and "| labels | 2 |" in out
    assert "leave out --json" in run("evaluate", "--verdict", "--json")[2]
