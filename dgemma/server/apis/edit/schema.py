"""Mercury's requests to edit code: the next edit, and an update to apply.

Knows their fields and how their sections become an instruction. Knows nothing about HTTP or models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import BaseModel, Field

from dgemma.compose.edit import STRENGTH
from dgemma.server.accounting import CostedReply
from dgemma.server.apis.edit.sections import NextEdit, Update
from dgemma.server.request_body import Body
from dgemma.server.sampling_fields import OneAnswer, SamplingFields, StreamFields


class SectionsMessage(Body):
    """The one message, with its sections between tags."""

    role: Literal["user"]
    content: str


class EditRequest(StreamFields):
    """An editor's request for the next edit, or to apply an update.

    Attributes:
        messages: exactly one.
        max_tokens: most tokens of the region's new text (of the merged file).
    """

    NAMES: ClassVar[Mapping[str, Sequence[str]]] = {**SamplingFields.NAMES, "prompt": ("messages",)}

    model: str | None = None
    messages: list[SectionsMessage] = Field(min_length=1, max_length=1)
    n: OneAnswer = None

    @property
    def text(self) -> str:
        """The message."""
        return self.messages[0].content

    @property
    def strength(self) -> float:
        """The share of the region that gives way to noise."""
        return STRENGTH if self.denoising.strength is None else self.denoising.strength


def instruction(found: NextEdit) -> str:
    """The instruction to the model; the plan shows the file."""
    region = found.file[found.start : found.end]
    lines = ["Make the edit that comes next in this file, in the following part of it:", region]
    if found.cursor is not None:
        before = found.file[: found.cursor]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        lines.append(f"The cursor is in line {line}, column {column}.")
    return "\n".join(lines)


def context(found: NextEdit) -> str | None:
    """The context before the instruction."""
    parts = []
    if found.snippets.strip():
        parts.append(f"Code that was looked at lately:\n{found.snippets}")
    if found.history.strip():
        parts.append(f"The edits so far:\n{found.history}")
    if found.path:
        parts.append(found.path)
    return "\n\n".join(parts) or None


def merging(update: Update) -> str:
    """The user's message that asks for a file with an update applied."""
    return (
        "Apply the update to the code. Comments such as 'existing code' in the update stand for "
        "code that stays as it is. Answer with the whole new code and nothing else.\n\n"
        f"The code:\n{update.original}\n\nThe update:\n{update.snippet}"
    )


def fenced(text: str) -> str:
    """A text in a code fence that is longer than any within it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"


def unfenced(text: str) -> str:
    """A text without the code fence around all of it, if it has one."""
    lines = text.strip().split("\n")
    ticks = len(lines[0]) - len(lines[0].lstrip("`"))
    if len(lines) >= 2 and ticks >= 3 and lines[-1].strip() == "`" * ticks:
        return "\n".join(lines[1:-1])
    return text


class EditMessage(BaseModel):
    """The new text: of the region in a code fence, or of the whole file."""

    role: Literal["assistant"]
    content: str


class EditChoice(BaseModel):
    """The only answer."""

    index: Literal[0]
    message: EditMessage
    finish_reason: Literal["stop", "length"]


class EditReply(CostedReply):
    """An edit in Mercury's form."""

    object: Literal["chat.completion"]
    choices: list[EditChoice]
