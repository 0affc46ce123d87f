"""Chat templates that loop, write or nest without end. Knows Jinja; knows nothing about tests."""

from __future__ import annotations

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
]
