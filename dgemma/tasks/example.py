"""One example: a chat, the answer that is wanted, and how the two were made.

Knows nothing about the tasks that fill it, about tokens, or about how an answer is graded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Example:
    """One question with its one right answer.

    Attributes:
        task: the maker's name; a maker's sub-kind is in `meta["kind"]`.
        messages: the chat so far as {"role", "content"}; the last one is the user's.
        answer: the text the model must give, without thought and end tokens; "" for a tool call.
        thinking: a thought to be written before the answer (the template then has it switched on).
        tools: declarations {"type": "function", "function": {"name", "description", "parameters"}}.
        tool_call: the call that is wanted, {"name": ..., "arguments": {...}}.
        meta: facts about the example that its grader or a report needs.
    """

    task: str
    messages: tuple[Mapping[str, str], ...]
    answer: str
    thinking: str | None = None
    tools: tuple[Mapping[str, object], ...] = ()
    tool_call: Mapping[str, object] | None = None
    meta: Mapping[str, object] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """The text of the user's last message."""
        return self.messages[-1]["content"]


def asked(text: str) -> tuple[Mapping[str, str], ...]:
    """A chat of one user message."""
    return ({"role": "user", "content": text},)
