"""All ids of an answer read at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dgemma.text.answer import AnswerReader
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import InvalidToolCall, ToolCall


@dataclass(frozen=True, slots=True)
class Parsed:
    """The answer of a model.

    Attributes:
        thinking: the thought without its channel's name; None if there was none or it is empty.
        tool_calls: in the order of writing.
        text: the answer.
        invalid: calls that cannot be run.
    """

    thinking: str | None
    tool_calls: tuple[ToolCall, ...]
    text: str
    invalid: tuple[InvalidToolCall, ...] = ()


def parse(
    tokenizer: Tokenizer, ids: Sequence[int], *, thought_open: bool = False,
    tools: Collection[str] | None = None,
) -> Parsed:  # fmt: skip
    """Parse the ids of a finished answer.

    Args:
        ids: committed ids; those after the first end id are ignored.
        thought_open: the prompt ended within a thought, see `thought_is_open`.
        tools: that may be called, see `StreamParser`.

    Raises:
        TokenizerError: an id is outside the vocabulary, or a marker is missing from it.
    """
    reader = AnswerReader(tokenizer, chat=True, thought_open=thought_open, tools=tools)
    reader.push(ids)
    reader.finish()
    invalid = tuple(reader.invalid_tool_calls)
    return Parsed(reader.thinking or None, tuple(reader.tool_calls), reader.text, invalid)
