"""The base of every request's schema: strict, nothing accepted and ignored.

Knows how a field is refused, by its name and with the nearest known one. Knows no fields but those
that cannot change a result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from dgemma.errors import nearest

MOST_MESSAGES, MOST_TOOLS = 4096, 1024
"""Messages of a conversation, or blocks of one of them; and the tools it may call."""

LARGEST = 2**1023
"""The largest integer of a field that has no bound of its own: a larger one is no float."""


class Body(BaseModel):
    """An object of a request: unknown fields are refused with the nearest name, types are strict.

    Attributes:
        HINTS: fields of other servers, and the reason for refusing each, with the remedy after a
            semicolon; without one it is to leave the field out.
        NAMES: fields of the model's parameters -> the names that a request may give them, as
            paths with dots; an error names the one that was sent.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    HINTS: ClassVar[Mapping[str, str]] = {}
    NAMES: ClassVar[Mapping[str, Sequence[str]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        if isinstance(given, dict):
            for name, value in given.items():
                if type(value) is int and abs(value) > LARGEST and name in cls.model_fields:
                    raise refuse(name, "is too large a number; send a smaller one")
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for name in given:
                if name not in known:
                    why = cls.HINTS.get(name) or f"unknown field{nearest(name[:100], known)}"
                    why += "" if ";" in why else "; leave it out"
                    raise PydanticCustomError("unknown_field", "{why}", {"field": name, "why": why})
        return given


class Ignorable(Body):
    """Fields that cannot change a result: the only ones that are accepted and not looked at."""

    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None


def at_most(most: int, things: str) -> BeforeValidator:
    """A list, or an object, of so many members, told before any of them is looked at.

    Use as `Annotated[list[int], at_most(10, "ids")]`.
    """

    def check(value: Any) -> Any:
        if isinstance(value, (list, dict)) and len(value) > most:
            why = f"holds {len(value)} {things}, more than {most}; give fewer"
            raise PydanticCustomError("refused_field", "{why}", {"why": why})
        return value

    return BeforeValidator(check)


def neutral(*values: Any, why: str, remedy: str | None = None) -> AfterValidator:
    """A field that is accepted at values that change nothing, and refused at all others.

    Use as `Annotated[float | None, neutral(0, why="...")]`; None is always neutral.

    Args:
        remedy: what to do; None: leave the field out, or send a neutral value.
    """

    def check(value: Any) -> Any:
        if value is not None and value not in values:
            shown = " or ".join(repr(v) for v in values)
            instead = remedy or "leave it out" + (f", or send {shown}" if values else "")
            raise PydanticCustomError("refused_field", "{why}", {"why": f"{why}; {instead}"})
        return value

    return AfterValidator(check)


def refuse(field: str, why: str) -> PydanticCustomError:
    """The error of a field, for a validator of a whole object."""
    return PydanticCustomError("refused_field", "{why}", {"field": field, "why": why})
