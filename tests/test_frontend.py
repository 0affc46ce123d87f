"""The text side of a model by itself, as another process uses it: without torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from dgemma.errors import TokenizerError
from dgemma.frontend import Frontend
from dgemma.interfaces import Reader
from dgemma.params import SamplingParams
from dgemma.text.chat import ChatTemplate
from dgemma.types import Event, Output, Request, TextDelta, ThoughtDelta
from dgemma.weights.find import bundled_models
from tests.support.client import Written
from tests.support.nano import nano

pytestmark = [pytest.mark.model, pytest.mark.process]

HELLO = [{"role": "user", "content": "Hello!"}]


def frontend() -> Frontend:
    """Nano's, made from its directory."""
    facts = nano().facts
    return Frontend.from_directory(
        bundled_models()["nano"], end_ids=facts.end_ids, canvas=facts.canvas, context=facts.context
    )


def test_another_process_needs_no_torch() -> None:
    """A server process that loads the network's library only to make prompts."""
    facts = nano().facts
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from dgemma.frontend import Frontend\n"
        "from dgemma.params import SamplingParams\n"
        "from dgemma.types import Request\n"
        f"made = Frontend.from_directory(Path({str(bundled_models()['nano'])!r}),\n"
        f"    end_ids={facts.end_ids}, canvas={facts.canvas}, context={facts.context})\n"
        f"ids = made.chat_ids({HELLO})\n"
        "params = SamplingParams(regex='[0-9]+')\n"
        "request = Request(token_ids=tuple(ids), params=params, chat=True)\n"
        "made.thought(request), made.reader(request)\n"
        "print(ids, made.matcher(request)[1], made.facts.end_id, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{nano().chat_ids(HELLO)} regex {facts.end_id} False"


def test_it_equals_the_loaded_models() -> None:
    """Two processes that make different requests of one prompt."""
    here, there = nano().frontend, frontend()
    request = Request(token_ids=tuple(here.chat_ids(HELLO, thinking=True)), chat=True)
    assert here.thought(request) == there.thought(request) is not None
    for name in ("canvas", "context", "end_id", "end_ids", "fill_id"):
        assert getattr(here.facts, name) == getattr(there.facts, name)
    assert here.facts.ask("Hi") == there.facts.ask("Hi") == here.message_ids("Hi")


def test_without_a_tokenizer() -> None:
    """Ids alone need no tokenizer; text fails late, or without saying which file is missing."""
    source = bundled_models()["nano"]
    bare = Frontend(source, None, None, end_ids=(1,), canvas=8, context=64)
    request = Request(token_ids=(5, 6))
    assert bare.matcher(request) is bare.thought(request) is None
    assert type(bare.reader(request)) is Reader
    assert bare.closed(request) == (request, False)
    stopping = Request(token_ids=(5, 6), params=SamplingParams(stop=["x"]))
    for call in (
        lambda: bare.reader(stopping),
        lambda: bare.matcher(stopping),
        lambda: bare.thought(replace(request, chat=True)),
        lambda: bare.chat_ids(HELLO),
        lambda: bare.facts,
    ):
        with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
            call()


OWN = "You are a careful assistant. " * 40


@pytest.mark.fault("R H2")
@pytest.mark.parametrize("system", [None, "Be brief.", "You are a careful assistant."])
def test_what_the_template_itself_begins_with(system: str | None) -> None:
    """A caller's text that counts as everyone's, or a template's own text that each key encodes."""
    source = (
        "{{ bos_token }}<|turn>system\n{% if tools %}Tools: {{ tools | tojson }}\n{% endif %}"
        + OWN + "{{ messages[0].content if messages[0].role == 'system' else '' }}<turn|>\n"
        "{% for m in messages if m.role == 'user' %}<|turn>user\n{{ m.content }}<turn|>\n"
        "{% endfor %}<|turn>model\n"
    )  # fmt: skip
    tokenizer = nano().frontend.tokenizer
    template = ChatTemplate(source, tokenizer)
    made = Frontend(bundled_models()["nano"], tokenizer, template, end_ids=(1,), canvas=8,
                    context=4096)  # fmt: skip
    messages = [{"role": "system", "content": system}] if system else []
    ids = made.chat_ids([*messages, {"role": "user", "content": "My secret"}])
    request = Request(token_ids=tuple(ids), chat=True, owner="a")
    own = tokenizer.decode(ids[: made.common(request)], control=True)
    assert own.startswith("<bos><|turn>system\nYou are") and len(own) > 0.9 * len(OWN)
    assert ("<bos><|turn>system\n" + OWN + "<turn|>\n<|turn>user\n").startswith(own)
    assert made.common(replace(request, owner="")) == 0, "there is nobody else"
    # A tool's text comes before all of it.
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
    ids = made.chat_ids([{"role": "user", "content": "My secret"}], [tool])
    assert made.common(Request(token_ids=tuple(ids), chat=True, owner="a")) < 10
    nano_ids = tuple(nano().chat_ids(HELLO))
    assert nano().frontend.common(Request(token_ids=nano_ids, owner="a")) == 0, "under a page"


def test_a_stream_gives_its_result_again() -> None:
    """A stream that was iterated to its end, and has then lost the answer."""
    output = Output(text="Hi there")
    deltas = (TextDelta("Hi"), ThoughtDelta("hm"), TextDelta(" there"))
    stream = Written([Event(type="commit", deltas=deltas), Event(type="done", output=output)])
    assert repr(stream) == "EventStream(running)"
    assert "".join(event.text for event in stream) == "Hi there"
    assert stream.result() is stream.result() is output
    assert "Hi there" in repr(stream)
