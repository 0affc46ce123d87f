"""Regular expressions that mean the same to everyone who reads them.

A pattern is written once and read by several engines: the grammar library's (Rust's syntax), and
whoever checks the answer later (Python's `re`, JavaScript). Here it is narrowed to what they have
in common, so that a text that matches here matches there. Knows nothing about JSON or tokens.
Source: ECMA-262, section 22.2; the syntax pages of Rust's `regex` crate and of Python's `re`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from dgemma.constrain.limits import GROUPS
from dgemma.errors import InvalidRequest

_SPACE = r"\t-\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""White space of ECMA-262 and of Python."""
_NO_SPACE = r"\s\x1c-\x1f\u0085\ufeff"
"""White space of ECMA-262, of Python or of Rust."""
_OUTSIDE = {
    "d": "[0-9]", "w": "[0-9A-Za-z_]", "s": f"[{_SPACE}]", "D": r"\P{Nd}",
    "W": r"[^\p{Alphabetic}\p{M}\p{N}\p{Pc}]", "S": f"[^{_NO_SPACE}]",
}  # fmt: skip
_IN_CLASS = {"d": "0-9", "w": "0-9A-Za-z_", "s": _SPACE, "D": r"\P{Nd}"}
_IN_NEGATED = {"d": r"\p{Nd}", "w": r"\p{Alphabetic}\p{M}\p{N}\p{Pc}", "s": _NO_SPACE}
_LINE = r"[^\n\r\u2028\u2029]"
"""What a dot matches in ECMA-262; Python's takes more."""
_DOUBLES = ("&&", "--", "~~", "||")
_ANY = "(?s:.*)"
_REPEAT = re.compile(r"[*+?]|\{[0-9]+(?:,[0-9]*)?\}")
_ESCAPE = r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)"
_PIECE = re.compile(
    rf"{_ESCAPE}|\[\^?+(?:\\.|[^\\])(?:\\.|[^\]\\])*+\]|\((?:\?:|\?P?<[A-Za-z_][0-9A-Za-z_]*>)?"
    rf"|{_REPEAT.pattern}|.",
    re.DOTALL,
)  # an escape, a class, the beginning of a group, a repeat, or a character
_IN_SET = re.compile(rf"{_ESCAPE}|{'|'.join(map(re.escape, _DOUBLES))}|.", re.DOTALL)
_GROUP = re.compile(r"\((\?:|)(.*)\)", re.DOTALL)
_READ = frozenset("dDwWsStnrfv0")
"""Letters after a backslash that the engines read alike."""
_UNREAD = {
    "p": ("\\p{...}, a property of Unicode,", "spell the characters out, as in [A-Za-z]"),
    "P": ("\\P{...}, a property of Unicode,", "spell the characters out, as in [^A-Za-z]"),
    "b": ("\\b, a look-around,", "spell out what stands on both sides"),
    "B": ("\\B, a look-around,", "spell out what stands on both sides"),
    "k": ("\\k, a reference to a group,", "write the group again"),
}  # fmt: skip


def pieces(pattern: str) -> Iterator[str]:
    """Escapes, classes, beginnings of groups, repeats and characters, one after another.

    A class that is not closed ends them with a lone `[`.
    """
    at = 0
    while at < len(pattern):
        found = _PIECE.match(pattern, at)
        assert found is not None, "any character is a piece"
        yield found[0]
        if found[0] == "[":
            return
        at = found.end()


def portable(pattern: str, where: str, *, strict: bool = True) -> str:
    """The pattern in Rust's syntax; what it matches, `re.search` matches with the original too.

    The names of groups are left out.

    Args:
        pattern: in the syntax that Python and JavaScript share.
        where: the place of the pattern, for messages.
        strict: refuse what Python or JavaScript cannot read, or reads in its own way.

    Raises:
        InvalidRequest: it is broken, or engines would disagree about it.
    """

    def refuse(what: str, remedy: str) -> InvalidRequest:
        return InvalidRequest(f"{where}: {what} in regular expression {pattern!r}; {remedy}")

    out, plain = list[str](), list[str]()
    quantified, flags, before, depth = False, False, "", 0
    for piece in pieces(pattern):
        if piece == "[":
            raise refuse("an open [", "close it")
        depth += (piece[0] == "(") - (piece == ")")
        GROUPS.check(depth, where)
        if piece[0] == "(":
            piece = piece if piece == "(?:" else "("
        if piece == "+" and quantified:
            raise refuse("a possessive quantifier", "write (?:...)+ for a repeat")
        flags = (piece == "?" and before == "(") or (flags and piece not in (":", ")"))
        if flags and piece in ("x", "U", "R"):
            raise refuse(f"the flag {piece}, which not every engine reads,", "leave it out")
        if strict:
            if piece == "?" and before == "(":
                raise refuse("a flag or a look-around", "only (?:...) groups are supported")
            _check_escape(piece, refuse)
        plain.append(piece if piece[0] != "[" else _python_set(piece))
        repeat = piece == "}" or bool(_REPEAT.fullmatch(piece))
        quantified = repeat and not (quantified and piece == "?")  # else it is a lazy one
        before = piece
        if piece[0] == "[":
            piece = _set(piece, refuse, strict)
        elif piece[0] == "\\":
            piece = _escape(piece, _OUTSIDE)
        out.append(_LINE if piece == "." and strict else piece)
    if strict:
        try:
            re.compile("".join(plain))
        except (re.error, RecursionError, OverflowError) as error:
            raise InvalidRequest(
                f"{where}: regular expression {pattern!r} cannot be read ({error}); "
                "use syntax that Python and JavaScript share"
            ) from None
    return "".join(out)


def _python_set(piece: str) -> str:
    """What stands in brackets, so that Python does not warn of sets within sets."""
    parts = _IN_SET.findall(piece[1:-1])
    return f"[{''.join(chr(92) + part if part == '[' else part for part in parts)}]"


def _check_escape(piece: str, refuse: Callable[[str, str], InvalidRequest]) -> None:
    """Raises for an escaped letter or digit that is not the same to all engines."""
    letter = piece[1:2]
    if piece[0] != "\\" or len(piece) > 2 or letter in _READ or not letter.isalnum():
        return
    if letter in "123456789":
        raise refuse(f"{piece}, a reference to a group,", "write the group again")
    if letter in _UNREAD:
        what, remedy = _UNREAD[letter]
        raise refuse(f"{what} is not supported", remedy)
    raise refuse(f"{piece}, which not every engine reads,", "leave the backslash out")


def _escape(piece: str, classes: dict[str, str]) -> str:
    if piece in ("\\<", "\\>"):  # a word's border in Rust
        return piece[1]
    return classes.get(piece[1:], piece)


def _set(piece: str, refuse: Callable[[str, str], InvalidRequest], strict: bool) -> str:
    """What stands in brackets, in Rust's syntax."""
    negated = piece[1] == "^"
    inner = piece[1 + negated : -1]
    if strict and inner[0] == "]":
        raise refuse("a ] that comes first in [...]", "escape it")
    out = []
    for part in _IN_SET.findall(inner):
        if part in _DOUBLES:
            raise refuse("a doubled mark in [...]", "escape it")
        if part in ("\\W", "\\S") or (negated and part == "\\D"):
            raise refuse(f"{part} in [...]", "spell the characters out")
        if strict and part != "\\b":
            _check_escape(part, refuse)
        if part == "\\b":
            part = "\\x08"
        if part[0] == "\\":
            part = _escape(part, _IN_NEGATED if negated else _IN_CLASS)
        out.append("\\" + part if part in ("[", "]") else part)
    return f"[{'^' * negated}{''.join(out)}]"


def whole(pattern: str, start: bool = True, end: bool = True) -> str:
    """An expression for the whole texts in which `pattern`, as `portable` writes it, is found.

    An anchor counts at the edge of an alternative, also within a group at that edge.

    Args:
        start, end: whether other text may come before and after.
    """
    found = []
    for atoms in _alternatives(pattern):
        before, after = start, end
        while before and atoms[:1] == ["^"]:
            before, atoms = False, atoms[1:]
        while after and atoms[-1:] == ["$"]:
            after, atoms = False, atoms[:-1]
        for at in (0, -1):
            group = _GROUP.fullmatch(atoms[at]) if atoms else None
            alone = len(atoms) == 1
            inner = (before and (alone or not at), after and (alone or bool(at)))
            if group and any(inner):
                atoms[at] = f"({group[1]}{whole(group[2], *inner)})"
                before, after = before and not inner[0], after and not inner[1]
        found.append(_ANY * before + "".join(atoms) + _ANY * after)
    return "|".join(found)


def _alternatives(pattern: str) -> list[list[str]]:
    """The atoms, with their repeats, of each alternative that is not within a group."""
    found: list[list[str]] = [[]]
    depth = 0
    atom: list[str] = []
    for piece in pieces(pattern):
        if not depth and not (atom and _REPEAT.fullmatch(piece)):
            found[-1] += ["".join(atom)] * bool(atom)
            atom = []
            if piece == "|":
                found.append([])
                continue
        atom.append(piece)
        depth += (piece[0] == "(") - (piece == ")")
    found[-1] += ["".join(atom)] * bool(atom)
    return found


def terminal(pattern: str) -> str:
    """An expression as a terminal of Lark."""
    escaped = {"/": "\\/", "\n": "\\n"}
    inner = re.sub(r"(?s:\\.)|[/\n]", lambda found: escaped.get(found[0], found[0]), pattern)
    return f"/({inner})/"
