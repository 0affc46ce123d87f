"""Entries of quantisers' lists, as their files have them."""

from __future__ import annotations

import pytest

from dgemma.weights.schemes.matching import matches

UP = "model.decoder.layers.3.mlp.up_proj"


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ("Linear", True),
        (UP, True),
        ("model.decoder.layers.3.mlp", True),
        ("model.decoder.layers.3.ml", False),
        ("re:.*mlp\\.(gate|up)_proj$", True),
        ("re:mlp", False),  # from the start
        ("*mlp*", True),
        ("*router*", False),
        ("lm_head", False),
        ("", False),
        ("re:(", False),
        ("re:(.+)+x", False),  # these could take for ever
        ("re:" + ".*" * 20 + "x", False),
        ("*a" * 30, False),
    ],
)
def test_entries(entry: str, wanted: bool) -> None:
    """Classes, exact names, names above, regular expressions, globs."""
    assert matches(entry, UP) == wanted
