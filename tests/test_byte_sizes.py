"""Sizes of memory as people write them."""

from __future__ import annotations

import pytest

from dgemma.byte_sizes import in_gb, parse_bytes
from dgemma.errors import InvalidRequest


def test_decimal_and_binary() -> None:
    """Read as the other one, 16GiB would be 1.2 GB too small."""
    sizes = {"18GB": 18 * 10**9, "16GiB": 16 * 2**30, "16gib": 16 * 2**30, "900 MB": 9 * 10**8,
             "1.5G": 15 * 10**8, " 2KiB ": 2048, "77": 77, "3TB": 3 * 10**12, "5B": 5}  # fmt: skip
    assert {text: parse_bytes(text) for text in sizes} == sizes
    assert parse_bytes(10**9) == 10**9


@pytest.mark.parametrize(
    "wrong", ["", "GB", "18XB", "-1GB", "0", 0, -5, True, None, "1e9", "9" * 99 + "GB", "18GB 2"]
)
def test_anything_else_is_refused(wrong: object) -> None:
    """With the forms that are read."""
    with pytest.raises(InvalidRequest, match="such as 18GB, 16GiB or 900MB, got '"):
        parse_bytes(wrong)  # type: ignore[arg-type]


def test_for_messages() -> None:
    """Two digits, so that a limit and a need never look alike that differ."""
    assert (in_gb(17.694e9), in_gb(54e6), in_gb(0)) == ("17.69 GB", "54.00 MB", "0.00 MB")
