"""What a conversation must look like, and its one clean form that chat templates read.

Knows roles, contents, tool calls and tool declarations in OpenAI's form, and which field a
complaint is about. Knows nothing about templates, control tokens or ids.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dgemma.errors import InvalidRequest, bad_field, nearest
from dgemma.text.calls import DEEPEST
from dgemma.text.tokenizer import SURROGATE

logger = logging.getLogger("dgemma")

_FIELDS = {
    "system": ("role", "content", "name"),
    "developer": ("role", "content", "name"),
    "user": ("role", "content", "name"),
    "assistant": (
        "role", "content", "name", "tool_calls", "reasoning", "reasoning_content",
        "invalid_tool_calls",
    ),
    "tool": ("role", "content", "name", "tool_call_id"),
}  # fmt: skip
ROLES = tuple(_FIELDS)
_NOT_YET = (
    "image", "image_url", "input_image", "audio", "input_audio", "video", "video_url", "file",
)  # fmt: skip


def clean_messages(
    messages: Sequence[Mapping[str, Any]], join_system: bool = True
) -> list[dict[str, Any]]:
    """A checked copy of a conversation.

    "developer" becomes "system"; a missing content beside tool calls
    becomes "", and arguments given as a JSON text become the object they hold. A text that holds
    none becomes {}, with a line in the log: a model wrote it, so the conversation must go on.
    `name` is left to the template, and `invalid_tool_calls` of earlier answers are dropped.

    Args:
        messages: {"role", "content", ...} in order. A content is a string or a list of
            {"type": "text", "text": ...}.
        join_system: whether the text parts of a system message become one text.

    Raises:
        InvalidRequest: no messages, an unknown role or field, a missing content, an image, or a
            tool's result that answers no call; the message names the field and the remedy.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise bad_field("messages", "must be a list of {'role': ..., 'content': ...}")
    if not messages:
        raise bad_field("messages", "is empty; give at least one message with role 'user'")
    broken: list[str] = []
    clean = [_message(message, f"messages[{k}]", broken) for k, message in enumerate(messages)]
    for message in clean if join_system else ():
        if message["role"] == "system" and isinstance(message["content"], list):
            message["content"] = "".join(part["text"] for part in message["content"])
    if broken:
        logger.warning(
            "%d calls of a conversation have arguments that are not a JSON object, the first in "
            "%s; the model is shown {} in their place", len(broken), broken[0],
        )  # fmt: skip
    for k, message in enumerate(clean):
        if message["role"] == "tool":
            _check_result(clean, k)
    return clean


def clean_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """A checked copy of tool declarations; None for none.

    Args:
        tools: {"type": "function", "function": {"name", "description", "parameters"}} each.

    Raises:
        InvalidRequest: another form, or a value that is not JSON; the message names the field.
    """
    if tools is None:
        return None
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise bad_field("tools", "must be a list of {'type': 'function', 'function': {...}}")
    clean = []
    for k, tool in enumerate(tools):
        where = f"tools[{k}]"
        function = _mapping(_mapping(tool, where).get("function"), f"{where}.function")
        if tool.get("type", "function") != "function":
            raise bad_field(f"{where}.type", f"must be 'function', got {tool['type']!r}")
        copy = plain_json(function, f"{where}.function")
        _name(copy, f"{where}.function")
        if copy.get("description") is None:
            copy["description"] = ""
        if not isinstance(copy["description"], str):
            raise bad_field(f"{where}.function.description", "must be a string")
        if copy.setdefault("parameters", None) is not None:
            _mapping(copy["parameters"], f"{where}.function.parameters")
        clean.append({"type": "function", "function": copy})
    return clean or None


def _message(message: object, where: str, broken: list[str]) -> dict[str, Any]:
    """A clean message; the places of arguments that are not a JSON object are added to `broken`."""
    given = _mapping(message, where)
    role = given.get("role")
    if not isinstance(role, str) or role not in ROLES:
        hint = nearest(role, ROLES) if isinstance(role, str) else ""
        known = ", ".join(repr(known) for known in ROLES)
        raise bad_field(f"{where}.role", f"is {role!r}{hint}; use one of {known}")
    for field in given:
        if field not in _FIELDS[role] and given[field] not in (None, [], {}, ""):
            hint = nearest(str(field), _FIELDS[role])
            raise bad_field(f"{where}.{field}", f"is not known for role {role!r}{hint}; remove it")
    clean: dict[str, Any] = {"role": "system" if role == "developer" else role}
    calls = given.get("tool_calls") if role == "assistant" else None
    content = given.get("content")
    if content is None and calls:
        content = ""
    clean["content"] = _content(content, f"{where}.content")
    if calls:
        clean["tool_calls"] = _calls(calls, f"{where}.tool_calls", broken)
    for field in ("reasoning", "reasoning_content", "name", "tool_call_id"):
        value = given.get(field)
        if field in _FIELDS[role] and value is not None:
            clean[field] = _text(value, f"{where}.{field}")
    return clean


def _content(content: object, where: str) -> str | list[dict[str, Any]]:
    if content is None:
        raise bad_field(where, "is missing; give a string, '' for an empty message")
    if isinstance(content, str):
        return _text(content, where)
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise bad_field(where, "must be a string or a list of text parts")
    return [_part(part, f"{where}[{k}]") for k, part in enumerate(content)]


def _part(part: object, where: str) -> dict[str, Any]:
    given = _mapping(part, where)
    kind = given.get("type")
    if isinstance(kind, str) and kind in _NOT_YET:
        raise InvalidRequest(
            f"{where}: {kind} is not supported yet; send only parts of type 'text'", field=where
        )
    if kind != "text":
        raise bad_field(f"{where}.type", f"is {kind!r}; use 'text'")
    return {"type": "text", "text": _text(given.get("text"), f"{where}.text")}


def _calls(calls: object, where: str, broken: list[str]) -> list[dict[str, Any]]:
    if not isinstance(calls, Sequence) or isinstance(calls, (str, bytes)):
        raise bad_field(where, "must be a list")
    clean = []
    for k, call in enumerate(calls):
        at = f"{where}[{k}]"
        given = _mapping(call, at)
        function = _mapping(given.get("function"), f"{at}.function")
        arguments, place = function.get("arguments"), f"{at}.function.arguments"
        if isinstance(arguments, str):
            arguments = _parsed(arguments, place)
            if arguments is None:
                broken.append(place)
        copy = {
            "name": _name(function, f"{at}.function"),
            "arguments": plain_json(_mapping({} if arguments is None else arguments, place), place),
        }
        clean.append({"type": "function", "function": copy})
        if given.get("id") is not None:
            clean[-1]["id"] = _text(given["id"], f"{at}.id")
    return clean


def _parsed(arguments: str, where: str) -> dict[str, Any] | None:
    """The object that a text holds; None: it holds none."""
    try:
        found = plain_json(json.loads(arguments), where) if arguments.strip() else {}
    except (ValueError, RecursionError, InvalidRequest):
        return None
    return found if isinstance(found, dict) else None


def _check_result(messages: Sequence[Mapping[str, Any]], k: int) -> None:
    """A tool's result must follow the message that called the tool."""
    before = k - 1
    while before >= 0 and messages[before]["role"] == "tool":
        before -= 1
    calls = messages[before].get("tool_calls") if before >= 0 else None
    if not calls:
        raise bad_field(
            f"messages[{k}]",
            "is a tool's result without a call; put it right after the assistant's "
            "message with the tool_calls",
        )
    asked = messages[k].get("tool_call_id")
    known = [call.get("id") for call in calls]
    if asked is not None and asked not in known and "name" not in messages[k]:
        raise bad_field(
            f"messages[{k}].tool_call_id",
            f"{asked!r} is the id of no call of messages[{before}]; use the id of the call",
        )


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if value is None:
        raise bad_field(where, "is missing; give an object")
    if not isinstance(value, Mapping):
        raise bad_field(where, f"must be an object, got {type(value).__name__}")
    return value


def _name(function: Mapping[str, Any], where: str) -> str:
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise bad_field(f"{where}.name", "is missing; give the tool's name")
    return _text(name, f"{where}.name")


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise bad_field(where, f"must be a string, got {type(value).__name__}")
    if not value.isascii() and SURROGATE.search(value):
        raise bad_field(where, "has a lone surrogate; send valid Unicode")
    return value


def plain_json(value: object, where: str, depth: int = 0) -> Any:
    """A copy of a JSON value in plain dicts, lists and scalars."""
    if depth > DEEPEST:
        raise bad_field(where, f"is nested deeper than {DEEPEST} levels")
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise bad_field(where, f"is {value}, which is not a JSON number")
        return value
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, Mapping):
        return {
            _text(key, f"a key of {where}"): plain_json(inner, f"{where}.{key}", depth + 1)
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [plain_json(inner, f"{where}[{k}]", depth + 1) for k, inner in enumerate(value)]
    raise bad_field(where, f"is not a JSON value but {type(value).__name__}")
