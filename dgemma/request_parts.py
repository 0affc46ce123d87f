"""The smaller values that a `Request` holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dgemma.params import refused


@dataclass(frozen=True, slots=True)
class ThoughtIds:
    """The ids of thought channels, for a thinking budget.

    Attributes:
        open_id, close_id: ids of `<|channel>` and `<channel|>`.
        is_open: whether the prompt itself ends inside an open thought.
    """

    open_id: int
    close_id: int
    is_open: bool = False


def function_of(tool: Any) -> Mapping[str, Any]:
    """The function that a tool declares, with or without the outer `function`; {}: none."""
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    return function if isinstance(function, Mapping) else {}


class ToolUse(NamedTuple):
    """The tools that an answer may call.

    Attributes:
        tools: in OpenAI's form.
        name: of the only one that may be called; None: any.
        required: the answer is a call. Else it is free, but calls of strict tools keep to them.
    """

    tools: Sequence[Mapping[str, Any]]
    name: str | None = None
    required: bool = True

    @property
    def names(self) -> frozenset[str]:
        """The tools that may be called."""
        if self.name is not None:
            return frozenset((self.name,))
        return frozenset(str(function_of(tool).get("name")) for tool in self.tools)

    @property
    def binding(self) -> bool:
        """Whether the answer must be kept to a grammar."""
        return self.required or any(function_of(tool).get("strict") for tool in self.tools)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptContent:
    """Ids of a prompt that stand for other content, such as an image.

    Attributes:
        start, length: their place in the prompt.
        key: names the content and all that its keys and values depend on, such as a hash of an
            image's bytes and its budget of tokens. Equal ids with other keys are other content.

    Raises:
        InvalidRequest: no place, or no key.
    """

    start: int
    length: int
    key: str

    def __post_init__(self) -> None:
        for name, least in (("start", 0), ("length", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise refused(f"contents.{name}", f"be an integer of at least {least}", value)
        if not isinstance(self.key, str) or not self.key:
            raise refused("contents.key", "be a string that is not empty", self.key)
