"""Where things stand on a canvas: pinned texts, slots between them, the end.

A `Window` is one canvas's worth of a text; from the lengths of its slots it makes the control of
the canvas, and from the tokens that came back the slots' texts. Knows tokens and borders; knows
nothing about how lengths are chosen, nor about how a prompt is made.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from dgemma.compose.plan import Place
from dgemma.text.token_table import TokenTable
from dgemma.types import CanvasControl

MERGED, RIGHT_ALONE, NONE_BETWEEN = -2, -1, 0
"""Lengths of a slot whose borders are healed: one token over both borders; a longer token at the
right border alone; a longer token at the left border (or at the only one), nothing between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A place for text between two texts.

    Attributes:
        least, most: tokens, those of healed borders not counted.
        want: tokens that room is kept for where several slots share a canvas.
        guess: its length while others are looked for.
        long: whether it may take several canvases.
        allowed: the only ids it may hold, sorted; its borders are then not healed. None: any text.
        old: the text that stands there now and seeds it, None for a hole.
        part: number of the hole or span that it belongs to.
    """

    least: int
    most: int
    want: int
    guess: int = 1
    long: bool = False
    allowed: tuple[int, ...] | None = None
    old: str | None = None
    part: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A slot between its pinned neighbours.

    Attributes:
        slot: its lengths and its old text.
        left, right: bytes of the neighbours' tokens that were given up to heal the borders.
        seeds: ids that stand there now, the given-up tokens' bytes included.
    """

    slot: Slot
    left: bytes = b""
    right: bytes = b""
    seeds: tuple[int, ...] = ()

    def masks(self, tokens: TokenTable, length: int) -> tuple[tuple[int, ...], ...] | None:
        """The allowed ids of each free position, None if no token fits one of them."""
        left, right, slot = self.left, self.right, self.slot
        if length == MERGED:
            found = [tokens.between(left, right, min(1, slot.least))]
        elif length == RIGHT_ALONE:
            found = [tokens.exactly(left), tokens.between(b"", right, 1)]
        else:
            text = tokens.text_ids if slot.allowed is None else slot.allowed
            # with nothing between, one of the healed tokens must bring some text
            strict = int(length == NONE_BETWEEN and slot.least > 0)
            found = [text] * length
            if left:
                found.insert(0, tokens.between(left, b"", strict))
            if right:
                found.append(tokens.between(b"", right, 0 if left else strict))
        return tuple(found) if all(found) else None

    def lengths(self) -> list[int]:
        """The lengths below `slot.most` that only healed borders make possible."""
        if self.slot.least > 1:
            return []
        healed = bool(self.left) + bool(self.right)
        out = [MERGED, RIGHT_ALONE] if healed == 2 else []
        return [*out, NONE_BETWEEN] if healed or self.slot.least == 0 else out

    @property
    def held(self) -> int:
        """The length that the old text has now."""
        between = len(self.seeds) - bool(self.left) - bool(self.right)
        return between if between >= 0 else MERGED

    def positions(self, length: int) -> int:
        """Free positions at that length."""
        return 1 if length == MERGED else max(0, length) + bool(self.left) + bool(self.right)

    def seeded(self, masks: Sequence[tuple[int, ...]]) -> list[int]:
        """What the free positions begin with: the old ids from the left, -1 for noise."""
        ids = [*self.seeds[: len(masks)]]
        ids += [-1] * (len(masks) - len(ids))
        if self.right and self.seeds and masks:
            ids[-1] = self.seeds[-1]
        return [i if _held(i, mask) else -1 for i, mask in zip(ids, masks, strict=True)]

    def raw(self, tokens: TokenTable, ids: Sequence[int]) -> bytes:
        """The bytes of the slot's ids without those that belong to its neighbours."""
        whole = b"".join(tokens.table[i] for i in ids)
        assert whole.startswith(self.left) and whole.endswith(self.right)
        return whole[len(self.left) : len(whole) - len(self.right)]


def _held(token_id: int, ids: tuple[int, ...]) -> bool:
    at = bisect_left(ids, token_id)
    return at < len(ids) and ids[at] == token_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One canvas's worth of a text.

    Attributes:
        prompt: ids before the canvas.
        tail: ids before the first gap.
        gaps: in order.
        texts: ids after each gap.
        width: tokens of the canvas.
        end: the id that ends the text and the one that fills the canvas after it; None if the
            text goes on beyond the canvas.
        strength: how much of the gaps' seeds gives way to noise.
    """

    prompt: tuple[int, ...]
    tail: tuple[int, ...]
    gaps: tuple[Gap, ...]
    texts: tuple[tuple[int, ...], ...]
    width: int
    end: tuple[int, int] | None
    strength: float = 1.0

    @property
    def pinned(self) -> int:
        """Positions that no gap can have."""
        return len(self.tail) + sum(map(len, self.texts)) + (self.end is not None)

    def room(self, lengths: Sequence[int]) -> int:
        """Positions that are left over at these lengths; below 0 they do not fit."""
        taken = sum(g.positions(n) for g, n in zip(self.gaps, lengths, strict=True))
        return self.width - self.pinned - taken

    def place(self, tokens: TokenTable, lengths: Sequence[int]) -> Placed | None:
        """The canvas at these lengths, None where they do not fit or no token could stand."""
        if self.room(lengths) < 0:
            return None
        ids = [*self.tail]
        masks = [-1] * len(ids)
        free: list[range] = []
        lists: list[tuple[int, ...]] = []
        number: dict[int, int] = {}  # by identity: a list may hold a whole vocabulary
        for gap, text, length in zip(self.gaps, self.texts, lengths, strict=True):
            found = gap.masks(tokens, length)
            if found is None:
                return None
            free.append(range(len(ids), len(ids) + len(found)))
            ids += gap.seeded(found)
            for mask in found:
                if id(mask) not in number:
                    number[id(mask)] = len(lists)
                    lists.append(mask)
                masks.append(number[id(mask)])
            ids += text
            masks += [-1] * len(text)
        content = len(ids)
        if self.end is not None:
            ids.append(self.end[0])
            ids += [self.end[1]] * (self.width - len(ids))
        loose = {at for positions in free for at in positions}
        control = CanvasControl(
            ids=tuple(ids), pinned=tuple(at for at in range(len(ids)) if at not in loose),
            strength=self.strength, allowed=tuple(lists), masks=tuple(masks),
        )  # fmt: skip
        return Placed(tuple(lengths), control, tuple(free), content)

    def places(self, placed: Placed) -> list[Place]:
        """Where the slots stand on such a canvas."""
        return [
            Place(
                part=gap.slot.part, start=at.start, stop=at.stop, left=len(gap.left),
                right=len(gap.right),
            )
            for gap, at in zip(self.gaps, placed.free, strict=True)
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Placed:
    """A canvas at certain lengths of its slots.

    Attributes:
        lengths: of each slot.
        control: its ids, pins and masks.
        free: the positions of each slot.
        content: positions before the end.
    """

    lengths: tuple[int, ...]
    control: CanvasControl
    free: tuple[range, ...]
    content: int
