"""How many steps a draft is denoised, how much of it is read, and when drafts are left out.

A policy is a frozen value; `next` gives the one after a draft. It depends on nothing but the
numbers of the drafts before, so the passes of a request are the same alone and in any batch. The
tokens of an answer never depend on it.
Knows nothing about tensors, networks or requests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MOST_STEPS = 8
"""Most denoising steps of a draft."""

WIDEST = 256
"""Most proposed tokens of a draft."""

NARROWEST = 8
"""Fewest proposed tokens that a policy allows."""

POOR_DRAFTS = 2
"""Poor drafts in a row before drafts are left out for a while."""

FIRST_PAUSE, LONGEST_PAUSE = 16, 128
"""Tokens without drafts: after the first failure, and at most. Each failure doubles them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftPolicy:
    """The shape of the next draft.

    A draft of n steps costs n + 1 passes, its reading among them. Two tokens of these passes are
    those that decoding token by token would have made in two. So a draft of one step never costs a
    pass, and one of n steps costs n - 1 at most.

    Attributes:
        steps: denoising steps before a draft is read; it is read sooner if it converges sooner.
        width: most tokens of it that are proposed.
        poor: poor drafts in a row: they had fewer proposed tokens accepted than they cost passes.
        pause: tokens to be decoded without a draft before the next one.
        pauses: pauses since the last draft that was not poor.
    """

    steps: int = 1
    width: int = 64
    poor: int = 0
    pause: int = 0
    pauses: int = 0

    @property
    def drafts(self) -> bool:
        """Whether the next token begins a draft."""
        return self.pause == 0

    def waited(self) -> DraftPolicy:
        """The policy after a token without a draft."""
        return replace(self, pause=max(0, self.pause - 1))

    def next(self, proposed: int, accepted: int, passes: int) -> DraftPolicy:
        """The policy after a draft.

        A draft that is accepted as a whole asks for fewer steps and twice the width. One of which
        less than half is accepted asks for one step more. The width follows what was accepted, with
        room for twice as much. The try after a pause has a step more than the one before: a text of
        which one step makes nothing may need more of them.

        Args:
            proposed: tokens that were proposed.
            accepted: how many of them, from the first one on, are tokens of the answer.
            passes: denoising steps of the draft, and its reading.
        """
        if accepted == proposed > 0:
            steps, width = max(1, self.steps - 1), 2 * self.width
        else:
            more = 1 if 2 * accepted < proposed else 0
            steps, width = min(self.steps + more, MOST_STEPS), 2 * accepted
        width = min(max(width, NARROWEST), WIDEST)
        if accepted >= passes:
            return DraftPolicy(steps=steps, width=width)
        if self.poor + 1 < POOR_DRAFTS:
            return replace(self, steps=steps, width=width, poor=self.poor + 1)
        pauses = self.pauses + 1
        return DraftPolicy(
            steps=min(1 + pauses, MOST_STEPS),
            poor=POOR_DRAFTS - 1,  # a try that is poor leads to the next pause
            pause=min(FIRST_PAUSE << self.pauses, LONGEST_PAUSE),
            pauses=pauses,
        )


FIRST_DRAFT = DraftPolicy()
"""The policy of a request that has no draft yet."""
