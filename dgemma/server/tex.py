r"""TeX in Markdown: $..$, $$..$$, \(..\) and \[..\] as tokens, and their MathML.

Knows TeX's marks and latex2mathml. What it writes still has to be sanitised.
"""

from __future__ import annotations

import html
import re
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element, tostring

from latex2mathml.converter import convert_to_element
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

MOST_CHARACTERS = 4000
"""Of a formula; the marks around more are text."""

_DOLLARS = re.compile(
    rf"\$(?![\s$])((?:[^$\\]|\\.){{1,{MOST_CHARACTERS}}}+)(?<!\s)\$(?!\d)", re.DOTALL
)
_MARKS = (("$$", "$$", True), (r"\[", r"\]", True), (r"\(", r"\)", False))
_MACROS = re.compile(
    r"\\(?:re)?newcommand|\\providecommand|\\(?:e|g|x)?def(?![a-z])|\\let(?![a-z])"
)
"""A macro may double its text each time that it is used."""


def add_tex(markdown: MarkdownIt) -> None:
    """Let a parser read formulae."""
    markdown.inline.ruler.before("escape", "tex", _inline)
    ends = ["paragraph", "reference", "blockquote", "list"]
    markdown.block.ruler.before("fence", "tex_block", _block, {"alt": ends})
    markdown.add_render_rule("tex", _rendered)
    markdown.add_render_rule("tex_block", _rendered)


def _inline(state: StateInline, silent: bool) -> bool:
    found = _found(state.src, state.pos, state.posMax)
    if found is None:
        return False
    source, end, display = found
    if not silent:
        _put(state.push("tex", "math", 0), source, display)
    state.pos = end
    return True


def _found(text: str, at: int, most: int) -> tuple[str, int, bool] | None:
    """A formula that begins at a place: its source, the place after it, whether it is displayed."""
    for opening, closing, display in _MARKS:
        if text.startswith(opening, at):
            start = at + len(opening)
            end = text.find(closing, start, min(most, start + MOST_CHARACTERS))
            return (text[start:end], end + len(closing), display) if end > start else None
    if at and text[at - 1].isalnum():  # "A$5 or B$6" is no formula
        return None
    found = _DOLLARS.match(text, at, most)
    return None if found is None else (found[1], found.end(), False)


def _block(state: StateBlock, first: int, end: int, silent: bool) -> bool:
    if state.is_code_block(first):
        return False
    at = state.bMarks[first] + state.tShift[first]
    opening = state.src[at : at + 2]
    closing = {"$$": "$$", r"\[": r"\]"}.get(opening)
    if closing is None:
        return False
    close = state.src.find(closing, at + 2, at + 2 + MOST_CHARACTERS)
    last = bisect_left(state.eMarks, close, first)
    if close < 0 or last >= end or state.src[close + 2 : state.eMarks[last]].strip():
        return False  # a line that goes on after it is a paragraph, whose formulae are inline
    lines = range(first + 1, last + 1)
    if any(state.sCount[k] < state.blkIndent and not state.isEmpty(k) for k in lines):
        return False  # the list that it began in ends before it
    if not silent:
        text = state.getLines(first, last + 1, state.blkIndent, False).strip()
        _put(state.push("tex_block", "math", 0), text[2:-2], True)
        state.line = last + 1
    return True


def _put(token: Any, source: str, display: bool) -> None:
    token.content, token.block = source, display


def _rendered(_: Any, tokens: Any, index: int, options: Any, env: Mapping[str, Any]) -> str:
    """A formula as MathML, or its source where it cannot be read."""
    token = tokens[index]
    source = token.content.strip()
    try:
        if _MACROS.search(source):
            raise ValueError("macros are not expanded")
        found = convert_to_element(source, display="block" if token.block else "inline")
        return tostring(_plain(found), encoding="unicode")
    except Exception:  # whatever the library makes of a stranger's text
        return f'<code class="tex">{html.escape(source)}</code>'


def _plain(element: Element) -> Element:
    """The same with its entities read, to be escaped once: the library writes signs as entities,
    and the text of a stranger beside them as it is."""
    for one in element.iter():
        if one.text is not None:
            one.text = html.unescape(one.text)
    return element
