"""Drafts adapt to what was accepted, and a text that cannot be drafted costs little."""

from __future__ import annotations

import pytest

from dgemma.diffusion.draft_policy import (
    FIRST_DRAFT,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    MOST_STEPS,
    NARROWEST,
    WIDEST,
    DraftPolicy,
)


def simulated(tokens: int, right: float | int) -> tuple[int, list[int]]:
    """Passes of an answer, and the pauses; each draft has so many right tokens, or that share."""
    policy, made, passes, pauses = FIRST_DRAFT, 0, 0, list[int]()
    while made < tokens:
        made, passes = made + 1, passes + 1
        if not policy.drafts:
            policy = policy.waited()
        elif made < tokens:
            proposed = min(policy.width, tokens - made - 1)
            accepted = int(right * proposed) if isinstance(right, float) else min(right, proposed)
            made, passes = made + accepted + 1, passes + policy.steps
            policy = policy.next(proposed, accepted, policy.steps + 1)
            pauses += [policy.pause] if policy.pause else []
    return passes, pauses


def test_hopeless_drafts_cost_a_tenth_at_most() -> None:
    """A policy that insists makes a text slower than it is without drafts, at any length."""
    for tokens in (*range(1, 200), 500, 1000, 2000):
        passes, pauses = simulated(tokens, 0)
        assert passes <= 1.1 * tokens + 1
    assert pauses == sorted(pauses) and pauses[:2] == [FIRST_PAUSE, 2 * FIRST_PAUSE]
    assert pauses[-1] == LONGEST_PAUSE


def test_right_drafts_grow_to_the_widest() -> None:
    """A policy that never grows reads a long text in short pieces."""
    policy = DraftPolicy(steps=3, width=16)
    for width, steps in ((32, 2), (64, 1), (128, 1), (256, 1), (256, 1)):
        policy = policy.next(policy.width, policy.width, policy.steps + 1)
        assert policy == DraftPolicy(steps=steps, width=width)
    assert simulated(2560, 1.0)[0] <= 2 * (2560 // WIDEST + 3)


def test_a_break_asks_for_more_steps_and_less_width() -> None:
    """Without it each draft proposes as much as the last one, of which little was right."""
    after = DraftPolicy(steps=2, width=64).next(64, 10, 3)
    assert after == DraftPolicy(steps=3, width=20)
    assert DraftPolicy(steps=2, width=64).next(64, 40, 3) == DraftPolicy(steps=2, width=80)
    assert DraftPolicy(steps=MOST_STEPS).next(64, 20, 3).steps == MOST_STEPS
    assert DraftPolicy().next(64, 2, 2).width == NARROWEST


def test_two_poor_drafts_in_a_row_make_a_pause() -> None:
    """One poor draft of a good text stops all drafts, or a poor one counts for ever."""
    policy = FIRST_DRAFT.next(64, 1, 2)
    assert policy.drafts and policy.poor == 1 and policy.next(8, 6, 2).poor == 0
    policy = policy.next(8, 0, 3)
    assert not policy.drafts
    for _ in range(FIRST_PAUSE):
        assert not policy.drafts
        policy = policy.waited()
    assert policy.drafts
    assert policy.next(8, 0, 3).pause == 2 * FIRST_PAUSE, "a poor try leads to a longer pause"
    good = policy.next(8, 8, 3)
    assert good.drafts and good.next(8, 0, 2).next(8, 0, 2).pause == FIRST_PAUSE


@pytest.mark.parametrize("poor", [0, 2])
def test_tries_have_more_and_more_steps(poor: int) -> None:
    """A text of which one step makes nothing would never be drafted, though more steps do."""
    policy, steps = FIRST_DRAFT, list[int]()
    for _ in range(5):
        while policy.pause == 0:
            policy = policy.next(8, poor, 9)
        steps.append(policy.steps)
        while policy.pause:
            policy = policy.waited()
    assert steps == [2, 3, 4, 5, 6]
