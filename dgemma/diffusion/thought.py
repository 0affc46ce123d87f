"""Whether a thought has outgrown its budget.

Looked at where a canvas begins. Past the budget the caller appends `close_id` to the answer and to
the context, and the answer proper begins. Knows nothing about how tokens are made, nor about text.
"""

from __future__ import annotations

from collections.abc import Sequence

from dgemma.request_parts import ThoughtIds


def budget_exceeded(token_ids: Sequence[int], thought: ThoughtIds, budget: int | None) -> bool:
    """Whether a thought is open and no further thought token is allowed.

    Args:
        token_ids: the answer so far, without end ids, with the `close_id`s that were put in.
        thought: the markers, and whether the prompt ends inside a thought.
        budget: most thought tokens of the answer, markers not counted; None: no bound.

    Returns:
        True where the thought must be closed now. Thoughts of one answer count together. As
        whole canvases are committed, an answer may hold up to a canvas more than the budget.
    """
    if budget is None:
        return False
    is_open, count = thought.is_open, 0
    for token in token_ids:
        if token == thought.open_id:
            is_open = True
        elif token == thought.close_id:
            is_open = False
        elif is_open:
            count += 1
    return is_open and count >= budget
