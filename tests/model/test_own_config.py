"""dgemma.json, this project's own file beside a checkpoint."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from dgemma.errors import ConfigError
from dgemma.model.hf_generation import (
    SAMPLING,
    GenerationDefaults,
    read_generation_config,
    read_own,
    write_generation_config,
    write_own,
)
from dgemma.params import RELEASED
from dgemma.weights.files import load_generation
from dgemma.weights.find import bundled_models
from tests.support.released import RELEASED_GENERATION
from tests.support.sources import ROOT


@pytest.mark.fault("N 4")
def test_single_turns_are_read() -> None:
    """A model that was trained on single turns gets the history of a chat all the same."""
    plain = GenerationDefaults()
    assert read_own({"turns": "single"}, plain).single_turn and read_own({}, plain) == plain
    for values, message in (
        ({"turns": "one"}, "'single'"),
        ({"turn": "x"}, "did you mean 'turns'"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_own(values, plain)


def test_own_sampling_goes_before_the_released_file() -> None:
    """Settings that `transformers` does not know are lost, or overrule nothing."""
    sampling = {"restart_after": 8, "tries": 3, "max_steps": 12}
    given = {"turns": "single", "sampling": sampling, "code": False, "examples": ["Hi"]}
    found = read_own(given, read_generation_config(RELEASED_GENERATION))
    assert found.params == RELEASED and found.single_turn
    assert found.sampling == dataclasses.replace(RELEASED, restart_after=8, tries=3, max_steps=12)
    assert write_own(found) == given and write_own(GenerationDefaults()) == {}
    assert write_generation_config(found)["max_denoising_steps"] == 48


def test_what_a_model_is_for_is_read() -> None:
    """Catches code that a model was never trained to write, offered because nobody asked."""
    plain = GenerationDefaults()
    assert plain.code and plain.examples == ()
    found = read_own({"code": False, "examples": ["a", "b"]}, plain)
    assert not found.code and found.examples == ("a", "b")
    for wrong in ({"examples": [1]}, {"examples": ["a"] * 33}, {"examples": "a"}, {"code": 1}):
        with pytest.raises(ConfigError, match="correct it"):
            read_own(wrong, plain)


@pytest.mark.parametrize(("sampling", "message"), [
    ({"restart_aftr": 8}, "did you mean 'restart_after'"),
    ({"max_tokens": 256}, "unknown key 'max_tokens'"),
    ({"json_schema": True}, "unknown key 'json_schema'; it may set max_steps"),
    ({"tries": 0}, "sampling: tries must be at least 1"),
    ({"restart_after": "now"}, "restart_after must be an integer"),
    ({"race": True}, "race must be an integer"),
    ({"t_min": 0.9}, "t_min: 0.9 must not be above t_max 0.8|t_min"),
    ([8], "sampling must be of type dict"),
    ({"x" * 500: 1}, "unknown key 'x{100,}"),
])  # fmt: skip
def test_own_sampling_refuses(sampling: Any, message: str) -> None:
    """A word that changes nothing, an answer cut by its checkpoint, a value out of range."""
    with pytest.raises(ConfigError, match=f"dgemma.json.*{message}") as caught:
        read_own({"sampling": sampling}, read_generation_config(RELEASED_GENERATION))
    assert len(str(caught.value)) < 600


def test_the_readme_says_what_nano_sets() -> None:
    """Figures of the README under settings that it does not name."""
    own = load_generation(bundled_models()["nano"]).own
    given = {name: getattr(own, name) for name in SAMPLING}
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, value in given.items():
        assert value is None or f"`{name}={value}`" in page, f"say {name} in README.md"
