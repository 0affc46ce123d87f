"""The prompts that templates make, against `transformers`' rendering of the same template.

`transformers` is the oracle: another sandbox with other code around it. A difference would mean
that the model is asked in a form that it was not trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dgemma.errors import InvalidRequest, TemplateError
from dgemma.text.answer import AnswerReader
from dgemma.text.chat import ChatTemplate
from dgemma.text.parse import MarkerIds, thought_is_open
from dgemma.text.tokenizer import Tokenizer
from tests.support.tokenizers import CONVERSATIONS, NEWER

pytest.importorskip("transformers", reason="the oracle of these tests is not installed")
from transformers.utils.chat_template_utils import render_jinja_template

pytestmark = pytest.mark.oracle

ASK = [{"role": "user", "content": "x"}]


def rendered_by_transformers(source: str, conversation: dict[str, Any]) -> str:
    """The plain rendering, without any escape."""
    rendered: Any = render_jinja_template(
        conversations=[conversation["messages"]],
        tools=conversation.get("tools"),
        chat_template=source,
        add_generation_prompt=conversation.get("add_generation_prompt", True),
        enable_thinking=conversation.get("thinking", False),
        bos_token="<bos>",
        **conversation.get("chat_template_kwargs", {}),
    )
    text: str = rendered[0][0]
    return text


def test_ids_equal_the_plain_rendering(
    released: tuple[str, ChatTemplate], gemma: Tokenizer, conversation: dict[str, Any]
) -> None:
    """Catches marks that stay in a text, a filter or variable that we lack, a lost argument."""
    source, template = released
    text = rendered_by_transformers(source, conversation)
    ids = template.encode(**conversation)
    assert gemma.decode(ids, control=True) == text
    assert ids == gemma.encode(text, control=True)


@pytest.mark.parametrize("name", list(NEWER))
def test_what_the_newer_template_adds(
    name: str, diffusion_source: str, gemma: Tokenizer, diffusion_template: ChatTemplate
) -> None:
    """Catches parts that are joined before the template sees them, and a lost variable."""
    text = rendered_by_transformers(diffusion_source, NEWER[name])
    ids = diffusion_template.encode(**NEWER[name])
    assert gemma.decode(ids, control=True) == text
    assert ids == gemma.encode(text, control=True)
    shown = text.count("<|channel>thought\nI must ask.\n<channel|>")
    assert shown == (name == "thoughts preserved")


def test_variables_of_a_template(
    gemma: Tokenizer, diffusion_template: ChatTemplate, nano_template: ChatTemplate
) -> None:
    """A variable that nothing reads is passed over in silence; one of our own is overruled."""
    assert diffusion_template.variables == ("preserve_thinking",)
    assert nano_template.variables == ()
    asked = (
        "{% if not x is defined %}{% set x = 1 %}{% endif %}{{ x }}{% set y = x %}{{ z }}{{ y }}"
    )
    assert ChatTemplate(asked, gemma).variables == ("x", "z")
    for template, given, said in (
        (nano_template, {"preserve_thinking": True}, r"preserve_thinking is not read by .*: none"),
        (diffusion_template, {"preserve": 1}, r"preserve is not read .*: preserve_thinking"),
        (diffusion_template, {"enable_thinking": True}, "enable_thinking has a field of its own"),
        (diffusion_template, {"bos_token": "x"}, "bos_token has a field of its own"),
        (diffusion_template, ["preserve_thinking"], "must be an object"),
        (diffusion_template, {"preserve_thinking": {1}}, "not a JSON value"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            template.encode(ASK, chat_template_kwargs=given)  # type: ignore[arg-type]


def test_a_variable_is_no_control_token(gemma: Tokenizer) -> None:
    """What a caller writes in a variable is a text, as in a message."""
    template = ChatTemplate("{{ note }}{{ bos_token }}", gemma)
    ids = template.encode(ASK, chat_template_kwargs={"note": "<bos>"})
    assert ids == [*gemma.encode("<bos>"), gemma.bos_id] and ids.count(gemma.bos_id) == 1


def test_an_open_thought_after_a_result(gemma: Tokenizer, diffusion_template: ChatTemplate) -> None:
    """A thought that the prompt begins is read as the answer's text."""
    conversation = CONVERSATIONS["result, thinking"]
    ids = diffusion_template.encode(**conversation)
    markers = MarkerIds.of(gemma)
    assert gemma.decode(ids, control=True).endswith("<tool_response|><|channel>thought\n")
    assert thought_is_open(markers, ids)
    assert not thought_is_open(
        markers, diffusion_template.encode(**conversation | {"thinking": False})
    )
    reader = AnswerReader(gemma, chat=True, thought_open=True)
    reader.push(gemma.encode("It is sunny.\n<channel|>Sunny.<turn|>", control=True))
    reader.finish()
    assert (reader.thinking, reader.text) == ("It is sunny.", "Sunny.")


def test_nano_speaks_gemmas_format(
    gemma_source: str, nano: Tokenizer, nano_template: ChatTemplate, conversation: dict[str, Any]
) -> None:
    """Catches a nano that has learnt another format than the model it stands in for."""
    text = rendered_by_transformers(gemma_source, conversation)
    assert nano.decode(nano_template.encode(**conversation), control=True) == text


def test_nano_differs_where_its_head_says_so(
    gemma_source: str, nano: Tokenizer, nano_template: ChatTemplate
) -> None:
    """The two differences named in nano's template, so that neither goes unnoticed."""
    call = {"id": "1", "function": {"name": "f", "arguments": {"a": None}}}
    messages: list[Any] = [*ASK, {"role": "assistant", "content": "", "tool_calls": [call]}]
    schema = {"type": "object", "properties": {"type": {"type": "string"}}}
    tool = {"function": {"name": "f", "description": "", "parameters": schema}}
    theirs = rendered_by_transformers(gemma_source, {"messages": messages, "tools": [tool]})
    ours = nano.decode(nano_template.encode(messages, tools=[tool]), control=True)
    assert "{a:None}" in theirs and "{a:null}" in ours
    assert "properties:{}" in theirs and "properties:{type:{" in ours


def test_arguments_as_json_text_are_the_object(released: tuple[str, ChatTemplate]) -> None:
    """OpenAI's clients send arguments as a JSON text; the model must not see its quotes."""
    call = {"id": "1", "function": {"name": "f", "arguments": {"a": [1, "b"]}}}
    as_text = {"id": "1", "function": {"name": "f", "arguments": '{"a": [1, "b"]}'}}
    one, other = (
        released[1].encode(
            [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": None, "tool_calls": [form]},
            ]
        )
        for form in (call, as_text)
    )
    assert one == other


def test_developer_is_system(released: tuple[str, ChatTemplate]) -> None:
    """A developer's message in mid-conversation would else open a turn of an unknown role."""
    prompts = [
        released[1].encode([*ASK, {"role": role, "content": "y"}])
        for role in ("developer", "system")
    ]
    assert prompts[0] == prompts[1]


def test_system_in_parts(gemma_template: ChatTemplate) -> None:
    """Gemma's template would print the Python list of a system message's parts into the prompt."""
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "short."}]
    prompts = [
        gemma_template.encode([{"role": "system", "content": content}, *ASK])
        for content in (parts, "Be short.")
    ]
    assert prompts[0] == prompts[1]


def test_the_templates_own_refusal(gemma: Tokenizer) -> None:
    """A template's `raise_exception` must reach the caller as our error with its words."""
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", gemma)
    with pytest.raises(TemplateError, match="roles must alternate"):
        template.encode(ASK)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content.missing.deeper }}",
        "{{ messages[9]['role'] + 1 }}",
        "{{ 'a' + 1 }}",
        "{{ ''.__class__.__mro__ }}",
        "{% set x = messages.append(1) %}",
    ],
)
def test_faults_of_a_template(gemma: Tokenizer, source: str) -> None:
    """A broken or a prying template gives our error, not a traceback nor an escape."""
    with pytest.raises(TemplateError):
        ChatTemplate(source, gemma).encode(ASK)


def test_no_jinja(gemma: Tokenizer) -> None:
    """Catches a syntax error that shows only at the first request."""
    with pytest.raises(TemplateError, match="not valid Jinja"):
        ChatTemplate("{% if %}", gemma)


def test_loading(tmp_path: Path, nano: Tokenizer, vocab_file: Path) -> None:
    """All places where checkpoints keep templates, and the error where there is none."""
    with pytest.raises(TemplateError, match="has no chat template"):
        ChatTemplate.from_directory(tmp_path, nano)
    config = tmp_path / "tokenizer_config.json"
    messages = [{"role": "user", "content": "x"}]
    config.write_text('{"chat_template": "a{{ bos_token }}"}')
    assert ChatTemplate.from_directory(tmp_path, nano).encode(messages)[-1] == nano.bos_id
    named = '{"chat_template": [{"name": "default", "template": "{{ eos_token }}"}]}'
    config.write_text(named)
    assert ChatTemplate.from_directory(tmp_path, nano).encode(messages) == [nano.eos_id]
    config.write_text("{")
    with pytest.raises(TemplateError, match="cannot be read"):
        ChatTemplate.from_directory(tmp_path, nano)
    (tmp_path / "chat_template.jinja").write_text("{{ pad_token }}")
    assert ChatTemplate.from_directory(tmp_path, nano).encode(messages) == [nano.pad_id]
    assert ChatTemplate.from_gguf(vocab_file, nano).encode(messages)[0] == nano.bos_id
