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

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import product
from os.path import commonprefix
from pathlib import Path
from typing import Any, NoReturn

import jinja2

from dgemma.errors import InvalidRequest, TemplateError, bad_field
from dgemma.files.read import exists, read_json, read_text, reason
from dgemma.text.gguf import read_template
from dgemma.text.messages import clean_messages, clean_tools, plain_json
from dgemma.text.template_costs import TooMuchWork, limited
from dgemma.text.template_sandbox import TemplateEnvironment
from dgemma.text.tokenizer import Tokenizer
from dgemma.text.tool_schemas import shown_tools

MOST_CHARACTERS = 1 << 18
"""Of a template; Gemma's has 17,000."""
THOUGHT_OPEN = "<|channel>"
THOUGHT_CLOSE = "<channel|>"
SAMPLES = ("a", "Zebra", "_7")
"""Texts of which no two begin alike."""
_PRIVATE = range(0xE000, 0xF900)
"""Characters for private use, of which the first that the template does not hold is the mark."""
_PROBE = "probe-of-the-template"
_USER = {"role": "user", "content": "x"}
_OWN = {
    "messages": "messages", "tools": "tools", "enable_thinking": "thinking",
    **dict.fromkeys(
        ("add_generation_prompt", "bos_token", "eos_token", "pad_token"), "the template's own value"
    ),
}  # fmt: skip
"""Variables that are set for every template, and the field that says each."""
_FAULTS = (
    jinja2.TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError,
    RecursionError,
)  # fmt: skip


class ChatTemplate:
    """A checkpoint's chat template together with the tokenizer that it was written for."""

    def __init__(self, source: str, tokenizer: Tokenizer, file: str = "the chat template") -> None:
        """Most callers use `from_directory`.

        Args:
            source: Jinja text.
            tokenizer: of the same checkpoint.
            file: where it came from, for messages.

        Raises:
            TemplateError: the text is not a Jinja template.
        """
        self._tokenizer = tokenizer
        self._file = file
        source = source.removeprefix("\ufeff")  # a byte order mark would be in every prompt
        if len(source) > MOST_CHARACTERS:
            raise TemplateError(
                f"{file} has more than {MOST_CHARACTERS:,} characters; take the checkpoint's own"
            )
        self._marker = _Marker(tokenizer.control_names(), source)
        self._source = source
        self._environment = environment = TemplateEnvironment()
        environment.add_filter("dictsort", self._marker.dictsort)
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = limited(lambda: environment.from_string(source))
        except (
            jinja2.TemplateError,
            SyntaxError,
            RecursionError,
            MemoryError,
            ValueError,
        ) as error:
            # Beside its own complaint: those of Python, which compiles what Jinja makes of it.
            why = error if isinstance(error, jinja2.TemplateError) else "it is nested too deep"
            raise TemplateError(
                f"{file} is not valid Jinja ({str(why)[:300]}); take the checkpoint's own"
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
        found = cls.find(Path(path), tokenizer)
        if found is None:
            raise TemplateError(
                f"{path} has no chat template; add chat_template.jinja, or prompt with plain "
                "text (a base model has none)"
            )
        return found

    @classmethod
    def find(cls, directory: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The template of a checkpoint, a directory or a GGUF file; None if it has none.

        Raises:
            TemplateError: a file cannot be read, or holds something else.
        """
        if directory.is_file():
            return cls._in_gguf(directory, tokenizer)
        file = directory / "chat_template.jinja"
        try:
            if exists(file):
                return cls(read_text(file), tokenizer, str(file))
            file = directory / "tokenizer_config.json"
            config = read_json(file) if exists(file) else {}
        except (OSError, ValueError) as error:
            why = reason(error)
            raise TemplateError(f"{file} cannot be read ({why}); download it again") from error
        source = config.get("chat_template") if isinstance(config, dict) else None
        if isinstance(source, list):  # several by name
            if not all(isinstance(one, dict) for one in source):
                raise TemplateError(
                    f"chat_template in {file} is a list of something else than objects with a name "
                    "and a template; take the checkpoint's own file"
                )
            source = next((o.get("template") for o in source if o.get("name") == "default"), None)
        if source is None:
            return None
        if not isinstance(source, str):
            raise TemplateError(
                f"chat_template in {file} is not a text; take the checkpoint's own file"
            )
        return cls(source, tokenizer, f"chat_template in {file}")

    @classmethod
    def from_gguf(cls, path: str | Path, tokenizer: Tokenizer) -> ChatTemplate:
        """The template in a GGUF file's metadata.

        Raises:
            TemplateError: the file has none, or cannot be read.
        """
        found = cls._in_gguf(path, tokenizer)
        if found is None:
            raise TemplateError(f"{path} has no chat template; prompt with plain text")
        return found

    @classmethod
    def _in_gguf(cls, path: str | Path, tokenizer: Tokenizer) -> ChatTemplate | None:
        source = read_template(path)
        where = f"the chat template in {path}"
        return None if source is None else cls(source, tokenizer, where)

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
        most: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The prompt of a conversation.

        Thoughts that stand in an assistant's content as `<|channel>...<channel|>` are left out, as
        Gemma's own template does: a model is not shown the thoughts of earlier turns.

        Args:
            messages: see `dgemma.text.messages.clean_messages`.
            tools: see `dgemma.text.messages.clean_tools`.
            thinking: whether the model is asked to think before it answers.
            add_generation_prompt: whether the model's turn is opened at the end.
            most: tokens of the model's context; None: there is no bound.
            chat_template_kwargs: other variables that the template reads, such as
                `preserve_thinking`; plain JSON values.

        Raises:
            InvalidRequest: a message or tool of another form, or a variable that the template does
                not read; the message names the field.
            ContextOverflow: by its length alone it has more tokens than `most`.
            TemplateError: the template refused the conversation.
        """
        clean = [_without_thoughts(m) for m in clean_messages(messages, self._joins_system)]
        more = self._variables(chat_template_kwargs or {})
        try:
            values = dict(
                messages=self._marker.mark(clean),
                tools=self._marker.mark(self._declared(tools)),
                enable_thinking=thinking,
                add_generation_prompt=add_generation_prompt,
                **more,
                bos_token=self._tokenizer.token_text(self._tokenizer.bos_id),
                eos_token=self._tokenizer.token_text(self._tokenizer.eos_id),
                pad_token=self._tokenizer.token_text(self._tokenizer.pad_id),
            )
            text = limited(lambda: self._template.render(values))
        except TooMuchWork as error:
            raise TemplateError(
                f"{Path(self._file).name} was stopped: {error}; shorten the conversation, or take "
                "the checkpoint's own template"
            ) from error
        except _FAULTS as error:
            raise TemplateError(
                f"the chat template refused the conversation ({str(error)[:2000]}); "
                "change the messages or tools as it asks"
            ) from error
        pieces = [
            piece if isinstance(piece, int) else self._marker.unmark(piece)
            for piece in self._tokenizer.pieces(text)
        ]
        if most is not None:
            self._tokenizer.check_length((p for p in pieces if isinstance(p, str)), most)
        ids: list[int] = []
        for piece in pieces:
            ids += [piece] if isinstance(piece, int) else self._tokenizer.encode(piece)
        return ids

    def _declared(self, tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
        """Clean tools, with what the template drops of a schema in words that it shows."""
        clean = clean_tools(tools)
        return clean if clean is None or self._writes_schemas else shown_tools(clean)

    def _variables(self, given: object) -> dict[str, Any]:
        """The caller's variables, marked like any text of a user."""
        values = plain_json(given, "chat_template_kwargs")
        if not isinstance(values, dict):
            raise bad_field("chat_template_kwargs", "must be an object of variables and values")
        for name in values:
            where = f"chat_template_kwargs.{name}"
            if name in _OWN:
                raise bad_field(where, f"has a field of its own; use {_OWN[name]}")
            if name not in self.variables:
                known = ", ".join(self.variables) or "none"
                raise bad_field(
                    where, f"is not read by this checkpoint's chat template (it reads: {known}); "
                    "leave it out",
                )  # fmt: skip
        marked: dict[str, Any] = self._marker.mark(values)
        return marked

    @property
    def source(self) -> str:
        """Its Jinja text."""
        return self._source

    @cached_property
    def inputs(self) -> frozenset[str]:
        """The variables that it reads, `tools` and `enable_thinking` among them."""
        return frozenset(self._environment.inputs(self._source))

    @cached_property
    def variables(self) -> tuple[str, ...]:
        """What `chat_template_kwargs` may hold: what the template reads, and nothing else sets."""
        return tuple(sorted(self.inputs - _OWN.keys()))

    @cached_property
    def _writes_schemas(self) -> bool:
        """Whether the template writes out whole schemas: it shows a keyword that others drop."""
        schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": _PROBE}}}
        probe = {"name": "probe", "description": "", "parameters": schema}
        return _PROBE in self._probed([_USER], [{"type": "function", "function": probe}])

    @cached_property
    def _joins_system(self) -> bool:
        """Whether a system message's parts are to be joined before the template sees them: it
        prints the list as it is, or puts nothing between the parts."""
        parts = [{"type": "text", "text": _PROBE}] * 2
        text = self._probed([{"role": "system", "content": parts}, _USER])
        return "'type'" in text or text.count(_PROBE) != 2 or _PROBE * 2 in text

    def _probed(self, messages: list[Any], tools: list[Any] | None = None) -> str:
        """What the template makes of a conversation of our own; "": nothing."""
        values = dict(
            messages=messages, tools=tools, enable_thinking=False, add_generation_prompt=True,
            bos_token="", eos_token="", pad_token="",
        )  # fmt: skip
        try:
            return limited(lambda: self._template.render(values))
        except (TooMuchWork, *_FAULTS):
            return ""


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
        starts, ends = {name[0] for name in names}, {name[-1] for name in names}
        no, yes = sorted(set("0123456789abcdef") - starts - ends)[:2]
        self._mark, self._own = char + yes, char + no  # `_own`: the user wrote the character
        self._marked = {
            one: self._mark * (one in ends) + one + self._mark * (one in starts)
            for one in sorted(starts | ends)
        }
        self._char = char

    def mark(self, value: Any) -> Any:
        """A copy of a JSON value with all its strings marked, keys too."""
        if isinstance(value, str):
            text = value.replace(self._char, self._own)
            for one, marked in self._marked.items():  # far faster than `re` or `translate`
                text = text.replace(one, marked)
            return text
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


def _refuse(message: str) -> NoReturn:
    """The template's own complaint."""
    raise jinja2.TemplateError(message)
