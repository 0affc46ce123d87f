"""Which modules an entry of a quantiser's config names.

What the files hold decides what is packed; these lists only choose between rules, and explain.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

CLASSES = ("Linear", "Embedding")
MOST_REPEATS = 4
"""Of `*`, `+` and `{` in a pattern: a config is a stranger's, and more could take for ever."""


def matches(entry: str, module: str) -> bool:
    """Whether an entry names a module.

    Args:
        entry: a class ("Linear" is every module here), a module's path, a path above it, `re:` and
            a regular expression that must match from the start, or a glob (`*mlp*`). A pattern that
            could take for ever matches nothing.
        module: its path in the files, without `.weight`.
    """
    if entry in CLASSES or entry == module or module.startswith(f"{entry}."):
        return True
    repeats = sum(entry.count(sign) for sign in "*+{")
    if repeats > MOST_REPEATS or len(entry) > 1000:
        return False
    if not entry.startswith("re:"):
        return any(sign in entry for sign in "*?[") and fnmatchcase(module, entry)
    if re.search(r"\)[*+{]", entry):
        return False
    try:
        return re.match(entry.removeprefix("re:"), module) is not None
    except (re.error, RecursionError, OverflowError):
        return False
