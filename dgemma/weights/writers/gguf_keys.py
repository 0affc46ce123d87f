"""The keys of a GGUF file of arch `diffusion-gemma`: sizes, sampler, tokenizer, chat template.

All keys are written that llama.cpp's converter writes from any form of config.json: the sizes come
from `ModelConfig`, which has them whatever the form was.
Source: llama.cpp's converter and the published files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgemma.errors import CheckpointError
from dgemma.files.read import MIB, exists, parse_json, read_text, reason
from dgemma.model.config import ModelConfig
from dgemma.model.hf_generation import GenerationDefaults
from dgemma.params import RELEASED
from dgemma.weights.gguf_config import ARCH, SUPPRESSED
from dgemma.weights.writers.gguf_container import Value

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}
"""ggml's label for a file, by the type of most of its tensors."""
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
SHOWN = frozenset({"<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>",
                   "<tool_response|>", '<|"|>'})  # fmt: skip
"""Control tokens that llama.cpp is to render, so that its reader of answers finds them."""
SCORE = -1000.0
"""Of every token: BPE has no scores, and llama.cpp wants some."""
ROLES = {"bos": "<bos>", "eos": "<eos>", "unknown": "<unk>", "padding": "<pad>", "mask": "<mask>"}
MOST_BYTES = 128 * MIB


def model_keys(
    config: ModelConfig, generation: GenerationDefaults, name: str, kind: str
) -> dict[str, Value]:
    """What is known without a tokenizer.

    Args:
        name: of the model.
        kind: of most tensors, a key of `FILE_TYPES`.
    """
    sliding = [layer == "sliding_attention" for layer in config.layer_types]
    heads = [config.attention(layer).num_key_value_heads for layer in range(config.num_layers)]
    own: dict[str, Value] = {
        "block_count": ("u32", config.num_layers),
        "context_length": ("u32", config.max_position_embeddings),
        "embedding_length": ("u32", config.hidden_size),
        "feed_forward_length": ("u32", config.intermediate_size),
        "expert_count": ("u32", config.num_experts),
        "expert_used_count": ("u32", config.top_k_experts),
        "expert_feed_forward_length": ("u32", config.moe_intermediate_size),
        "attention.head_count": ("u32", config.num_attention_heads),
        "attention.head_count_kv": ("i32[]", heads),
        "attention.key_length": ("u32", config.full.head_dim),
        "attention.value_length": ("u32", config.full.head_dim),
        "attention.key_length_swa": ("u32", config.sliding.head_dim),
        "attention.value_length_swa": ("u32", config.sliding.head_dim),
        "attention.sliding_window": ("u32", config.sliding_window),
        "attention.sliding_window_pattern": ("bool[]", sliding),
        "attention.layer_norm_rms_epsilon": ("f32", config.rms_norm_eps),
        "attention.causal": ("bool", False),
        "attention.shared_kv_layers": ("u32", 0),
        "rope.freq_base": ("f32", config.full.rope_theta),
        "rope.freq_base_swa": ("f32", config.sliding.rope_theta),
        "rope.dimension_count": ("u32", config.full.head_dim),
        "rope.dimension_count_swa": ("u32", config.sliding.head_dim),
        "final_logit_softcapping": ("f32", config.final_logit_softcapping),
        "embedding_length_per_layer_input": ("u32", 0),
    }
    sampler = generation.sampling.merged(RELEASED)
    never: dict[str, Value] = {SUPPRESSED: ("i32[]", list(config.suppress_ids))}
    return {
        "general.architecture": ("str", ARCH),
        "general.type": ("str", "model"),
        "general.name": ("str", name),
        "general.file_type": ("u32", FILE_TYPES[kind]),
        "general.quantization_version": ("u32", 2),
        **{f"{ARCH}.{key}": value for key, value in own.items()},
        **(never if config.suppress_ids else {}),
        "diffusion.canvas_length": ("u32", config.canvas_length),
        "diffusion.eb_max_steps": ("u32", sampler.max_steps),
        "diffusion.eb_t_min": ("f32", sampler.t_min),
        "diffusion.eb_t_max": ("f32", sampler.t_max),
        "diffusion.eb_entropy_bound": ("f32", sampler.entropy_bound),
        "diffusion.eb_confidence_threshold": ("f32", sampler.confidence_threshold),
        "diffusion.eb_stability_threshold": ("u32", sampler.stability_threshold),
    }


def copied_keys(keys: Mapping[str, Any]) -> dict[str, Value]:
    """Tokenizer and template of another GGUF file, as they are there."""
    words = {bool: "bool", int: "u32", float: "f32", str: "str"}
    out: dict[str, Value] = {}
    for key in keys:
        if key.startswith("tokenizer."):
            value = keys[key]
            if not isinstance(value, list):
                out[key] = words[type(value)], value
            elif value:
                word = "i32" if isinstance(value[0], int) else words[type(value[0])]
                out[key] = f"{word}[]", value
    return out


def text_keys(directory: Path, config: ModelConfig) -> dict[str, Value]:
    """Tokenizer and template of a checkpoint; its vocabulary's size alone if it has none.

    Raises:
        CheckpointError: the files cannot be read, or no BPE is in them.
    """
    file = directory / "tokenizer.json"
    if not exists(file):
        return {f"{ARCH}.vocab_size": ("u32", config.vocab_size)}
    found = _read(file)
    model, added = found.get("model"), found.get("added_tokens", [])
    if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
        raise CheckpointError(
            f"{file} holds another kind of tokenizer than BPE; take the files of the model's page"
        )
    ids = {**model.get("vocab", {}), **{token["content"]: token["id"] for token in added}}
    control = {token["content"] for token in added if token.get("special")}
    texts = {number: text for text, number in ids.items()}
    tokens = [texts.get(i, f"[PAD{i}]") for i in range(config.vocab_size)]
    kinds = [_kind(text, i in texts, text in control) for i, text in enumerate(tokens)]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    settings_file = directory / "tokenizer_config.json"
    settings = _read(settings_file) if exists(settings_file) else {}
    keys: dict[str, Value] = {
        "tokenizer.ggml.model": ("str", "gemma4"),
        "tokenizer.ggml.tokens": ("str[]", tokens),
        "tokenizer.ggml.scores": ("f32[]", [SCORE] * len(tokens)),
        "tokenizer.ggml.token_type": ("i32[]", kinds),
        "tokenizer.ggml.merges": ("str[]", merges),
        **_special_ids(settings, ids, config),
        "tokenizer.ggml.add_bos_token": ("bool", True),
        "tokenizer.ggml.add_space_prefix": ("bool", False),
    }
    template = _template(directory, settings)
    return keys | ({"tokenizer.chat_template": ("str", template)} if template else {})


def _kind(text: str, there: bool, control: bool) -> int:
    if not there:
        return UNUSED
    if control:  # `<unk>` is one, too
        return USER if text in SHOWN else CONTROL
    if text == ROLES["unknown"]:
        return UNKNOWN
    return BYTE if re.fullmatch(r"<0x[0-9A-F]{2}>", text) else NORMAL


def _special_ids(
    settings: Mapping[str, Any], ids: Mapping[str, int], config: ModelConfig
) -> dict[str, Value]:
    words = {"unknown": "unk_token", "padding": "pad_token"}
    found: dict[str, int | None] = {}
    for role, usual in ROLES.items():
        token = settings.get(words.get(role, f"{role}_token"), usual)
        text = token.get("content") if isinstance(token, dict) else token
        found[role] = ids.get(text) if isinstance(text, str) else None
    found["bos"] = config.bos_token_id
    found["eos"] = config.eos_token_ids[0] if config.eos_token_ids else found["eos"]
    found["padding"] = config.pad_token_id
    out: dict[str, Value] = {
        f"tokenizer.ggml.{role}_token_id": ("u32", number)
        for role, number in found.items()
        if number is not None
    }
    if "<turn|>" in ids:
        out["tokenizer.ggml.eot_token_id"] = ("u32", ids["<turn|>"])
    return out


def _template(directory: Path, settings: Mapping[str, Any]) -> str:
    file = directory / "chat_template.jinja"
    if exists(file):
        try:
            return read_text(file)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} cannot be read ({reason(error)})") from error
    inside = settings.get("chat_template")
    return inside if isinstance(inside, str) else ""


def _read(file: Path) -> dict[str, Any]:
    try:
        values = parse_json(read_text(file, MOST_BYTES))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({reason(error)}); restore it") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} is not a JSON object; restore it")
    return values
