"""Edits of a canvas between two steps: forks, their effect, the reference's tokens, refusals."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from dgemma.diffusion.canvas import CanvasSpec
from dgemma.diffusion.edits import edited
from dgemma.diffusion.sampler import start
from dgemma.diffusion.schedule import Schedule
from dgemma.engine.engine import Engine
from dgemma.errors import InvalidRequest
from dgemma.kernels.controls import Controls, Masks
from dgemma.params import SamplingParams
from dgemma.types import CanvasControl, CanvasEdit, Event, Output, Request
from tests.support.engines import assert_same, engine, last, request, run, run_preempted, tiny
from tests.support.nano import by_reference, nano, nano_engine

TINY = tiny()
WIDTH, VOCAB = 8, 64
STEADY: dict[str, Any] = {"max_steps": 5, "confidence_threshold": 0.0}
"""Every canvas takes five steps."""


def pin(step: int, position: int, token: int, **more: int) -> CanvasEdit:
    return CanvasEdit(step=step, position=position, do="pin", id=token, **more)


def ban(step: int, position: int, token: int, **more: int) -> CanvasEdit:
    return CanvasEdit(step=step, position=position, do="ban", id=token, **more)


def renoise(step: int, position: int, **more: int) -> CanvasEdit:
    return CanvasEdit(step=step, position=position, do="renoise", **more)


def random_edits(draw: random.Random) -> tuple[CanvasEdit, ...]:
    """A few edits of three canvases, at most one a position."""
    out: list[CanvasEdit] = []
    for canvas in range(3):
        for position in draw.sample(range(WIDTH), draw.randint(0, 5)):
            where: dict[str, int] = {"canvas": canvas, "step": draw.randrange(5)}
            kind = draw.choice((pin, ban, renoise))
            token = () if kind is renoise else (draw.randrange(VOCAB),)
            out.append(kind(where.pop("step"), position, *token, **where))
    draw.shuffle(out)
    return tuple(out)


def asked(number: int, **params: Any) -> Request:
    """A request of three canvases with edits."""
    draw = random.Random(number)
    more = {"allowed_token_ids": None, "top_k": draw.choice((None, 9)), "logprobs": 2}
    return replace(request(number, **(STEADY | more | params)), edits=random_edits(draw))


def compare(output: Output, made: Any) -> None:
    """All that both loops report."""
    assert_same(output, made)
    assert output.trace == made.trace


def test_the_reference_alone_and_in_a_batch(count: Callable[[int, int], int]) -> None:
    """An edit of a neighbour's canvas, one that comes a step late, or twice."""
    one, total = engine(), count(20, 400)
    cases = [(made, by_reference(one, made)) for made in map(asked, range(total))]
    for made, expected in cases[:10]:
        compare(last(one.submit(made)), expected)
    for low in range(0, total, 10):
        group = cases[low : low + 10]
        plain = [one.submit(replace(made, edits=())) for made, _ in group[:2]]
        for (_, expected), stream in zip(group, [one.submit(made) for made, _ in group],
                                         strict=True):  # fmt: skip
            compare(last(stream), expected)
        assert all(last(stream).error is None for stream in plain)
    changed = [last(one.submit(replace(made, edits=()))).trace != expected.trace
               for made, expected in cases if made.edits]  # fmt: skip
    assert all(changed) and len(changed) > total // 2


def test_preempted_at_every_step() -> None:
    """An edit that is lost with the pages, or made again on a canvas that has gone on."""
    for number in range(3):
        made = replace(asked(number), frames=False)
        expected = last(engine().submit(made))
        for turn in range(1, expected.usage.steps + 3):
            one = Engine(TINY, end_ids=())
            assert run_preempted(one, made, lambda now, _, t=turn: now == t)[1] == expected


def test_a_pass_that_fails_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Edits that a second try of a pass finds done by half, or does twice."""
    made = asked(4)
    expected = last(engine().submit(made))
    one, calls = engine(), list[int]()
    forward = one.model.forward

    def flaky(batch: Any) -> Any:
        calls.append(1)
        if len(calls) % 2:
            raise MemoryError("for the test")
        return forward(batch)

    monkeypatch.setattr(one.model, "forward", flaky)
    output = last(one.submit(made))
    assert len(calls) > 20 and output.token_ids == expected.token_ids
    shown = [[(t.ids, t.argmax, t.accepted) for t in one.trace] for one in (output, expected)]
    assert shown[0] == shown[1]  # a prompt in shorter pieces rounds otherwise


def frames(one: Engine, made: Request) -> list[Event]:
    return [event for event in run(one.submit(made))[0] if event.type == "frame"]


def check_forks(one: Engine, plain: Request, *tokens: int) -> set[int]:
    """Fork a request before each of its steps; the tries that it shows."""
    before = frames(one, plain)
    for k, at in enumerate(before):
        where = {"canvas": at.canvas, "attempt": at.attempt}
        token = tokens[at.ids[5] == tokens[0]]
        edit = (pin(at.step, 5, token, **where), ban(at.step, 5, at.ids[5], **where))[k % 2]
        after = frames(one, replace(plain, edits=(edit,)))
        assert after[:k] == before[:k] and after[k] != at
        assert (after[k].ids[5] == token) >= (edit.do == "pin") and after[k].ids[5] != at.ids[5]
    return {at.attempt for at in before}


def test_a_fork_has_the_same_frames_before_it(count: Callable[[int, int], int]) -> None:
    """A fork that begins to differ before its edit, at any step of any canvas; with restarts."""
    one, seen = engine(), set[int]()
    for seed in range(count(3, 10)):
        plain = request(seed, max_steps=6, confidence_threshold=2.4, restart_after=3, tries=2,
                        max_tokens=16)  # fmt: skip
        seen |= check_forks(one, plain, 5, 6)
    assert seen == {0, 1}


@pytest.mark.model
def test_forks_on_nano(count: Callable[[int, int], int]) -> None:
    """The same on a network that is trained, with masks of a whole vocabulary."""
    prompt = tuple(nano().chat_ids([{"role": "user", "content": "Write me a poem."}]))
    for seed in range(count(1, 10)):
        params = SamplingParams(seed=seed, max_steps=6, max_tokens=32, confidence_threshold=0.02,
                                canvas_length=32, restart_after=4)  # fmt: skip
        check_forks(
            nano_engine(endless=True),
            Request(token_ids=prompt, params=params, frames=True),
            300,
            301,
        )


def test_effects_last() -> None:
    """A pin that moves, a ban that ends with its step, a belief that outlives its noise."""
    made = request(3, **STEADY)
    plain = last(engine().submit(made)).trace
    first = plain[0].argmax[4]
    edits = (pin(2, 1, 9), ban(1, 4, first), ban(1, 4, 7), ban(3, 4, 8), renoise(3, 6))
    trace = last(engine().submit(replace(made, edits=edits))).trace
    assert trace[0] == plain[0] and trace[0].argmax[4] == first
    for step in trace[:5]:
        held = step.step >= 2
        assert ((step.ids[1], step.argmax[1]) == (9, 9) and step.entropy[1] == 0) == held
        assert (step.accepted[1] == 2) == held
        barred = {first, 7} if step.step else set()
        assert step.argmax[4] not in barred | ({8} if step.step >= 3 else set())
    assert trace[5].accepted[1] != 2, "the next canvas is free"
    noise = last(engine().submit(replace(made, edits=edits[:-1]))).trace
    assert noise[:3] == trace[:3] and noise[3].ids[6] != trace[3].ids[6]
    assert [p for p in range(WIDTH) if noise[3].ids[p] != trace[3].ids[p]] == [6]


def test_an_edit_made_twice_is_one() -> None:
    """An edit that a pass that is begun again makes worse."""
    spec = CanvasSpec(length=WIDTH, vocab_size=VOCAB, context_length=99, end_ids=())
    params = SamplingParams(**(STEADY | {"seed": 1}))
    masks = Masks(torch.tensor([[255, 0]], dtype=torch.int32),
                  torch.tensor([0] * 4 + [-1] * 4))  # fmt: skip
    canvas = start(1, 0, spec, Controls(masks=masks))
    canvas = replace(canvas, step=2, soft=torch.ones(WIDTH, 3))
    edits = (pin(2, 5, 33), ban(2, 1, 3), ban(2, 6, 63), renoise(2, 1), renoise(3, 0))

    def embed(ids: torch.Tensor) -> torch.Tensor:
        return torch.full((3,), float(ids))

    once = edited(canvas, edits, Schedule.of(params), spec, embed)
    twice = edited(once, edits, Schedule.of(params), spec, embed)
    assert once.soft is not None and twice.soft is not None
    assert torch.equal(once.ids, twice.ids) and torch.equal(once.soft, twice.soft)
    assert once.soft[:, 0].tolist() == [1, 0, 1, 1, 1, 33, 1, 1]
    changed = [p for p in range(WIDTH) if once.ids[p] != canvas.ids[p]]
    assert changed == [1, 5] and once.ids[5] == 33
    assert canvas.until is None and once.until == twice.until == 5
    assert canvas.soft is not None and canvas.soft[1, 0] == 1, "the canvas before it stays"
    for made in (once, twice):
        assert made.controls.masks is not None and made.controls.pinned is not None
        allowed = made.controls.masks.columns(0, VOCAB)[made.controls.masks.index]
        assert allowed[1].nonzero()[:, 0].tolist() == [0, 1, 2, 4, 5, 6, 7]
        assert allowed[6].nonzero()[:, 0].tolist() == list(range(63))
        assert made.controls.masks.index[7] == -1 and allowed[0].sum() == 8
        assert made.controls.pinned.tolist() == [-1, -1, -1, -1, -1, 33, -1, -1]
    assert edited(canvas, edits[4:], Schedule.of(params), spec, embed) is canvas


def test_an_edited_try_is_not_begun_anew() -> None:
    """A pin that is lost with a restart, or an edit of one try that is made on the next."""
    made = request(1, max_steps=6, restart_after=2, tries=3, confidence_threshold=0.0, max_tokens=8)
    plain = last(engine().submit(made)).trace
    assert [t.attempt for t in plain[:6]] == [0, 0, 1, 1, 2, 2]
    for attempt in range(3):
        edit = pin(1, 2, 5, attempt=attempt)
        output = last(engine().submit(replace(made, edits=(edit,))))
        k = 2 * attempt + 1
        assert output.trace[:k] == plain[:k]
        assert {t.attempt for t in output.trace[k:]} == {attempt}
        assert [t.step for t in output.trace[k:]] == list(range(1, 6))
        assert output.token_ids[2] == 5
        compare(output, by_reference(engine(), replace(made, edits=(edit,))))


BAD: dict[str, tuple[tuple[CanvasEdit, ...], str]] = {
    "canvas": ((pin(0, 0, 5, canvas=3),), "canvas 3 is not 0 to 2"),
    "try": ((pin(0, 0, 5, attempt=1),), "try 1 is not 0 to 0"),
    "step": ((pin(0, 0, 5), pin(5, 1, 5)), r"edits\[1\]: step 5 is not 0 to 4"),
    "position": ((renoise(0, 8),), "position 8 is not 0 to 7"),
    "id": ((ban(0, 0, 64),), "id 64 is not 0 to 63"),
    "twice": ((renoise(1, 2), renoise(1, 2)), "twice"),
    "pinned before": ((renoise(3, 2), pin(1, 2, 4)), "renoise position 2 before step 3"),
    "pinned and banned": ((ban(1, 2, 4), pin(1, 2, 5)), "ban position 2 before step 1"),
    "pins what is banned": ((ban(1, 2, 4), pin(2, 2, 4)), "id 4 at position 2"),
    "bans all": (tuple(ban(k % 5, 2, k, canvas=1) for k in range(64)), "no id for position 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_edits(name: str) -> None:
    """An edit that does nothing, or that fails in the middle of an answer."""
    edits, words = BAD[name]
    one = engine()
    with pytest.raises(InvalidRequest, match=words) as refused:
        one.submit(replace(request(1, **STEADY), edits=edits))
    assert refused.value.field == "edits" and one.running == 0


@pytest.mark.parametrize(("more", "words"), [
    ({"params": {"stable_prefix": True}}, "stable_prefix"), ({"params": {"race": 2}}, "race"),
    ({"params": {"allowed_token_ids": [7, 8]}}, "id 5 at position 2"),
    ({"canvas": CanvasControl(ids=(3, 3, 3), pinned=(2,))}, "it is pinned"),
    ({"canvas": CanvasControl(ids=(3, 3), strength=0.4)}, "step 2 is not 3 to 4"),
    ({"canvas": CanvasControl(allowed=((3, 4),), masks=(0, 0, 0))}, "not allowed there"),
    ({"mode": "autoregressive"}, "autoregressive"), ({"edits": ("pin",)}, "CanvasEdit"),
    ({"edits": (renoise(1, 2),) * 1025}, "1025"),
])  # fmt: skip
def test_what_edits_cannot_be_combined_with(more: dict[str, Any], words: str) -> None:
    """An edit that contradicts the request, or has no meaning in it."""
    plain = request(1, **(STEADY | more.get("params", {})))
    if "mode" in more:
        plain = request(mode="autoregressive")
    fields = {"edits": (pin(2, 2, 5),)} | {
        k: v for k, v in more.items() if k in ("edits", "canvas")
    }
    with pytest.raises(InvalidRequest, match=words) as refused:
        engine().submit(replace(plain, **fields))
    assert refused.value.field == "edits"


@pytest.mark.parametrize("fields", [
    {"do": "pin"}, {"do": "ban"}, {"do": "renoise", "id": 3}, {"do": "erase"}, {"step": -1},
    {"position": 1.0}, {"canvas": True}, {"attempt": -1}, {"id": "5"},
])  # fmt: skip
def test_values_of_an_edit(fields: dict[str, Any]) -> None:
    """A value that no edit can have."""
    with pytest.raises(InvalidRequest, match="edits"):
        CanvasEdit(**({"step": 0, "position": 0, "do": "pin"} | fields))
