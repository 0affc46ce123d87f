"""Every option is shown to do something; here are those that no other test of a command shows."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dgemma
from dgemma.cli import options, serve
from dgemma.cli.main import COMMANDS
from dgemma.compose import edit, fill
from dgemma.errors import InvalidRequest
from dgemma.evaluate import canvas
from dgemma.params import OPTIONS, SamplingParams
from dgemma.server.settings import ServerLimits
from dgemma.weights import hub
from dgemma.weights.find import bundled_models
from tests.support.commands import Ran, Terminal, parser_of
from tests.support.sources import python_files

VALUES: dict[str, object] = {
    "max_tokens": 5, "seed": 5, "max_steps": 5, "entropy_bound": 0.5, "t_min": 0.5, "t_max": 0.7,
    "confidence_threshold": 0.5, "stability_threshold": 2, "ignore_tail": True,
    "stable_prefix": True, "restart_after": "auto", "tries": 3, "race": 2, "verdict": True,
    "quality": "careful", "canvas_length": 64, "stop": ("a", "b"), "thinking_budget": 5,
    "temperature": 0.5, "top_p": 0.5, "top_k": 5, "min_p": 0.5, "min_tokens": 5,
    "logit_bias": {7: 0.5}, "allowed_token_ids": (7, 8), "bad_words": ("a", "b"), "logprobs": 3,
    "logprob_token_ids": (7, 8), "json_schema": '{"type": "object"}', "regex": "a", "grammar": "a",
    "choices": ("a", "b"), "structure": "table:a,b",
}  # fmt: skip
"""A value of every sampling field."""


@pytest.mark.fault("N 53")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_in_a_test(command: str) -> None:
    """A new option that nobody has tried; the test that names it has to show its effect."""
    texts = "\n".join(path.read_text(encoding="utf-8") for path in python_files("tests"))
    walked = {f"--{name.replace('_', '-')}" for name in OPTIONS}  # by tests below
    walked |= {serve.option_of(name) for name in serve.PER_LIMIT}
    missing = [
        name for action in parser_of(command)._actions for name in action.option_strings
        if name.startswith("--") and name not in walked and f'"{name}"' not in texts
        and f" {name}" not in texts
    ]  # fmt: skip
    assert not missing, f"write a test in tests/cli that shows what {missing} changes"


@pytest.mark.parametrize("name", OPTIONS)
def test_sampling_options_set_their_fields(name: str) -> None:
    """An option that is read as another type, or whose field is left out."""
    value = VALUES[name]
    words = value if isinstance(value, tuple) else (value,)
    if name == "logit_bias":
        words = ("7=0.5",)
    option = f"--{name.replace('_', '-')}"
    given = [option, *map(str, words)] if name == "choices" else []
    for word in words if name != "choices" else ():
        given += [option] if value is True else [f"{option}={word}"]
    found = options.sampling(parser_of("generate").parse(["x", *given]))
    assert found == SamplingParams(**{name: value})  # type: ignore[arg-type]


def test_no_strict(tmp_path: Path, run: Callable[..., Ran]) -> None:
    """`--no-strict` that refuses a key nobody knows, or an error that does not name it."""
    copy = Path(shutil.copytree(bundled_models()["nano"], tmp_path / "model"))
    values = json.loads((copy / "config.json").read_text())
    values["text_config"]["hidden_sizes"] = 3
    (copy / "config.json").write_text(json.dumps(values))
    for command in ("info", "doctor"):
        code, _, err = run(command, str(copy))
        assert code == 2 and "pass --no-strict" in err and "strict=False" not in err
        assert run(command, str(copy), "--no-strict")[0] == 0


@pytest.mark.model
@pytest.mark.parametrize(("module", "words"), [
    (fill, ("infill", "a ___ b")), (edit, ("edit", "FILE", "--span", "1")),
])  # fmt: skip
def test_context(
    module: Any, words: tuple[str, ...], tmp_path: Path, run: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """`--context` that does not reach the plan."""
    (tmp_path / "a.txt").write_text("one\n")

    def plan(*_: object, context: str, **__: object) -> None:
        raise InvalidRequest(f"context {context}")

    monkeypatch.setattr(module, words[0].removeprefix("in"), plan)
    given = [str(tmp_path / "a.txt") if word == "FILE" else word for word in words]
    assert run(*given, "--context", "a letter")[2].endswith(" a letter\n")


@pytest.mark.model
def test_decide_in_other_ways(tmp_path: Path, run: Callable[..., Ran]) -> None:
    """`--joint` asks one by one, or `--calibration` leaves the probabilities as they are."""
    words = ("decide", "x", "--predicate", "Is it food?", "--predicate", "Is it old?", "--json")
    alone, joint = (json.loads(run(*words, *more)[1]) for more in ((), ("--joint",)))
    assert joint["usage"]["completion_tokens"] < alone["usage"]["completion_tokens"]
    fitted = tmp_path / "fitted.json"
    dgemma.Calibration({"predicate": 3.0}).save(fitted)
    flat = json.loads(run(*words, "--calibration", str(fitted))[1])
    for before, after in zip(alone["answers"], flat["answers"], strict=True):
        assert after["confidence"] < before["confidence"]


@pytest.mark.fault("N 22")
def test_decide_needs_a_question_before_its_choices(run: Callable[..., Ran]) -> None:
    """The first choice is silently taken for the question."""
    code, out, err = run("decide", "x", "--choice", "positive", "negative", "neutral")
    assert (code, out) == (2, "") and "write 'positive?', or '' positive negative neutral" in err


@pytest.mark.model
def test_evaluate_shows_its_progress(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line for every 128 answers, so none for 60; or a bar that stays in the table."""
    words = ("evaluate", "-n", "2", "--tasks", "json", "--mode", "diffusion")
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    code, out, _ = run(*words)
    assert code == 0 and "| json | diffusion | 2 |" in out
    seen = stream.lines()
    assert "loading nano ..." in seen and "json diffusion ..." in seen
    assert any(line.startswith("json diffusion: 2 of 2") for line in seen)
    assert seen[-1].startswith("json diffusion: exact ")


@pytest.mark.model
def test_evaluate_canvas(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    """`--canvas` that measures the tasks."""
    monkeypatch.setattr(canvas, "evaluate_canvas", lambda llm, n, say: f"canvas of {n}")
    assert run("evaluate", "--canvas", "-n", "3")[1] == "canvas of 3\n"
    assert "leave out --json" in run("evaluate", "--canvas", "--json")[2]


@pytest.mark.parametrize("name", serve.PER_LIMIT)
def test_limits_of_the_server(name: str) -> None:
    """A limit whose option sets another one, or none."""
    arguments = parser_of("serve").parse([serve.option_of(name), "7"])
    limits = serve.settings_of(arguments).limits
    assert getattr(limits, name) == 7 != getattr(ServerLimits(), name)


def test_where_and_how_much_is_served(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--host`, `--port` or `--max-running` that is read and forgotten."""
    seen: list[object] = []

    def listen(*where: object) -> SimpleNamespace:
        seen.append(where)
        return SimpleNamespace(getsockname=lambda: where)

    def stop(_: argparse.Namespace, **more: object) -> None:
        seen.append(more)
        raise InvalidRequest("stop")

    monkeypatch.setattr(serve, "listen", listen)
    monkeypatch.setattr(serve, "open_model", stop)
    assert run("serve", "--host", "::1", "--port", "81", "--max-running", "3")[0] == 2
    assert seen == [
        ("::1", 81),
        {"max_running": 3, "share_prefix_cache": False, "learn_restart": False},
    ]


def test_what_is_pulled(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another revision, or another hub, than was asked for."""
    monkeypatch.setattr(hub, "pull", lambda *given: given)
    words = ("pull", "org/name", "--revision", "v2", "--endpoint", "http://localhost:1")
    assert run(*words)[1] == "('org/name', 'v2', 'http://localhost:1', ())\n"
    words = ("pull", "org/name", "--include", "*.gguf", "--include", "*.json")
    assert run(*words)[1] == "('org/name', None, None, ['*.gguf', '*.json'])\n"
