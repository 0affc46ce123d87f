"""Markdown as a model writes it, as HTML that a page may show: code coloured, TeX as MathML.

A pure function of the text. What comes out holds the tags and attributes of the tables here and no
others, whatever goes in. Knows nothing about HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache

import nh3
from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexer import Lexer
from pygments.lexers import get_all_lexers, get_lexer_by_name

from dgemma.server.tex import add_tex

MOST_CODE = 20_000
"""Characters of code that are coloured; more stand as they are."""
MOST_ADDRESS = 300
"""Characters of a link's address that are shown."""

PREFIX = "c-"
"""Of the classes of coloured code; see `dgemma/ui/code.css`."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


TEXT_TAGS = _names(
    "p br hr h1 h2 h3 h4 h5 h6 strong em s blockquote ul ol li code pre span a table thead tbody "
    "tr th td"
)
MATH_TAGS = _names(
    "math mrow mi mn mo mtext mspace ms mfrac msqrt mroot msub msup msubsup munder mover "
    "munderover mmultiscripts mprescripts mtable mtr mtd mstyle mpadded mphantom menclose"
)
LENGTHS = _names(
    "width height depth lspace rspace voffset linethickness minsize maxsize rowspacing "
    "columnspacing"
)
WORDS = _names(
    "display mathvariant form fence separator stretchy symmetric largeop movablelimits accent "
    "accentunder displaystyle scriptlevel columnalign rowalign columnlines rowlines notation"
)
DIRECTED = _names("p h1 h2 h3 h4 h5 h6 li blockquote th td")
ATTRIBUTES: dict[str, set[str]] = {
    **{tag: {"dir"} for tag in DIRECTED}, **{tag: set(LENGTHS | WORDS) for tag in MATH_TAGS},
    "a": {"href", "target"}, "code": {"class"}, "span": {"class"},
    "ol": {"start"}, "th": {"dir", "class"}, "td": {"dir", "class"},
}  # fmt: skip
"""Tag -> its attributes, beside `rel` of links, which is always the same."""

_VALUES = {
    **dict.fromkeys(LENGTHS, re.compile(r"[+-]?(\d{1,2}(\.\d{0,4})?|\.\d{1,4})([a-z]{2}|%)?")),
    **dict.fromkeys(WORDS, re.compile(r"[a-z0-9 -]{1,60}")),
    "dir": re.compile("auto"), "start": re.compile(r"\d{1,9}"), "target": re.compile("_blank"),
    "class": re.compile(rf"address|tex|align-(left|center|right)|language-[\w+#.-]{{1,40}}"
                        rf"|{PREFIX}[a-z0-9]{{1,4}}", re.ASCII),
    "href": re.compile(r"(https?://|mailto:)[!-~]+", re.IGNORECASE),
}  # fmt: skip
"""Attribute -> what its values look like; another value is dropped with its attribute."""

_TURNS = {
    code: f"\u2039U+{code:04X}\u203a" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
"""Characters that turn the direction of what follows them, shown: ‹U+202E›."""


def render(markdown: str) -> str:
    """A text as HTML.

    Raw HTML stays text. An image becomes the text `[image: ...]`, for a page that loads it tells a
    stranger of it. A link goes to http, https or mailto, and its address stands behind it.
    """
    return clean(_parser().render(markdown.encode("utf-8", "replace").decode()))


def clean(html: str) -> str:
    """HTML without any tag, attribute or character that a page must not show."""
    # Last, for an entity may stand for such a character. No attribute that is left can hold one.
    return _cleaner().clean(html).translate(_TURNS)


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "highlight": _coloured, "maxNesting": 50})
    parser.enable(["table", "strikethrough"])
    parser.validateLink = lambda url: _kept("a", "href", url) is not None  # type: ignore[method-assign]
    parser.core.ruler.push("page", _for_a_page)
    add_tex(parser)
    return parser


@cache
def _cleaner() -> nh3.Cleaner:
    return nh3.Cleaner(
        tags=TEXT_TAGS | MATH_TAGS, attributes=ATTRIBUTES, attribute_filter=_kept,
        clean_content_tags={"script", "style"}, url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer", set_tag_attribute_values={"a": {"target": "_blank"}},
    )  # fmt: skip


def _kept(tag: str, name: str, value: str) -> str | None:
    """An attribute's value; None: it goes."""
    if name == "rel":
        return value
    form = _VALUES.get(name)
    return value if form is not None and form.fullmatch(value) else None


# -- tokens ----------------------------------------------------------------------------------------


def _for_a_page(state: StateCore) -> None:
    """Change what the parser has found: directions, alignments, images, links."""
    for token in state.tokens:
        _mark(token)
        if token.children:
            token.children = list(_inline(token.children))


def _mark(token: Token) -> None:
    if token.nesting == 1 and token.tag in DIRECTED:
        token.attrSet("dir", "auto")
    style = str(token.attrs.pop("style", ""))
    if style:  # of a table's cell: "text-align:right"
        token.attrSet("class", f"align-{style.rpartition(':')[2]}")


def _inline(tokens: Sequence[Token]) -> Iterator[Token]:
    """The same with texts in the place of images, and an address behind each link."""
    address, shown = "", ""
    for token in tokens:
        if token.type == "image":
            token = _text(f"[image: {_words(token.children or ())}]")
        if token.type == "link_open":
            address, shown = str(token.attrGet("href")), ""
        shown += token.content
        yield token
        if token.type == "link_close" and shown not in (address, address.removeprefix("mailto:")):
            yield Token("span_open", "span", 1, attrs={"class": "address"})
            cut = "\u2026" if len(address) > MOST_ADDRESS else ""
            yield _text(f" ({address[:MOST_ADDRESS]}{cut})")
            yield Token("span_close", "span", -1)


def _words(tokens: Sequence[Token]) -> str:
    return "".join(token.content or _words(token.children or ()) for token in tokens)


def _text(content: str) -> Token:
    return Token("text", "", 0, content=content)


# -- code ------------------------------------------------------------------------------------------


def _coloured(code: str, language: str, _: str) -> str:
    """Code in spans with classes; "": as it stands."""
    if len(code) > MOST_CODE or language.lower() not in _languages():
        return ""
    return str(highlight(code, _lexer(language.lower()), _formatter()))


@cache
def _languages() -> frozenset[str]:
    """The names of languages; by another, the library would look for plug-ins on the disk."""
    return frozenset(name for _, names, _, _ in get_all_lexers(plugins=False) for name in names)


@lru_cache(32)
def _lexer(language: str) -> Lexer:
    return get_lexer_by_name(language, stripnl=False)


@cache
def _formatter() -> HtmlFormatter[str]:
    return HtmlFormatter(nowrap=True, classprefix=PREFIX)
