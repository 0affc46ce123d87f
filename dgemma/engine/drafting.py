"""The exact mode in the engine: the next token, drafts that begin with it, and their readings.

    encode     the last token; the encoder chooses the next one, which is committed. In the same
               pass a draft makes its first step, at the place of that token
    denoise    the next steps of the draft, with that token pinned
    reading    of the token and the drafted ids after it: those that the encoder would have chosen
               too are committed, and its choice after them

Works on one sequence at a time. It must not know passes, the other sequences, or threads.
"""

from __future__ import annotations

from dgemma.diffusion.canvas import Canvas
from dgemma.diffusion.exact import accepted, begin_draft, hold_token, proposal
from dgemma.engine.commit import CanvasState, Reading
from dgemma.engine.sequence import Sequence


def first_draft(seq: Sequence) -> Canvas:
    """The next draft before its first step."""
    state: CanvasState = seq.state
    state.drafts += 1
    return begin_draft(seq.seed, state.drafts - 1, state.policy, state.spec)


def plan_draft(seq: Sequence) -> None:
    """Decide whether the pass that encodes the last token begins a draft."""
    state: CanvasState = seq.state
    room = seq.context_length - len(seq.context)
    seq.drafting = state.policy.drafts and room >= state.spec.length
    seq.width = state.spec.length if seq.drafting else 1


def take_draft(seq: Sequence, after: Canvas) -> None:
    """Take in a step of a draft; one that is made is proposed to the encoder."""
    state: CanvasState = seq.state
    assert state.known is not None
    draft = hold_token(after, state.known, state.policy, state.spec, state.head.embed)
    state.canvas = draft
    if draft.reason:
        most = seq.request.params.max_tokens
        room = None if most is None else most - len(seq.committed) - 1
        seq.proposed = [state.known, *proposal(draft, state.policy, state.spec)[:room]]


def take_token(seq: Sequence, token: int, steps: int = 1) -> None:
    """Commit the next token of an answer, and queue it to be encoded unless a draft begins."""
    state: CanvasState = seq.state
    ended = token in state.spec.end_ids
    ids = [] if ended else [token]
    seq.events.put(seq.commit(ids, ended, steps))
    if seq.output is not None:
        return
    if seq.drafting:
        state.known = token
    else:
        state.policy = state.policy.waited()
        queue(seq, ids)


def take_draft_reading(seq: Sequence, reading: Reading) -> int:
    """Commit the drafted ids that the encoder would have chosen, and its choice after them.

    Returns:
        How many of the ids that were read are encoded for good.
    """
    state: CanvasState = seq.state
    draft, proposed = state.canvas, seq.proposed[1:]
    assert draft is not None and state.known is not None
    found = accepted(proposed, reading.choices, state.spec.end_ids)
    kept = [state.known, *proposed[: found.count]]
    state.policy = state.policy.next(len(proposed), found.count, draft.step + 1)
    state.canvas, state.known, seq.proposed, seq.drafting = None, None, [], False
    ended = found.token in state.spec.end_ids
    ids = proposed[: found.count] + ([] if ended else [found.token])
    # The draft's first step shared the pass of the token before it, whose commit counts it.
    seq.events.put(seq.commit(ids, ended, draft.step))
    if seq.output is not None:
        return 0
    seq.context += kept
    seq.borders.append(len(seq.context))
    queue(seq, [found.token])
    return len(kept)


def queue(seq: Sequence, ids: list[int]) -> None:
    """Encode these ids next."""
    seq.drafting, seq.width = False, 1
    seq.extend(ids)
    if seq.output is None:
        plan_draft(seq)
