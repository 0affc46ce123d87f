"""The metadata of a GGUF file as the configs that a directory has: sizes, sampler, ids.

Knows the keys of arch `diffusion-gemma`. Knows nothing about tensors.
Source: llama.cpp's converter and its `diffusion-gemma` loader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from dgemma.errors import CheckpointError, ConfigError, InvalidRequest
from dgemma.model.config import ModelConfig
from dgemma.model.hf_config import DEFAULT_ROPE, MODEL_TYPE, default_layer_types, read_config
from dgemma.model.hf_generation import GenerationDefaults
from dgemma.model.json_section import Section, shown
from dgemma.params import SamplingParams

ARCH = "diffusion-gemma"
SIZES = {
    "block_count": "num_hidden_layers", "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "expert_count": "num_experts", "expert_used_count": "top_k_experts",
    "expert_feed_forward_length": "moe_intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.sliding_window": "sliding_window",
    "attention.key_length": "global_head_dim", "attention.key_length_swa": "head_dim",
}  # fmt: skip
"""Keys without the arch's prefix -> those of `text_config`. All must be there."""
FIXED: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (False,), "attention.shared_kv_layers": (0,),
    "embedding_length_per_layer_input": (0,),
}  # fmt: skip
NEUTRAL = ("vocab_size",)
SAMPLER: Mapping[str, tuple[str, type]] = {
    "eb_max_steps": ("max_steps", int),
    "eb_t_min": ("t_min", float),
    "eb_t_max": ("t_max", float),
    "eb_entropy_bound": ("entropy_bound", float),
    "eb_confidence_threshold": ("confidence_threshold", float),
    "eb_stability_threshold": ("stability_threshold", int),
}
"""Keys behind `diffusion.` -> fields of `SamplingParams`. The first published files have none;
then the released sampler counts, as for any checkpoint that is silent."""
END_TOKENS = ("<turn|>", "<|tool_response>")
"""What ends an answer beside the eos: 106 and 50 of the released vocabulary."""
PLACEHOLDERS = {
    "image_token_id": "<|image|>", "boi_token_id": "<|image>", "eoi_token_id": "<image|>",
}  # fmt: skip
SUPPRESSED = "dgemma.suppress_token_ids"
"""Our own key, of files that `dgemma` writes: all ids that are never sampled."""
OTHERS = {
    "gemma4": "it holds Gemma 4, which writes token by token; take a GGUF of DiffusionGemma "
    "(its general.architecture is 'diffusion-gemma'), or run this one with llama.cpp",
    "clip": "it holds the vision part of a model (mmproj), which is not used here; give the file "
    "of the language model",
}


def check_architecture(path: Path, keys: Mapping[str, Any]) -> None:
    """
    Raises:
        CheckpointError: the file holds another model; says which and what can be done.
    """
    arch = keys.get("general.architecture")
    if arch == ARCH:
        return
    remedy = OTHERS.get(str(arch), "only 'diffusion-gemma' is run; take a GGUF of DiffusionGemma")
    raise CheckpointError(f"{path}: general.architecture is {shown(arch)}: {remedy}")


def gguf_config(
    path: Path, keys: Mapping[str, Any], rows: int | None, share: float | None, strict: bool
) -> tuple[ModelConfig, GenerationDefaults]:
    """The sizes and the sampler's defaults.

    Args:
        path: for messages.
        rows: of the table of the vocabulary; None: it is not there.
        share: of the head's width that turns on full layers; None: the released share.
        strict: an unknown key of the arch is an error; False makes it a warning.

    Raises:
        ConfigError: a key is missing, of a wrong type, or cannot be honoured.
    """
    prefix = f"{ARCH}."
    given = {k.removeprefix(prefix): keys[k] for k in keys if k.startswith(prefix)}
    given |= {k: keys[k] for k in keys if k.startswith("diffusion.")}
    own = Section(f"{path}: {ARCH}", {key: _decimal(value) for key, value in given.items()})
    tokens = keys.get("tokenizer.ggml.tokens")
    tokens = tokens if isinstance(tokens, list) else []
    text = _text_config(own, share)
    text["vocab_size"] = len(tokens) or own.take("vocab_size", int) or rows
    end_ids = _end_ids(path, keys, tokens)
    text |= {
        "bos_token_id": keys.get("tokenizer.ggml.bos_token_id", 2),
        "pad_token_id": keys.get("tokenizer.ggml.padding_token_id", 0),
        "eos_token_id": end_ids,
    }
    canvas, generation = own.size("diffusion.canvas_length"), _generation(own, end_ids)
    own.close(NEUTRAL, strict=strict)
    values = {"model_type": MODEL_TYPE, "canvas_length": canvas, "text_config": text}
    if tokens:
        values |= {key: _index(tokens, word) for key, word in PLACEHOLDERS.items()}
    if SUPPRESSED in keys:
        values |= {"boi_token_id": None, "eoi_token_id": None}
        values["suppress_token_ids"] = keys[SUPPRESSED]
    try:
        return read_config(values, strict), generation._replace(pad_token_id=text["pad_token_id"])
    except ConfigError as error:
        raise ConfigError(f"{path}, its metadata read as a config.json: {error}") from error


def _text_config(own: Section, share: float | None) -> dict[str, Any]:
    """The sizes under the names of `text_config`."""
    text: dict[str, Any] = {theirs: own.size(key) for key, theirs in SIZES.items()}
    own.fixed(FIXED)
    text["rms_norm_eps"] = own.positive("attention.layer_norm_rms_epsilon", 1e-6)
    text["final_logit_softcapping"] = own.positive("final_logit_softcapping", 30.0)
    for key in ("attention.value_length{}", "rope.dimension_count{}"):
        for word, size in (("", text["global_head_dim"]), ("_swa", text["head_dim"])):
            if own.size(key.format(word), size) != size:
                raise ConfigError(
                    f"{own.where}: {key.format(word)} differs from attention.key_length{word}, "
                    "which is not supported; take another file"
                )
    kinds = _layer_types(own, text["num_hidden_layers"])
    text["layer_types"] = kinds
    text |= _key_heads(own, kinds)
    ropes = {kind: dict(values) for kind, values in DEFAULT_ROPE.items()}
    for kind, word in (("full_attention", ""), ("sliding_attention", "_swa")):
        rope = ropes[kind]  # type: ignore[index]
        rope["rope_theta"] = own.positive(f"rope.freq_base{word}", rope["rope_theta"])
    if share is not None:
        ropes["full_attention"]["partial_rotary_factor"] = share
    return text | {"rope_parameters": ropes}


def _layer_types(own: Section, count: int) -> list[Any]:
    """The kind of each layer: listed, every n-th full, or as released."""
    key = "attention.sliding_window_pattern"
    if isinstance(own.left.get(key), int):
        every = own.size(key)
        return _kinds([i % every < every - 1 for i in range(count)])
    pattern = own.take(key, list)
    if pattern is None:
        return list(default_layer_types(count))
    if len(pattern) != count or not all(isinstance(one, bool) for one in pattern):
        raise ConfigError(
            f"{own.where}: {key} must hold {count} times true or false, got {shown(pattern)}"
        )
    return _kinds(pattern)


def _kinds(sliding: Sequence[bool]) -> list[str]:
    return ["sliding_attention" if one else "full_attention" for one in sliding]


def _key_heads(own: Section, kinds: Sequence[str]) -> dict[str, int]:
    """Heads of keys, from one number or one for each layer."""
    key = "attention.head_count_kv"
    if not isinstance(own.left.get(key), list):
        count = own.size(key)
        return {"num_key_value_heads": count, "num_global_key_value_heads": count}
    counts = own.take(key, list) or []
    found: dict[str, set[int]] = {}
    for kind, count in zip(kinds, counts, strict=False):
        found.setdefault(kind, set()).add(count if isinstance(count, int) else 0)
    alike = all(len(some) == 1 for some in found.values())
    if len(counts) != len(kinds) or not alike:
        raise ConfigError(
            f"{own.where}: {key} must hold one number for each of {len(kinds)} layers, equal for "
            f"layers of one type, got {shown(counts)}"
        )
    full = next(iter(found["full_attention"])) if "full_attention" in found else counts[0]
    sliding = next(iter(found.get("sliding_attention", {full})))
    return {"num_key_value_heads": sliding, "num_global_key_value_heads": full}


def _generation(own: Section, end_ids: list[int]) -> GenerationDefaults:
    try:
        given = {
            field: own.take(f"diffusion.{key}", kind) for key, (field, kind) in SAMPLER.items()
        }
        return GenerationDefaults(SamplingParams(**given), tuple(end_ids))
    except InvalidRequest as error:
        raise ConfigError(f"{own.where}: diffusion.eb_...: {error}") from error


def _end_ids(path: Path, keys: Mapping[str, Any], tokens: Sequence[str]) -> list[int]:
    """The ids that end an answer."""
    given = {key: keys.get(f"tokenizer.ggml.{key}") for key in ("eos_token_id", "eot_token_id")}
    own = Section(f"{path}: tokenizer.ggml", given)
    named = [own.take("eos_token_id", int, 1), *(_index(tokens, word) for word in END_TOKENS)]
    named.append(own.take("eot_token_id", int))
    return [i for i in dict.fromkeys(named) if i is not None]


def _index(tokens: Sequence[str], word: str) -> int | None:
    return tokens.index(word) if word in tokens else None


def _decimal(value: Any) -> Any:
    """A number as it was written before it was rounded to 32 bits: 1e-6, not 9.99999997e-7."""
    with numpy.errstate(over="ignore"):
        return float(str(numpy.float32(value))) if isinstance(value, float) else value
