"""The engine on the paged path: the tokens of the reference, and one wait for the device a pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from dgemma.engine.engine import Engine
from dgemma.llm import LLM, load
from dgemma.types import Output, Request
from tests.golden.margin import shaken
from tests.support.engines import last, request, tiny
from tests.support.nano import nano, random_request

MARGIN = 1e-4
"""Noise on all logits that an answer which rounding has turned cannot withstand."""

MOST = 4
"""Most such answers among 200."""


@pytest.fixture(scope="module")
def paged() -> LLM:
    """nano in fp32 on the paged path."""
    return load("nano", dtype="float32", device="cpu", attention="paged")


def answers(llm: LLM, requests: list[Request], together: int) -> list[Output]:
    """So many side by side."""
    engine = Engine(llm.model, defaults=llm.defaults)
    made = []
    for low in range(0, len(requests), together):
        streams = [engine.submit(one) for one in requests[low : low + together]]
        made += [last(stream) for stream in streams]
    return made


@pytest.mark.model
def test_tokens_of_the_reference(
    paged: LLM, count: Callable[[int, int], int], record: Callable[..., None]
) -> None:
    """Mixed requests in company, against each one alone on the reference path.

    Only rounding may differ. If it turns an answer, the answer must hang by a hair: noise of
    `MARGIN` on its logits must turn it as well.
    """
    total = count(16, 200)
    requests = [random_request(number, most_tokens=90) for number in range(total)]
    expected = answers(nano(), requests, 1)
    made = answers(paged, requests, 16)
    differing = [k for k in range(total) if made[k].token_ids != expected[k].token_ids]
    record(
        f"paged against reference: answers that differ, of {total}", len(differing), f"<= {MOST}"
    )
    assert len(differing) <= MOST
    for number in differing:
        assert hangs_by_a_hair(requests[number], expected[number]), f"request {number}"


def hangs_by_a_hair(asked: Request, expected: Output) -> bool:
    """Whether noise of `MARGIN` turns the answer in one of eight runs."""
    llm = nano()
    for seed in range(8):
        with shaken(llm, MARGIN, seed):
            engine = Engine(llm.model, defaults=llm.defaults)
            if last(engine.submit(asked)).token_ids != expected.token_ids:
                return True
    return False


@pytest.mark.model
def test_a_hair_is_not_a_rope() -> None:
    """The check above must be able to fail."""
    asked = Request(token_ids=(2, 5, 6, 7), params=random_request(1).params)
    expected = answers(nano(), [asked], 1)[0]
    assert not hangs_by_a_hair(asked, expected)
    assert hangs_by_a_hair(asked, replace(expected, token_ids=(*expected.token_ids, 5)))


READS = ("tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")


@pytest.mark.parametrize("path", ["paged", "reference"])
def test_the_host_waits_once_a_pass(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read of a number from the device stops the host until all kernels before it have run.

    Passes at whose end no canvas is finished, of requests that encode, denoise, score and decode.
    """
    model = tiny(1)
    model.choose_kernels(torch.device("cpu"), torch.float32, attention=path)
    engine = Engine(model, end_ids=(), chunk=16)
    quiet = [replace(request(seed, max_steps=30, max_tokens=8), frames=False, trace=False)
             for seed in range(6)]  # fmt: skip
    long = replace(quiet[0], token_ids=tuple(range(2, 60)) * 2)
    score = Request(token_ids=tuple(range(2, 50)), mode="score")
    token = request(mode="autoregressive", max_tokens=30)
    streams = [engine.submit(one) for one in (*quiet, long, score, token)]
    reads: list[str] = []
    for name in READS:
        whole: Any = getattr(torch.Tensor, name)

        def counted(tensor: Any, *args: Any, _whole: Any = whole, _name: str = name) -> Any:
            reads.append(_name)
            return _whole(tensor, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    for number in range(12):
        reads.clear()
        engine.step()
        assert reads == ["tolist"], f"pass {number}"
    monkeypatch.undo()
    for stream in streams:
        assert last(stream).error is None
