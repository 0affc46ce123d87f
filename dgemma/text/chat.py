"""A conversation to token ids, by the checkpoint's own chat template.

What a user writes never becomes a control token. Before rendering, each `<` and `>` of a user's
text (in general: each character that begins or ends a control token's name) gets a mark beside
it; the rendered text is then cut at the control tokens' names, which only the template can have
written whole; last, the marks are taken out of the ordinary texts between. So the ids are those
of the plain rendering, but for the look-alikes, wherever the template put or joined them.
Knows Jinja and the control tokens' names; knows nothing about what a template looks like inside.
Source: `transformers` for the filters and variables that templates count on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import product
from os.path import commonprefix
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.sandbox

from dgemma.errors import InvalidRequest, TemplateError, TokenizerError
from dgemma.text.gguf import read_metadata
from dgemma.text.messages import clean_messages, clean_tools
from dgemma.text.tokenizer import Tokenizer

THOUGHT_OPEN = "<|channel>"
THOUGHT_CLOSE = "<channel|>"
SAMPLES = ("a", "Zebra", "_7")
"""Texts of which no two begin alike."""
_PRIVATE = range(0xE000, 0xF900)
"""Characters for private use, of which the first that the template does not hold is the mark."""
_FAULTS = (
    jinja2.TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError,
    RecursionError,
)  # fmt: skip


class ChatTemplate:
    """A checkpoint's chat template together with the tokenizer that it was written for."""

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        """Most callers use `from_directory`.

        Args:
            source: Jinja text.
            tokenizer: of the same checkpoint.

        Raises:
            TemplateError: the text is not a Jinja template.
        """
        self._tokenizer = tokenizer
        self._marker = _Marker(tokenizer.control_names(), source)
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.filters["dictsort"] = self._marker.dictsort
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateError(
                f"the chat template is not valid Jinja ({error}); take the checkpoint's own"
            ) from error

    @classmethod
    def from_directory(cls, path: str | Path, tokenizer: Tokenizer) -> ChatTemplate:
        """The template of a checkpoint directory.

        Args:
            path: holds chat_template.jinja, or tokenizer_config.json with "chat_template".
            tokenizer: of the same checkpoint.

        Raises:
            TemplateError: there is none, or it cannot be read.
        """
        directory = Path(path)
        try:
            file = directory / "chat_template.jinja"
            if file.is_file():
                return cls(file.read_text(encoding="utf-8"), tokenizer)
            file = directory / "tokenizer_config.json"
            config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except (OSError, ValueError) as error:
            raise TemplateError(f"{file} cannot be read ({error}); download it again") from error
        source = config.get("chat_template") if isinstance(config, dict) else None
        if isinstance(source, list):  # several by name
            named = {one.get("name"): one.get("template") for one in source}
            source = named.get("default")
        if not isinstance(source, str):
            raise TemplateError(
                f"{directory} has no chat template; add chat_template.jinja, or prompt with plain "
                "text (a base model has none)"
            )
        return cls(source, tokenizer)

    @classmethod
    def from_gguf(cls, path: str | Path, tokenizer: Tokenizer) -> ChatTemplate:
        """The template in a GGUF file's metadata.

        Raises:
            TemplateError: the file has none, or cannot be read.
        """
        try:
            source = read_metadata(path).get("tokenizer.chat_template")
        except TokenizerError as error:
            raise TemplateError(str(error)) from error
        if not isinstance(source, str):
            raise TemplateError(f"{path} has no chat template; prompt with plain text")
        return cls(source, tokenizer)

    def beginnings(self) -> list[tuple[int, ...]]:
        """What prompts begin with before any text of a caller, for each kind of conversation:
        with and without a system message, tools and thinking."""
        found = dict[tuple[int, ...], None]()
        for system, tools, thinking in product((False, True), repeat=3):
            with suppress(TemplateError, InvalidRequest):  # it takes no such conversation
                prompts = [
                    self.encode(
                        _sample(text, system), tools=[_sample_tool(text)] if tools else None,
                        thinking=thinking,
                    )
                    for text in SAMPLES
                ]  # fmt: skip
                found[tuple(commonprefix(prompts))] = None
        return list(found)

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """The prompt of a conversation.

        Thoughts that stand in an assistant's content as `<|channel>...<channel|>` are left out, as
        Gemma's own template does: a model is not shown the thoughts of earlier turns.

        Args:
            messages: see `dgemma.text.messages.clean_messages`.
            tools: see `dgemma.text.messages.clean_tools`.
            thinking: whether the model is asked to think before it answers.
            add_generation_prompt: whether the model's turn is opened at the end.

        Raises:
            InvalidRequest: a message or tool of another form; the message names the field.
            TemplateError: the template refused the conversation.
        """
        clean = [_without_thoughts(message) for message in clean_messages(messages)]
        try:
            text = self._template.render(
                messages=self._marker.mark(clean),
                tools=self._marker.mark(clean_tools(tools)),
                enable_thinking=thinking,
                add_generation_prompt=add_generation_prompt,
                bos_token=self._tokenizer.token_text(self._tokenizer.bos_id),
                eos_token=self._tokenizer.token_text(self._tokenizer.eos_id),
                pad_token=self._tokenizer.token_text(self._tokenizer.pad_id),
            )
        except _FAULTS as error:
            raise TemplateError(
                f"the chat template refused the conversation ({error}); "
                "change the messages or tools as it asks"
            ) from error
        ids: list[int] = []
        for piece in self._tokenizer.pieces(text):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += self._tokenizer.encode(self._marker.unmark(piece))
        return ids


def _sample(text: str, system: bool) -> list[dict[str, Any]]:
    """A conversation of one text."""
    user = {"role": "user", "content": text}
    return [{"role": "system", "content": text}, user] if system else [user]


def _sample_tool(text: str) -> dict[str, Any]:
    """A tool of one text."""
    parameters = {"type": "object", "properties": {text: {"type": "string"}}}
    function = {"name": text, "description": text, "parameters": parameters}
    return {"type": "function", "function": function}


class _Marker:
    """Breaks every look-alike of a control token in a user's text, and mends it again."""

    def __init__(self, names: Sequence[str], template: str) -> None:
        char = next((chr(code) for code in _PRIVATE if chr(code) not in template), None)
        if char is None:
            raise TemplateError("the chat template holds every private character; use another")
        self._mark, self._own = char + "1", char + "0"  # `_own`: the user wrote the character
        starts = re.escape("".join(sorted({name[0] for name in names})))
        ends = re.escape("".join(sorted({name[-1] for name in names})))
        self._at_start = re.compile(f"([{starts}])")
        self._at_end = re.compile(f"([{ends}])")
        self._char = char

    def mark(self, value: Any) -> Any:
        """A copy of a JSON value with all its strings marked, keys too."""
        if isinstance(value, str):
            text = value.replace(self._char, self._own)
            text = self._at_end.sub(self._mark + r"\1", text)
            return self._at_start.sub(r"\1" + self._mark, text)
        if isinstance(value, dict):
            return {self.mark(key): self.mark(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.mark(inner) for inner in value]
        return value

    def unmark(self, text: str) -> str:
        """The user's own text."""
        return text.replace(self._mark, "").replace(self._own, self._char)

    def dictsort(
        self,
        value: Mapping[str, Any],
        case_sensitive: bool = False,
        by: str = "key",
        reverse: bool = False,
    ) -> list[tuple[str, Any]]:
        """Jinja's filter, in the order that the texts have without marks."""
        if by not in ("key", "value"):
            raise jinja2.exceptions.FilterArgumentError("dictsort: by must be 'key' or 'value'")

        def rank(item: tuple[str, Any]) -> Any:
            part = item[by == "value"]
            if not isinstance(part, str):
                return part
            return self.unmark(part) if case_sensitive else self.unmark(part).lower()

        return sorted(value.items(), key=rank, reverse=reverse)


def _without_thoughts(message: dict[str, Any]) -> dict[str, Any]:
    """The message with thought channels cut out of an assistant's content."""
    if message["role"] != "assistant":
        return message
    content = message["content"]
    if isinstance(content, str):
        return message | {"content": _cut(content)}
    return message | {"content": [part | {"text": _cut(part["text"])} for part in content]}


def _cut(text: str) -> str:
    parts = text.split(THOUGHT_CLOSE)
    return "".join(part.split(THOUGHT_OPEN)[0] for part in parts)


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    """JSON without Jinja's escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _refuse(message: str) -> NoReturn:
    """The template's own complaint."""
    raise jinja2.TemplateError(message)
