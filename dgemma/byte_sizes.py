"""Sizes of memory as people write them."""

from __future__ import annotations

import re

from dgemma.errors import InvalidRequest

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
          "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}  # fmt: skip
_FORM = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([KMGT]I?|)B?", re.IGNORECASE)


def parse_bytes(size: str | int) -> int:
    """Bytes of "18GB" (decimal), "16GiB" (binary), "900 MB", or a plain number of bytes.

    Raises:
        InvalidRequest: it is none of these, or not above zero.
    """
    found = _FORM.fullmatch(size.strip()) if isinstance(size, str) else None
    number = float(found[1]) * _UNITS[found[2].upper()] if found else size
    if isinstance(number, bool) or not isinstance(number, int | float) or number < 1:
        raise InvalidRequest(
            f"memory must be a size such as 18GB, 16GiB or 900MB, got {str(size)[:40]!r}"
        )
    return int(number)


def in_gb(number: float) -> str:
    """Bytes for a message: decimal gigabytes, smaller ones as megabytes."""
    return f"{number / 1e9:.2f} GB" if number >= 1e8 else f"{number / 1e6:.2f} MB"
