"""Values of a wrong kind or size: one clear error, soon, whatever the number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from dgemma.engine.request import ModelLimits, resolve_request
from dgemma.errors import ContextOverflow, InvalidRequest
from dgemma.params import DRAWN_BITS, OPTIONS, SamplingParams
from dgemma.request_parts import PromptContent, ToolUse, checked_ids
from dgemma.types import CanvasControl, Request

HUGE = [10**400, -(10**400), 10**5000, float("nan"), float("inf"), True, "1", b"1", [1], {}, 1 + 2j]
NUMBERS = [name for name, hint in SamplingParams.__annotations__.items()
           if "int |" in hint or "float |" in hint]  # fmt: skip
LIMITS = ModelLimits(context=8192, canvas=96, vocab_size=1024)


def refused(make: Callable[[], object], field: str) -> None:
    """The call is refused with a short message that names the field."""
    with pytest.raises(InvalidRequest) as caught:
        make()
    message = str(caught.value)
    assert (caught.value.field or field) == field and field in message and len(message) < 300


@pytest.mark.fault("R L1")
@pytest.mark.parametrize("name", [name for name in NUMBERS if "Sequence" not in name])
def test_numbers_of_no_use(name: str) -> None:
    """Catches a bare OverflowError or ValueError, and a message of five thousand digits."""
    for value in HUGE:
        hint = SamplingParams.__annotations__[name]
        if ("Sequence" in hint or "Mapping" in hint) and isinstance(value, (list, dict)):
            continue
        refused(lambda v=value: SamplingParams(**{name: v}), name)


@pytest.mark.fault("R L1")
@pytest.mark.parametrize("bias", [
    {10**5000: 1}, {1: 10**400}, {1: float("nan")}, {1: True}, {1: "2"}, {1.5: 1}, {None: 1},
    [1], {"x": 1}, {"9" * 5000: 1},
])  # fmt: skip
def test_biases_of_no_use(bias: Any) -> None:
    """The same of ids and their additions."""
    refused(lambda: SamplingParams(logit_bias=bias), "logit_bias")


@pytest.mark.fault("R L1", "R L2")
@pytest.mark.parametrize("name", ["allowed_token_ids", "logprob_token_ids"])
@pytest.mark.parametrize("value", [b"abc", bytearray(b"a"), [10**5000], [True], [1.5], "1", []],
                         ids=lambda value: type(value).__name__)  # fmt: skip
def test_lists_of_ids_of_no_use(name: str, value: Any) -> None:
    """Catches bytes that are taken for ids, and numbers that no vocabulary has."""
    refused(lambda: SamplingParams(**{name: value}), name)


def test_bytes_are_no_strings() -> None:
    """Catches bytes that end no answer, without a word."""
    for name in ("stop", "bad_words", "choices"):
        refused(lambda n=name: SamplingParams(**{n: b""}), name)  # type: ignore[misc]


@pytest.mark.fault("N 47")
@pytest.mark.parametrize(("name", "value", "said"), [
    ("temperature", -1.0, "must be 0, or 0.001 to 1000, got -1.0"),
    ("temperature", 1e-4, "must be 0, or 0.001 to 1000, got 0.0001"),
    ("t_min", 0, "must be 0.001 to 1000, got 0"),
    ("restart_after", "aut", "must be an integer or 'auto', got 'aut'"),
    ("entropy_bound", -1, "must be at least 0 and fin"),
    ("top_p", 0, "must be above 0 and at most 1, got 0"), ("min_p", 2, "must be 0 to 1, got 2"),
])  # fmt: skip
def test_the_bounds_are_said(name: str, value: float, said: str) -> None:
    """Catches "must be positive" of a field that may be 0."""
    with pytest.raises(InvalidRequest, match=f"^{name} {said}"):
        SamplingParams(**{name: value})
    assert OPTIONS[name].check(name, 1, OPTIONS[name]) == 1


@pytest.mark.parametrize(("name", "value"), [
    ("params", {"seed": 1}), ("params", None), ("mode", 3), ("chat", 1), ("frames", "yes"),
    ("trace", None), ("tool_use", [{"name": "f"}]), ("thought", (1, 2)), ("canvas", {"ids": ()}),
    ("index", 1.5),
    ("contents", [(0, 1, "k")]), ("contents", None), ("score_from", True), ("priority", "high"),
    ("owner", b"me"), ("replaces", None), ("deadline_s", "1"), ("deadline_s", 10**5000),
    ("token_ids", b"abc"), ("token_ids", "abc"), ("token_ids", ["a"]), ("token_ids", 5),
    ("token_ids", [True]), ("token_ids", {1}), ("token_ids", (1.0,)), ("priority", 10**5000),
], ids=lambda value: type(value).__name__)  # fmt: skip
def test_fields_of_a_request(name: str, value: Any) -> None:
    """Catches a bare AttributeError somewhere in the engine, far from the mistake."""
    refused(lambda: Request(**{"token_ids": (1, 2), name: value}), name)


@pytest.mark.parametrize(("name", "value"), [
    ("ids", "abc"), ("ids", b"ab"), ("ids", (1.5,)), ("pinned", 1), ("masks", [None]),
    ("bias", None), ("strength", "1"), ("strength", True), ("strength", 10**400),
    ("strength", float("nan")),
    ("allowed", ((),) * 0 + (5,)), ("allowed", 5), ("read_only", 1), ("bias", [(0, 1)]),
    ("bias", [(0, 1, "x")]), ("bias", [(0, 1, 10**400)]), ("bias", [5]), ("bias", [(0.5, 1, 1.0)]),
])  # fmt: skip
def test_fields_of_a_canvas(name: str, value: Any) -> None:
    """The same of the control of a canvas."""
    refused(lambda: CanvasControl(**{name: value}), name)


def test_forms_that_are_taken() -> None:
    """Catches a check that refuses what is right: other sequences of ids, numbers without a dot."""
    assert Request(token_ids=[1, 2]).token_ids == (1, 2)  # type: ignore[arg-type]
    assert Request(token_ids=range(3)).token_ids == (0, 1, 2)  # type: ignore[arg-type]
    assert CanvasControl(ids=[1, -1], pinned=[0]).pinned == (0,)  # type: ignore[arg-type]
    assert Request(token_ids=(1, 2), contents=(PromptContent(start=0, length=1, key="k"),))
    assert checked_ids("x", ()) == ()
    taken = CanvasControl(ids=(1,), allowed=((np.int64(7),),)).allowed  # type: ignore[arg-type]
    assert taken == ((7,),) and type(taken[0][0]) is int
    assert {field.name for field in fields(Request)} >= {"token_ids", "tool_use", "owner"}


def test_what_may_be_called() -> None:
    """Catches a tool that is offered under no name, and one beside the only one asked for."""
    tools = [{"name": "f"}, {"function": {"name": "g", "strict": True}}, {"function": {}}]
    assert ToolUse(tools).names == {"f", "g"} and ToolUse(tools, "f").names == {"f"}
    assert ToolUse(tools, required=False).binding and ToolUse(tools).binding
    assert not ToolUse(tools[:1], required=False).binding


@pytest.mark.parametrize("use", [
    ToolUse([{"function": {"name": "f", "strict": True}}], required=False),
    ToolUse([{"name": "f"}]),
])  # fmt: skip
def test_no_grammar_for_token_after_token(use: ToolUse) -> None:
    """Catches a strict tool that plain decoding takes and ignores."""
    request = Request(token_ids=(1, 2), mode="autoregressive", chat=True, tool_use=use)
    with pytest.raises(InvalidRequest, match="leave out strict tools and required calls"):
        resolve_request(request, SamplingParams(), LIMITS, seed=1)
    free = ToolUse([{"name": "f"}], required=False)
    request = Request(token_ids=(1, 2), mode="autoregressive", chat=True, tool_use=free)
    assert resolve_request(request, SamplingParams(), LIMITS, seed=1).tool_use == free


@pytest.mark.fault("P G3")
def test_a_prompt_that_fits_a_narrower_canvas() -> None:
    """Catches a user who shortens a prompt that fits, and one who is told so in vain."""

    def said(length: int, **params: Any) -> str:
        request = Request(token_ids=(3,) * length, params=SamplingParams(**params))
        with pytest.raises(ContextOverflow) as caught:
            resolve_request(request, SamplingParams(), LIMITS, seed=1)
        return str(caught.value)

    advice = '8096, or set canvas_length "auto" and max_tokens 1, which fits up to 8160'
    assert said(8150, max_tokens=1).endswith(advice)
    assert "max_tokens 16, which fits up to 8160" in said(8150)
    assert said(8161, max_tokens=1).endswith("shorten it to at most 8096")
    assert "auto" not in said(8150, max_tokens=80)
    fits = SamplingParams(max_tokens=1, canvas_length="auto")
    request = Request(token_ids=(3,) * 8160, params=fits)
    assert resolve_request(request, SamplingParams(), LIMITS, seed=1).params.max_tokens == 1


@pytest.mark.fault("N 48")
def test_drawn_seeds_survive_json() -> None:
    """Catches a seed that is reported and that JavaScript rounds: doubles hold 53 bits."""
    assert float(2**DRAWN_BITS - 1) == 2**DRAWN_BITS - 1 and DRAWN_BITS <= 53


@pytest.mark.parametrize(("fields", "most"), [
    ({}, 4), ({"restart_after": 0}, 4), ({"restart_after": 8}, 4), ({"restart_after": 14}, 3),
    ({"restart_after": 30}, 2), ({"restart_after": 48}, 1), ({"restart_after": 90}, 1),
    ({"restart_after": 8, "max_steps": 8}, 1), ({"restart_after": 7, "max_steps": 8}, 2),
    ({"restart_after": 8, "max_steps": 8, "tries": 3}, 3), ({"restart_after": "auto"}, 4),
    ({"restart_after": 30, "quality": "careful"}, 4), ({"quality": "careful", "tries": 2}, 2),
])  # fmt: skip
def test_how_often_a_canvas_is_begun(fields: dict[str, Any], most: int) -> None:
    """Tries that nobody asked for and that cost more than a canvas may take in all."""
    assert SamplingParams(**fields).most_tries == most
