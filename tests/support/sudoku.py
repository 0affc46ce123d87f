"""Sudokus solved by plain sets."""

from __future__ import annotations


def solutions(rows: list[str], limit: int = 2) -> list[list[str]]:
    """Up to `limit` solutions by plain sets, sharing no code with the maker's bit masks."""
    spots = [(r, c) for r in range(9) for c in range(9) if rows[r][c] == "."]
    if not spots:
        return [rows]

    def options(r: int, c: int) -> set[str]:
        seen = set(rows[r]) | {row[c] for row in rows}
        for row in rows[r // 3 * 3 : r // 3 * 3 + 3]:
            seen |= set(row[c // 3 * 3 : c // 3 * 3 + 3])
        return set("123456789") - seen

    r, c = min(spots, key=lambda spot: len(options(*spot)))
    found: list[list[str]] = []
    for digit in sorted(options(r, c)):
        filled = rows[:r] + [rows[r][:c] + digit + rows[r][c + 1 :]] + rows[r + 1 :]
        found += solutions(filled, limit - len(found))
        if len(found) == limit:
            break
    return found


def digits(answer: str) -> list[int]:
    return [int(char) for char in answer if char != "\n"]
