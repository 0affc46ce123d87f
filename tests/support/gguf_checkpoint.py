"""Random checkpoints as GGUF files, with the numbers that their blocks mean."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor as Torch

from dgemma.model.config import ModelConfig
from dgemma.quant.gguf_blocks import FORMATS
from dgemma.quant.packed import Packed
from dgemma.weights.gguf_names import ours_to_gguf
from tests.support import packed_files
from tests.support.gguf_files import Key, Tensor, gguf

CONFIG = replace(
    packed_files.CONFIG, hidden_size=256, intermediate_size=96, moe_intermediate_size=64,
    sliding=replace(packed_files.CONFIG.sliding, head_dim=64),
    full=replace(packed_files.CONFIG.full, head_dim=128),
)  # fmt: skip
"""Blocks of 256 fit all rows but those of the down projections, as in the released model."""
NUMBERS = {"F32": 0, "F16": 1, "BF16": 30} | {form.name: n for n, form in FORMATS.items()}
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DOWN = ("mlp.down_proj", "experts.down_proj", "self_conditioning.down_proj")

Types = Callable[[str], str]
"""From one of our names to ggml's word for the type of that matrix; vectors are F32."""


def q4_k_m(name: str) -> str:
    """The mix of the published Q4_K_M: five types, by the table of the specification."""
    if name == "embed.weight" or "v_proj" in name:
        return "Q6_K"
    if any(part in name for part in DOWN):
        return "Q8_0" if ".0." in name else "Q5_0"
    return "F32" if "router" in name else "Q4_K"


def all_of(word: str) -> Types:
    """One type for all matrices but the router's; the whole rows of others where it fits none."""
    elements = 1 if word in PLAIN else FORMATS[NUMBERS[word]].elements

    def inner(name: str) -> str:
        widths = {"down_proj": 96 if "experts" not in name else 64, "o_proj": 256}
        columns = next((n for part, n in widths.items() if part in name), 256)
        return "F32" if "router" in name else word if columns % elements == 0 else "Q8_0"

    return inner


def random_blocks(word: str, shape: tuple[int, ...], generator: torch.Generator) -> Torch:
    """Random codes with scales that give numbers of about 0.1: uint8 [..., R, bytes]."""
    form = FORMATS[NUMBERS[word]]
    count = shape[-1] // form.elements
    size = (*shape[:-1], count, form.size)
    blocks = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    if word == "MXFP4":
        blocks[..., 0] = 122 + blocks[..., 0] % 3
    elif word == "NVFP4":
        blocks[..., :4] = 16 + blocks[..., :4] % 24
    else:
        scale = 2e-4 if word in ("Q4_K", "Q5_K", "Q6_K") else 0.1 / 2 ** (form.size * 4 / 32)
        scale = 1e-3 if word in ("Q8_0", "IQ4_NL") else scale
        places = {"Q4_1": 2, "Q5_1": 2, "Q4_K": 2, "Q5_K": 2}
        for at in (208,) if word == "Q6_K" else range(0, places.get(word, 0) + 1, 2):
            drawn = torch.rand((*size[:-1], 1), generator=generator) * scale + scale / 2
            blocks[..., at : at + 2] = drawn.to(torch.float16).view(torch.uint8)
    return blocks.view(*shape[:-1], count * form.size)


def numbers(word: str, blocks: Torch, columns: int, scale: Torch | None = None) -> Torch:
    """What blocks mean, in fp32."""
    parts = {"blocks": blocks} if scale is None else {"blocks": blocks, "scale": scale}
    return Packed(FORMATS[NUMBERS[word]], columns, parts).dequantise()


def raw(value: Torch) -> bytes:
    """The bytes of a tensor."""
    return value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def tensors_of(
    state: Mapping[str, Torch], types: Types, seed: int = 0
) -> tuple[list[Tensor], dict[str, Torch]]:
    """The tensors of a file, and our tensors with the numbers that they mean.

    Plain ones are the given numbers, rounded; packed ones are random blocks.
    """
    generator, tensors, meant = torch.Generator().manual_seed(seed), [], dict[str, Torch]()
    for name, value in state.items():
        word = types(name) if value.dim() > 1 else "F32"
        if word in PLAIN:
            stored = value.to(PLAIN[word])
            meant[name] = stored.float()
        else:
            stored = random_blocks(word, tuple(value.shape), generator)
            meant[name] = numbers(word, stored, value.shape[-1])
        dims = list(reversed(value.shape))
        tensors.append(Tensor(ours_to_gguf(name), dims, NUMBERS[word], raw(stored)))
    return tensors, meant


def rope_freqs(config: ModelConfig) -> Tensor:
    """Divisors of the frequencies of full layers."""
    half = config.full.head_dim // 2
    turning = int(half * config.full.partial_rotary_factor)
    values = torch.tensor([1.0] * turning + [1e30] * (half - turning))
    return Tensor("rope_freqs.weight", [half], 0, raw(values))


def keys_of(config: ModelConfig) -> dict[str, Key]:
    """The keys of a file without a vocabulary."""
    sliding = [kind == "sliding_attention" for kind in config.layer_types]
    heads = [config.attention(i).num_key_value_heads for i in range(config.num_layers)]
    own = {
        "block_count": Key("u32", config.num_layers),
        "context_length": Key("u32", config.max_position_embeddings),
        "embedding_length": Key("u32", config.hidden_size),
        "feed_forward_length": Key("u32", config.intermediate_size),
        "expert_count": Key("u32", config.num_experts),
        "expert_used_count": Key("u32", config.top_k_experts),
        "expert_feed_forward_length": Key("u32", config.moe_intermediate_size),
        "attention.head_count": Key("u32", config.num_attention_heads),
        "attention.head_count_kv": Key("i32[]", heads),
        "attention.key_length": Key("u32", config.full.head_dim),
        "attention.value_length": Key("u32", config.full.head_dim),
        "attention.key_length_swa": Key("u32", config.sliding.head_dim),
        "attention.value_length_swa": Key("u32", config.sliding.head_dim),
        "attention.sliding_window": Key("u32", config.sliding_window),
        "attention.sliding_window_pattern": Key("bool[]", sliding),
        "attention.layer_norm_rms_epsilon": Key("f32", config.rms_norm_eps),
        "attention.causal": Key("bool", False),
        "attention.shared_kv_layers": Key("u32", 0),
        "rope.freq_base": Key("f32", config.full.rope_theta),
        "rope.freq_base_swa": Key("f32", config.sliding.rope_theta),
        "rope.dimension_count": Key("u32", config.full.head_dim),
        "rope.dimension_count_swa": Key("u32", config.sliding.head_dim),
        "embedding_length_per_layer_input": Key("u32", 0),
    }
    return {
        "general.architecture": Key("text", "diffusion-gemma"),
        **{f"diffusion-gemma.{key}": value for key, value in own.items()},
        "diffusion.canvas_length": Key("u32", config.canvas_length),
    }


def vocabulary_keys(directory: Path) -> dict[str, Key]:
    """The tokenizer and the chat template of a directory."""
    model = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    vocab: dict[str, int] = model["model"]["vocab"]
    added: dict[str, Any] = {one["content"]: one["id"] for one in model["added_tokens"]}
    tokens = [word for word, _ in sorted((vocab | added).items(), key=lambda item: item[1])]
    merges = [one if isinstance(one, str) else " ".join(one) for one in model["model"]["merges"]]
    ids = {"bos": 2, "eos": 1, "unknown": 3, "padding": 0, "mask": 4}
    return {
        "tokenizer.ggml.model": Key("text", "gemma4"),
        "tokenizer.ggml.tokens": Key("text[]", tokens),
        "tokenizer.ggml.scores": Key("f32[]", [float(i) for i in range(len(tokens))]),
        "tokenizer.ggml.token_type": Key("i32[]", [3 if t in added else 1 for t in tokens]),
        "tokenizer.ggml.merges": Key("text[]", merges),
        **{f"tokenizer.ggml.{name}_token_id": Key("u32", i) for name, i in ids.items()},
        "tokenizer.chat_template": Key(
            "text", (directory / "chat_template.jinja").read_text(encoding="utf-8")
        ),
    }


def write(
    path: Path, keys: Mapping[str, Key], tensors: list[Tensor], splits: int = 1
) -> Path:  # fmt: skip
    """One file, or several; the path of the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if splits == 1:
        path.write_bytes(gguf(keys, tensors))
        return path
    paths = [path.with_name(f"{path.stem}-{i + 1:05d}-of-{splits:05d}.gguf") for i in range(splits)]
    for number, one in enumerate(paths):
        own = {
            "split.no": Key("u16", number),
            "split.count": Key("u16", splits),
            "split.tensors.count": Key("i32", len(tensors)),
        }
        # As llama.cpp may: the first has keys alone.
        share = [t for i, t in enumerate(tensors) if number == 1 + i % (splits - 1)]
        one.write_bytes(gguf({**(keys if number == 0 else {}), **own}, share))
    return paths[0]
