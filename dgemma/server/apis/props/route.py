"""`/props`: what the server and its model are, so that a client offers nothing that is refused.

Knows the service. Knows nothing about answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from fastapi import APIRouter

from dgemma.params import RELEASED
from dgemma.server.apis.props.schema import Limits, Props
from dgemma.server.apis.render.schema import MOST_CHARACTERS
from dgemma.server.errors import PLAIN_ERRORS
from dgemma.server.exchange import TheService
from dgemma.server.service import Service

router = APIRouter(tags=["service"])

EXAMPLES = (
    "Explain in three sentences how a language model can write by diffusion.",
    "Write a Python function that merges two sorted lists, with a test.",
    "A table of the planets with their diameters and their moons.",
    "Rewrite politely: I cannot come tomorrow, and nobody told me about it before.",
)
"""Prompts for a model whose checkpoint names none."""


@router.get("/props", response_model=Props, responses=PLAIN_ERRORS)
async def props(service: TheService) -> dict[str, Any]:
    """The server and its model: sampler, control tokens, limits, abilities, a few prompts."""
    about, settings, tokenizer = service.model.about, service.settings, service.facts.tokenizer
    can, sampler, built = abilities(service), sampler_of(service), built_version()
    template = service.model.frontend.template
    return {
        "version": built, "model": service.name, "names": settings.names,
        "device": about.device, "dtype": about.dtype, "parameters": about.parameters,
        "vocabulary": tokenizer.vocab_size, "sampler": sampler, "tokens": ids(service),
        "limits": limits(service), "can": can, "page": settings.page,
        "examples": about.examples or EXAMPLES,
        "default_generation_settings": {"n_ctx": service.facts.context, "params": sampler},
        "total_slots": about.running, "model_path": service.name,
        "chat_template": "" if template is None else template.source,
        "bos_token": tokenizer.token_text(tokenizer.bos_id),
        "eos_token": tokenizer.token_text(tokenizer.eos_id),
        "modalities": {"vision": can["images"], "audio": False}, "build_info": f"dgemma {built}",
    }  # fmt: skip


def built_version() -> str:
    """The version that is installed."""
    try:
        return version("dgemma")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "unknown"


def sampler_of(service: Service) -> dict[str, Any]:
    """The sampler's settings of a request that names none."""
    found = asdict(service.model.defaults.merged(RELEASED))
    return {name: value for name, value in found.items() if value is not None}


def ids(service: Service) -> dict[str, Any]:
    """The ids with a meaning."""
    facts = service.facts
    tokenizer = facts.tokenizer
    return {
        "bos": tokenizer.bos_id, "end": facts.end_ids, "turn_end": facts.end_id,
        "fill": facts.fill_id,
        "control": [{"id": tokenizer.id_of(name), "name": name}
                    for name in tokenizer.control_names()],
    }  # fmt: skip


def limits(service: Service) -> Mapping[str, Any]:
    """What one request may ask for."""
    found = asdict(service.settings.limits) | {
        "context": service.facts.context, "canvas_length": service.facts.canvas,
        "render_characters": MOST_CHARACTERS,
    }  # fmt: skip
    return {name: found[name] for name in Limits.model_fields}


def abilities(service: Service) -> dict[str, bool]:
    """What may be asked for."""
    template, about = service.model.frontend.template, service.model.about
    inputs = frozenset[str]() if template is None else template.inputs
    return {
        "chat": template is not None, "turns": not about.single_turn, "tools": "tools" in inputs,
        "thinking": "enable_thinking" in inputs, "code": about.code,
        "images": False,  # `dgemma.text.messages` takes text alone
        "constrain": find_spec("llguidance") is not None,
    }  # fmt: skip
