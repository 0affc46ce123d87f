"""What tools and a `tool_choice` ask of an answer's tool calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dgemma.errors import InvalidRequest
from dgemma.request_parts import ToolUse
from dgemma.request_parts import function_of as function_of

Tools = Sequence[Mapping[str, Any]]


def tool_use(tools: Tools | None, choice: str | Mapping[str, Any] = "auto") -> ToolUse | None:
    """The tools that may be called, and whether one must be; None: there are none.

    Args:
        tools: in OpenAI's form.
        choice: "auto", "none", "required", or {"type": "function", "function": {"name": ...}}.

    Raises:
        InvalidRequest: a choice of another form, or of a call without tools.
    """
    function = choice.get("function", choice) if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not (isinstance(name, str) and name) and choice not in ("auto", "none", "required"):
        raise InvalidRequest(
            'tool_choice must be "auto", "none", "required" or '
            f'{{"type": "function", "function": {{"name": ...}}}}, got {choice!r}',
            field="tool_choice",
        )
    if name or choice == "required":
        if not tools:
            raise InvalidRequest(
                "tool_choice needs tools; give some, or leave it out", field="tool_choice"
            )
        return ToolUse(tools, name)
    return ToolUse(tools, required=False) if tools and choice == "auto" else None
