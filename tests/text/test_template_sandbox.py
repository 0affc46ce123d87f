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
from tests.support.hostile_templates import DEEP, ENDLESS, LONG

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A vocabulary of a few tokens."""
    return vocabulary()


def refusal(source: str, tokenizer: Tokenizer) -> str:
    """The error of a template, at load or on the first conversation."""
    with pytest.raises(TemplateError) as found:
        ChatTemplate(source, tokenizer, "/secret/a.jinja").encode(HELLO)
    return str(found.value)


@pytest.mark.fault("R K9", "R K10")
@pytest.mark.parametrize("source", [*ENDLESS, *LONG])
def test_work_is_bounded(
    source: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template that holds a thread, and Python's lock, until the process is killed.

    A client of a server is shown the error, but not where the server keeps its files.
    """
    monkeypatch.setattr(template_costs, "WORK", 1 << 25)
    message = refusal(source, tokenizer)
    assert len(message) < 600 and "\n" not in message and "secret" not in message


@pytest.mark.fault("R K11")
@pytest.mark.parametrize("source", [*DEEP, "x" * (MOST_CHARACTERS + 1)])
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
