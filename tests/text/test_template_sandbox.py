"""Templates that somebody else wrote: each ends soon, in little memory, with one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2.sandbox
import pytest

from dgemma.errors import TemplateError
from dgemma.text import template_costs
from dgemma.text.chat import MOST_CHARACTERS, ChatTemplate
from dgemma.text.template_costs import limited, to_json
from dgemma.text.template_sandbox import TemplateEnvironment
from dgemma.text.tokenizer import Tokenizer
from tests.support.fake_vocabulary import vocabulary

HELLO = [{"role": "user", "content": "Hello"}]
DOUBLED = (
    "{% set ns = namespace(x=['a']) %}{% for i in range(40) %}{% set ns.x = DOUBLE %}{% endfor %}"
)
"""A small value that is endless when it is written out."""
SHARED = DOUBLED.replace("DOUBLE", "[ns.x, ns.x]")
TUPLES = DOUBLED.replace("['a']", "('a',)").replace("DOUBLE", "(ns.x, ns.x)")
TWO = SHARED + SHARED.replace("ns", "other")
A = "{% set x = 'a' * 9999999 %}{% for a in range(99999) %}"
NULLS = "{% set x = [0] * 999999 %}{% for a in range(99999) %}"

ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n else 'a' }}{% endmacro %}{{ f(60) }}",
    "{% for a in [[[]]] recursive %}{{ loop([[a]]) }}{{ loop([[a]]) }}{% endfor %}",
    "{% block a %}{% if loop is defined %}{% endif %}{{ self.b() }}{{ self.b() }}{% endblock %}"
    "{% block b %}{{ self.c() }}{{ self.c() }}{% endblock %}"
    "{% block c %}{% for i in range(99999) %}{{ range(9999) | join }}{% endfor %}{% endblock %}",
    "{% for a in range(99999) %}{{ range(99999) | map('string') | join | length }}{% endfor %}",
    "{% for a in range(99999) %}{{ range(99999) | select('eq', -1) | list }}{% endfor %}",
    A + "{{ 'b' in x }}{% endfor %}",
    A + "{% if x == x %}{% endif %}{% endfor %}",
    A + "{% set y = x[1:] %}{% endfor %}",
    A + "{% set y = x.upper() %}{% endfor %}",
    A + "{% set y = x | trim %}{% endfor %}",
    NULLS + "{{ 1 in x }}{% endfor %}",
    NULLS + "{{ x.index(0) }}{% endfor %}",
    NULLS + "{{ x | first }}{% endfor %}",
]
LONG = [
    "{{ 'a' * 10**10 }}",
    "{{ 10**10 * 'a' }}",
    "{{ [0] * 10**10 }}",
    "{{ 'a' | center(10**10) }}",
    "{{ 'a' | center(10000000000) }}",
    "{{ 'a'.center(10**10) }}{{ 'a'.ljust(10**10) }}",
    "{{ 'a'.zfill(10**10) }}",
    "{{ 'a'.expandtabs(10**10) }}",
    "{{ messages | tojson(indent=10**10) }}",
    "{{ messages | tojson(indent='    ' * 9999999) }}",
    "{{ messages | tojson(separators=('a' * 9999999, ':')) }}",
    "{{ 'a' | indent(10**10) }}",
    "{{ ('\n' * 99999) | indent('a' * 99999, blank=true) }}",
    "{{ 'a' | batch(10**10, 'b') | list }}",
    "{{ 'a' | slice(10**10) | list }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '%*d' % (10**10, 1) }}",
    "{{ '%.999999999f' % 1.5 }}",
    "{{ '%1000000000s' | format('a') }}",
    "{{ '{:10000000000}'.format('a') }}",
    "{{ '{:{}}'.format('a', 10**10) }}",
    "{{ ('{0}' * 99999).format('a' * 99999) }}",
    "{{ ('%(a)s' * 99999) % {'a': 'a' * 99999} }}",
    "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
    "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}",
    "{{ ('a' * 99999).replace('', 'b' * 99999) }}",
    "{{ (['a' * 99999] * 99999) | join }}",
    "{{ ([''] * 99999) | join('a' * 99999) }}",
    "{{ ('a' * 99999).join([''] * 99999) }}",
    "{{ ('a' * 99999).join('b' * 99999) }}",
    "{{ 2 ** (10**10) }}",
    "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{{ 1.5 | round(10**10, 'ceil') }}",
    "{{ ([[0] * 999] * 9999) | sum(start=[]) }}",
    DOUBLED.replace("['a']", "'a'").replace("DOUBLE", "ns.x ~ ns.x"),
    DOUBLED.replace("['a']", "'a'").replace("DOUBLE", "ns.x + ns.x"),
    DOUBLED.replace("DOUBLE", "ns.x + ns.x"),
    "{% set x = 'a' * 999 %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 40,
    "{{ lipsum(n=10**6) }}",
    "{% for a in range(99999) %}" + "a" * 99999 + "{% endfor %}",
    "{% macro m() %}" + "a" * 99999 + "{% endmacro %}" + A + "{{ m() }}{% endfor %}",
    SHARED + "{{ ns.x }}",
    SHARED + "{{ ns.x | string }}",
    SHARED + "{{ ns.x | tojson }}",
    SHARED + "{{ ns.x | join }}",
    SHARED + "{{ ns.x ~ '' }}",
    SHARED + "{{ '%s' % ns.x }}{{ '%s' % [ns.x] }}",
    SHARED + "{{ '{}'.format(ns.x) }}",
    TWO + "{{ ns.x == other.x }}",
    TWO + "{{ ns.x is eq other.x }}",
    TWO + "{{ ns.x in [other.x] }}",
    TWO + "{{ [ns.x] | select('eq', other.x) | list }}",
    TWO + "{{ [ns.x, other.x] | sort }}",
    TUPLES + "{{ {ns.x: 1} }}",
    TUPLES + "{{ {}[ns.x] }}",
    TUPLES + "{{ [ns.x] | unique | list }}",
]
DEEP = [
    "{% if a %}" * 3000 + "{% endif %}" * 3000,
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "{{ " + "not " * 5000 + "1 }}",
    "{{ 1" + " + 1" * 20000 + " }}",
    "{{ a" + ".a" * 20000 + " }}",
    "{{ a" + "|trim" * 20000 + " }}",
    "{% for a in b %}" * 30 + "{% endfor %}" * 30,
    "{% if a %}" + "{% elif a %}" * 3000 + "{% endif %}",
    "{% macro a() %}" * 100 + "{% endmacro %}" * 100,
    "{{ 'a' | pprint }}",
    "x" * (MOST_CHARACTERS + 1),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A vocabulary of a few tokens."""
    return vocabulary()


def refusal(source: str, tokenizer: Tokenizer) -> str:
    """The error of a template, at load or on the first conversation."""
    with pytest.raises(TemplateError) as found:
        ChatTemplate(source, tokenizer, "a.jinja").encode(HELLO)
    return str(found.value)


@pytest.mark.fault("R K9", "R K10")
@pytest.mark.parametrize("source", [*ENDLESS, *LONG])
def test_work_is_bounded(
    source: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template that holds a thread, and Python's lock, until the process is killed."""
    monkeypatch.setattr(template_costs, "WORK", 1 << 25)
    message = refusal(source, tokenizer)
    assert len(message) < 600 and "\n" not in message


@pytest.mark.fault("R K11")
@pytest.mark.parametrize("source", DEEP)
def test_nested_too_deep(source: str, tokenizer: Tokenizer) -> None:
    """A traceback of the compiler; none of these may crash it."""
    message = refusal(source, tokenizer)
    assert len(message) < 600 and "a.jinja" in message


@pytest.mark.fault("R K12", "P F3")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('["x"]', "is a list of something else than objects"),
        ("[[]]", "is a list of something else than objects"),
        ("5", "is not a text"),
        ('[{"name": "default", "template": []}]', "is not a text"),
    ],
)
def test_a_template_of_another_form(
    content: str, message: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """It counts as none, and the chat model is used without its form."""
    (tmp_path / "tokenizer_config.json").write_text(f'{{"chat_template": {content}}}')
    with pytest.raises(TemplateError, match=message):
        ChatTemplate.find(tmp_path, tokenizer)


@pytest.mark.fault("P F3", "P F5")
def test_every_place_of_a_template(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """One that is not found; a byte order mark that is in every prompt."""
    assert ChatTemplate.find(tmp_path, tokenizer) is None
    settings, own = tmp_path / "tokenizer_config.json", tmp_path / "chat_template.jinja"
    for content in ('"{{ 1 }}"', '[{"name": "default", "template": "{{ 1 }}"}]'):
        for mark in ("", "\ufeff"):
            settings.write_text(f'{mark}{{"chat_template": {content}}}', encoding="utf-8")
            found = ChatTemplate.find(tmp_path, tokenizer)
            assert found and found.encode(HELLO) == tokenizer.encode("1")
    settings.write_text('{"chat_template": "\ufeff{{ 1 }}"}', encoding="utf-8")
    found = ChatTemplate.find(tmp_path, tokenizer)
    assert found and found.encode(HELLO) == tokenizer.encode("1")
    own.write_text("\ufeff{{ 2 }}", encoding="utf-8")
    found = ChatTemplate.find(tmp_path, tokenizer)
    assert found and found.encode(HELLO) == tokenizer.encode("2")


VALUES: dict[str, Any] = {
    "a": "a b <c>\n d é", "n": 7, "f": 2.5, "none": None, "yes": True,
    "list": [3, 1, 2, 2], "words": ["b", "a", "C"], "more": {"x": 1, "y": [1, {"z": "ž"}]},
    "rows": [{"k": "p", "v": 1}, {"k": "q", "v": 2}, {"k": "p", "v": 3}],
}  # fmt: skip
USUAL = [
    "{{ a ~ n ~ none ~ yes ~ f }}",
    "{{ a + a }}{{ list + list }}{{ 'ab' * 3 }}{{ list * 2 }}{{ n % 4 }}{{ '%s-%d' % (a, n) }}",
    "{{ n // 2 }}{{ n / 2 }}{{ 2 ** 10 }}{{ -n }}{{ n - f }}{{ n * f }}",
    "{{ a == 'a' }}{{ a != a }}{{ n < 8 < 9 }}{{ 'a' in a }}{{ 'x' in more }}{{ 9 not in list }}",
    "{{ a[1:] }}{{ list[::-1] }}{{ list[:2] }}{{ more['y'][1].z }}{{ more.get('q', 5) }}",
    "{% for x in list if x != 2 %}{{ loop.index }}/{{ loop.length }}:{{ x }}"
    "{% else %}-{% endfor %}",
    "{% for x in list | map('string') %}{{ loop.last }}{{ x }}"
    "{% if x == '1' %}{% break %}{% endif %}{% endfor %}",
    "{% for x in [[1, [2]], [3]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}",
    "{% macro m(x, y=2) %}{{ x }}{{ y }}{{ caller() if caller }}{% endmacro %}"
    "{{ m(1) }}{% call m(3) %}body{% endcall %}",
    "{% set ns = namespace(t='') %}{% for w in words %}{% set ns.t = ns.t + w %}{% endfor %}"
    "{{ ns.t }}",
    "{% set b %}x{{ a }}{% endset %}{{ b }}{% filter upper %}{{ a }}{% endfilter %}",
    "{{ undefined_thing }}{{ undefined_thing is defined }}{{ undefined_thing | default('d') }}",
    "{{ {'k': 1, n: 2, a: [a]} }}{{ (1, a) }}{{ [none, yes] }}",
    "{% for k, v in more.items() %}{{ k }}{% endfor %}{{ more.keys() | list }}"
    "{{ more | items | list }}",
    "{{ a.split() }}{{ a.strip() }}{{ a.upper() }}{{ a.replace('a', 'bb') }}"
    "{{ a.startswith('a') }}",
    "{{ ','.join(words) }}{{ 'x{}y{:>5}{{}}'.format(a, n) }}{{ 'a'.center(5) }}{{ '7'.zfill(3) }}",
    "{{ more | tojson }}{{ more | tojson(indent=2) }}{{ a | e }}{{ (a | safe) + '<' }}",
    "{{ words | join('-') }}{{ words | sort | join }}{{ words | unique | list }}{{ list | sum }}",
    "{{ rows | map(attribute='k') | join(',') }}{{ rows | selectattr('v', 'gt', 1) | list }}",
    "{{ rows | rejectattr('k', 'equalto', 'p') | list }}{{ rows | groupby('k') | list | length }}",
    "{{ list | select('in', [1, 2]) | list }}{{ list | reject('odd') | list }}{{ list | first }}",
    "{{ list | last }}{{ list | reverse | list }}{{ list | max }}{{ list | min }}{{ a | length }}",
    "{{ a | title }}{{ a | capitalize }}{{ a | lower }}{{ a | trim }}{{ a | truncate(5) }}",
    "{{ a | indent(2) }}{{ a | center(40) }}{{ a | replace(' ', '_') }}{{ a | urlencode }}",
    "{{ '5' | int }}{{ '2.5' | float }}{{ f | round }}{{ f | round(1, 'floor') }}{{ -7 | abs }}",
    "{{ list | batch(3, 0) | list }}{{ list | slice(2) | list }}{{ '%s!' | format(a) }}"
    "{{ n | string }}",
    "{{ a is string }}{{ more is mapping }}{{ list is sequence }}{{ none is none }}{{ n is odd }}",
    "{{ a is eq 'a' }}{{ n is gt 3 }}{{ 'a' is in a }}{{ a | attr('nothing') is undefined }}",
    "{{ cycler('a', 'b').next() }}{{ dict(k=1) }}{{ range(3) | list }}{{ joiner(',')() }}",
]  # fmt: skip


@pytest.mark.parametrize("source", USUAL)
def test_what_templates_do_is_unchanged(source: str) -> None:
    """A payment that changes a result: prompts would differ from those of the training."""
    plain = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    plain.filters["tojson"] = to_json
    with_budget = TemplateEnvironment()
    wanted = limited(lambda: plain.from_string(source).render(VALUES))
    assert limited(lambda: with_budget.from_string(source).render(VALUES)) == wanted


def test_every_cost_has_its_filter() -> None:
    """A filter that is let through and never tried here."""
    used = " ".join(USUAL)
    for name in TemplateEnvironment().filters:
        assert (
            name in used or name.startswith("paid ") or name in ("count", "d", "escape", "dictsort")
        )
