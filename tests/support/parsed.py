"""All ids of an answer read at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dgemma.text.answer import AnswerReader
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import ToolCall


@dataclass(frozen=True, slots=True)
class Parsed:
    """The answer of a model.

    Attributes:
        thinking: the thought without its channel's name; None if there was none or it is empty.
        tool_calls: in the order of writing.
        text: the answer. A call that cannot be read is in it as it was written, markers included.
    """

    thinking: str | None
    tool_calls: tuple[ToolCall, ...]
    text: str


def parse(
    tokenizer: Tokenizer, ids: Sequence[int], *, thought_open: bool = False,
    must_call: bool = False,
) -> Parsed:  # fmt: skip
    """Parse the ids of a finished answer.

    Args:
        ids: committed ids; those after the first end id are ignored.
        thought_open: the prompt ended within a thought, see `thought_is_open`.
        must_call: a call is required, see `StreamParser`.

    Raises:
        TokenizerError: an id is outside the vocabulary, or a marker is missing from it.
    """
    reader = AnswerReader(tokenizer, chat=True, thought_open=thought_open, must_call=must_call)
    reader.push(ids)
    reader.finish()
    return Parsed(reader.thinking or None, tuple(reader.tool_calls), reader.text)
