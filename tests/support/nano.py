"""The bundled model as tests use it: a real network with early stops and end ids.

It is trained again now and then, so no test may expect a certain text of it.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from typing import Any

import torch

import dgemma
from dgemma.diffusion.autoregress import autoregress
from dgemma.diffusion.canvas import Generation
from dgemma.diffusion.constrained import ConstrainedAnswer
from dgemma.diffusion.exact import speculate
from dgemma.diffusion.generate import generate
from dgemma.diffusion.schedule import Schedule
from dgemma.engine.engine import Engine
from dgemma.llm import LLM
from dgemma.model.transformer import DiffusionGemma
from dgemma.params import SamplingParams, canvas_width
from dgemma.tasks import TASKS, make_example
from dgemma.types import CanvasControl, Request


@cache
def nano(dtype: str = "float32") -> LLM:
    """The bundled model on the CPU, loaded once."""
    return dgemma.load("nano", device="cpu", dtype=dtype)


@cache
def light() -> LLM:
    """Nano's text layer and defaults on a small random network: where any answer will do.

    A pass takes a third of nano's time.
    """
    llm = nano()
    config = replace(
        llm.config, layer_types=("sliding_attention", "full_attention"), hidden_size=32,
        intermediate_size=32, moe_intermediate_size=16, num_experts=2,
    )  # fmt: skip
    model = DiffusionGemma(config)
    model.reset_parameters(3)
    model = model.eval().requires_grad_(False)
    model.choose_kernels(llm.device, llm.choice.dtype, attention="reference")
    checkpoint = replace(llm.checkpoint, config=config)
    return LLM(model, checkpoint, llm.choice, llm.tokenizer, llm.template)


def nano_engine(*, endless: bool = False, chunk: int = 512, **options: Any) -> Engine:
    """A fresh engine on nano's network; an endless one knows no end ids: many canvases.

    Nothing is restarted unless a request asks for it; golden tokens have nano's own defaults.
    """
    llm = nano()
    return Engine(
        llm.model,
        end_ids=() if endless else llm.engine.spec.end_ids,
        defaults=llm.defaults.once(),
        chunk=chunk,
        **options,
    )


def random_request(number: int, *, most_tokens: int = 200) -> Request:
    """A cheap request: a task's prompt, or up to 300 random ids, and random parameters."""
    draw = random.Random(number)
    llm = nano()
    if draw.random() < 0.5:
        example = make_example(draw.choice(TASKS), "heldout", 1, number)
        ids = llm.chat_ids(example.messages, list(example.tools) or None, False)
    else:
        size = draw.choice((1, 2, 17, 127, 128, 129, 300))
        ids = [draw.randrange(llm.config.vocab_size) for _ in range(size)]
    params = SamplingParams(
        seed=draw.getrandbits(64),
        max_steps=draw.randint(4, 12),
        max_tokens=draw.randint(1, draw.choice((96, 96, most_tokens))),
        entropy_bound=draw.choice((None, 0.0, 1.0, 30.0)),
        t_min=draw.choice((None, 0.1)),
        t_max=draw.choice((None, 1.2)),
        confidence_threshold=draw.choice((None, 0.5)),
        stability_threshold=draw.choice((None, 0, 2)),
        ignore_tail=draw.choice((None, True)),
        canvas_length=draw.choice((None, None, 40, "auto")),
    )
    if draw.random() < 0.4:
        return Request(token_ids=tuple(ids), params=params, index=number)
    params, control = random_control(draw, params)
    return Request(token_ids=tuple(ids), params=params, canvas=control, index=number)


def random_control(
    draw: random.Random, params: SamplingParams
) -> tuple[SamplingParams, CanvasControl]:
    """Anything that may be fixed on a canvas, and anything that bars or favours ids."""
    config = nano().config
    width = canvas_width(params, config.canvas_length)
    text = [i for i in range(300, config.vocab_size) if i not in config.suppress_ids]

    def some(count: int) -> tuple[int, ...]:
        return tuple(draw.choice(text) for _ in range(count))

    allowed = tuple(some(draw.choice((1, 3, 200))) for _ in range(3))
    given = draw.randint(0, width)
    masks = tuple(draw.choice((-1, -1, 0, 1, 2)) for _ in range(draw.randint(0, width)))
    ids = [draw.choice((-1, *text[:9])) for _ in range(given)]
    pinned = [p for p in range(given) if ids[p] >= 0 and draw.random() < draw.choice((0, 0.5, 1))]
    for position in pinned:
        if position < len(masks) and masks[position] >= 0:
            ids[position] = allowed[masks[position]][0]
    control = CanvasControl(
        ids=tuple(ids), pinned=tuple(pinned), allowed=allowed, masks=masks,
        strength=draw.choice((0.0, 0.3, 0.6, 1.0)),
        bias=tuple((draw.randrange(width), draw.choice(text), 20.0) for _ in range(3)),
    )  # fmt: skip
    params = replace(
        params,
        temperature=draw.choice((None, None, 0.0, 0.5, 2.0)),
        top_p=draw.choice((None, None, 0.5)),
        top_k=draw.choice((None, None, 1, 7)),
        min_p=draw.choice((None, None, 0.2)),
        logit_bias=draw.choice((None, dict.fromkeys(some(2), 5.0))),
        min_tokens=min(draw.choice((0, 5, 120)), params.max_tokens or 120) or None,
        logprobs=draw.choice((None, 0, 3)),
        logprob_token_ids=draw.choice((None, some(2))),
    )
    return params, control


@torch.inference_mode()
def by_reference(
    engine: Engine, request: Request, constrained: ConstrainedAnswer | None = None
) -> Generation:
    """The same request by the reference loop, with the engine's network and defaults."""
    model, spec = engine.model, engine.spec
    rows = model.new_cache(1, spec.context_length)
    if request.mode == "autoregressive":
        return autoregress(
            request.token_ids, request.params, spec,
            lambda ids: model.encode(ids, rows), engine.model.head.greedy,
        )  # fmt: skip
    if request.mode == "exact":
        return speculate(
            request.token_ids, request.params, spec, lambda ids: model.encode(ids, rows),
            rows.rows[0].truncate, lambda ids, soft: model.denoise(ids, rows, soft),
            engine.model.head, Schedule.of(engine.defaults),
        )  # fmt: skip
    return generate(
        request.token_ids,
        request.params.merged(engine.defaults),
        spec,
        lambda ids: model.encode(ids, rows),
        lambda ids, soft: model.denoise(ids, rows, soft),
        engine.model.head.read,
        request.thought,
        request.canvas,
        constrained,
        engine.model.head,
        request.edits,
    )
