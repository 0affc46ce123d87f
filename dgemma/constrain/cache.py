"""From the parameters of a request to the language that its answer is kept in.

Compiled languages are kept for the next request that asks for the same. Knows the parameters'
names and the wrappers of a language. Knows nothing about canvases or engines.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from dgemma.constrain.grammar import Grammar
from dgemma.constrain.wrappers import ThoughtFirst, WithoutWords
from dgemma.errors import InvalidRequest
from dgemma.params import SamplingParams
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import Matcher, ThoughtIds

KEPT = 64
"""Compiled languages kept."""

Tools = Sequence[Mapping[str, Any]]


class Calls(NamedTuple):
    """What is asked of an answer's tool calls.

    Attributes:
        tools: in OpenAI's form.
        name: of the one that must be called; None: any.
        must: the answer is a call. Else it is free, but calls keep to the tools that are strict.
    """

    tools: Tools
    name: str | None = None
    must: bool = True


def calls_of(tools: Tools | None, choice: str, name: str | None) -> Calls | None:
    """What tools and a `tool_choice` ask for; None: nothing is certain of a call.

    Args:
        choice, name: as `named_tool` tells them.
    """
    if not tools or choice == "none":
        return None
    if choice == "required":
        return Calls(tools, name)
    return Calls(tools, must=False) if any(map(_strict, tools)) else None


def _strict(tool: Mapping[str, Any]) -> bool:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    return isinstance(function, Mapping) and bool(function.get("strict"))


def named_tool(choice: str | Mapping[str, Any]) -> tuple[str, str | None]:
    """What a `tool_choice` of OpenAI's form asks for.

    Args:
        choice: "auto", "none", "required", or {"type": "function", "function": {"name": ...}}.

    Returns:
        "auto", "none" or "required", and the name of the tool that must be called, if any.

    Raises:
        InvalidRequest: another form.
    """
    if isinstance(choice, str) and choice in ("auto", "none", "required"):
        return choice, None
    if isinstance(choice, Mapping):
        function = choice.get("function", choice)
        name = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(name, str) and name:
            return "required", name
    raise InvalidRequest(
        'tool_choice must be "auto", "none", "required" or '
        f'{{"type": "function", "function": {{"name": ...}}}}, got {choice!r}',
        field="tool_choice",
    )


def choose_tools(
    tools: Tools | None, tool_choice: str | Mapping[str, Any]
) -> tuple[Tools | None, Calls | None]:
    """The tools that the prompt shows, and the calls that the answer must make or keep to.

    Raises:
        InvalidRequest: a `tool_choice` of another form, or one that needs tools without any.
    """
    choice, name = named_tool(tool_choice)
    if choice == "required" and not tools:
        raise InvalidRequest(
            "tool_choice needs tools; give some, or leave it out", field="tool_choice"
        )
    return None if choice == "none" else tools, calls_of(tools, choice, name)


class GrammarCache:
    """The languages over one tokenizer's ids. Any thread may ask for one."""

    def __init__(self, tokenizer: Tokenizer, end_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._end_ids = tuple(end_ids)
        self._compiled: OrderedDict[str, Grammar] = OrderedDict()
        self._making: dict[str, Future[Grammar]] = {}
        self._lock = threading.Lock()

    def of(
        self,
        params: SamplingParams,
        *,
        calls: Calls | None = None,
        thought: ThoughtIds | None = None,
    ) -> tuple[Matcher, str] | None:
        """A fresh walk through an answer's language, and its name; None where any text will do.

        Args:
            params: `json_schema`, `regex`, `grammar`, `choices` and `bad_words` count.
            calls: that must be made, or kept to.
            thought: a thought may come first (or is open), and stays free.

        Raises:
            InvalidRequest: a language that is broken, that has no text, or two at once.
            MissingExtra: llguidance is not installed.
        """
        given = params.constraint_field
        if calls is not None and given is not None:
            if calls.must or given == "grammar":  # others have no place for a call
                kind = "a required tool call" if calls.must else "strict tools"
                raise InvalidRequest(
                    f"{given} and {kind} cannot be combined; choose one", field=given
                )
            calls = None
        if calls is not None and params.min_tokens:
            raise InvalidRequest(
                "min_tokens and tools whose calls are kept to their schema cannot be combined; "
                "drop one of them",
                field="min_tokens",
            )
        matcher: Matcher | None = None
        mode = given or "bad_words"
        if calls is not None:
            mode = "tools" if calls.must else "strict_tools"
        if calls is not None:
            matcher = self._grammar(mode, calls).matcher()
        elif given is not None:
            matcher = self._grammar(mode, getattr(params, given)).matcher()
        whole = matcher is not None
        if params.bad_words:
            matcher = WithoutWords(matcher, params.bad_words, self._tokenizer, self._end_ids)
        if matcher is None:
            return None
        if thought is not None and whole and (calls is None or calls.must):
            matcher = ThoughtFirst(
                matcher, thought.open_id, thought.close_id, thought.is_open,
                tokenizer=self._tokenizer, end_ids=self._end_ids,
            )  # fmt: skip
        return matcher, mode

    def _grammar(self, mode: str, what: Any) -> Grammar:
        """A compiled language, made once; who asks for another does not wait for it."""
        try:
            key = json.dumps([mode, what])
        except (TypeError, ValueError) as error:
            raise InvalidRequest(
                f"{mode} must hold plain JSON values only ({error})", field=mode
            ) from error
        with self._lock:
            if key in self._compiled:
                self._compiled.move_to_end(key)
                return self._compiled[key]
            making = self._making.get(key)
            mine = making is None
            if making is None:
                making = self._making[key] = Future()
        if mine:
            self._fulfil(making, key, mode, what)
        return making.result()

    def _fulfil(self, making: Future[Grammar], key: str, mode: str, what: Any) -> None:
        """Make a language for all who wait for it; what goes wrong is told to each."""
        try:
            grammar = self._make(mode, what)
        except BaseException as error:
            if isinstance(error, InvalidRequest):
                error.field = error.field or ("tools" if mode.endswith("tools") else mode)
            with self._lock:
                del self._making[key]
            making.set_exception(error)
            return
        with self._lock:
            del self._making[key]
            self._compiled[key] = grammar
            while len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        making.set_result(grammar)

    def _make(self, mode: str, what: Any) -> Grammar:
        tokenizer, end_ids = self._tokenizer, self._end_ids
        if mode == "json_schema":
            return Grammar.from_json_schema(what, tokenizer, end_ids)
        if mode == "regex":
            return Grammar.from_regex(what, tokenizer, end_ids)
        if mode == "choices":
            return Grammar.from_choices(what, tokenizer, end_ids)
        if mode == "tools":
            return Grammar.from_tools(what.tools, tokenizer, end_ids, what.name)
        if mode == "strict_tools":
            return Grammar.from_strict_tools(what.tools, tokenizer, end_ids)
        return Grammar.from_lark(what, tokenizer, end_ids)
