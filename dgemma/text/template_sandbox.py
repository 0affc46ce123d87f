"""Jinja for chat templates that somebody else wrote: every rendering has a budget of work.

A template is a program: it can loop for ever, or write 10 GB in one expression. The environment
here puts payments into what it compiles; `template_costs.py` has the prices.
Knows Jinja's syntax trees. Knows nothing about conversations.
Source: `jinja2.nodes`, `jinja2.sandbox`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jinja2
import jinja2.sandbox
from jinja2 import nodes
from jinja2.filters import FILTERS
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import BlockReference, Context, Macro
from jinja2.tests import TESTS
from jinja2.visitor import NodeTransformer

from dgemma.text.template_costs import (
    DEEP_TESTS,
    FILTER,
    FILTER_COSTS,
    ITEM,
    ITERATED_COSTS,
    MACRO,
    METHOD_COSTS,
    PASS,
    PLACE,
    deep,
    made,
    operate,
    shallow,
    spend,
    to_json,
    weigh,
    written,
)


def _paid(work: Callable[..., Any], cost: Callable[..., Any], skip: int) -> Callable[..., Any]:
    """A filter or test that is paid for; `skip` arguments are Jinja's own."""

    @functools.wraps(work)  # also what says which of Jinja's own it wants
    def paying(*args: Any, **options: Any) -> Any:
        spend(FILTER)
        own, values = args[:skip], list(args[skip:])
        changed = cost(*values, **options)
        if changed is not None:  # an iterator, which can be read only once
            values[0] = changed
        return made(work(*own, *values, **options))

    return paying


def _own(work: Callable[..., Any]) -> int:
    return int(getattr(work, "jinja_pass_arg", None) is not None)


def _concatenated(*values: Any) -> str:
    """Jinja's `~`."""
    texts = [str(weigh(value)) for value in values]
    written(sum(map(len, texts)), all(text.isascii() for text in texts))
    return "".join(texts)


def _output(value: Any) -> Any:
    """A value that is written out."""
    spend(ITEM)
    return made(value) if isinstance(value, str) else weigh(value)


def _tick(units: int) -> None:
    spend(units)


def _looked_in(value: Any) -> Any:
    """The right side of `in`: a dictionary finds without looking through it."""
    return value if isinstance(value, dict) else weigh(value)


N = TypeVar("N", nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)


class _Payments(NodeTransformer):
    """Puts payments into a syntax tree, as filters whose names no template can write."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._with_tick(node, PASS)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._with_tick(node, 0)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._with_tick(node, 0)

    def visit_Block(self, node: nodes.Block) -> nodes.Node:
        return self._with_tick(node, 0)

    def _with_tick(self, node: N, units: int) -> N:
        """Each pass through a body pays for the text that stands in it, too."""
        units += sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        if not units:
            return node
        tick = nodes.Filter(nodes.Const(units), "paid tick", [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(tick))
        if isinstance(node, nodes.For) and node.test is not None:
            node.test = nodes.And(nodes.Not(tick), node.test)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._filter("paid concat", *node.nodes)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        operands = [node.expr, *(one.expr for one in node.ops)]
        equal = all(one.op in ("eq", "ne") for one in node.ops)
        if equal and any(isinstance(one, nodes.Const) for one in operands):
            return node  # no longer than the constant
        node.expr = self._filter("paid walk", node.expr)
        for one in node.ops:
            inside = one.op in ("in", "notin")
            one.expr = self._filter("paid search" if inside else "paid walk", one.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        slices = isinstance(node.arg, nodes.Slice)
        return self._filter("paid copy", node) if slices else node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = self._filter("paid walk", node.key)
        return node

    def _filter(self, name: str, *operands: nodes.Expr) -> nodes.Filter:
        return nodes.Filter(operands[0], name, list(operands[1:]), [], None, None)


class TemplateEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Compiles templates that pay. What renders them is called through `limited`."""

    intercepted_binops = frozenset(jinja2.sandbox.SandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"],
            finalize=_output, optimized=False,
        )  # fmt: skip
        found = {name: FILTERS[name] for name in FILTER_COSTS} | {"tojson": to_json}
        costs = FILTER_COSTS | ITERATED_COSTS
        self.filters = {n: _paid(work, costs[n], _own(work)) for n, work in found.items()}
        self.filters |= {
            "paid tick": _tick, "paid concat": _concatenated, "paid walk": weigh,
            "paid search": _looked_in, "paid copy": made,
        }  # fmt: skip
        tests: dict[str, Any] = dict(TESTS)
        for name in DEEP_TESTS:
            self.tests[name] = _paid(tests[name], deep, _own(tests[name]))
        self.globals.pop("lipsum", None)

    def add_filter(self, name: str, work: Callable[..., Any]) -> None:
        """Put a filter of our own in the place of Jinja's."""
        self.filters[name] = _paid(work, FILTER_COSTS[name], _own(work))

    def inputs(self, source: str) -> set[str]:
        """Names of the variables that a template expects from outside: it never sets them, or has
        a default for them."""
        tree = self.parse(source)
        asking = ("default", "d", "defined", "undefined")
        asked = [one for one in tree.find_all((nodes.Filter, nodes.Test)) if one.name in asking]
        given = {one.node.name for one in asked if isinstance(one.node, nodes.Name)}
        stored = {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
        return {
            name for name in find_undeclared_variables(tree) if name in given or name not in stored
        }

    def _generate(
        self, source: nodes.Template, name: str | None, filename: str | None,
        defer_init: bool = False,
    ) -> str:  # fmt: skip
        return super()._generate(_Payments().visit(source), name, filename, defer_init)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        operate(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(obj, weigh(argument) if isinstance(argument, tuple) else argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call of a macro, a method or a function."""
        spend((MACRO if isinstance(__obj, (Macro, BlockReference)) else PASS) + PLACE * len(args))
        bound = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps `format`
        owner = getattr(bound, "__self__", None)
        kind = next((kind for kind in METHOD_COSTS if isinstance(owner, kind)), None)
        if kind is None:
            if isinstance(__obj, type):
                shallow(*args, **kwargs)
            if isinstance(owner, (int, float, bytes, range)):
                raise jinja2.TemplateError(f"the method {bound.__name__} is not supported")
            return super().call(__context, __obj, *args, **kwargs)
        cost = METHOD_COSTS[kind].get(bound.__name__)
        if cost is None:
            raise jinja2.TemplateError(f"the method {bound.__name__} is not supported")
        if cost is METHOD_COSTS[str]["join"] and args and isinstance(args[0], Iterator):
            args = (list(args[0]), *args[1:])
        cost(owner, *args, **kwargs)
        return made(super().call(__context, __obj, *args, **kwargs))
