"""What a caller fixes on a canvas, seen from outside: in traces, outputs and refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from dgemma.diffusion.control import bitset
from dgemma.engine.engine import Engine
from dgemma.errors import InvalidRequest
from dgemma.kernels.controls import Controls
from dgemma.params import SamplingParams
from dgemma.types import CanvasControl, Output, Request
from tests.support.engines import run
from tests.support.nano import nano, nano_engine

pytestmark = pytest.mark.model

WIDTH = 96
PARAMS = SamplingParams(seed=5, max_steps=8, max_tokens=WIDTH, confidence_threshold=0.0)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return nano_engine(endless=True)


def prompt(text: str = "Tell me something.") -> tuple[int, ...]:
    return tuple(nano().chat_ids([{"role": "user", "content": text}], None, False))


def made(
    engine: Engine, params: SamplingParams = PARAMS, *, token_ids: Any = None, **fixed: Any
) -> Output:
    control = CanvasControl(**fixed) if fixed else None
    request = Request(
        token_ids=token_ids or prompt(), params=params, canvas=control, trace=True, frames=True
    )
    _, output = run(engine.submit(request))
    assert output.error is None
    return output


def test_pinned_positions_never_move(engine: Engine) -> None:
    """A pin that is lost to the noise of one step, or that takes part in what a step decides."""
    ids = tuple(300 + p if p % 3 else -1 for p in range(40))
    pinned = tuple(p for p in range(40) if p % 3)
    output = made(engine, ids=ids, pinned=pinned)
    for step in output.trace:
        for position in pinned:
            assert step.ids[position] == step.argmax[position] == ids[position]
            assert step.accepted[position] == 2 and step.entropy[position] == 0
        assert set(step.accepted[p] for p in range(WIDTH) if p not in pinned) <= {0, 1}
    assert [output.token_ids[p] for p in pinned] == [ids[p] for p in pinned]


def test_pins_are_seen_from_every_free_position(engine: Engine) -> None:
    """Pinned text that conditions nothing, for instance because it is put in afterwards."""
    before = made(engine, ids=(300,), pinned=(0,)).trace[0].entropy
    after = made(engine, ids=(301,), pinned=(0,)).trace[0].entropy
    assert sum(a != b for a, b in zip(before, after, strict=True)) > WIDTH // 2


def test_what_is_pinned_counts_in_no_mean(engine: Engine) -> None:
    """Zeros of pinned positions make a canvas look certain, and it stops too early."""
    pinned = tuple(range(WIDTH - 1))
    loose = replace(PARAMS, stability_threshold=0, confidence_threshold=0.05, max_steps=3)
    output = made(engine, loose, ids=(300,) * (WIDTH - 1), pinned=pinned)
    free = [step.entropy[-1] for step in output.trace]
    assert all(entropy >= 0.05 for entropy in free[:-1])
    assert (output.trace[-1].reason == "converged") == (free[-1] < 0.05)


def test_a_canvas_that_is_pinned_whole_takes_one_step(engine: Engine) -> None:
    """A canvas with nothing to do runs to its last step, or divides by zero."""
    ids = tuple(range(300, 300 + WIDTH))
    output = made(engine, ids=ids, pinned=tuple(range(WIDTH)))
    assert output.token_ids == ids and output.usage.steps == 1


def test_pins_are_of_the_first_canvas_alone(engine: Engine) -> None:
    """The second canvas is pinned like the first."""
    output = made(engine, replace(PARAMS, max_tokens=2 * WIDTH), ids=(300,) * 50,
                  pinned=tuple(range(50)))  # fmt: skip
    assert output.token_ids[:50] == (300,) * 50
    assert output.token_ids[WIDTH : WIDTH + 50] != (300,) * 50


@pytest.mark.parametrize(("strength", "kept"), [(0.0, 96), (0.25, 72), (0.75, 24), (1.0, 0)])
def test_strength(engine: Engine, strength: float, kept: int) -> None:
    """Seeds that are all kept or all lost, or a schedule that begins at its beginning.

    Off by more than 24 of 96 draws: 5.6 standard deviations at the worst.
    """
    ids = tuple(range(300, 300 + WIDTH))
    output = made(engine, ids=ids, strength=strength)
    same = sum(a == b for a, b in zip(output.trace[0].ids, ids, strict=True))
    assert abs(same - kept) <= (24 if 0 < strength < 1 else 1)
    assert output.trace[0].step == min(7, round(8 * (1 - strength)))
    assert output.usage.steps == 8 - output.trace[0].step


def test_masks(engine: Engine) -> None:
    """An id that is not allowed is committed, or masks are off by a position."""
    allowed = tuple(tuple(range(400 + 50 * n, 410 + 50 * n)) for n in range(3))
    masks = tuple(p % 4 - 1 for p in range(80))
    output = made(engine, allowed=allowed, masks=masks)
    for position, mask in enumerate(masks):
        assert mask < 0 or output.token_ids[position] in allowed[mask]
    assert len({output.token_ids[p] for p in range(0, 80, 4)} & set(range(400, 600))) < 20


def test_bias_is_of_one_position(engine: Engine) -> None:
    """A bias that lands on the wrong row."""
    output = made(engine, bias=((7, 444, 1000.0),))
    assert [p for p, token in enumerate(output.token_ids) if token == 444] == [7]


def test_allowed_ids_leave_the_end_ids() -> None:
    """An answer that may hold only digits can never end."""
    ends = nano().engine.spec.end_ids
    output = made(nano_engine(), replace(PARAMS, allowed_token_ids=(400, 401)))
    assert set(output.token_ids) <= {400, 401}
    assert not set(output.token_ids) & set(ends)


def test_greedy_proposals(engine: Engine) -> None:
    """Temperature 0 that draws, that is as certain as one-hot, or that changes when steps end."""
    cold = made(engine, replace(PARAMS, temperature=0.0))
    warm = made(engine, PARAMS)
    for before, after in zip(cold.trace[:-1], cold.trace[1:], strict=True):
        for position, state in enumerate(before.accepted):
            assert not state or after.ids[position] == before.argmax[position]
    assert cold.trace[0].entropy == warm.trace[0].entropy
    assert cold.trace[0].temperature == warm.trace[0].temperature


def test_top_k_of_one_is_certain(engine: Engine) -> None:
    """A filter that acts on the draw alone: its entropy would still be the whole one's."""
    output = made(engine, replace(PARAMS, top_k=1))
    assert all(not any(step.entropy) for step in output.trace)


def test_min_tokens() -> None:
    """An answer that ends before its least length, or an end that is barred for good."""
    engine = nano_engine()
    short = replace(PARAMS, max_tokens=None, max_steps=48, confidence_threshold=None)
    question = prompt("Hello!")
    plain = made(engine, short, token_ids=question)
    assert plain.finish_reason == "stop" and len(plain.token_ids) < 40
    for least in (len(plain.token_ids), 40, WIDTH + 5):
        longer = made(engine, replace(short, min_tokens=least), token_ids=question)
        assert len(longer.token_ids) >= least


def exact(engine: Engine, ids: tuple[int, ...]) -> torch.Tensor:
    """fp32 [C, V] log-probabilities of a canvas's first reading, straight from the network."""
    model = engine.model
    rows = model.new_cache(1, 512)
    with torch.inference_mode():
        model.encode(torch.tensor([prompt()]), rows)
        hidden = model.denoise(torch.tensor([ids]), rows, None)[0]
        return engine.model.head.logits(hidden, Controls()).log_softmax(-1)


def test_read_only(engine: Engine) -> None:
    """A probe that commits, that reads another canvas than the one given, or at a temperature."""
    ids = tuple(range(300, 300 + WIDTH))
    asked = replace(PARAMS, max_steps=None, logprobs=3, logprob_token_ids=(7, 9))
    output = made(engine, asked, ids=ids, strength=0.0, pinned=(0, 5), read_only=True)
    truth = exact(engine, ids)
    assert output.usage.steps == 1 and output.usage.canvases == 0
    assert len(output.scores) == len(output.token_ids) == WIDTH
    for position, score in enumerate(output.scores):
        token = ids[position] if position in (0, 5) else int(truth[position].argmax())
        assert score.token_id == output.token_ids[position] == token
        assert score.logprob == pytest.approx(float(truth[position, token]), abs=2e-3)
        assert score.asked == pytest.approx(truth[position, [7, 9]].tolist(), abs=2e-3)
        best = truth[position].topk(3).values.tolist()
        assert [value for _, value in score.top] == pytest.approx(best, abs=2e-3)


def test_scores_of_an_answer(engine: Engine) -> None:
    """Scores that are of other tokens than the answer's, or that go on behind its end."""
    params = replace(PARAMS, max_tokens=WIDTH + 30, logprobs=0)
    output = made(engine, params)
    assert [score.token_id for score in output.scores] == list(output.token_ids)
    assert all(score.logprob <= 1e-6 and score.entropy >= 0 for score in output.scores)
    last = output.trace[-1]
    assert output.scores[-1].entropy == last.entropy[29]
    assert made(engine, replace(params, logprobs=None)).scores == ()


@pytest.mark.parametrize("start", [1, 64, 65, 150])
def test_score_mode(engine: Engine, start: int) -> None:
    """The encoder's own log-probabilities, off by a token, or missing where pages were cached."""
    ids = tuple(300 + (p * 7) % 500 for p in range(200))
    request = Request(token_ids=ids, mode="score", score_from=start)
    with torch.inference_mode():
        hidden = engine.model.encode(torch.tensor([ids]), engine.model.new_cache(1, 256))[0]
        truth = engine.model.head.logits(hidden, Controls()).log_softmax(-1)
    want = [float(truth[p - 1, ids[p]]) for p in range(start, 200)]
    for _ in range(2):  # the second time most of it is in the pages
        _, output = run(engine.submit(request))
        assert [score.token_id for score in output.scores] == list(ids[start:])
        assert [s.logprob for s in output.scores] == pytest.approx(want, abs=2e-3)
        assert output.finish_reason == "stop" and output.token_ids == ()


WRONG: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("pinned but has no id", {"ids": (3, -1), "pinned": (1,)}, {}),
    ("pinned but has no id", {"pinned": (0,)}, {}),
    ("strength", {"ids": (3,), "strength": 1.5}, {}),
    ("97 positions", {"ids": (3,) * 97}, {}),
    ("41 positions", {"masks": (-1,) * 41}, {"canvas_length": 40}),
    ("97 positions", {"bias": ((96, 3, 1.0),)}, {}),
    ("outside the vocabulary", {"ids": (10**6,)}, {}),
    ("outside the vocabulary", {"allowed": ((10**6,),), "masks": (0,)}, {}),
    ("outside the vocabulary", {"bias": ((0, 10**6, 1.0),)}, {}),
    ("finite", {"bias": ((0, 3, math.nan),)}, {}),
    ("is empty", {"allowed": ((),), "masks": (0,)}, {}),
    ("not there", {"allowed": ((3,),), "masks": (1,)}, {}),
    ("drop one", {"ids": (4,), "pinned": (0,), "allowed": ((3,),), "masks": (0,)}, {}),
    ("allowed_token_ids", {"ids": (4,), "pinned": (0,)}, {"allowed_token_ids": (3,)}),
    ("leave no token", {"allowed": ((3,),), "masks": (0,)}, {"allowed_token_ids": (4,)}),
    ("logit_bias", {}, {"logit_bias": {10**6: 1.0}}),
    ("allowed_token_ids", {}, {"allowed_token_ids": (10**6,)}),
    ("logprob_token_ids", {}, {"logprob_token_ids": (10**6,)}),
]


@pytest.mark.parametrize(("message", "fixed", "params"), WRONG)
def test_refused_before_any_step(
    engine: Engine, message: str, fixed: dict[str, Any], params: dict[str, Any]
) -> None:
    """A contradiction that shows only in the middle of a run, or never."""
    passes = engine.counters().passes
    with pytest.raises(InvalidRequest, match=message):
        made(engine, replace(PARAMS, **params), **fixed)
    assert engine.running == 0 and engine.counters().passes == passes


def test_other_modes_refuse_a_control(engine: Engine) -> None:
    """A pin that the twin accepts and ignores; a score of no token."""
    control = CanvasControl(ids=(3,), pinned=(0,))
    with pytest.raises(InvalidRequest, match="no meaning"):
        engine.submit(Request(token_ids=(3, 4), mode="autoregressive", canvas=control))
    for start in (0, 2):
        with pytest.raises(InvalidRequest, match="score_from"):
            engine.submit(Request(token_ids=(3, 4), mode="score", score_from=start))


def test_bitset() -> None:
    """The sign bit of a word, and an id outside the vocabulary."""
    words = bitset((0, 31, 32, 63), 64)
    assert words.tolist() == [-(2**31) + 1, -(2**31) + 1]
    with pytest.raises(InvalidRequest):
        bitset((64,), 64)
