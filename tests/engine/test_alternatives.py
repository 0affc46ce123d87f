"""The likeliest ids of a frame's positions: those of the very step, at no price to the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from dgemma.errors import InvalidRequest
from dgemma.kernels.controls import Controls
from dgemma.types import CanvasControl, Event, Request
from tests.support.engines import engine, request, run
from tests.support.nano import by_reference, nano_engine, random_request


def read_by_reference(
    one: Any, asked: Request, monkeypatch: pytest.MonkeyPatch
) -> list[torch.Tensor]:
    """fp32 [C, V] log-probabilities of each step of the reference loop, from its logits."""
    head, made = one.model.head, list[torch.Tensor]()
    read, inside = head.read, list[bool]()

    def noted(hidden: torch.Tensor, temperature: torch.Tensor, uniforms: torch.Tensor,
              controls: Controls, *likely: Any) -> Any:  # fmt: skip
        if not inside:  # of pinned rows the head asks itself for the others
            logits = head.logits(hidden, replace(controls, pinned=None))
            made.append((logits / temperature[:, None]).log_softmax(-1))
        inside.append(True)
        try:
            return read(hidden, temperature, uniforms, controls, *likely)
        finally:
            inside.pop()

    with monkeypatch.context() as patched:
        patched.setattr(head, "read", noted)
        by_reference(one, replace(asked, alternatives=0))
    return made


def shown(one: Any, asked: Request) -> list[Event]:
    return [event for event in run(one.submit(asked))[0] if event.type == "frame"]


def check(one: Any, asked: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each frame has the head of its step's distribution."""
    truth, frames = read_by_reference(one, asked, monkeypatch), shown(one, asked)
    assert len(truth) == len(frames)
    for step, frame in zip(truth, frames, strict=True):
        assert len(frame.alternatives) == len(frame.ids)
        for row, likely in zip(step, frame.alternatives, strict=True):
            count = min(asked.alternatives, int((row > -torch.inf).sum()))
            best = row.topk(count).values
            found = torch.tensor([value for _, value in likely])
            assert torch.allclose(found, best, atol=1e-4)
            ids = torch.tensor([token for token, _ in likely])
            assert torch.allclose(row[ids], best, atol=1e-4) and len(set(ids.tolist())) == count
            others = row.exp().sum() - row[ids].exp().sum()
            assert float(found.exp().sum() + others) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("more", [
    {}, {"top_k": 3}, {"allowed_token_ids": [7, 8, 9]}, {"logprobs": 0, "logprob_token_ids": [5]},
    {"logprobs": 12}, {"temperature": 0.3},
])  # fmt: skip
def test_of_that_very_step(more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another step's, another temperature's, or without the controls; columns of asked ids."""
    asked = replace(request(4, **more), alternatives=8)
    if "allowed_token_ids" in more:  # four with the padding
        asked = replace(asked, canvas=CanvasControl(ids=(7, 8), pinned=(1,)))
    check(engine(), asked, monkeypatch)


@pytest.mark.model
def test_on_nano(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where the network is trained, with pins, masks and filters."""
    for number in (7, 8):
        asked = random_request(number, most_tokens=60)
        params = replace(asked.params, max_steps=4)
        check(nano_engine(endless=True),
              replace(asked, params=params, frames=True, alternatives=4), monkeypatch)  # fmt: skip


def test_they_change_nothing_else(count: Callable[[int, int], int]) -> None:
    """An answer, a frame or a score that depends on what is shown, alone or beside others."""
    one, total = engine(), count(6, 60)
    cases = [request(n, **({"logprobs": 3} if n % 2 else {})) for n in range(total)]
    plain = [run(one.submit(case)) for case in cases]
    streams = [one.submit(replace(case, alternatives=(5, 8, 0)[n % 3]))
               for n, case in enumerate(cases)]  # fmt: skip
    for n, ((events, output), stream) in enumerate(zip(plain, streams, strict=True)):
        found, same = run(stream)
        assert same == output and bool(same.scores) == bool(n % 2)
        assert [replace(event, alternatives=()) for event in found] == events
        sizes = {len(row) for event in found for row in event.alternatives}
        assert sizes == ({(5, 8, 0)[n % 3]} - {0})


def test_they_cost_nothing_where_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probabilities that are made for every stream of frames."""
    one, asked = engine(), list[bool]()
    read = one.model.head.read

    def noted(*given: Any) -> Any:
        asked.append(given[3].wants_logprobs)
        return read(*given)

    monkeypatch.setattr(one.model.head, "read", noted)
    shown(one, request())
    passes = len(asked)
    shown(one, replace(request(), alternatives=1))
    assert asked == [False] * passes + [True] * passes, "no further reading"


@pytest.mark.parametrize(("value", "frames"), [(9, True), (-1, True), (True, True), (2, False)])
def test_refused(value: Any, frames: bool) -> None:
    """More than a frame can have, or alternatives that nobody sees."""
    with pytest.raises(InvalidRequest, match="alternatives"):
        replace(request(), alternatives=value, frames=frames)
