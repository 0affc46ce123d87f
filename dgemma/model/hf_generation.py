"""`generation_config.json` to the sampler's defaults and back.

Knows the keys of that file. Knows nothing about paths, sizes or how a canvas is drawn.
Source: `transformers` 5.17 `generation_diffusion_gemma.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from dgemma.errors import ConfigError, InvalidRequest, nearest
from dgemma.model.json_section import Section, shown
from dgemma.params import SamplingParams

SAMPLER = "EntropyBoundSamplerConfig"
PARAMS: Mapping[str, tuple[str, type]] = {
    "max_denoising_steps": ("max_steps", int),
    "t_min": ("t_min", float),
    "t_max": ("t_max", float),
    "confidence_threshold": ("confidence_threshold", float),
    "stability_threshold": ("stability_threshold", int),
}
"""Keys of the file, and the fields of `SamplingParams` that they are."""
OWN = "dgemma.json"
SAMPLING = (*(field for field, _ in PARAMS.values()), "entropy_bound", "ignore_tail",
            "restart_after", "tries", "race", "quality", "temperature", "top_p", "top_k",
            "min_p")  # fmt: skip
"""Fields of `SamplingParams` that dgemma.json may set: how a canvas is drawn. What an answer may
hold, where it ends and what is reported of it is the request's alone."""
MOST_EXAMPLES = 32
"""Prompts that dgemma.json may show."""
NEUTRAL_GENERATION = frozenset({
    "_commit_hash", "_from_model_config", "bos_token_id", "cache_config", "cache_implementation",
    "disable_compile", "max_length", "max_new_tokens", "return_dict_in_generate",
    "transformers_version",
})  # fmt: skip
"""`max_new_tokens` (256 in the release) would silently cut every answer: ignored on purpose."""


class GenerationDefaults(NamedTuple):
    """The content of generation_config.json, and of this project's own dgemma.json.

    Attributes:
        params: the checkpoint's sampler; None if the file is silent.
        eos_token_ids: ids that end an answer; empty: take `ModelConfig.eos_token_ids`.
        pad_token_id: None: take `ModelConfig.pad_token_id`.
        single_turn: the model answers a message well only if no other turns come before it.
        own: what dgemma.json says of the sampler; it goes before `params`.
        code: whether the model was trained to write code.
        examples: prompts that it answers well.
    """

    params: SamplingParams = SamplingParams()
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    single_turn: bool = False
    own: SamplingParams = SamplingParams()
    code: bool = True
    examples: tuple[str, ...] = ()

    @property
    def sampling(self) -> SamplingParams:
        """The checkpoint's own sampler, of both files."""
        return self.own.merged(self.params)


def read_generation_config(values: Mapping[str, Any]) -> GenerationDefaults:
    """The content of a parsed generation_config.json.

    Raises:
        ConfigError: another sampler than the entropy-bound one, or a value out of range.
    """
    section = Section("generation_config.json", values)
    sampler_values = section.take("sampler_config", dict)
    entropy_bound = None
    if sampler_values is not None:
        sampler = Section("generation_config.json: sampler_config", sampler_values)
        sampler.fixed({"_cls_name": (SAMPLER,)})
        entropy_bound = sampler.take("entropy_bound", float)
        sampler.close((), strict=True)
    try:
        given = {field: section.take(key, kind) for key, (field, kind) in PARAMS.items()}
        params = SamplingParams(entropy_bound=entropy_bound, **given)
    except InvalidRequest as error:
        raise ConfigError(f"generation_config.json: {error}") from error
    eos_token_ids, pad = section.ids("eos_token_id", ()), section.take("pad_token_id", int)
    defaults = GenerationDefaults(params, eos_token_ids, pad)
    section.close(NEUTRAL_GENERATION, strict=False)
    return defaults


def write_generation_config(defaults: GenerationDefaults) -> dict[str, Any]:
    """The content of generation_config.json; None and empty values are left out."""
    params = defaults.params
    values: dict[str, Any] = {
        **{key: getattr(params, field) for key, (field, _) in PARAMS.items()},
        "eos_token_id": list(defaults.eos_token_ids) or None,
        "pad_token_id": defaults.pad_token_id,
    }
    if params.entropy_bound is not None:
        bound = float(params.entropy_bound)
        values["sampler_config"] = {"_cls_name": SAMPLER, "entropy_bound": bound}
    return {key: value for key, value in values.items() if value is not None}


def read_own(values: Mapping[str, Any], defaults: GenerationDefaults) -> GenerationDefaults:
    """`defaults` with what a parsed dgemma.json adds: `"turns": "single"`, `"code": false`,
    `"examples"` and `"sampling"`.

    A file of its own, for `transformers` refuses keys of generation_config.json that it does not
    know. Released checkpoints have none.

    Raises:
        ConfigError: an unknown key or value.
    """
    section = Section(OWN, values)
    single = section.fixed({"turns": ("single",)}).get("turns") == "single"
    code, examples = section.take("code", bool, True), section.take("examples", list, [])
    sampling = section.take("sampling", dict) or {}
    section.close((), strict=True)
    assert code is not None and examples is not None
    if not all(isinstance(one, str) for one in examples) or len(examples) > MOST_EXAMPLES:
        raise ConfigError(f"{OWN}: examples must hold at most {MOST_EXAMPLES} texts; correct it")
    for name in sampling:
        if name not in SAMPLING:
            known = nearest(name, SAMPLING) or f"; it may set {', '.join(SAMPLING)}"
            raise ConfigError(f"{OWN}: sampling: unknown key {shown(name)}{known}")
    try:
        own = SamplingParams.from_dict(sampling)
        found = defaults._replace(single_turn=single, own=own, code=code, examples=tuple(examples))
        found.own.merged(found.params)  # the two files may contradict each other
    except InvalidRequest as error:
        raise ConfigError(f"{OWN}: sampling: {error}; correct it") from error
    return found


def write_own(defaults: GenerationDefaults) -> dict[str, Any]:
    """The content of dgemma.json; empty: there is nothing to say, and no such file."""
    given = {name: getattr(defaults.own, name) for name in SAMPLING}
    sampling = {name: value for name, value in given.items() if value is not None}
    values: dict[str, Any] = {"turns": "single"} if defaults.single_turn else {}
    values |= {"sampling": sampling} if sampling else {}
    values |= {} if defaults.code else {"code": False}
    return values | ({"examples": list(defaults.examples)} if defaults.examples else {})
