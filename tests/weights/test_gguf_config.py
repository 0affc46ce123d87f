"""The metadata of GGUF files: sizes, sampler and ids, and what cannot be honoured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dgemma.errors import CheckpointError, ConfigError
from dgemma.loading import load_model
from dgemma.params import RELEASED
from dgemma.weights.files import load_config, open_checkpoint
from tests.support.gguf_checkpoint import CONFIG, keys_of, q4_k_m, rope_freqs, tensors_of, write
from tests.support.gguf_files import Key
from tests.support.packed_files import random_state

STATE = random_state(CONFIG)
KEYS = keys_of(CONFIG)


def refusal(path: Path) -> str:
    """The one error of a file."""
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_the_config_of_the_metadata(tmp_path: Path) -> None:
    """Absent keys have the released values; the share of the rotary is in `rope_freqs`."""
    path = tmp_path / "m.gguf"
    write(path, KEYS, [*tensors_of(STATE, q4_k_m)[0], rope_freqs(CONFIG)])
    assert load_config(path) == replace(CONFIG, extra=load_config(path).extra)
    config = replace(CONFIG, full=replace(CONFIG.full, partial_rotary_factor=0.5))
    tensors, _ = tensors_of(STATE, q4_k_m)
    write(path, KEYS, [*tensors, rope_freqs(config)])
    assert load_config(path).full.partial_rotary_factor == 0.5
    left_out = ("rope.freq_base", "rope.freq_base_swa", "attention.layer_norm_rms_epsilon",
                "attention.sliding_window_pattern", "attention.causal")  # fmt: skip
    keys = {k: v for k, v in KEYS.items() if k.removeprefix("diffusion-gemma.") not in left_out}
    keys["diffusion-gemma.attention.sliding_window_pattern"] = Key("u32", 2)
    keys["diffusion-gemma.diffusion.canvas_length"] = keys.pop("diffusion.canvas_length")
    write(path, keys, tensors)
    assert load_config(path) == replace(CONFIG, extra=load_config(path).extra)
    generation = open_checkpoint(path).generation
    assert generation.sampling.merged(RELEASED) == RELEASED
    assert generation.eos_token_ids == (1,) and generation.pad_token_id == 0


def test_the_sampler_of_the_metadata(tmp_path: Path) -> None:
    """Keys of the file, and dgemma.json beside it."""
    more = {
        "eb_max_steps": Key("u32", 24), "eb_t_min": Key("f32", 0.3), "eb_t_max": Key("f32", 0.9),
        "eb_entropy_bound": Key("f32", 0.2), "eb_confidence_threshold": Key("f32", 0.01),
        "eb_stability_threshold": Key("u32", 2),
    }  # fmt: skip
    keys = KEYS | {f"diffusion.{key}": value for key, value in more.items()}
    path = write(tmp_path / "m.gguf", keys, tensors_of(STATE, q4_k_m)[0])
    found = open_checkpoint(path).generation.sampling
    assert [found.max_steps, found.t_min, found.t_max] == [24, 0.3, 0.9]
    assert [found.entropy_bound, found.confidence_threshold] == [0.2, 0.01]
    assert found.stability_threshold == 2
    (tmp_path / "dgemma.json").write_text('{"turns": "single", "sampling": {"max_steps": 7}}')
    generation = open_checkpoint(path).generation
    assert generation.single_turn and generation.sampling.max_steps == 7
    keys["diffusion.eb_t_min"] = Key("f32", -1.0)
    assert "t_min" in refusal(write(path, keys, tensors_of(STATE, q4_k_m)[0]))


BAD_KEYS: dict[str, tuple[dict[str, Key | None], str]] = {
    "size of a wrong type": ({"expert_count": Key("text", "8")}, "expert_count must be of type"),
    "no size": ({"embedding_length": None}, "embedding_length is missing"),
    "no canvas": ({"diffusion.canvas_length": None}, "diffusion.canvas_length is missing"),
    "no canvas at all": ({"diffusion.canvas_length": Key("u32", 0)}, "must be positive"),
    "unknown": ({"attention.logit_scale": Key("f32", 0.5)}, "unknown key 'attention.logit_scale'"),
    "shared keys": ({"attention.shared_kv_layers": Key("u32", 3)}, "shared_kv_layers = 3"),
    "per layer": ({"embedding_length_per_layer_input": Key("u32", 9)}, "per_layer_input = 9"),
    "values": ({"attention.value_length": Key("u32", 64)}, "differs from attention.key_length"),
    "rotary": ({"rope.dimension_count_swa": Key("u32", 32)}, "rope.dimension_count_swa differs"),
    "pattern": ({"attention.sliding_window_pattern": Key("bool[]", [True])}, "2 times true or"),
    "heads": ({"attention.head_count_kv": Key("i32[]", [2])}, "one number for each of 2 layers"),
    "heads of text": ({"attention.head_count_kv": Key("text[]", ["2", "1"])}, "read as a config"),
    "odd heads": ({"attention.head_count": Key("u32", 3)}, "cannot share"),
    "eos": (
        {"tokenizer.ggml.eos_token_id": Key("text[]", ["a"])},
        "eos_token_id must be of type int",
    ),
    "not finite": ({"rope.freq_base": Key("f32", float("inf"))}, "must be positive"),
    "huge": ({"final_logit_softcapping": Key("f64", 1e300)}, "must be positive"),
}


@pytest.mark.parametrize("keys, message", BAD_KEYS.values(), ids=BAD_KEYS.keys())
def test_keys_that_cannot_be_honoured(
    tmp_path: Path, keys: dict[str, Key | None], message: str
) -> None:
    """One error that names the key; nothing is guessed."""
    full = dict(KEYS)
    for key, value in keys.items():
        name = key if key.startswith(("diffusion.", "tokenizer.")) else f"diffusion-gemma.{key}"
        full.pop(name, None)
        if value is not None:
            full[name] = value
    said = refusal(write(tmp_path / "m.gguf", full, tensors_of(STATE, q4_k_m)[0]))
    assert message in said


@pytest.mark.fault("Q 19")
def test_a_table_of_other_rows_than_the_vocabulary(tmp_path: Path) -> None:
    """A converter wrote a table cut to an empty vocabulary: 0 rows, or fewer than there are ids."""
    keys = KEYS | {"tokenizer.ggml.tokens": Key("text[]", [f"t{i}" for i in range(120)])}
    path = write(tmp_path / "m.gguf", keys, tensors_of(STATE, q4_k_m)[0])
    with pytest.raises(CheckpointError, match=r"is \[128, 256\], the config wants \[120, 256\]"):
        load_model(path, device="cpu")
    tensors = [
        replace(one, dims=[256, 0], data=b"") if one.name == "token_embd.weight" else one
        for one in tensors_of(STATE, q4_k_m)[0]
    ]
    assert "token_embd.weight" in refusal(write(tmp_path / "m.gguf", KEYS, tensors))


def test_unknown_keys_can_be_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As for a config.json: a warning if the user says so."""
    keys = KEYS | {"diffusion-gemma.attention.logit_scale": Key("f32", 0.5)}
    path = write(tmp_path / "m.gguf", keys, tensors_of(STATE, q4_k_m)[0])
    open_checkpoint(path, strict=False)
    assert "'attention.logit_scale'" in caplog.text and "it is ignored" in caplog.text
