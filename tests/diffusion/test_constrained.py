"""Keeping an answer in a language, with a language that fits on a page: brackets that balance."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dgemma.diffusion.canvas import Canvas, CanvasSpec, Commit
from dgemma.diffusion.constrained import ROUNDS, STEPS, ConstrainedAnswer
from dgemma.diffusion.control import Bitset, bitset
from dgemma.diffusion.sampler import start
from dgemma.errors import InvalidRequest
from dgemma.matcher import Search, run_search
from dgemma.types import CanvasControl
from tests.support.heads import head_of

OPEN, CLOSE, X, END = 10, 11, 12, 1
SIZE, WIDTH = 32, 8


class Brackets:
    """One bracket with any number of brackets and x inside: (x(x)). Ends when it is closed."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    @property
    def depth(self) -> int:
        return self.ids.count(OPEN) - self.ids.count(CLOSE)

    def _next(self) -> set[int]:
        if self.finished:
            return set()
        return {OPEN, CLOSE, X} if self.ids else {OPEN}

    def accept(self, ids: list[int]) -> int:
        for number, token in enumerate(ids):
            if token not in self._next():
                return number
            self.ids.append(token)
        return len(ids)

    def undo(self, count: int) -> None:
        assert count <= len(self.ids)
        del self.ids[len(self.ids) - count :]

    def allowed(self) -> Bitset:
        return bitset(tuple(sorted(self._next())), SIZE)

    @property
    def accepting(self) -> bool:
        return self.finished

    @property
    def finished(self) -> bool:
        return bool(self.ids) and self.depth == 0

    def forced(self) -> list[int]:
        return [] if self.ids else [OPEN]

    def completion(self, room: int) -> Search[list[int] | None]:
        yield 1
        way = [CLOSE] * self.depth if self.ids else [OPEN, CLOSE]
        return way if len(way) <= room else None

    def can_complete(self, room: int) -> Search[bool]:
        return (yield from self.completion(room)) is not None

    def alphabet(self) -> Bitset | None:
        return bitset((END, OPEN, CLOSE, X), SIZE)


def whole(ids: tuple[int, ...]) -> bool:
    """Whether ids are one text of the language, by counting."""
    depths = np.cumsum([1 if i == OPEN else -1 if i == CLOSE else 0 for i in ids])
    return bool(len(ids)) and set(ids) <= {OPEN, CLOSE, X} and depths[-1] == 0 and all(
        depth > 0 for depth in depths[:-1]
    )  # fmt: skip


SPEC = CanvasSpec(length=WIDTH, vocab_size=SIZE, context_length=512, end_ids=(END, 2))
WORDS = head_of(torch.randn(SIZE, 8, generator=torch.Generator().manual_seed(0)))


def drafted(ids: list[int], canvas: Canvas | None = None) -> Canvas:
    """A finished canvas with this argmax; pinned positions keep their ids."""
    canvas = canvas or start(0, 0, SPEC)
    argmax = torch.tensor(ids)
    pinned = canvas.controls.pinned
    if pinned is not None:
        argmax = torch.where(pinned >= 0, pinned, argmax)
    return replace(canvas, argmax=argmax, soft=torch.zeros(WIDTH, 8), reason="step_cap", step=5)


def hidden(seed: int = 0) -> Tensor:
    return torch.randn(WIDTH, 8, generator=torch.Generator().manual_seed(seed))


def resolved(
    constrained: ConstrainedAnswer, ids: list[int], room: int = 99
) -> tuple[Commit, list[Canvas]]:
    """Settle a draft; what is denoised again stays as it was where it is not pinned."""
    canvas, again = drafted(ids), list[Canvas]()
    while True:
        found = run_search(constrained.resolve(canvas, hidden(), WORDS, SPEC, room))
        if isinstance(found, Commit):
            return found, again
        again.append(found)
        canvas = drafted(ids, found)


def test_a_draft_in_the_language_is_left_alone() -> None:
    """A projection that changes what was right, or that costs steps for nothing."""
    constrained = ConstrainedAnswer(Brackets(), "toy")
    commit, again = resolved(constrained, [OPEN, X, CLOSE, END, 5, 6, 7, 8])
    assert commit == Commit(
        canvas_ids=(OPEN, X, CLOSE, END, 0, 0, 0, 0), token_ids=(OPEN, X, CLOSE), ended=True
    )
    assert not again and constrained.report.complete and constrained.report.fallbacks == 0


def test_a_text_that_must_end_needs_no_end_id() -> None:
    """What stands behind the last bracket is committed with it."""
    for tail in ([X, X, X], [2, 9, 9], [OPEN, CLOSE, END]):
        commit, again = resolved(
            ConstrainedAnswer(Brackets(), "toy"), [OPEN, X, X, X, CLOSE, *tail]
        )
        assert commit.token_ids == (OPEN, X, X, X, CLOSE) and commit.ended and not again
        assert commit.canvas_ids[5] in SPEC.end_ids and commit.canvas_ids[6:] == (0, 0)


def test_repair_pins_up_to_the_first_change() -> None:
    """Everything behind the first change is pinned, too, so that nothing can adapt."""
    constrained = ConstrainedAnswer(Brackets(), "toy")
    draft = drafted([OPEN, X, 9, X, CLOSE, END, 0, 0])
    found = run_search(constrained.resolve(draft, hidden(), WORDS, SPEC, 99))
    assert isinstance(found, Canvas) and found.reason == "" and found.until == 5 + STEPS
    pinned = found.controls.pinned
    assert pinned is not None and (pinned >= 0).tolist() == [True] * 3 + [False] * 5
    assert pinned[:2].tolist() == [OPEN, X] and int(pinned[2]) in (OPEN, CLOSE, X)
    assert found.ids[3:].tolist() == [X, CLOSE, END, 0, 0]
    assert found.soft is not None
    assert torch.equal(found.soft[:3], WORDS.embed(pinned[:3])) and not found.soft[3:].any()


def test_rounds_are_bounded_and_counted() -> None:
    """A canvas that never comes right is denoised for ever."""
    constrained = ConstrainedAnswer(Brackets(), "toy")
    commit, again = resolved(constrained, [9] * WIDTH)
    assert len(again) == ROUNDS == constrained.report.rounds
    assert constrained.report.fallbacks > 0 and len(commit.token_ids) <= WIDTH


def test_scaffold() -> None:
    """The forced beginning is not pinned, or the walk is left standing behind it."""
    constrained = ConstrainedAnswer(Brackets(), "toy")
    for _ in range(2):
        frame = constrained.prefix(WIDTH)
        assert frame.pins == (OPEN,) and frame.alphabet is not None
        assert frame.first is not None and frame.first[0] == (1 << OPEN | 1 << CLOSE | 1 << X)
    pinned = CanvasControl(ids=(OPEN, X), pinned=(0, 1))
    assert constrained.prefix(WIDTH, pinned).pins == (OPEN, X)
    resolved(constrained, [OPEN, X, X, X, X, X, X, X])
    assert constrained.prefix(WIDTH).pins == ()


@pytest.mark.parametrize(
    ("ids", "pinned", "message"),
    [((OPEN, CLOSE, X), (0, 1, 2), "token 2"), ((X,), (0,), "token 0"), ((OPEN, X), (1,), "begin")],
)
def test_pins_outside_the_language_are_refused(
    ids: tuple[int, ...], pinned: tuple[int, ...], message: str
) -> None:
    """A contradiction that shows only after the last step."""
    with pytest.raises(InvalidRequest, match=message):
        ConstrainedAnswer(Brackets(), "toy").check(CanvasControl(ids=ids, pinned=pinned))
    ConstrainedAnswer(Brackets(), "toy").check(CanvasControl(ids=(OPEN, X, 5), pinned=(0, 1)))
    with pytest.raises(InvalidRequest, match="masks"):
        ConstrainedAnswer(Brackets(), "toy").check(CanvasControl(allowed=((X,),), masks=(0,)))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(room=st.integers(1, 40), seed=st.integers(0, 10**6), liked=st.sampled_from("(x)r"))
def test_every_answer_ends_in_its_room(room: int, seed: int, liked: str) -> None:
    """A bracket that stays open at the end, an answer beyond its room, a text cut but called whole.

    Drafts that only open brackets, only go on, only close, or are random.
    """
    draw = random.Random(seed)
    mostly = {"(": OPEN, "x": X, ")": CLOSE}.get(liked)
    constrained, answer, left = ConstrainedAnswer(Brackets(), "toy"), list[int](), room
    for _ in range(40):
        ids = [mostly if mostly and draw.random() < 0.9 else draw.randrange(SIZE)
               for _ in range(WIDTH)]  # fmt: skip
        commit, _ = resolved(constrained, ids, left)
        answer += commit.token_ids
        left -= len(commit.token_ids)
        assert len(commit.canvas_ids) == WIDTH
        if commit.ended:
            assert left >= 0 and whole(tuple(answer)) and constrained.report.complete
            return
        assert not constrained.report.complete
        if left <= 0:
            break
        assert len(commit.token_ids) == WIDTH
    assert room < 2, "there was a way to end in time"


def test_a_language_without_an_end_is_cut() -> None:
    """Under barred words alone, a text that is cut off counts as ended."""

    class Anything(Brackets):
        accepting = True  # type: ignore[assignment]
        finished = False  # type: ignore[assignment]

        def _next(self) -> set[int]:
            return set(range(3, SIZE)) - {9}

        def forced(self) -> list[int]:
            return []

    constrained = ConstrainedAnswer(Anything(), "bad_words")
    commit, _ = resolved(constrained, [5] * WIDTH, room=WIDTH)
    assert not commit.ended and len(commit.token_ids) == WIDTH
    commit, _ = resolved(constrained, [5, 9, 5, 5, END, 5, 5, 5])
    assert 9 not in commit.token_ids and len(commit.token_ids) <= WIDTH


def test_what_was_not_found_is_not_looked_for_again() -> None:
    """A search at every token of every canvas, for an end that one canvas has proved far away."""

    class Endless(Brackets):
        asked = 0

        def completion(self, room: int) -> Search[list[int] | None]:
            self.asked += 1
            return (yield from super().completion(room)) if self.depth < 4 else None

    language = Endless()
    constrained = ConstrainedAnswer(language, "toy")
    answer = list(resolved(constrained, [OPEN] * WIDTH, room=999)[0].token_ids)
    assert whole(tuple(answer)) and constrained.report.complete, "gone back, and closed"

    language = Endless()
    assert language.accept([OPEN] * 5) == 5
    constrained = ConstrainedAnswer(language, "toy")
    resolved(constrained, [OPEN] * WIDTH, room=999)
    assert language.asked > 2
    for _ in range(5):
        language.asked = 0
        commit, _ = resolved(constrained, [X] * WIDTH, room=999)
        assert commit.token_ids == (X,) * WIDTH and not commit.ended and language.asked == 1
    resolved(constrained, [CLOSE] * WIDTH, room=999)  # out of the depth
    language.asked = 0
    resolved(constrained, [X] * WIDTH, room=WIDTH + 1)
    assert language.asked > 1
