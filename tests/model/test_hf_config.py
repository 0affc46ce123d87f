"""config.json and generation_config.json: both forms, strictness, and what `transformers` makes."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgemma.errors import ConfigError
from dgemma.model import hf_config
from dgemma.model.config import AttentionShape, ModelConfig
from dgemma.model.hf_config import read_config, write_config
from dgemma.model.hf_generation import (
    NEUTRAL_GENERATION,
    GenerationDefaults,
    read_generation_config,
    write_generation_config,
)
from dgemma.params import RELEASED, SamplingParams
from tests.support.released import RELEASED_GENERATION

# The sizes of spec/model.md in the released form (fields per layer type).
RELEASED_CONFIG: dict[str, Any] = {
    "architectures": ["DiffusionGemmaForBlockDiffusion"],
    "model_type": "diffusion_gemma",
    "canvas_length": 256,
    "boi_token_id": 255999,
    "eoi_token_id": 258882,
    "image_token_id": 258880,
    "video_token_id": 258884,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
    "text_config": {
        "model_type": "diffusion_gemma_text",
        "vocab_size": 262144,
        "hidden_size": 2816,
        "intermediate_size": 2112,
        "moe_intermediate_size": 704,
        "num_experts": 128,
        "top_k_experts": 8,
        "num_hidden_layers": 30,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_global_key_value_heads": 2,
        "head_dim": 256,
        "global_head_dim": 512,
        "attention_k_eq_v": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 1024,
        "max_position_embeddings": 262144,
        "final_logit_softcapping": 30.0,
        "rms_norm_eps": 1e-6,
        "use_bidirectional_attention": "vision",
        "use_cache": True,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {
                "rope_type": "proportional",
                "rope_theta": 1000000.0,
                "partial_rotary_factor": 0.25,
            },
        },
    },
    "vision_config": {"model_type": "gemma4_vision", "hidden_size": 1152},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The released config with one value changed; `path` is dotted."""
    config = copy.deepcopy(RELEASED_CONFIG)
    *parents, leaf = path.split(".")
    place = config
    for parent in parents:
        place = place[parent]
    place[leaf] = value
    return config


def through_transformers(values: dict[str, Any]) -> dict[str, Any]:
    """What `transformers` writes to config.json after it has read `values`."""
    from transformers import DiffusionGemmaConfig

    config = DiffusionGemmaConfig(**copy.deepcopy(values))
    saved: dict[str, Any] = json.loads(config.to_json_string())
    return saved


def same_sizes(one: ModelConfig, other: ModelConfig) -> bool:
    """Equal but for what `transformers` fills with defaults: the vision part, its ids."""
    bare = (dataclasses.replace(config, vision=None, extra={}) for config in (one, other))
    return next(bare) == next(bare)


def test_released_form() -> None:
    """Every size of spec/model.md arrives where the network reads it."""
    config = read_config(RELEASED_CONFIG)
    full = [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"]
    assert full == [5, 11, 17, 23, 29]
    assert config.sliding == AttentionShape(
        head_dim=256, num_key_value_heads=8, rope_theta=1e4, partial_rotary_factor=1.0
    )
    assert config.full == AttentionShape(
        head_dim=512, num_key_value_heads=2, rope_theta=1e6, partial_rotary_factor=0.25
    )
    assert (config.vocab_size, config.hidden_size, config.num_layers) == (262144, 2816, 30)
    assert (config.num_experts, config.top_k_experts, config.moe_intermediate_size) == (128, 8, 704)
    assert config.image_token_id == 258880
    assert config.suppress_ids == (255999, 258880, 258882, 258884)
    assert config.dtype == "bfloat16"
    assert config.vision == RELEASED_CONFIG["vision_config"]


@pytest.mark.oracle
def test_per_layer_form_is_the_same_config() -> None:
    """A save and load by `transformers` 5.17 changes the form of the file, never a size."""
    saved = through_transformers(RELEASED_CONFIG)
    assert "per_layer_config" in saved["text_config"]
    assert "global_head_dim" not in saved["text_config"]
    assert same_sizes(read_config(saved), read_config(RELEASED_CONFIG))


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Small configs of every shape that a file can express."""
    layers = draw(st.lists(st.sampled_from(["sliding_attention", "full_attention"]), max_size=5))
    kv_heads = st.sampled_from([1, 2, 4])
    head_dims = st.sampled_from([8, 16, 32])
    image = draw(st.sampled_from([None, 90]))
    others = draw(st.sets(st.integers(91, 99), max_size=2))
    return ModelConfig(
        vocab_size=100,
        hidden_size=draw(st.sampled_from([16, 64])),
        intermediate_size=draw(st.sampled_from([24, 48])),
        moe_intermediate_size=8,
        num_experts=4,
        top_k_experts=draw(st.integers(1, 4)),
        num_attention_heads=4,
        layer_types=(*layers, "full_attention"),
        sliding=AttentionShape(
            head_dim=draw(head_dims), num_key_value_heads=draw(kv_heads), rope_theta=1e4
        ),
        full=AttentionShape(
            head_dim=draw(head_dims),
            num_key_value_heads=draw(kv_heads),
            rope_theta=1e6,
            partial_rotary_factor=draw(st.sampled_from([0.25, 0.5, 1.0])),
        ),
        sliding_window=draw(st.integers(8, 64)),
        max_position_embeddings=4096,
        canvas_length=draw(st.sampled_from([8, 256])),
        pad_token_id=draw(st.integers(0, 3)),
        bos_token_id=draw(st.sampled_from([None, 2])),
        eos_token_ids=draw(st.sampled_from([(), (1,), (1, 5, 7)])),
        image_token_id=image,
        suppress_ids=tuple(sorted({*others, *([] if image is None else [image])})),
        dtype=draw(st.sampled_from([None, "float32", "bfloat16"])),
        vision=draw(st.sampled_from([None, {"model_type": "gemma4_vision", "hidden_size": 16}])),
    )


@pytest.mark.oracle
@settings(max_examples=60, deadline=None)
@given(configs())
def test_round_trip(config: ModelConfig) -> None:
    """write then read is the identity, and so it is with `transformers` in between.

    Catches a field that is written under a wrong name or forgotten (it would fall back to a
    default and 60 random configs would have to hold that default by chance).
    """
    written = json.loads(json.dumps(write_config(config)))
    assert read_config(written) == config
    assert same_sizes(read_config(through_transformers(written)), config)


def test_unknown_text_key_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """A misspelt key must not silently fall back to a default; strict=False is the way around."""
    config = changed("text_config.sliding_windw", 512)
    with pytest.raises(ConfigError, match=r"sliding_windw.*sliding_window.*strict=False"):
        read_config(config)
    with caplog.at_level(logging.WARNING, "dgemma"):
        assert read_config(config, strict=False) == read_config(RELEASED_CONFIG)
    assert "sliding_windw" in caplog.text


def test_unknown_top_key_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Outside text_config nothing can change a size of the network: a warning is enough."""
    with caplog.at_level(logging.WARNING, "dgemma"):
        assert read_config(changed("canvas_lenght", 8)) == read_config(RELEASED_CONFIG)
    assert "canvas_lenght" in caplog.text
    assert "canvas_length" in caplog.text


def test_unknown_null_key_is_absent(caplog: pytest.LogCaptureFixture) -> None:
    """Null means absent, also for keys that nobody knows."""
    with caplog.at_level(logging.WARNING, "dgemma"):
        read_config(changed("text_config.some_future_thing", None))
        read_config(changed("audio_config", None))
    assert not caplog.text


@pytest.mark.parametrize("key", sorted(hf_config.NEUTRAL_TEXT))
def test_neutral_keys_change_nothing(key: str, caplog: pytest.LogCaptureFixture) -> None:
    """The documented table is what is ignored, in silence, whatever the value."""
    read = read_config(changed(f"text_config.{key}", {"any": "thing"}))
    assert read == read_config(RELEASED_CONFIG)
    assert not caplog.text


@pytest.mark.parametrize("key", sorted(hf_config.FIXED_TEXT))
def test_every_fixed_key_is_checked(key: str) -> None:
    """A value that the network cannot honour is refused even with strict=False."""
    with pytest.raises(ConfigError, match=f"{key}.*not supported"):
        read_config(changed(f"text_config.{key}", "another value"), strict=False)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("text_config.attention_bias", True, "attention_bias"),
        ("text_config.hidden_activation", "silu", "hidden_activation"),
        ("text_config.use_bidirectional_attention", "all", "use_bidirectional_attention"),
        ("text_config.tie_word_embeddings", False, "tie_word_embeddings"),
        ("tie_word_embeddings", False, "tie_word_embeddings"),
        ("text_config.attention_k_eq_v", False, "attention_k_eq_v"),
        ("text_config.rope_parameters.full_attention.rope_type", "yarn", "rope_type"),
        ("text_config.rope_parameters.full_attention.factor", 2.0, "factor"),
        ("text_config.rope_parameters.full_attention.beta_fast", 32, "beta_fast"),
        ("text_config.rope_parameters.sliding_attention.partial_rotary_factor", 0.5, "partial"),
        ("text_config.rope_parameters.full_attention", None, "lacks 'full_attention'"),
        ("text_config.num_experts", None, "num_experts is missing"),
        ("text_config.hidden_size", "2816", "hidden_size must be of type int"),
        ("text_config.hidden_size", 0, "hidden_size must be positive"),
        ("text_config.hidden_size", True, "hidden_size must be of type int"),
        ("text_config.rms_norm_eps", 0.0, "rms_norm_eps must be positive"),
        ("text_config.layer_types", ["full_attention"], "make them equal"),
        ("text_config.layer_types", ["sliding_attention"] * 30, "must end with"),
        ("text_config.layer_types", ["linear_attention"] * 30, "linear_attention"),
        ("text_config.top_k_experts", 129, "top_k_experts"),
        ("text_config.eos_token_id", ["</s>"], "eos_token_id"),
        ("text_config.pad_token_id", 262144, "pad_token_id"),
        ("text_config.per_layer_config", {"30": {}}, "names no layer"),
        ("text_config.per_layer_config", {"5": {"sliding_window": 8}}, "sliding_window"),
        ("text_config.per_layer_config", {"5": {"head_dim": 64}}, "must agree"),
        ("text_config.per_layer_config", {}, "contradicts"),
        ("text_config", None, "text_config is missing"),
        ("text_config", [], "text_config must be of type dict"),
        ("model_type", "gemma4", "not a DiffusionGemma"),
        ("self_conditioning_size", 64, "self_conditioning_size"),
        ("suppress_token_ids", [262144], "suppress_token_ids"),
    ],
)
def test_what_cannot_be_honoured_is_refused(path: str, value: Any, message: str) -> None:
    """Each of these would run and give wrong numbers, or fail far from its cause."""
    with pytest.raises(ConfigError, match=message):
        read_config(changed(path, value))


def test_placeholders_outside_a_small_vocabulary_are_dropped() -> None:
    """`transformers` writes 258880 also for a model of 100 ids: suppressing it would be out of
    range, and no id of the prompt can be it."""
    config = read_config(changed("text_config.vocab_size", 1000))
    assert config.image_token_id is None
    assert config.suppress_ids == ()


@pytest.mark.oracle
def test_missing_placeholders_are_those_of_transformers() -> None:
    """A file without the keys means the same ids in `transformers`."""
    from transformers import DiffusionGemmaConfig

    values = copy.deepcopy(RELEASED_CONFIG)
    for key in hf_config.PLACEHOLDERS:
        values.pop(key, None)
    config = read_config(values)
    reference = DiffusionGemmaConfig(**copy.deepcopy(values))
    assert config.image_token_id == reference.image_token_id
    assert set(config.suppress_ids) == {
        reference.image_token_id, reference.boi_token_id, reference.eoi_token_id,
    }  # fmt: skip


@pytest.mark.oracle
def test_null_kv_heads_and_missing_layer_types() -> None:
    """Null is absent: full layers then have the sliding layers' heads, as in `transformers`."""
    values = changed("text_config.num_global_key_value_heads", None)
    values["text_config"]["num_hidden_layers"] = 8
    config = read_config(values)
    assert config.full.num_key_value_heads == 8
    assert [i for i, k in enumerate(config.layer_types) if k == "full_attention"] == [5, 7]
    assert same_sizes(read_config(through_transformers(values)), config)


def test_eos_list() -> None:
    """Both forms of end ids are in use."""
    assert read_config(changed("text_config.eos_token_id", [1, 106])).eos_token_ids == (1, 106)


def test_released_generation_config() -> None:
    """The released sampler; max_new_tokens of the file must not cut answers at 256."""
    params, eos, pad, single_turn, own, *_ = read_generation_config(RELEASED_GENERATION)
    assert params == RELEASED
    assert params.max_tokens is None
    assert (eos, pad, single_turn, own) == ((1, 106, 50), 0, False, SamplingParams())


@pytest.mark.oracle
def test_generation_config_round_trip_with_transformers() -> None:
    """What we write `transformers` reads, and what it writes we read."""
    from transformers.models.diffusion_gemma import generation_diffusion_gemma as oracle

    defaults = read_generation_config(RELEASED_GENERATION)
    theirs = oracle.DiffusionGemmaGenerationConfig(**write_generation_config(defaults))
    assert theirs.sampler_config.entropy_bound == 0.1
    assert theirs.max_denoising_steps == 48
    assert read_generation_config(json.loads(theirs.to_json_string())) == defaults


@pytest.mark.oracle
def test_silent_generation_config() -> None:
    """An empty file, or one of nulls (what `transformers` writes by default), says nothing."""
    from transformers.models.diffusion_gemma import generation_diffusion_gemma as oracle

    nulls = json.loads(oracle.DiffusionGemmaGenerationConfig().to_json_string())
    assert read_generation_config(nulls) == GenerationDefaults()
    assert read_generation_config({}) == GenerationDefaults(SamplingParams(), (), None)
    assert write_generation_config(GenerationDefaults()) == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler_config": {"_cls_name": "Other", "entropy_bound": 0.1}}, "_cls_name"),
        ({"sampler_config": {"entropy_bound": 0.1, "top_k": 4}}, "top_k"),
        ({"t_min": 0.9}, "t_min"),
        ({"max_denoising_steps": 0}, "max_steps"),
        ({"entropy_bound": "0.1", "t_max": "hot"}, "t_max"),
    ],
)
def test_generation_config_refuses(changes: dict[str, Any], message: str) -> None:
    """Another sampler or a broken value is an error of the file, not of the request."""
    with pytest.raises(ConfigError, match=message):
        read_generation_config(RELEASED_GENERATION | changes)


def test_generation_config_unknown_and_neutral_keys(caplog: pytest.LogCaptureFixture) -> None:
    """Neutral keys pass in silence, unknown ones with a warning."""
    neutral = dict.fromkeys(NEUTRAL_GENERATION, 1)
    assert read_generation_config(RELEASED_GENERATION | neutral).params == RELEASED
    assert not caplog.text
    read_generation_config(RELEASED_GENERATION | {"top_k": 64})
    assert "top_k" in caplog.text
