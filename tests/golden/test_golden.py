"""Golden tokens: frozen requests give the tokens that they gave when they were frozen.

They catch a change of behaviour that nobody meant: a refactoring that moves a number, an option
that lost its effect, a draw from another stream. Such a bug may keep every other test green, for
those compare two of our own paths, and both may have moved.

Every case stores its request, its answer, the hash of the model's numbers, and its margin: the
logits may move by that much, in noise, and no decision on the way changes (see `margin.py`). The
rounding of fp32 on another CPU should move them by far less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from tests.golden.cases import cases
from tests.golden.margin import LEAST
from tests.golden.replay import MODELS, WRITE, Case, differences, model, read, run

pytestmark = pytest.mark.model

FROZEN = {name: read(name) for name in MODELS}
KINDS = {
    "plain", "pinned", "seeded", "constrained", "autoregressive", "scored", "stable-prefix",
    "narrow", "several", "sampler", "plan",
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param(name, case, id=f"{name}-{key}")
        for name, frozen in FROZEN.items()
        for key, case in frozen.items()
    ],
)
def test_golden(name: str, case: Case) -> None:
    """Catches any change of tokens, steps, canvases, finish reason or scores."""
    llm, checkpoint = model(name)
    assert checkpoint == case["checkpoint"], (
        f"{name} has other numbers than when this was frozen: it was retrained, or is made "
        f"otherwise. If that was meant, freeze it anew with {WRITE} and read what changed."
    )
    lines = differences(case["answer"], run(llm, case["request"]))
    assert not lines, (
        "\n".join(lines) + f"\nIf this was meant, {WRITE} --check shows all that changed, and "
        f"{WRITE} freezes it."
    )


def test_the_files_hold_what_is_asked_for() -> None:
    """Catches a case that was added or dropped without writing, a kind that lost its cases, and a
    margin that was typed by hand."""
    for name in MODELS:
        wanted = [found[:2] for found in cases(name, model(name)[0])]
        assert [(key, case["kind"]) for key, case in FROZEN[name].items()] == wanted
    every = [case for frozen in FROZEN.values() for case in frozen.values()]
    assert len(every) >= 60
    assert min(case["margin"] for case in every) >= LEAST
    kinds = Counter(case["kind"] for case in every)
    assert kinds.keys() == KINDS and min(kinds.values()) >= 3
