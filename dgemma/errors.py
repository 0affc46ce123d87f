"""Every exception that `dgemma` raises on purpose, in one tree.

    DGemmaError
    +-- ConfigError        config.json or generation_config.json cannot be used
    +-- CheckpointError    weights are missing, broken, mis-shaped or not finite
    +-- ModelNotFound      the name is not a bundled model, directory or cached hub name
    +-- TokenizerError     no tokenizer, or one that cannot do what was asked
    +-- TemplateError      the chat template is missing, or refused the messages
    +-- InvalidRequest     a prompt or a parameter that cannot be honoured
    |   +-- ContextOverflow    prompt does not fit the context of the model
    +-- EngineError        a request failed while it ran
    +-- Overloaded         too many requests wait already
    +-- MissingExtra       an optional dependency is not installed
    +-- DeviceError        the device, dtype or kernel asked for is not there

Knows nothing about HTTP, exit codes or how an error is shown to a person. Every message names
the remedy. Programming mistakes of our own are plain `assert`s.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice

SHOWN = 100
"""Most characters of a value that a message repeats."""


class DGemmaError(Exception):
    """Base class: catch this to catch everything `dgemma` raises on purpose.

    A message may quote the names in a file. Control characters in it are written as escapes, so
    that no file can steer the terminal that shows it.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class ConfigError(DGemmaError):
    """A configuration file is absent, unreadable, or asks for something unsupported."""


class CheckpointError(DGemmaError):
    """Weight files are missing, truncated, mis-shaped or hold values that are not finite."""


class ModelNotFound(DGemmaError):
    """The model's name is not a bundled model, a directory or a name in the local hub cache."""


class TokenizerError(DGemmaError):
    """There is no tokenizer, it cannot be read, or it lacks a token that is needed."""


class TemplateError(DGemmaError):
    """The chat template is missing, or refused the conversation."""


class InvalidRequest(DGemmaError):
    """A prompt or parameter that cannot be honoured; the message names the field.

    Attributes:
        field: the parameter, or the place of a value such as "messages[0].content"; None: it is
            no single one.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ContextOverflow(InvalidRequest):
    """The prompt leaves no room in the model's context."""


class EngineError(DGemmaError):
    """A request failed while it ran; the other requests go on."""


class Overloaded(DGemmaError):
    """Too many requests wait already; the same request may succeed later."""


class MissingExtra(DGemmaError):
    """An optional dependency is not installed; the message has the install command."""


class DeviceError(DGemmaError):
    """The device, dtype or kernel that was asked for is not available."""


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code != 10}
_CONTROLS |= {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
"""Characters that act on a terminal, or on the order in which it shows others."""


def printable(text: str) -> str:
    """The text with its control characters, but for line feeds, as escapes."""
    return text.translate(_CONTROLS)


def bad_field(field: str, why: str) -> InvalidRequest:
    """The error of a field; `why` goes on from its name."""
    return InvalidRequest(f"{field} {why}", field=field)


def refused(field: str, must: str, *value: object) -> InvalidRequest:
    """The error of a field whose value, if it is given, is not as it must be."""
    return bad_field(field, f"must {must}{''.join(f', got {short(one)}' for one in value)}")


def short(value: object) -> str:
    """A value in a message, whatever its size."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return f"{type(value).__name__} of too many digits"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def unreadable(name: object, error: OSError | ValueError) -> str:
    """The message for a text file that cannot be read, from the error of the attempt."""
    if isinstance(error, FileNotFoundError):
        return f"{name}: no such file"
    if isinstance(error, IsADirectoryError):
        return f"{name} is a directory; name a file"
    if isinstance(error, OSError):
        return f"{name} cannot be read: {error.strerror}"
    return f"{name} cannot be read as UTF-8 text: {error}"


LONGEST_NAME, MOST_NAMES = 100, 300
"""Longer names, and more of them, are not compared: that takes the product of their lengths."""


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the nearest of `known`, or an empty string when none is near."""
    names = [one for one in islice(known, MOST_NAMES) if len(one) <= LONGEST_NAME]
    if len(name) > LONGEST_NAME:
        return ""
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""
