"""The free pages of one group, by number. (No torch.)"""

from __future__ import annotations

GAP = 16
"""Pages left free before a new run if there is room, for its neighbour to grow into."""

NONE = -1
"""The page of a block that has none."""


class PageAllocator:
    """The free pages of one group; takes them side by side if it can."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.free = count
        self._map = bytearray(b"\1") * count  # 1: free

    def take(self, wanted: int, after: int) -> list[int]:
        """`wanted` pages, if possible right after page `after` (NONE: anywhere).

        There must be enough. Pages side by side are read in place; others must be gathered.
        """
        assert wanted <= self.free
        taken: list[int] = []
        while len(taken) < wanted:
            need = wanted - len(taken)
            following = after + 1
            if after != NONE and following < self.count and self._map[following]:
                page = following
            else:
                page = self._place(need)
            self._map[page] = 0
            taken.append(page)
            after = page
        self.free -= wanted
        return taken

    def _place(self, need: int) -> int:
        """The first page of a run of `need` pages, or of fewer."""
        roomy = self._map.find(b"\1" * (need + GAP))
        if roomy > 0:
            return roomy + GAP
        for size in (need, max(1, need // 2), 1):
            place = self._map.find(b"\1" * size)
            if place >= 0:
                return place
        raise AssertionError("the count of free pages is wrong")

    def give(self, page: int) -> None:
        """Take a page back."""
        assert not self._map[page], "a page was freed twice"
        self._map[page] = 1
        self.free += 1
