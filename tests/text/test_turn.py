"""Whether a prompt leaves the thought to the model, and when it is then closed."""

from __future__ import annotations

from typing import Any

import pytest

from dgemma.params import SamplingParams
from dgemma.request_parts import CanvasControl, ToolUse
from dgemma.text.chat import ChatTemplate
from dgemma.text.tokenizer import Tokenizer
from dgemma.text.turn import ModelTurn
from dgemma.types import Request

ASK: list[Any] = [{"role": "user", "content": "x"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}
CALLED: list[Any] = [
    *ASK,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "z"},
]
EMPTY = "<|channel>thought\n<channel|>"
THINKER = (
    "{{ bos_token }}{% for m in messages %}<|turn>{{ m.role }}\n"
    "{% if m.reasoning %}<|channel>thought\n{{ m.reasoning }}<channel|>{% endif %}"
    "{{ m.content }}<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)


def turn_of(tokenizer: Tokenizer, template: ChatTemplate) -> ModelTurn:
    found = ModelTurn.of(tokenizer, template)
    assert found is not None
    return found


def test_released_templates(
    gemma: Tokenizer, gemma_template: ChatTemplate, diffusion_template: ChatTemplate
) -> None:
    """Catches a way that is assumed: one closes the thought, the other leaves it to the model."""
    assert ModelTurn.of(gemma, gemma_template) is None
    found = turn_of(gemma, diffusion_template)
    assert gemma.decode(found.opening, control=True) == "<|turn>model\n"
    assert gemma.decode(found.empty, control=True) == EMPTY
    closed = found.closed(diffusion_template.encode(ASK))
    assert list(closed) == gemma_template.encode(ASK), "the two differ in nothing else"


@pytest.mark.parametrize(
    ("source", "leaves"),
    [
        (THINKER, True),
        (THINKER.replace("{% if m.reasoning %}", "{% if false %}"), False),
        (THINKER + "{% if not enable_thinking %}<|channel>thought\n<channel|>{% endif %}", False),
        (THINKER + "<|channel>thought\n", False),
        ("{{ bos_token }}{{ messages[-1].content }}", False),
        ("{{ raise_exception('no') }}", False),
        ("{% if add_generation_prompt %}<|turn>model\n{% else %}{{ bos_token }}{% endif %}", False),
    ],
)
def test_other_templates(nano: Tokenizer, source: str, leaves: bool) -> None:
    """Catches a thought that is put where a template knows none, or has begun one itself."""
    assert (ModelTurn.of(nano, ChatTemplate(source, nano)) is not None) == leaves


def test_where_a_prompt_is_closed(
    nano: Tokenizer, nano_template: ChatTemplate, open_template: ChatTemplate
) -> None:
    """Catches an empty thought in front of one that is asked for, twice, or in mid-turn."""
    assert ModelTurn.of(nano, nano_template) is None
    found = turn_of(nano, open_template)
    plain = open_template.encode(ASK)
    closed = found.closed(plain)
    assert list(closed) == nano_template.encode(ASK) == [*plain, *found.empty]
    assert found.closed(closed) == closed
    text = nano.encode("Some text")
    for prompt in (
        open_template.encode(ASK, thinking=True),
        open_template.encode(CALLED, tools=[TOOL]),  # the model's turn goes on
        open_template.encode(ASK, add_generation_prompt=False),
        [*open_template.encode(ASK, add_generation_prompt=False), *nano.encode("<|turn>model\n")],
        [*plain, *text],
        text,
        [],
    ):
        assert found.closed(prompt) == tuple(prompt)
        assert not found.is_closed(prompt)
    assert found.is_closed(closed) and found.is_closed([*closed, *text])
    later = open_template.encode([*ASK, {"role": "assistant", "content": "y"}, *ASK])
    assert not found.is_closed([*closed, *later]) and not found.is_closed(plain)


def requests(found: ModelTurn) -> dict[str, tuple[bool, dict[str, Any]]]:
    """Name -> whether the thought is to be closed, and what is asked."""
    open_id = found.empty[0]

    def drawn(**fields: Any) -> dict[str, Any]:
        return {"params": SamplingParams(**fields)}

    def given(**fields: Any) -> dict[str, Any]:
        return {"canvas": CanvasControl(**fields)}

    return {
        "free": (False, {}),
        "a schema": (True, drawn(json_schema={"type": "object"})),
        "a regex": (True, drawn(regex="a")),
        "choices": (True, drawn(choices=["a", "b"])),
        "a grammar": (True, drawn(grammar="start: /a/")),
        "a grammar with a thought": (False, drawn(grammar="start: <|channel> /a/")),
        "allowed ids": (True, drawn(allowed_token_ids=[300])),
        "allowed ids with a thought": (False, drawn(allowed_token_ids=[300, open_id])),
        "barred words": (False, drawn(bad_words=["a"])),
        "a bias": (False, drawn(logit_bias={300: 2.0})),
        "a required call": (True, {"chat": True, "tool_use": ToolUse([TOOL])}),
        "calls": (False, {"chat": True, "tool_use": ToolUse([TOOL], required=False)}),
        "pins": (True, given(ids=(300,), pinned=(0,))),
        "pins further on": (True, given(ids=(-1, 300), pinned=(1,))),
        "a pinned thought": (False, given(ids=(*found.empty, 300), pinned=(0, 1, 2, 3, 4))),
        "a text to begin with": (True, given(ids=(300,), strength=0.5)),
        "only noise": (False, given(ids=(300,))),
        "a mask": (True, given(allowed=((300,),), masks=(0,))),
        "a mask with a thought": (False, given(allowed=((300, open_id),), masks=(0,))),
        "a mask further on": (False, given(allowed=((300,),), masks=(-1, 0))),
        "a reading of noise": (False, given(read_only=True)),
        "scores": (False, {"mode": "score"}),
    }


def test_which_requests_close_it(nano: Tokenizer, open_template: ChatTemplate) -> None:
    """Catches a way to fix an answer's beginning that is forgotten, and a free one that is not."""
    found = turn_of(nano, open_template)
    plain = tuple(open_template.encode(ASK))
    thinking = tuple(open_template.encode(ASK, thinking=True))
    for name, (closes, asked) in requests(found).items():
        ids = found.closed_for(Request(token_ids=plain, **asked))
        assert ids == (plain + found.empty if closes else plain), name
        assert found.closed_for(Request(token_ids=thinking, **asked)) == thinking, name
