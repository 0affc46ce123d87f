"""The first calls of a user: keywords, batches, mistakes with a hint, short reprs, `python -m`."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, get_type_hints

import pytest
import torch

import dgemma
from dgemma.errors import InvalidRequest
from dgemma.params import OPTIONS, SamplingKeywords, SamplingParams
from dgemma.types import Output, Usage
from tests.support.nano import nano

pytestmark = [pytest.mark.model, pytest.mark.process]

HELLO = [{"role": "user", "content": "What is your name?"}]
SUM = [{"role": "user", "content": "12+34"}]
QUICK = SamplingParams(seed=1, max_steps=4, max_tokens=20)


@pytest.mark.fault("N 35")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temprature": 1}, "did you mean 'temperature'"),
        ({"max_new_tokens": 3}, "did you mean 'max_tokens'"),
        ({"n": 2}, r"unknown parameter 'n'; it is an argument of generate\(\)"),
        ({"best_of": 2}, "unknown parameter 'best_of'; it is an argument"),
        ({"stream": True}, r"unknown parameter 'stream'; call stream\(\) for events"),
        ({"zzz": 2}, "unknown parameter 'zzz'$"),
    ],
)
def test_a_misspelt_parameter(given: dict[str, Any], message: str) -> None:
    """A traceback of `__init__` that names neither the mistake's remedy nor the right word."""
    for call in (
        lambda: SamplingParams(**given),
        lambda: SamplingParams.from_dict(given),
        lambda: SamplingParams.of(None, **given),
        lambda: SamplingParams.of(QUICK, **given),
        lambda: nano().stream("Hello", given),
        lambda: nano().stream("Hello", **given),
    ):
        with pytest.raises(InvalidRequest, match=message) as caught:
            call()
        assert caught.value.field == next(iter(given))


def test_keywords_are_the_parameters() -> None:
    """A field that `SamplingParams` has and a call does not take, or of another type."""
    fields, keywords = get_type_hints(SamplingParams), get_type_hints(SamplingKeywords)
    assert fields == keywords and list(OPTIONS) == list(fields)


@pytest.mark.fault("N 34")
def test_keywords_replace_fields() -> None:
    """Keywords that are dropped, or that lose to the params beside them."""
    llm = nano()
    wanted = llm.chat(HELLO, SamplingParams(seed=1, max_steps=4, max_tokens=5))
    assert llm.chat(HELLO, QUICK, max_tokens=5) == wanted
    assert llm.chat(HELLO, seed=1, max_steps=4, max_tokens=5) == wanted
    assert llm.chat(HELLO, {"seed": 1, "max_steps": 4}, max_tokens=5) == wanted
    assert llm.stream(HELLO, QUICK, max_tokens=5).result() == wanted
    assert llm.generate("Hello", QUICK, seed=9).seed == 9
    assert llm.autoregress("Hello", max_tokens=3).usage.steps <= 3
    assert llm.infill("The cat ", " the mat.", seed=4).seed == 4
    assert llm.fill(["The cat ", dgemma.Hole(max_tokens=2)], seed=4).seed == 4
    assert llm.edit("The cat sat.", spans=[(4, 7)], seed=4).seed == 4
    assert llm.revise(wanted, 0.0, seed=4).output.seed == 4
    assert llm.repair("7", regex="[0-9]", seed=4).seed == 4


@pytest.mark.parametrize("params", [3, "max_tokens=3", [("seed", 1)]])
def test_params_of_another_type(params: Any) -> None:
    """Parameters that are ignored, or fail somewhere within."""
    for call in (nano().generate, nano().stream, nano().autoregress):
        with pytest.raises(InvalidRequest, match="params must be SamplingParams"):
            call("Hello", params)


@pytest.mark.fault("N 38")
def test_a_batch_of_chats() -> None:
    """Conversations that must be asked one by one, or lose thought and tool calls in a batch."""
    llm = nano()
    both = llm.chat([HELLO, SUM], QUICK, thinking=True, max_tokens=60)
    assert [out.index for out in both] == [0, 1]
    for out, messages in zip(both, (HELLO, SUM), strict=True):
        alone = llm.chat(messages, QUICK, thinking=True, max_tokens=60)
        assert (out.token_ids, out.thinking) == (alone.token_ids, alone.thinking)
    assert any(out.thinking is not None for out in both)
    assert len(llm.chat([HELLO], QUICK)) == 1 and len(llm.chat([HELLO, SUM], QUICK, n=2)) == 4
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
    called = llm.chat([HELLO, SUM], QUICK, max_tokens=60, tools=[tool], tool_choice="required")
    assert [call.name for out in called for call in out.tool_calls] == ["now", "now"]


@pytest.mark.fault("N 40")
def test_text_instead_of_messages() -> None:
    """A complaint about characters that are no messages."""
    for messages in ("Who are you?", ["Who are you?"]):
        with pytest.raises(InvalidRequest, match=r"did you mean \[\{'role': 'user', 'content'"):
            nano().chat(messages)  # type: ignore[call-overload]


@pytest.mark.fault("N 39")
def test_the_class_instead_of_load() -> None:
    """A traceback about four missing arguments."""
    make: Any = dgemma.LLM
    for call in (lambda: make("nano"), lambda: make(), lambda: make(model="nano")):
        with pytest.raises(InvalidRequest, match=r'dgemma\.load\("nano"\)'):
            call()


@pytest.mark.fault("N 39")
def test_with() -> None:
    """A thread that runs on after the block."""
    with dgemma.load("nano", device="cpu") as llm:
        assert llm.device == torch.device("cpu")
        llm.generate("Hello", QUICK)
    with pytest.raises(dgemma.EngineError, match="closed"):
        llm.generate("Hello", QUICK)


@pytest.mark.fault("N 39")
def test_short_reprs() -> None:
    """Pages of numbers where a person looks at a value."""
    llm = nano()
    assert repr(llm).startswith("LLM('nano', cpu, float32, ")
    out = llm.chat(HELLO, QUICK, logprobs=3)
    assert repr(out) == f"Output({out.text!r}, {out.finish_reason!r}, {len(out.token_ids)} tokens)"
    assert len(repr(Output(text="a" * 1000, error="broken"))) < 120
    assert "broken" in repr(Output(error="broken"))
    stream = llm.stream(HELLO, QUICK)
    assert repr(stream) == "EventStream(running)"
    assert repr(stream.result()) in repr(stream)


@pytest.mark.fault("R L2")
def test_bytes_are_no_prompt() -> None:
    """Text that is taken for the ids of its letters."""
    prompt: Any
    for prompt in (b"abc", bytearray(b"abc"), memoryview(b"abc"), [b"abc"]):
        with pytest.raises(InvalidRequest, match="decode it, or give a list"):
            nano().generate(prompt, QUICK)
    assert nano().generate(range(5), QUICK).prompt_ids == (0, 1, 2, 3, 4)


@pytest.mark.fault("N 48")
def test_seeds_that_are_drawn() -> None:
    """Seeds whose last digits a reader of JSON loses, and draws that are all alike."""
    llm = nano()
    seeds = [llm.generate("Hello", max_tokens=1, max_steps=1).seed for _ in range(8)]
    seeds += [llm.infill("a", "b", max_steps=1, max_hole=1, search=False).seed for _ in range(4)]
    assert len(set(seeds)) == 12 and max(seeds) < 2**53 and max(seeds) > 2**40


def test_autoregress_refuses_what_it_cannot_keep() -> None:
    """A strict tool whose schema plain decoding would ignore."""
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
    nano().autoregress(HELLO, max_tokens=3, tools=[tool])
    tool["function"]["strict"] = True
    with pytest.raises(InvalidRequest, match="strict"):
        nano().autoregress(HELLO, max_tokens=3, tools=[tool])


@pytest.mark.fault("N 40")
def test_total_tokens() -> None:
    """A sum that every caller makes again."""
    assert Usage(prompt_tokens=3, completion_tokens=4).total_tokens == 7


def test_python_m() -> None:
    """A machine whose PATH has no scripts cannot use the commands."""
    command = [sys.executable, "-m", "dgemma", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"dgemma {dgemma.__version__}"
