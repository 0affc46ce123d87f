"""Runs a frozen request and says what came out; reads and writes the files of golden tokens.

A request is a JSON object, answered through the public interface alone, so that the files outlive
any change of what lies behind it:

    call        "submit" (if absent), "chat", "fill" or "edit": the method of the model
    ids | text | messages      the prompt of "submit"; "chat" takes messages
    params, canvas             the fields of SamplingParams and of CanvasControl
    chat, thinking             whether "submit" reads the answer as a chat's, and asks for a thought
    everything else            an argument of that method, or a field of Request
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

import dgemma
from dgemma import LLM, CanvasControl, Hole, Output, Request, SamplingParams
from tests.golden.shapes import SHAPES, write_shape

FOLDER = Path(__file__).parent / "frozen"
MODELS = ("nano", *SHAPES)
WRITE = "python -m tests.golden.write"
NUMBERS = ("logprobs", "entropy", "asked", "top")
"""What is compared within TOLERANCE, in nats; everything else is compared as it is."""

TOLERANCE = 2e-3
IMPOSSIBLE = -1e4
"""Stands for the logarithm of zero, which JSON does not have."""

Case = dict[str, Any]

# -- models --------------------------------------------------------------------------------------


def load(name: str, directory: Path) -> tuple[LLM, str]:
    """A fresh model and the hash of its numbers; random ones pass through our own writer."""
    source = "nano" if name == "nano" else write_shape(name, directory / "made")
    llm = dgemma.load(source, device="cpu", dtype="float32")
    saved = dgemma.save(llm, directory / "saved")
    if name != "nano":
        llm = dgemma.load(saved, device="cpu", dtype="float32")
    return llm, checkpoint_hash(saved)


@cache
def model(name: str) -> tuple[LLM, str]:
    """The same, once a process."""
    with tempfile.TemporaryDirectory() as directory:
        return load(name, Path(directory))


def checkpoint_hash(directory: Path) -> str:
    """SHA-256 of all tensors by their released names, and of the tokenizer where there is one."""
    digest = hashlib.sha256()
    tensors = {}
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "pt") as content:
            tensors |= {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].to(torch.float32).numpy().tobytes())
    if (directory / "tokenizer.json").exists():
        digest.update((directory / "tokenizer.json").read_bytes())
    return digest.hexdigest()


# -- running -------------------------------------------------------------------------------------


def run(llm: LLM, request: Mapping[str, Any]) -> Case:
    """What comes out of a request, as plain JSON values."""
    given = dict(request)
    call = given.pop("call", "submit")
    params = SamplingParams(**given.pop("params", {}))
    if call == "submit":
        return _submit(llm, given, params)
    if call == "chat":
        out = llm.chat(given.pop("messages"), params, **given)
        calls = [[made.name, dict(made.arguments)] for made in out.tool_calls]
        return _answer([out]) | ({"calls": calls} if calls else {})
    if call == "fill":
        parts = [part if isinstance(part, str) else Hole(**part) for part in given.pop("parts")]
        done: Any = llm.fill(parts, params, **given)
    else:
        done = llm.edit(given.pop("text"), params=params, **given)
    return _answer(done.outputs) | {"text": done.text, "steps": done.usage.steps}


def _submit(llm: LLM, given: dict[str, Any], params: SamplingParams) -> Case:
    if "ids" in given:
        ids = given.pop("ids")
    elif "text" in given:
        ids = llm.prompt_ids(given.pop("text"))
    else:
        ids = llm.chat_ids(given.pop("messages"), None, given.pop("thinking", False))
    if "canvas" in given:
        given["canvas"] = CanvasControl(**{k: _tuples(v) for k, v in given["canvas"].items()})
    told = []
    for event in llm.submit(Request(token_ids=tuple(ids), params=params, **given)):
        if event.type == "commit":
            told.append([event.step, len(event.ids)])
        if event.output is not None:
            answer = _answer([event.output])
    # When text is told, and how much of it: [step, tokens] of every commit.
    return answer | ({"told": told} if params.stable_prefix else {})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _answer(outputs: Sequence[Output]) -> Case:
    out: Case = {
        "tokens": [token for output in outputs for token in output.token_ids],
        "steps": sum(output.usage.steps for output in outputs),
        "canvases": sum(output.usage.canvases for output in outputs),
        "finish": ", ".join(output.finish_reason for output in outputs),
    }
    texts = [output.text for output in outputs if output.text]
    if texts:
        out["text"] = "".join(texts)
    if outputs[0].thinking is not None:
        out["thinking"] = outputs[0].thinking
    if (kept := outputs[0].constraint) is not None:
        out["constraint"] = [
            kept.mode, kept.complete, kept.rounds, kept.repaired, kept.fallbacks, kept.closed
        ]  # fmt: skip
    scores = [score for output in outputs for score in output.scores]
    if scores:
        out["logprobs"] = _rounded([score.logprob for score in scores])
        out["entropy"] = _rounded([score.entropy for score in scores])
        if any(score.asked for score in scores):
            out["asked"] = [_rounded(score.asked) for score in scores]
        if any(score.top for score in scores):
            out["top"] = [_rounded([value for _, value in score.top]) for score in scores]
    return out


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(max(value, IMPOSSIBLE), 4) for value in values]


# -- comparing -----------------------------------------------------------------------------------


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two answers, a line each; numbers may differ by TOLERANCE."""
    lines = []
    for key in dict.fromkeys([*old, *new]):
        was, now = old.get(key), new.get(key)
        if was != now and not (key in NUMBERS and _close(was, now)):
            lines.append(f"{key}:\n    was {_short(was)}\n    now {_short(now)}")
    return lines


def _close(was: Any, now: Any) -> bool:
    if isinstance(was, list) and isinstance(now, list):
        return len(was) == len(now) and all(map(_close, was, now))
    both = isinstance(was, int | float) and isinstance(now, int | float)
    return both and abs(was - now) <= TOLERANCE


def _short(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)


# -- files ---------------------------------------------------------------------------------------


def read(name: str) -> dict[str, Case]:
    """The frozen cases of one model, by name."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return {}
    found: dict[str, Case] = json.loads(path.read_text(encoding="utf-8"))
    return found


def dump(cases: Mapping[str, Case]) -> str:
    """JSON with one line for every part of a case, so that a diff can be read."""
    blocks = []
    for name, case in cases.items():
        lines = [f"  {json.dumps(key)}: {line(case[key])}" for key in case if key != "answer"]
        inner = [f"    {json.dumps(key)}: {line(value)}" for key, value in case["answer"].items()]
        lines.append('  "answer": {\n' + ",\n".join(inner) + "\n  }")
        blocks.append(f" {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def line(value: Any) -> str:
    """A value as JSON on one line."""
    return json.dumps(value, ensure_ascii=False)
