"""The command that writes golden tokens, with fakes for the model and for the margin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.golden.margin import LADDER, RUNS, margin, shaken
from tests.golden.replay import TOLERANCE, Case, differences, dump, model, run
from tests.golden.write import renew

ANSWER: Case = {"tokens": [1, 2], "steps": 3, "canvases": 1, "finish": "stop", "logprobs": [-0.5]}


def flips_at(limit: float, rarely: bool = False) -> Callable[[float, int], Case]:
    """A runner whose answer changes under noise of `limit`, in every run or only in the last."""

    def again(size: float, seed: int) -> Case:
        flipped = size >= limit and (not rarely or seed == RUNS - 1)
        return ANSWER | ({"steps": 4} if flipped else {"logprobs": [-0.5 + size]})

    return again


@pytest.mark.parametrize("rarely", [False, True])
def test_the_margin_is_the_last_rung_that_holds(rarely: bool) -> None:
    """Catches a margin that trusts one run, one that looks at tokens alone, and one that takes a
    measured number for a decision."""
    assert margin(ANSWER, flips_at(1.0)) == LADDER[-1]
    below = (0.0, *LADDER)
    for rung, limit in enumerate(LADDER):
        assert margin(ANSWER, flips_at(limit, rarely)) == below[rung]


def renewed(old: dict[str, Case], answer: Case, margin: float, **more: Any) -> Any:
    said: list[str] = []
    out, counts = renew(
        old, [("a", "plain", {"ids": [1]})], more.get("checkpoint", "c"), lambda _: answer,
        lambda _request, _answer: margin, said.append,
    )  # fmt: skip
    return out, counts, "\n".join(said)


def test_a_low_margin_is_refused() -> None:
    """Catches a case that is frozen though another CPU may answer otherwise; or a refusal that
    throws away what was frozen before."""
    out, counts, said = renewed({}, ANSWER, LADDER[0] / 2)
    assert (out, counts["refused"]) == ({}, 1) and "a: REFUSED" in said
    old, counts, _ = renewed({}, ANSWER, LADDER[0])
    assert counts == {"new": 1} and old["a"]["margin"] == LADDER[0]
    changed = ANSWER | {"tokens": [1, 5]}
    out, counts, said = renewed(old, changed, 0.0)
    assert (out, counts) == (old, {"refused": 1})
    assert "was [1, 2]" in said and "now [1, 5]" in said


def test_what_changed_is_counted_and_shown() -> None:
    """Catches a change that goes by in silence, and a file rewritten though nothing changed."""
    old, _, _ = renewed({}, ANSWER, 0.01)
    close = ANSWER | {"logprobs": [-0.5 + TOLERANCE / 2]}
    assert renewed(old, close, 0.0) == (old, {"same": 1}, "")
    out, counts, said = renewed(old, ANSWER, 0.03, checkpoint="d")
    assert counts == {"changed": 1} and "another model" in said
    assert (out["a"]["checkpoint"], out["a"]["margin"]) == ("d", 0.03)
    out, counts, said = renewed({"b": old["a"]}, ANSWER, 0.03)
    assert counts == {"new": 1, "dropped": 1} and "b: dropped" in said


def test_differences() -> None:
    """Catches a comparison that lets a part of an answer pass, or holds numbers to the last bit."""
    assert differences(ANSWER, ANSWER) == []
    for key in ANSWER:
        assert len(differences(ANSWER, ANSWER | {key: "other"})) == 1
        assert len(differences(ANSWER, {k: v for k, v in ANSWER.items() if k != key})) == 1
    assert differences(ANSWER, ANSWER | {"logprobs": [-0.5 + 2 * TOLERANCE]})
    assert differences(ANSWER, ANSWER | {"logprobs": [-0.5, -0.5]})


def test_files_can_be_read_line_by_line() -> None:
    """Catches a file that a diff cannot be read of: all on one line, or a token a line."""
    old, _, _ = renewed({}, ANSWER, 0.01)
    assert '\n    "tokens": [1, 2],\n    "steps": 3,\n' in dump(old)


def test_noise_moves_the_logits_by_its_size() -> None:
    """Catches noise that never reaches the logits, which would call every case safe; and noise
    that stays when the block has ended. The noise is seeded, so there is no false alarm."""
    llm, _ = model("dense")
    request = {"ids": list(range(5, 150)), "mode": "score"}
    plain = run(llm, request)
    with shaken(llm, 0.03, 1):
        noisy = run(llm, request)
    assert run(llm, request) == plain
    moved = [a - b for a, b in zip(plain["logprobs"], noisy["logprobs"], strict=True)]
    spread = (sum(value**2 for value in moved) / len(moved)) ** 0.5
    assert 0.01 < spread < 0.09
