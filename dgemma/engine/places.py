"""Which running sequences give way to another owner.

Knows places and pages of owners. It must not know tensors (no torch), or the order of those that
wait.
"""

from __future__ import annotations

from collections.abc import Iterable

from dgemma.engine.block_table import blocks
from dgemma.engine.owners import Owner
from dgemma.engine.sequence import Sequence
from dgemma.types import PAGE


def is_over(seq: Sequence) -> bool:
    """Whether a running sequence has finished a canvas since it was admitted.

    An autoregressive one has then made a page of tokens. A score has no second turn.
    """
    made = len(seq.context) - seq.begun
    return made >= (1 if seq.request.mode == "diffusion" else PAGE)


def pages_of(owner: Owner) -> int:
    """Pages of the full layers that an owner's running sequences hold."""
    return sum(map(_pages, owner.running))


def _pages(seq: Sequence) -> int:
    return 0 if seq.block_table is None else seq.block_table.count


def victim(owners: Iterable[Owner]) -> Sequence:
    """The sequence that gives way when pages run out: one of the owner that holds most."""
    return max(max(owners, key=pages_of).running, key=lambda seq: seq.rank)


def giving_way(
    seq: Sequence, owner: Owner, others: Iterable[Owner], *, full: bool, late: bool
) -> list[Sequence]:
    """The running sequences of others that may be preempted for one that waits, in this order.

    An owner without a place gets one at once from any owner with several. From an owner with one
    it gets that of a sequence whose turn is over, if that owner has had as much. An owner that has
    places only evens out: whoever gives way still holds no less than `owner` then does. So of two
    owners never each takes from the other.

    Args:
        seq: the sequence of `owner` that waits.
        full: whether all places are taken; else pages are lacking, and pages are evened out.
        late: whether `owner` has gone without a place for so long that it need not wait until
            others have had as much.
    """
    found: list[tuple[bool, int, float, int, Sequence]] = []
    first = not owner.running
    need = blocks(len(seq.context), seq.positions, seq.rows)  # at most
    least = len(owner.running) + 1 if full else pages_of(owner) + need
    for other in others:
        if other is owner:
            continue
        rows = sorted(other.running, key=lambda one: one.rank, reverse=True)
        held = len(rows) if full else pages_of(other)
        for place, row in enumerate(rows):
            size = 1 if full else _pages(row)
            alone = place == len(rows) - 1
            if first:
                turn = is_over(row) and (late or other.usage >= owner.usage)
                may, last = turn or not alone, alone
            else:
                may, last = is_over(row) and not alone and held - size >= least, False
            if may:
                found.append((last, -held, -other.usage, place, row))
                held -= size
    found.sort(key=lambda one: one[:4])
    return [row for *_, row in found]
