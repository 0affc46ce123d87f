"""API keys: their sources, their comparison, and the owner of a request.

Only hashes are kept. Knows nothing about HTTP beyond the two headers that carry a key.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dgemma.errors import InvalidRequest, unreadable
from dgemma.files.read import MIB, read_bytes

VARIABLE, ADMIN_VARIABLE = "DGEMMA_API_KEYS", "DGEMMA_ADMIN_KEYS"
"""Environment variables with keys, separated by commas or blanks."""

LEAST = 8
"""Fewest characters of a key."""


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True, slots=True)
class Keys:
    """A set of keys.

    Attributes:
        hashes: SHA-256 of each.
    """

    hashes: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, keys: Iterable[str]) -> Keys:
        """
        Raises:
            InvalidRequest: a key is too short, or no header can carry it.
        """
        texts = list(keys)
        if any(len(text) < LEAST for text in texts):
            raise InvalidRequest(f"an API key has fewer than {LEAST} characters; choose longer")
        if not all(text.isascii() and text.isprintable() for text in texts):
            raise InvalidRequest(
                "an API key holds a character that no header carries; use printable ASCII"
            )
        return cls(tuple(dict.fromkeys(_hash(text) for text in texts)))

    @classmethod
    def load(
        cls, file: Path | None, environment: Mapping[str, str], variable: str = VARIABLE
    ) -> Keys:
        """The keys of a file, one a line (# begins a comment), and of the environment.

        Raises:
            InvalidRequest: the file cannot be read, or it, or the variable, holds no key.
        """
        found = environment.get(variable, "").replace(",", " ").split()
        if variable in environment and not found:
            raise InvalidRequest(f"{variable} is set but holds no key; give one, or unset it")
        if file is not None:
            try:
                lines = read_bytes(file, MIB, streams=True).decode("utf-8-sig").splitlines()
            except (OSError, ValueError) as error:
                raise InvalidRequest(f"the key file {unreadable(file, error)}") from error
            own = [line.strip() for line in lines if line.strip() and line.strip()[0] != "#"]
            if not own:
                raise InvalidRequest(f"the key file {file} holds no key; put one on each line")
            found += own
        return cls.of(found)

    def __bool__(self) -> bool:
        return bool(self.hashes)

    def owner(self, key: str | None) -> str | None:
        """The owner of a request with this key; None: the key is wrong, or missing.

        Takes as long for a wrong key as for a right one. Without any keys the owner is "".
        """
        if not self.hashes:
            return ""
        given = _hash(key or "")
        found = b""
        for known in self.hashes:
            if hmac.compare_digest(given, known):
                found = known
        return found.hex()[:16] if found else None


def key_of(headers: Mapping[str, str]) -> str | None:
    """The key that a request carries: `Authorization: Bearer KEY`, or `x-api-key: KEY`."""
    kind, _, key = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key")
