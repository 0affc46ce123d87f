"""The library's errors in the words of the command line: its options, not Python's keywords."""

from __future__ import annotations

import re
from collections.abc import Mapping

FIELD = re.compile(r"(?<![\w./'\"])[a-z]+(?:_[a-z]+)+(?![\w/'\"(]|\.\w)")
"""A name of several words, outside of quotes and paths."""
LEADING = re.compile(r"^\w+|(?<= and )\w+(?= cannot be combined)")
"""Where a name of one word is a field, and not a word of the sentence."""
PHRASES = (
    (r"pass strict=False", "pass --no-strict"),
    (r"prompt with a list of token ids, or add the file", "add the file"),
    (r"use generate\(\) with plain text", "use `dgemma generate --raw`"),
    (r"needs a chat \(Request\.chat, or Request\.thought\)", "needs the chat; leave out --raw"),
    (r"messages\[\d+\]\.content", "the prompt"),
)
"""What only a program can do -> what the command line can do."""


def in_options(message: str, options: Mapping[str, str]) -> str:
    """A message that names the options of a command.

    Args:
        options: the fields that the command has options for -> the options.
    """
    for pattern, instead in PHRASES:
        message = re.sub(pattern, instead, message)
    for names in (LEADING, FIELD):
        message = names.sub(lambda found: options.get(found[0], found[0]), message)
    return message
