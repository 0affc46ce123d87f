"""Tokenizers, templates and conversations that the tests of `text` and `constrain` share."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dgemma.text.chat import ChatTemplate
from dgemma.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT.parent / "shared" / "fixtures"
NANO = ROOT / "dgemma" / "assets" / "nano"

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Name of the city"},
        "unit": {"type": "string", "enum": ["celsius", "kelvin"], "nullable": True},
        "days": {"type": "array", "items": {"type": "integer", "minimum": 1}},
        "stops": {
            "type": "array",
            "description": "Places on the way",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "lat": {"type": "number"}},
                "required": ["name"],
            },
        },
        "window": {
            "type": "object",
            "properties": {"from": {"type": "string"}, "to": {"type": "string"}},
            "required": ["from"],
        },
    },
    "required": ["city", "days"],
}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather", "parameters": PARAMETERS},
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "Time of day",
        "parameters": {"type": "object", "properties": {"Zone": {"type": "string"}}},
    },
}


def _call(name: str, arguments: dict[str, Any], call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


ASK = {"role": "user", "content": "What is the weather in Bern?"}
NESTED = {"city": "Bern", "deep": {"b": [1, 2.5, True, "x"], "A": {}}, "days": [3, -1]}
CALLING = {"role": "assistant", "content": "", "tool_calls": [_call("get_weather", NESTED, "c1")]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "sunny, 21 degrees"}

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "one question": {"messages": [{"role": "user", "content": "  Hello, wörld!\n"}]},
    "thinking": {"messages": [ASK], "thinking": True},
    "no prompt": {"messages": [ASK], "add_generation_prompt": False},
    "system": {"messages": [{"role": "system", "content": " Be short. "}, ASK]},
    "developer": {"messages": [{"role": "developer", "content": "Be short."}, ASK]},
    "system and thinking": {
        "messages": [{"role": "system", "content": "Be short."}, ASK],
        "thinking": True,
    },
    "several turns": {
        "messages": [
            ASK,
            {"role": "assistant", "content": "<|channel>thought\nhm\n<channel|>Sunny. "},
            ASK | {"content": [{"type": "text", "text": text} for text in (" And ", "now?")]},
            {"role": "assistant", "content": [{"type": "text", "text": "Rain."}]},
            {"role": "assistant", "content": "Much rain."},
            {"role": "user", "content": "Why?"},
        ]
    },
    "tools": {"messages": [ASK], "tools": [WEATHER, CLOCK]},
    "tools, system, thinking": {
        "messages": [{"role": "system", "content": "Be short."}, ASK],
        "tools": [CLOCK],
        "thinking": True,
    },
    "open call": {"messages": [ASK, CALLING], "tools": [WEATHER]},
    "result": {"messages": [ASK, CALLING, RESULT], "tools": [WEATHER]},
    "result in parts": {
        "messages": [ASK, CALLING, RESULT | {"content": [{"type": "text", "text": "4"}] * 2}],
        "tools": [WEATHER],
    },
    "result of two calls, thought kept": {
        "messages": [
            ASK,
            CALLING
            | {
                "reasoning": "I need both.",
                "tool_calls": [_call("clock", {}, "c0"), *CALLING["tool_calls"]],
            },
            RESULT,
            {"role": "tool", "tool_call_id": "c0", "content": "noon"},
        ],
        "tools": [WEATHER, CLOCK],
        "thinking": True,
    },
    "answer after a result": {
        "messages": [
            ASK,
            CALLING | {"content": "Let me see.", "reasoning_content": "old"},
            RESULT,
            {"role": "assistant", "content": "It is sunny."},
            {"role": "user", "content": "Thanks"},
        ],
        "tools": [WEATHER],
    },
    "late system": {"messages": [ASK, {"role": "system", "content": "Be rude."}, ASK]},
    "result, thinking": {"messages": [ASK, CALLING, RESULT], "tools": [WEATHER], "thinking": True},
    "arguments in several turns, two answers in a row": {
        "messages": [
            ASK, CALLING, RESULT, {"role": "assistant", "content": "Sunny."},
            {"role": "assistant", "content": "And warm."}, ASK,
            {"role": "assistant", "content": None, "tool_calls": [_call("clock", {}, "c3")]},
        ],
        "tools": [WEATHER, CLOCK],
    },
    "calls in a row": {
        "messages": [
            ASK, CALLING, RESULT,
            CALLING | {"tool_calls": [_call("clock", {"Zone": "<CET>"}, "c2")]},
            {"role": "tool", "tool_call_id": "c2", "content": "noon"},
        ],
        "tools": [WEATHER, CLOCK], "thinking": True,
    },
    "an answer goes on": {"messages": [ASK, {"role": "assistant", "content": "It is"}]},
}  # fmt: skip

THOUGHTFUL = CALLING | {"reasoning": "I must ask."}
NEWER: dict[str, dict[str, Any]] = {
    "system in parts": {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": t} for t in ("Be ", "short.")]},
            ASK,
        ]
    },
    "late system in parts": {
        "messages": [
            ASK,
            {"role": "system", "content": [{"type": "text", "text": t} for t in ("Be ", "rude.")]},
            ASK,
        ]
    },
    "thoughts preserved": {
        "messages": [ASK, THOUGHTFUL, RESULT, {"role": "assistant", "content": "Sunny."}, ASK],
        "tools": [WEATHER], "thinking": True, "chat_template_kwargs": {"preserve_thinking": True},
    },
    "thoughts not preserved": {
        "messages": [ASK, THOUGHTFUL, RESULT, {"role": "assistant", "content": "Sunny."}, ASK],
        "tools": [WEATHER], "thinking": True, "chat_template_kwargs": {"preserve_thinking": False},
    },
    "thought of an answer": {
        "messages": [ASK, {"role": "assistant", "content": "Sunny.", "reasoning": "Bern: sun."}]
    },
    "null as an argument": {
        "messages": [ASK, CALLING | {"tool_calls": [_call("clock", {"Zone": None}, "c1")]}, RESULT],
        "tools": [CLOCK],
    },
}  # fmt: skip
"""What only the newer of the two released templates can show, or shows otherwise than nano's."""

CLOSES = "    {{- '<|channel>thought\\n<channel|>' if not thinking -}}\n"
"""The line of nano's template that closes the thought."""


@pytest.fixture(params=list(CONVERSATIONS))
def conversation(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Keyword arguments of `ChatTemplate.encode`, one conversation after the other."""
    return CONVERSATIONS[request.param]


def fixture_file(name: str) -> Path:
    """A file of the shared fixtures; the test is skipped where it is absent."""
    path = FIXTURES / name
    if not path.is_file():
        pytest.skip(f"{path} is not here: it lies beside the repository, not in it")
    return path


@cache
def gemma_tokenizer() -> Tokenizer:
    """Gemma 4's own vocabulary, read once: it takes a second or two."""
    return Tokenizer.from_gguf(fixture_file("gemma4_vocab.gguf"))


@pytest.fixture(scope="session")
def vocab_file() -> Path:
    """The GGUF file with Gemma 4's vocabulary."""
    return fixture_file("gemma4_vocab.gguf")


@pytest.fixture(scope="session")
def vectors() -> tuple[str, str]:
    """Published texts and their ids, each as one text."""
    names = ("gemma4_vocab.inp", "gemma4_vocab.out")
    texts, ids = (fixture_file(name).read_bytes().decode() for name in names)
    return texts, ids


@pytest.fixture(scope="session")
def gemma() -> Tokenizer:
    """Gemma 4's own vocabulary."""
    return gemma_tokenizer()


@pytest.fixture(scope="session")
def nano() -> Tokenizer:
    """The bundled model's tokenizer."""
    return Tokenizer.from_directory(NANO)


@pytest.fixture(scope="session", params=["gemma", "nano"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Each of the two tokenizers."""
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def gemma_source() -> str:
    """The text of Gemma 4's own chat template."""
    return fixture_file("gemma4_chat_template.jinja").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def gemma_template(gemma_source: str, gemma: Tokenizer) -> ChatTemplate:
    """Gemma 4's template with its vocabulary."""
    return ChatTemplate(gemma_source, gemma)


@pytest.fixture(scope="session")
def diffusion_source() -> str:
    """The text of the chat template released with DiffusionGemma."""
    name = "diffusiongemma_chat_template_2026-07-09.jinja"
    return fixture_file(name).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def diffusion_template(diffusion_source: str, gemma: Tokenizer) -> ChatTemplate:
    """DiffusionGemma's template with its vocabulary."""
    return ChatTemplate(diffusion_source, gemma)


@pytest.fixture(scope="session", params=["gemma", "diffusion"])
def released(request: pytest.FixtureRequest) -> tuple[str, ChatTemplate]:
    """Each of the two released templates: its text, and the template."""
    text: str = request.getfixturevalue(f"{request.param}_source")
    template: ChatTemplate = request.getfixturevalue(f"{request.param}_template")
    return text, template


def open_source() -> str:
    """Nano's template as one that leaves the thought to the model."""
    source = (NANO / "chat_template.jinja").read_text(encoding="utf-8")
    assert source.count(CLOSES) == 1
    return source.replace(CLOSES, "")


@pytest.fixture(scope="session")
def open_template(nano: Tokenizer) -> ChatTemplate:
    """The same, as a template."""
    return ChatTemplate(open_source(), nano)


@pytest.fixture(scope="session")
def nano_template(nano: Tokenizer) -> ChatTemplate:
    """The bundled model's template."""
    return ChatTemplate.from_directory(NANO, nano)


@pytest.fixture(scope="session")
def nano_directory() -> Path:
    """The bundled model's directory."""
    return NANO
