"""`config.json` to a `ModelConfig` and back.

Reads both forms in use: fields per layer type (`global_head_dim`, `num_global_key_value_heads`,
`attention_k_eq_v`: the released file) and the `per_layer_config` that `transformers` 5.17 writes.
Every key is either read, or named in one of the tables below as fixed (only one value can be
honoured), neutral (cannot change a result) or carried (kept for writing); any other key is
unknown. Null means that the thing is absent.

Knows nothing about paths, weights or torch. `hf_generation.py` has generation_config.json.
Source: `transformers` 5.17 `configuration_diffusion_gemma.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dgemma.errors import ConfigError
from dgemma.model.config import AttentionShape, LayerType, ModelConfig
from dgemma.model.json_section import Section, shown

MODEL_TYPE = "diffusion_gemma"
ARCHITECTURE = "DiffusionGemmaForBlockDiffusion"
FULL_EVERY = 6
LAYER_KEY = re.compile("[0-9]{1,9}")
MOST_LAYERS = 1024
MOST_EXPERTS = 4096
MOST_STACKS = 1 << 17
"""Experts of all layers together."""

DEFAULT_GLOBAL_HEAD_DIM = 512
DEFAULT_ROPE: Mapping[LayerType, Mapping[str, Any]] = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {
        "rope_type": "proportional",
        "rope_theta": 1e6,
        "partial_rotary_factor": 0.25,
    },
}

# Sizes with the same name in `ModelConfig`, and the value of a missing key, if it may be missing.
SIZES: Mapping[str, int | None] = {
    "vocab_size": None, "hidden_size": None, "intermediate_size": None,
    "moe_intermediate_size": None, "num_experts": None, "top_k_experts": None,
    "num_attention_heads": None, "sliding_window": 512, "max_position_embeddings": 131_072,
}  # fmt: skip

# key -> the values that this network honours; any other value is an error, strict or not.
FIXED_TEXT: Mapping[str, tuple[Any, ...]] = {
    "model_type": ("diffusion_gemma_text",),
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (False,),
    "attention_dropout": (0.0,),
    "attention_k_eq_v": (True,),
    "tie_word_embeddings": (True,),
    "is_encoder_decoder": (False,),
    # Gemma 4 features which this family lacks, or always has.
    "enable_moe_block": (True,),
    "hidden_size_per_layer_input": (0,),
    "num_kv_shared_layers": (0,),
    "use_double_wide_mlp": (False,),
}
FIXED_TOP: Mapping[str, tuple[Any, ...]] = {
    "model_type": (MODEL_TYPE,),
    "tie_word_embeddings": (True,),
}

# Keys that cannot change a result, whatever they hold.
NEUTRAL_TEXT = frozenset({
    "_attn_implementation", "_name_or_path", "architectures", "chunk_size_feed_forward", "dtype",
    "id2label", "initializer_range", "label2id", "output_attentions", "output_hidden_states",
    "problem_type", "return_dict", "torch_dtype", "transformers_version", "use_cache",
    "vocab_size_per_layer_input",
})  # fmt: skip
NEUTRAL_TOP = NEUTRAL_TEXT | {"is_encoder_decoder", "vision_soft_tokens_per_image"}

# Ids that hold the place of an image, a video or sound: never sampled, never noise. The
# value is the one that `transformers` takes when the key is missing.
PLACEHOLDERS: Mapping[str, int | None] = {
    "image_token_id": 258_880, "boi_token_id": 255_999, "eoi_token_id": 258_882,
    "video_token_id": None, "audio_token_id": None, "boa_token_id": None,
    "eoa_token_id": None, "eoa_token_index": None,
}  # fmt: skip
CARRIED_TOP = frozenset({*PLACEHOLDERS, "quantization_config", "quantization"}) - {"image_token_id"}
CARRIED_TEXT: Mapping[str, tuple[Any, ...]] = {"use_bidirectional_attention": ("vision",)}


def read_config(values: Mapping[str, Any], strict: bool = True) -> ModelConfig:
    """The sizes in a parsed config.json, in either form.

    Args:
        values: the JSON object.
        strict: an unknown non-null key in `text_config` is an error; False makes it a warning, as
            it always is elsewhere.

    Raises:
        ConfigError: no DiffusionGemma config, a size missing or of a wrong type, an unknown key,
            or a value that this network cannot honour.
    """
    top = Section("config.json", values)
    if values.get("model_type") != MODEL_TYPE:
        raise ConfigError(
            f"config.json: model_type is {shown(values.get('model_type'))}, not {MODEL_TYPE!r}; "
            "this is not a DiffusionGemma checkpoint"
        )
    text_values = top.take("text_config", dict)
    if text_values is None:
        raise ConfigError("config.json: text_config is missing; the file is not a complete config")
    text = Section("config.json: text_config", text_values)
    top.fixed(FIXED_TOP)
    text.fixed(FIXED_TEXT)
    extra: dict[str, Any] = dict(text.fixed(CARRIED_TEXT))
    extra = {"text_config": extra} if extra else {}
    sizes = {name: text.size(name, default) for name, default in SIZES.items()}
    vocab_size, inner = sizes["vocab_size"], sizes["intermediate_size"]
    image_token_id, suppress_ids = _placeholders(top, vocab_size, extra)
    layer_types = _layer_types(text)
    if sizes["num_experts"] > MOST_EXPERTS or sizes["num_experts"] * len(layer_types) > MOST_STACKS:
        raise ConfigError(
            f"{text.where}: {sizes['num_experts']} num_experts in {len(layer_types)} layers are "
            f"more than {MOST_EXPERTS} each or {MOST_STACKS:,} in all; correct them"
        )
    sliding, full = _attention(text, layer_types)
    if top.size("self_conditioning_size", inner) != inner:
        raise ConfigError("config.json: self_conditioning_size must equal intermediate_size")
    pad_token_id = text.take("pad_token_id", int) or 0
    if not 0 <= pad_token_id < vocab_size:
        raise ConfigError(f"{text.where}: pad_token_id {pad_token_id} is beyond the vocabulary")
    bos_absent = "bos_token_id" in text.left and text.left["bos_token_id"] is None
    canvas_length = top.size("canvas_length", 256)
    if canvas_length >= sizes["max_position_embeddings"]:
        raise ConfigError(
            f"config.json: canvas_length {canvas_length} leaves no room for a prompt in "
            f"max_position_embeddings {sizes['max_position_embeddings']} of text_config; "
            "correct one of them"
        )
    config = ModelConfig(
        **sizes,
        layer_types=layer_types,
        sliding=sliding,
        full=full,
        canvas_length=canvas_length,
        rms_norm_eps=text.positive("rms_norm_eps", 1e-6),
        final_logit_softcapping=text.positive("final_logit_softcapping", 30.0),
        pad_token_id=pad_token_id,
        bos_token_id=text.take("bos_token_id", int, None if bos_absent else 2),
        eos_token_ids=text.ids("eos_token_id", (1,)),
        image_token_id=image_token_id,
        suppress_ids=suppress_ids,
        dtype=top.take("dtype", str) or top.take("torch_dtype", str),
        vision=top.take("vision_config", dict),
        extra=extra,
    )
    text.close(NEUTRAL_TEXT, strict=strict)
    top.close(NEUTRAL_TOP, strict=False)
    return config


def _placeholders(
    top: Section, vocab_size: int, extra: dict[str, Any]
) -> tuple[int | None, tuple[int, ...]]:
    """The image id and all ids never to be sampled; what must be written back goes to `extra`."""
    found: dict[str, int] = {}
    for key, default in PLACEHOLDERS.items():
        given = key in top.left
        token_id = top.take(key, int, None if given else default)
        if given and key in CARRIED_TOP:
            extra[key] = token_id
        if token_id is not None and 0 <= token_id < vocab_size:
            found[key] = token_id
    others = top.ids("suppress_token_ids", ())
    if any(i >= vocab_size for i in others):
        raise ConfigError(f"config.json: suppress_token_ids reaches beyond {vocab_size} ids")
    for key in ("quantization_config", "quantization"):
        value = top.take(key, dict)
        if value is not None:
            extra[key] = value
    return found.get("image_token_id"), tuple(sorted({*found.values(), *others}))


def default_layer_types(count: int) -> list[LayerType]:
    """Five sliding layers, then a full one, and so on; the last is full."""
    full = {*range(FULL_EVERY - 1, count, FULL_EVERY), count - 1}
    return ["full_attention" if i in full else "sliding_attention" for i in range(count)]


def _layer_types(text: Section) -> tuple[LayerType, ...]:
    """The kind of every layer; without a list every sixth layer and the last are full."""
    count = text.size("num_hidden_layers", most=MOST_LAYERS)
    given = text.take("layer_types", list)
    if given is None:
        given = default_layer_types(count)
    unknown = [kind for kind in given if kind not in tuple(DEFAULT_ROPE)]
    if unknown:
        raise ConfigError(
            f"{text.where}: layer_types holds {shown(unknown[0])}; only 'sliding_attention' and "
            "'full_attention' are supported"
        )
    if len(given) != count:
        raise ConfigError(
            f"{text.where}: {len(given)} layer_types for num_hidden_layers {count}; make them equal"
        )
    return tuple(given)


def _attention(text: Section, layer_types: tuple[LayerType, ...]) -> tuple[AttentionShape, ...]:
    """The shapes of sliding and of full layers, from either form of the config."""
    base = {
        "head_dim": text.size("head_dim"),
        "num_key_value_heads": text.size("num_key_value_heads"),
    }
    global_keys = {
        "head_dim": "global_head_dim",
        "num_key_value_heads": "num_global_key_value_heads",
    }
    given = {key: text.take(name, int) for key, name in global_keys.items()}
    per_layer = text.take("per_layer_config", dict)
    shapes: dict[str, dict[str, int]] = {"sliding_attention": base}
    if per_layer is None:
        full = {**base, "head_dim": DEFAULT_GLOBAL_HEAD_DIM}
        shapes["full_attention"] = full | {k: v for k, v in given.items() if v is not None}
    else:
        shapes |= _per_layer_shapes(text.where, per_layer, base, layer_types)
        for key, value in given.items():
            if value not in (None, shapes["full_attention"][key]):
                raise ConfigError(
                    f"{text.where}: {global_keys[key]} {value} contradicts per_layer_config; "
                    "remove one of them"
                )
    ropes = text.take("rope_parameters", dict) or DEFAULT_ROPE
    return tuple(
        _shape(text.where, kind, shapes[kind], ropes, layer_types) for kind in DEFAULT_ROPE
    )


def _per_layer_shapes(
    where: str,
    overrides: Mapping[str, Any],
    base: Mapping[str, int],
    layer_types: tuple[LayerType, ...],
) -> dict[str, dict[str, int]]:
    """Head sizes of each layer type; layers of one type must agree."""
    by_layer = [dict(base) for _ in layer_types]
    for index, values in overrides.items():
        place = f"{where}: per_layer_config[{shown(index)}]"
        if not LAYER_KEY.fullmatch(index) or int(index) >= len(layer_types):
            raise ConfigError(f"{place} names no layer; there are {len(layer_types)}")
        layer = Section(place, values)
        by_layer[int(index)] = {key: layer.size(key, base[key]) for key in base}
        # A key that we do not read here would change that layer alone: never ignored.
        layer.left = {k: v for k, v in layer.left.items() if v not in (None, [])}
        if layer.left:
            raise ConfigError(f"{place}: {shown(next(iter(layer.left)))} is not supported")
    shapes: dict[str, dict[str, int]] = {}
    for number, (kind, shape) in enumerate(zip(layer_types, by_layer, strict=True)):
        if shapes.setdefault(kind, shape) != shape:
            raise ConfigError(
                f"{where}: per_layer_config gives layer {number} other head sizes than the "
                f"{kind} layers before it; layers of one type must agree"
            )
    return shapes


def _shape(
    where: str,
    kind: LayerType,
    sizes: Mapping[str, int],
    ropes: Mapping[Any, Any],
    layer_types: tuple[LayerType, ...],
) -> AttentionShape:
    """The shape of a layer type: its head sizes and its rotary parameters."""
    values = ropes.get(kind)
    if values is None:
        if kind in layer_types:
            raise ConfigError(f"{where}: rope_parameters lacks {kind!r}")
        values = DEFAULT_ROPE[kind]
    rope = Section(f"{where}: rope_parameters[{kind!r}]", values)
    rope_type = rope.fixed({"rope_type": ("default", "proportional")}).get("rope_type", "default")
    rope.fixed({"factor": (1.0,)})
    theta = rope.positive("rope_theta")
    share = rope.positive("partial_rotary_factor", 1.0)
    if share > 1 or (rope_type == "default" and share != 1):
        raise ConfigError(
            f"{rope.where}: partial_rotary_factor {share} is not supported with rope_type "
            f"{rope_type!r}; 'proportional' takes one above 0 and up to 1"
        )
    rope.close((), strict=True)
    return AttentionShape(
        head_dim=sizes["head_dim"],
        num_key_value_heads=sizes["num_key_value_heads"],
        rope_theta=theta,
        partial_rotary_factor=share,
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The content of config.json, with fields per layer type as in the release.

    `read_config` gives the same `ModelConfig` back; `transformers` 5.17 loads it. Ids in
    `suppress_ids` that no placeholder key explains go to an own key, `suppress_token_ids`.
    """
    carried = {k: v for k, v in config.extra.items() if k != "text_config"}
    values: dict[str, Any] = {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "canvas_length": config.canvas_length,
        "tie_word_embeddings": True,
        "text_config": _write_text(config),
        "vision_config": None if config.vision is None else dict(config.vision),
        **carried,
    }
    if config.dtype is not None:
        values["dtype"] = config.dtype
    image_default = PLACEHOLDERS["image_token_id"] or 0
    if config.image_token_id is not None or image_default < config.vocab_size:
        values["image_token_id"] = config.image_token_id
    named = {values.get(key, default) for key, default in PLACEHOLDERS.items()}
    others = [i for i in config.suppress_ids if i not in named]
    if others:
        values["suppress_token_ids"] = others
    return values


def _write_text(config: ModelConfig) -> dict[str, Any]:
    ropes = {}
    for kind, shape in (("sliding_attention", config.sliding), ("full_attention", config.full)):
        ropes[kind] = {"rope_type": "default", "rope_theta": shape.rope_theta}
        if shape.partial_rotary_factor != 1.0:
            ropes[kind] |= {
                "rope_type": "proportional",
                "partial_rotary_factor": shape.partial_rotary_factor,
            }
    eos = list(config.eos_token_ids)
    others = ("rms_norm_eps", "final_logit_softcapping", "pad_token_id", "bos_token_id")
    return {
        **{name: getattr(config, name) for name in (*SIZES, *others)},
        **config.extra.get("text_config", {}),
        "model_type": FIXED_TEXT["model_type"][0],
        "num_hidden_layers": config.num_layers,
        "layer_types": list(config.layer_types),
        "head_dim": config.sliding.head_dim,
        "num_key_value_heads": config.sliding.num_key_value_heads,
        "global_head_dim": config.full.head_dim,
        "num_global_key_value_heads": config.full.num_key_value_heads,
        "attention_k_eq_v": True,
        "attention_bias": False,
        "hidden_activation": FIXED_TEXT["hidden_activation"][0],
        "rope_parameters": ropes,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "tie_word_embeddings": True,
    }
