"""What a request needs of the text layer: a reader of its answer, and the language it is kept in.

Knows a checkpoint's tokenizer and its markers. Knows nothing about engines or canvases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dgemma.constrain.cache import Calls, GrammarCache
from dgemma.text.answer import AnswerReader
from dgemma.text.parse import MarkerIds, thought_is_open
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import Matcher, Request, ThoughtIds


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request, with the reader of its answer and (matcher, name) of its language if it has one.

    The request knows what a thought is where it is a chat's.
    """

    request: Request
    reader: AnswerReader
    constraint: tuple[Matcher, str] | None


class Frontend:
    """Prepares requests of one checkpoint.

    Attributes:
        grammars: over its ids.
    """

    def __init__(self, tokenizer: Tokenizer, end_ids: Sequence[int]) -> None:
        """
        Raises:
            TokenizerError: the vocabulary lacks the markers of a chat.
        """
        self._tokenizer = tokenizer
        self.grammars = GrammarCache(tokenizer, end_ids)
        self._markers = MarkerIds.of(tokenizer)
        self._think_id = tokenizer.id_of("<|think|>")

    def prepare(self, request: Request, *, chat: bool, calls: Calls | None) -> PreparedRequest:
        """See `PreparedRequest`.

        Args:
            chat: split thought, tool calls and text.
            calls: that must be made, or kept to.

        Raises:
            InvalidRequest: the language is broken, or two are asked for at once.
            MissingExtra: a language is asked for, and llguidance is not installed.
        """
        is_open = may_think = False
        if chat:
            markers = self._markers
            is_open = thought_is_open(markers, request.token_ids)
            may_think = is_open or self._think_id in request.token_ids
            thought = ThoughtIds(markers.channel_open, markers.channel_close, is_open)
            request = replace(request, thought=thought)
        params = request.params
        reader = AnswerReader(
            self._tokenizer, stop=params.stop or (), chat=chat, thought_open=is_open,
            must_call=calls is not None and calls.must,
        )  # fmt: skip
        constraint = self.grammars.of(
            params, calls=calls, thought=request.thought if may_think else None
        )
        return PreparedRequest(request, reader, constraint)
