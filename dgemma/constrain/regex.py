"""Regular expressions that mean the same to everyone who reads them.

A pattern is written once and read by several engines: the grammar library's (Rust's syntax), and
whoever checks the answer later (Python's `re`, JavaScript). Here it is narrowed to what they have
in common, so that a text that matches here matches there. Knows nothing about JSON or tokens.
Source: the syntax pages of Rust's `regex` crate and of Python's `re`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from dgemma.errors import InvalidRequest

_OUTSIDE = {
    "d": "[0-9]", "w": "[0-9A-Za-z_]", "D": r"\P{Nd}",
    "W": r"[^\p{Alphabetic}\p{M}\p{N}\p{Pc}]", "S": r"[^\s\x1c-\x1f]",
}  # fmt: skip
_IN_CLASS = {"d": "0-9", "w": "0-9A-Za-z_", "D": r"\P{Nd}"}
_IN_NEGATED = {"d": r"\p{Nd}", "w": r"\p{Alphabetic}\p{M}\p{N}\p{Pc}", "s": r"\s\x1c-\x1f"}
_DOUBLES = ("&&", "--", "~~", "||")
_ANY = "(?s:.*)"
_REPEAT = re.compile(r"[*+?]|\{[0-9]+(?:,[0-9]*)?\}")
_PIECE = re.compile(
    rf"\\.|\[\^?+(?:\\.|[^\\])(?:\\.|[^\]\\])*+\]|{_REPEAT.pattern}|.", re.DOTALL
)  # an escape, a class, a repeat, or a character
_IN_SET = re.compile(rf"\\.|{'|'.join(map(re.escape, _DOUBLES))}|.", re.DOTALL)
_GROUP = re.compile(r"\((\?:|\?P<\w+>|)(.*)\)", re.DOTALL)

_DATE = (
    "[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    "|02-(0[1-9]|1[0-9]|2[0-9]))"
)
_TIME = (
    r"([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]+)?"
    r"([zZ]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)
_SPAN = "T([0-9]+H([0-9]+M([0-9]+S)?)?|[0-9]+M([0-9]+S)?|[0-9]+S)"
_WORD = r"[a-zA-Z0-9!#$%&'*+\-/=?\^_`{|}~]+"
_LABEL = "[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = "[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"({_BYTE}\.){{3}}{_BYTE}"
_HEX = "[0-9a-fA-F]{1,4}"
_V6 = "|".join([
    f"({_HEX}:){{7}}{_HEX}", f"({_HEX}:){{1,7}}:",
    *(f"({_HEX}:){{1,{7 - k}}}(:{_HEX}){{1,{k}}}" for k in range(1, 7)), f":(:{_HEX}){{1,7}}", "::",
])  # fmt: skip
_URI = r"a-zA-Z0-9\-._~!$&'()*+,;="
_USER, _NAME, _PART, _QUERY = (
    f"([{_URI}{marks}]|%[0-9a-fA-F]{{2}})" for marks in (":", "", ":@", ":@/?")
)
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}[tT]{_TIME}",
    "duration": (
        f"P(([0-9]+Y([0-9]+M([0-9]+D)?)?|[0-9]+M([0-9]+D)?|[0-9]+D)({_SPAN})?|{_SPAN}|[0-9]+W)"
    ),
    "email": rf"{_WORD}(\.{_WORD})*@({_LABEL}(\.{_LABEL})*|\[{_IPV4}\])",
    "hostname": rf"{_HOST}(\.{_HOST})*",
    "ipv4": _IPV4,
    "ipv6": "|".join([
        f"({_HEX}:){{7}}{_HEX}", f"::({_HEX}:){{0,5}}{_HEX}:{_HEX}",
        *(f"(({_HEX}:){{0,{k}}}{_HEX})?::({_HEX}:){{0,{4 - k}}}{_HEX}:{_HEX}" for k in range(5)),
        f"(({_HEX}:){{0,5}}{_HEX})?::{_HEX}", f"(({_HEX}:){{0,6}}{_HEX})?::",
    ]),
    "uuid": "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "uri": (
        rf"[a-zA-Z][a-zA-Z0-9+\-.]*:(//({_USER}*@)?(\[({_V6}|v[0-9a-fA-F]+\.[{_URI}:]+)\]|{_NAME}*)"
        rf"(:[0-9]*)?(/{_PART}*)*|/({_PART}+(/{_PART}*)*)?|{_PART}+(/{_PART}*)*|)"
        rf"(\?{_QUERY}*)?(#{_QUERY}*)?"
    ),
}  # fmt: skip
"""The formats of strings, as expressions for a whole text. Each describes the language that
llguidance enforces for it in JSON, so that a format means the same in a tool call."""


def portable(pattern: str, where: str, *, strict: bool = True) -> str:
    """The pattern in Rust's syntax; what it matches, `re.search` matches with the original too.

    Args:
        pattern: in the syntax that Python and JavaScript share.
        where: the place of the pattern, for messages.
        strict: refuse what Python's `re` cannot read.

    Raises:
        InvalidRequest: it is broken, or engines would disagree about it.
    """

    def refuse(what: str, remedy: str) -> InvalidRequest:
        return InvalidRequest(f"{where}: {what} in regular expression {pattern!r}; {remedy}")

    out, quantified = [], False
    for found in _PIECE.finditer(pattern):
        piece, after = found[0], pattern[found.end() : found.end() + 2]
        if piece == "+" and quantified and strict:
            raise refuse("a possessive quantifier", "write (?:...)+ for a repeat")
        if piece == "(" and after[:1] == "?" and after not in ("?:", "?P") and strict:
            raise refuse("a flag or a look-around", "only (?:...) groups are supported")
        repeat = piece == "}" or bool(_REPEAT.fullmatch(piece))
        quantified = repeat and not (quantified and piece == "?")  # else it is a lazy one
        if piece[0] == "[":
            piece = _set(piece, refuse)
        out.append(_escape(piece, _OUTSIDE) if piece[0] == "\\" else piece)
    if strict:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise InvalidRequest(
                f"{where}: regular expression {pattern!r} cannot be read ({error}); "
                "use syntax that Python and JavaScript share"
            ) from None
    return "".join(out)


def _escape(piece: str, classes: dict[str, str]) -> str:
    if piece in ("\\<", "\\>"):  # a word's border in Rust
        return piece[1]
    return classes.get(piece[1:], piece)


def _set(piece: str, refuse: Callable[[str, str], InvalidRequest]) -> str:
    """What stands in brackets, in Rust's syntax."""
    if piece == "[":
        raise refuse("an open [", "close it")
    negated = piece[1] == "^"
    out = []
    for part in _IN_SET.findall(piece[1 + negated : -1]):
        if part in _DOUBLES:
            raise refuse("a doubled mark in [...]", "escape it")
        if part in ("\\W", "\\S") or (negated and part == "\\D"):
            raise refuse(f"{part} in [...]", "spell the characters out")
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
    for piece in _PIECE.findall(pattern):
        if piece == "|" and not depth:
            found.append([])
        elif depth or (found[-1] and _REPEAT.fullmatch(piece)):
            found[-1][-1] += piece
        else:
            found[-1].append(piece)
        depth += {"(": 1, ")": -1}.get(piece, 0)
    return found


def terminal(pattern: str) -> str:
    """An expression as a terminal of Lark."""
    escaped = {"/": "\\/", "\n": "\\n"}
    inner = re.sub(r"(?s:\\.)|[/\n]", lambda found: escaped.get(found[0], found[0]), pattern)
    return f"/({inner})/"
