"""From the parameters of a request to the matcher that its answer is kept by.

Compiled grammars are kept for the next request that asks for the same. Knows the parameters' names
and the matchers that wrap another. Knows nothing about canvases or engines.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from dgemma.constrain.matcher import Grammar
from dgemma.constrain.precompiled import Precompiled
from dgemma.constrain.sources import make_grammar
from dgemma.constrain.wrappers import BadWordsMatcher, ThoughtPrefixMatcher
from dgemma.errors import InvalidRequest
from dgemma.matcher import Matcher
from dgemma.params import SamplingParams
from dgemma.request_parts import ThoughtIds, ToolUse
from dgemma.text.tokenizer import Tokenizer

KEPT = 64
"""Compiled grammars kept."""


class GrammarCache:
    """The grammars over one tokenizer's ids. Any thread may ask for one."""

    def __init__(self, tokenizer: Tokenizer, end_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._end_ids = tuple(end_ids)
        self._grammars: OrderedDict[str, Future[Grammar]] = OrderedDict()
        self._lock = threading.Lock()

    def matcher_for(
        self,
        params: SamplingParams,
        *,
        calls: ToolUse | None = None,
        thought: ThoughtIds | None = None,
        owner: str = "",
    ) -> tuple[Matcher, str] | None:
        """A fresh matcher of an answer, and the name of its constraint; None: any text will do.

        Args:
            params: the constraint of the whole answer and `bad_words` count.
            calls: that must be made, or kept to.
            thought: a thought may come first (or is open), and stays free.
            owner: whose answer it is. Another owner's grammar is not used, so that none can time
                whether it has been compiled.

        Raises:
            InvalidRequest: a grammar that is broken, that has no text, or two at once.
            MissingExtra: llguidance is not installed.
        """
        wanted = self.wanted(params, calls)
        matcher: Matcher | None = None
        mode = "bad_words"
        if wanted is not None:
            mode, value = wanted
            matcher = self._grammar(owner, mode, value).matcher()
            if mode == "tools" and calls is not None and not calls.required:
                mode = "strict_tools"
        whole = matcher is not None and mode != "strict_tools"
        if params.bad_words:
            matcher = BadWordsMatcher(matcher, params.bad_words, self._tokenizer, self._end_ids)
        if matcher is None:
            return None
        if thought is not None and whole:
            matcher = ThoughtPrefixMatcher(matcher, thought, self._tokenizer, self._end_ids)
        return matcher, mode

    def wanted(self, params: SamplingParams, calls: ToolUse | None) -> tuple[str, Any] | None:
        """The kind and the value of the grammar that `matcher_for` would compile, if any.

        Raises:
            InvalidRequest: two are asked for at once.
        """
        given = params.constraint_field
        if calls is not None and given is not None:
            if calls.required or given == "grammar":  # others have no place for a call
                kind = "a required tool call" if calls.required else "strict tools"
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
        if calls is not None:
            return "tools", calls
        return None if given is None else (given, getattr(params, given))

    def has(self, owner: str, kind: str, value: Any) -> bool:
        """Whether a grammar of an owner is kept, or being made."""
        with self._lock:
            return _key(owner, kind, value) in self._grammars

    def keep(self, owner: str, kind: str, value: Any, made: Precompiled) -> None:
        """Keep a grammar of an owner that another process has compiled."""
        grammar: Future[Grammar] = Future()
        grammar.set_result(
            Grammar(kind, made.source, self._tokenizer, self._end_ids, text=made.text)
        )
        with self._lock:
            self._grammars[_key(owner, kind, value)] = grammar
            self._trim()

    def _trim(self) -> None:
        """Forget the oldest; the lock is held."""
        while len(self._grammars) > KEPT:
            self._grammars.popitem(last=False)

    def _grammar(self, owner: str, kind: str, value: Any) -> Grammar:
        """A compiled grammar, made once; who asks for another does not wait for it."""
        key = _key(owner, kind, value)
        with self._lock:
            made = self._grammars.get(key)
            mine = made is None
            made = self._grammars[key] = made or Future()
            self._grammars.move_to_end(key)
            self._trim()
        if mine:
            try:
                made.set_result(self._make(kind, value))
            except BaseException as error:  # all who wait get it, the next one tries anew
                if isinstance(error, InvalidRequest):
                    error.field = error.field or kind
                with self._lock:
                    if self._grammars.get(key) is made:
                        del self._grammars[key]
                made.set_exception(error)
        return made.result()

    def _make(self, kind: str, value: Any) -> Grammar:
        return make_grammar(kind, value, self._tokenizer, self._end_ids)


def _key(owner: str, kind: str, value: Any) -> str:
    try:
        return json.dumps([owner, kind, value])
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"{kind} must hold plain JSON values only ({error})", field=kind
        ) from error
