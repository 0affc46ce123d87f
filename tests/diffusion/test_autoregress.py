"""The twin's loop: a network that believes one token after another."""

from __future__ import annotations

import pytest
import torch

from dgemma.diffusion.autoregress import autoregress
from dgemma.diffusion.canvas import CanvasSpec, Generation
from dgemma.errors import ContextOverflow, EngineError, InvalidRequest
from dgemma.kernels.controls import Controls
from dgemma.params import REFUSED_BY_AUTOREGRESSIVE, RELEASED, SamplingParams
from tests.support.fakes import ScriptedModel
from tests.support.oracle import tiny_pair

SPEC = CanvasSpec(length=8, vocab_size=1000, context_length=10, end_ids=(1, 106), suppress_ids=(7,))
TOKENS = [20, 21, 22, 106, 23, 24, 25, 26, 27, 28]


def run(tokens: list[int], **params: int) -> tuple[ScriptedModel, Generation]:
    model = ScriptedModel(lambda token, _: ([tokens[token]], [0.0]))
    values = SamplingParams.from_dict(params)
    return model, autoregress([10, 11], values, SPEC, model.encode, model.greedy)


def test_token_by_token_until_an_end_id() -> None:
    """The end id is in no answer; each token is encoded once, the last one never."""
    model, made = run(TOKENS)
    assert made.token_ids == (20, 21, 22) and made.finish_reason == "stop"
    assert model.encoded == [[10, 11], [20], [21], [22]] and made.steps == (4,)
    assert {c.suppress_ids for c in model.controls} == {(7,)}


@pytest.mark.parametrize(
    ("max_tokens", "count", "reason"), [(2, 2, "length"), (3, 3, "length"), (4, 3, "stop")]
)
def test_max_tokens(max_tokens: int, count: int, reason: str) -> None:
    """Off by one, or a pass spent on a token that is cut."""
    model, made = run(TOKENS, max_tokens=max_tokens)
    assert (len(made.token_ids), made.finish_reason) == (count, reason)
    assert made.steps == (min(max_tokens, 4),) == (len(model.encoded),)


def test_the_context_ends_the_answer() -> None:
    """Two of ten positions are the prompt: eight tokens, and none beyond."""
    _, made = run([30] * 20)
    assert len(made.token_ids) == 8 and made.finish_reason == "length"
    with pytest.raises(ContextOverflow):
        autoregress([5] * 10, SamplingParams(), SPEC, *[lambda *_: None] * 2)  # type: ignore[list-item]


OTHERS = {
    "logit_bias": {3: 1.0}, "allowed_token_ids": [3], "logprob_token_ids": [3], "bad_words": ["x"],
    "json_schema": True, "regex": "a", "grammar": "start: /a/", "choices": ["a"],
    "structure": "list",
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_BY_AUTOREGRESSIVE)
def test_diffusion_fields_are_refused(name: str) -> None:
    """Accepted and ignored, `max_steps=1` would look as if it had been obeyed."""
    value = OTHERS.get(name) or getattr(RELEASED, name) or 3
    with pytest.raises(InvalidRequest, match=name):
        run(TOKENS, **{name: value})


def test_refused_and_used_fields_are_all_fields() -> None:
    """A new field must be put to use here or refused."""
    assert {"max_tokens", "stop", *REFUSED_BY_AUTOREGRESSIVE} == set(SamplingParams.__slots__)


def test_numbers_that_are_not_finite_end_the_request() -> None:
    """A NaN argmax is some id; `greedy` says -1."""
    with pytest.raises(EngineError, match="token 1"):
        run([20, -1])


@pytest.mark.oracle
@torch.no_grad()
def test_equals_one_long_causal_pass() -> None:
    """Greedy by the cache is greedy over the whole text at once: positions, windows, hand-over."""
    _, model = tiny_pair(3, gain=0.4)
    config = model.config
    spec = CanvasSpec(length=8, vocab_size=300, context_length=400, end_ids=())
    prompt = list(range(20, 40))
    cache = model.new_cache(1, 400)
    made = autoregress(
        prompt, SamplingParams(max_tokens=24), spec,
        lambda ids: model.encode(ids, cache), model.head.greedy,
    )  # fmt: skip
    whole = torch.tensor([prompt + list(made.token_ids)])
    logits = model.head.logits(model.encode(whole, model.new_cache(1, 400)))[0]
    assert len(prompt) > config.sliding_window
    assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == list(made.token_ids)
    assert model.head.greedy(torch.full((1, 64), torch.nan), Controls()).tolist() == [-1]
