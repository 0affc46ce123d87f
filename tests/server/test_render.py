"""Markdown to HTML: what a page shows of an answer, and what no answer can bring into it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from dgemma.server.render import ATTRIBUTES, MATH_TAGS, MOST_CODE, TEXT_TAGS, clean, render
from dgemma.server.tex import MOST_CHARACTERS
from tests.support.hostile_markdown import HOSTILE
from tests.support.sources import ROOT

SHOWN = [
    ("*a* **b** ~~c~~ `d`", "<em>a</em> <strong>b</strong> <s>c</s> <code>d</code>"),
    ("# a", '<h1 dir="auto">a</h1>'),
    ("> a", '<blockquote dir="auto">'),
    ("3. a", '<ol start="3">'),
    ("|a|\n|-:|\n|b|", '<td dir="auto" class="align-right">b</td>'),
    ("a\\\nb", "<br>"),
    ("<b>a</b>", "&lt;b&gt;a&lt;/b&gt;"),
    ("![a *b*](http://x.example/y)", "[image: a b]"),
    ("![](http://x.example/y)", "[image: ]"),
    ("<http://a.example>", ">http://a.example</a></p>"),
    ("<a@b.example>", ">a@b.example</a></p>"),
    ("[a](http://b.example)", '>a</a><span class="address"> (http://b.example)</span>'),
    ("[a](/b)", "[a](/b)"),
    ("```python\nif a: pass\n```", '<span class="c-k">if</span>'),
    ("```\n<b>\n```", "<pre><code>&lt;b&gt;\n</code></pre>"),
    ("```nothing\na\n```", '<pre><code class="language-nothing">a\n</code></pre>'),
    (
        "a $x^2$ b",
        'a <math display="inline"><mrow><msup><mi>x</mi><mn>2</mn></msup></mrow></math> b',
    ),
    (r"a \(x\) b", 'a <math display="inline"><mrow><mi>x</mi></mrow></math> b'),
    ("$$\nx\n$$", '<math display="block"><mrow><mi>x</mi></mrow></math>'),
    ("\\[\nx\n\n- y\n\\]", "<mo>\u2212</mo><mi>y</mi>"),
    ("- $$\n  x\n  $$", '<math display="block"><mrow><mi>x</mi></mrow></math></li>'),
    ("It costs $5 and $6.", "It costs $5 and $6."),
    ("US$5 is A$6", "US$5 is A$6"),
    (r"\$x\$", "$x$"),
    ("`$x$`", "<code>$x$</code>"),
    ("    $$x$$", "<pre><code>$$x$$\n</code></pre>"),
    (r"$\left( x$", '<code class="tex">\\left( x</code>'),
    (r"$\newcommand{\a}{x}\a$", '<code class="tex">'),
    (r"$a < b$", "<mo>&lt;</mo>"),
    ("\u202eabc", "\u2039U+202E\u203aabc"),
]


class Reader(HTMLParser):
    """What a browser makes of some HTML: its tags with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.other = "", list[str]()
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See `HTMLParser`."""
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """See `HTMLParser`."""
        self.text += data

    def handle_comment(self, data: str) -> None:
        """See `HTMLParser`."""
        self.other.append(data)

    handle_decl = handle_pi = unknown_decl = handle_comment


@pytest.mark.parametrize(("markdown", "expected"), SHOWN)
def test_what_is_shown(markdown: str, expected: str) -> None:
    """Catches Markdown, code or a formula that stays as it was written, and text that is lost."""
    assert expected in render(markdown)


def check(html: str) -> None:
    """That a page may show it: every tag, attribute and value is of the lists."""
    found = Reader(html)
    assert not found.other
    for tag, attributes in found.tags:
        assert tag in TEXT_TAGS | MATH_TAGS, tag
        assert set(attributes) <= ATTRIBUTES.get(tag, set()) | ({"rel"} if tag == "a" else set())
        for name, value in attributes.items():
            assert value is not None and len(value) < 3000
            assert not re.search(r"javascript|data:|vbscript|[<>\s]", value) or name in ("rel",)
        if tag == "a":
            address = attributes.get("href", "http://") or ""
            assert re.match(r"(https?://|mailto:)", address, re.IGNORECASE)
            assert attributes["rel"] == "noopener noreferrer"
            assert attributes["target"] == "_blank"
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00]", html)


@pytest.mark.parametrize("markdown", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts(markdown: str) -> None:
    """Catches an answer that runs a script, loads something, or speaks in the page's own name."""
    for text in (markdown, f"- {markdown}", f"$\\text{{{markdown}}}$", f"[{markdown}](http://a.b)",
                 f"|{markdown}|\n|-|\n|{markdown}|", f"```html\n{markdown}\n```"):  # fmt: skip
        html = render(text)
        check(html)
        assert Reader(clean(html)).tags == Reader(html).tags  # read again, it means the same
    check(clean(markdown.encode("utf-8", "replace").decode()))  # had the parser let it pass


def test_hostile_texts_together() -> None:
    """Catches a text that closes or opens what another one has begun."""
    assert len(HOSTILE) >= 60
    check(render("\n\n".join(HOSTILE)))
    check(render(" ".join(HOSTILE)))
    check(render("\n\n".join(reversed(HOSTILE))))


def test_the_check_sees_what_is_wrong() -> None:
    """Catches a check that lets everything pass."""
    for html in ("<img src=x>", "<p style='a'>", "<a href='javascript:x'>", "<!-- a -->", "\u202e",
                 "<p onclick='a'>", "<math href='http://x'>", "<svg>", "<a href='http://x'>",
                 "<script>"):  # fmt: skip
        with pytest.raises((AssertionError, KeyError)):
            check(html)


def test_large_code_is_not_coloured() -> None:
    """Catches seconds spent on colours of a file that nobody reads."""
    for count, coloured in ((MOST_CODE, True), (MOST_CODE + 1, False)):
        code = "1" + " " * (count - 2) + "\n"
        html = render(f"```python\n{code}```")
        assert ('class="c-mi"' in html) == coloured and code[:100].rstrip() in Reader(html).text


def test_a_long_formula_is_text() -> None:
    """Catches a search for the other mark through the whole text, from each mark."""
    for opening, closing in (("$", "$"), ("$$", "$$"), (r"\(", r"\)"), (r"\[", r"\]")):
        assert "<math" in render(f"{opening}{'x' * 100}{closing}")
        assert "<math" not in render(f"{opening}{'x' * (MOST_CHARACTERS + 1)}{closing}")


def test_lengths_are_small() -> None:
    """Catches a formula that is a kilometre wide, and one that covers what is beside it."""
    assert 'width="2em"' in render(r"$a\hspace{2em}b$")
    for wide in ("100000em", "123px", "calc(1px)", "100vw", "999em"):
        assert "width" not in render(f"$a\\hspace{{{wide}}}b$")


def test_every_class_has_a_colour() -> None:
    """Catches a style sheet for other classes than the ones that are written."""
    style = (ROOT / "dgemma/ui/code.css").read_text(encoding="utf-8")
    html = render("```python\n@a\nclass B(C):\n    '''d'''\n    x = f'e{1}' or None  # g\n```")
    found = {one["class"] for tag, one in Reader(html).tags if tag == "span"}
    plain = {"c-p", "c-n", "c-o", "c-w"}  # punctuation, names, operators, blanks
    assert len(found - plain) > 8
    assert not [name for name in found - plain if f".{name}" not in style]
