"""The Python API: prompts, parameters, events and outputs of `dgemma.LLM`."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dgemma
from dgemma.errors import ContextOverflow, InvalidRequest, TemplateError, TokenizerError
from dgemma.llm import LLM
from dgemma.params import SamplingParams
from dgemma.types import Output, Request
from dgemma.weights.find import bundled_models
from tests.support.nano import nano

pytestmark = pytest.mark.model

QUICK = SamplingParams(seed=1, max_steps=4, max_tokens=20)
HELLO = [{"role": "user", "content": "What is your name?"}]


@pytest.fixture(scope="module")
def llm() -> LLM:
    """The bundled model."""
    return nano()


@pytest.fixture(scope="module")
def endless() -> LLM:
    """Random weights and no end ids: answers of all kinds of text, as long as they may be."""
    llm = dgemma.load("nano", device="cpu")
    llm.engine.spec = replace(llm.engine.spec, end_ids=())
    llm.model.reset_parameters(0)
    return llm


def test_prompts_and_shapes_of_results(llm: LLM) -> None:
    """A batch of one gives an output, or a list of ids is taken for a batch."""
    one = llm.generate("Hello", QUICK)
    assert isinstance(one, Output)
    ids = llm.prompt_ids("Hello")
    assert ids[0] == llm.config.bos_token_id
    assert llm.generate(ids, QUICK) == one
    batch = llm.generate(["Hello", "Two"], QUICK)
    assert [output.index for output in batch] == [0, 1] and batch[0] == one
    assert llm.generate([ids], QUICK) == [one]
    assert [replace(output, index=0) for output in llm.generate([ids, ids], QUICK)] == [one, one]


def test_drafts(endless: LLM) -> None:
    """n drafts that are all alike, or whose seeds do not repeat them."""
    drafts = endless.generate("Hello", QUICK, n=3)
    assert [draft.seed for draft in drafts] == [1, 2, 3]
    for draft in drafts:
        alone = endless.generate("Hello", replace(QUICK, seed=draft.seed))
        assert alone.token_ids == draft.token_ids
    assert len(endless.generate(["a", "b"], QUICK, n=2)) == 4
    assert len(endless.chat(HELLO, QUICK, n=2)) == 2
    free = endless.generate("Hello", replace(QUICK, seed=None), n=2)
    assert free[0].seed != free[1].seed


def test_chat_fields(llm: LLM) -> None:
    """The chat call lacks a field of the answer."""
    out = llm.chat(HELLO, QUICK, thinking=True)
    assert isinstance(out.text, str) and out.thinking is None or isinstance(out.thinking, str)
    assert isinstance(out.tool_calls, tuple) and out.usage.prompt_tokens > 0


@pytest.mark.parametrize("prompt", ["Hello", HELLO])
def test_stream(llm: LLM, prompt: Any) -> None:
    """The streamed text is not the answer's, or differs from the plain call."""
    events = list(llm.stream(prompt, replace(QUICK, max_tokens=150)))
    output = events[-1].output
    assert output is not None
    text = "".join(event.text for event in events if event.type != "frame")
    assert text == output.text
    plain = (llm.chat if prompt is HELLO else llm.generate)(prompt, replace(QUICK, max_tokens=150))
    assert plain == output
    kinds = [event.type for event in events]
    assert kinds.count("commit") == output.usage.canvases
    assert kinds.count("frame") == output.usage.steps
    for before, event in zip(events, events[1:], strict=False):
        if event.type == "commit":
            assert before.type == "frame" and before.canvas == event.canvas
    for event in events:
        fields = [getattr(event, f.name) for f in dataclasses.fields(event)]
        assert not any(isinstance(value, torch.Tensor) for value in fields)


def test_a_stream_can_be_closed(endless: LLM) -> None:
    """Closing loses the end, or the text so far."""
    stream = endless.stream("Hello", replace(QUICK, max_tokens=500))
    seen = [next(stream) for _ in range(6)]
    stream.close()
    events = seen + list(stream)
    output = events[-1].output
    assert output is not None and output.finish_reason == "cancelled"
    assert "".join(e.text for e in events if e.type != "frame") == output.text
    assert endless.engine.running == 0


def test_stop_strings(endless: LLM) -> None:
    """A stop string stays in the text, or in the ids, or another finish reason is given.

    The string is cut out of the text that the same seed gives without it.
    """
    assert endless.tokenizer is not None
    params = replace(QUICK, max_tokens=250)
    whole = endless.generate("Hello", params)
    size = endless.config.canvas_length
    first = endless.tokenizer.decode(whole.token_ids[:size])
    border = len(first)
    for low, high in ((3, 6), (border - 2, border + 2), (border + 5, border + 9)):
        stop = whole.text[low:high]
        at = whole.text.find(stop)
        out = endless.generate("Hello", replace(params, stop=[stop, "never there"]))
        assert (out.text, out.finish_reason) == (whole.text[:at], "stop")
        assert out.token_ids == whole.token_ids[: len(out.token_ids)]
        assert out.usage.completion_tokens == len(out.token_ids)
        events = list(endless.stream("Hello", replace(params, stop=[stop])))
        assert "".join(e.text for e in events if e.type != "frame") == out.text


def test_stop_costs_the_same_in_a_batch(endless: LLM) -> None:
    """A neighbour that is read first drives the engine on past this answer's stop string."""
    params = replace(QUICK, max_tokens=250)
    stop = endless.generate("Hello", params).text[2:5]
    stopped = replace(params, stop=[stop])
    alone = endless.generate("Hello", stopped)
    beside = endless.generate(["Once upon", "Hello"], stopped)[1]
    assert replace(beside, index=0) == alone and alone.usage.canvases == 1


def test_autoregress_refuses(llm: LLM) -> None:
    """A field that steers denoising is accepted and ignored."""
    out = llm.autoregress("Hello", SamplingParams(max_tokens=3))
    assert out.usage.steps <= 3
    values = {
        "max_steps": 3, "entropy_bound": 0.1, "t_min": 0.4, "t_max": 0.8, "seed": 1,
        "confidence_threshold": 0.1, "stability_threshold": 1, "ignore_tail": True,
        "stable_prefix": True, "canvas_length": 32, "restart_after": 8, "tries": 2, "race": 2,
        "verdict": True, "quality": "careful",
    }  # fmt: skip
    for name, value in values.items():
        with pytest.raises(InvalidRequest, match=name):
            llm.autoregress("Hello", SamplingParams(**{name: value}))  # type: ignore[arg-type]


BAD: dict[str, list[Any]] = {
    "max_tokens": [0, -1, 1.5, True, "3"],
    "seed": [-1, 2**64, 0.5],
    "max_steps": [0, -2, 2.0, 10_001, 10**30],
    "entropy_bound": [-0.1, float("nan"), float("inf"), "x"],
    "t_min": [0, -1.0, float("nan"), 1e-9],
    "t_max": [0.0, float("inf")],
    "confidence_threshold": [-1e-9, "x"],
    "stability_threshold": [-1, 1.0],
    "ignore_tail": [2, "yes"],
    "stable_prefix": [1, "no"],
    "restart_after": [-1, 1.5, True, "soon", 10_001],
    "tries": [0, 65, True, "4"],
    "race": [0, 17, 2.0],
    "verdict": [1, "yes"],
    "quality": ["careless", True, 1],
    "canvas_length": [0, -1, 1.5, True, "wide"],
    "stop": [[""], [3], ""],
    "thinking_budget": [-1, 1.5],
    "temperature": [-0.1, float("nan"), "x"],
    "top_p": [0, 1.1, -1, "x"],
    "top_k": [-1, 1.5, 10**30],
    "min_p": [-0.1, 1.5],
    "min_tokens": [-1, 1.5],
    "logit_bias": [{"x": 1.0}, {3: float("nan")}, {3: -1e300}, [3], {3: "much"}],
    "allowed_token_ids": [[], "3", 3, [1.5], [True]],
    "bad_words": [[""], [3], 3],
    "logprobs": [-1, 65, 1.5, True],
    "logprob_token_ids": [[], "3", [None]],
    "json_schema": [3, ["a"]],
    "regex": [3, ["a"]],
    "grammar": [3],
    "choices": [[], [""], [3], 3],
    "structure": [3, ["a"]],
}
CHANGES: dict[str, Any] = {
    "max_tokens": 3, "seed": 99, "max_steps": 1, "entropy_bound": 60.0, "t_min": 0.01,
    "t_max": 5.0, "confidence_threshold": 50.0, "stability_threshold": 0, "stop": None,
    "restart_after": 2, "tries": 2, "race": 2, "verdict": True, "canvas_length": 40,
    "min_tokens": 90, "logit_bias": {5: 50.0},
    "temperature": 3.0, "top_p": 0.01, "top_k": 1, "min_p": 0.99,
    "allowed_token_ids": [300, 301], "logprobs": 2, "logprob_token_ids": [7],
    "json_schema": True, "regex": "[a-c]{5}", "grammar": 'start: "a" | "b"',
    "choices": ["left", "right"], "structure": "table:a,b",
}  # fmt: skip


def test_every_field_is_checked() -> None:
    """A value out of range is clipped, ignored, or fails without a name."""
    assert BAD.keys() == {field.name for field in dataclasses.fields(SamplingParams)}
    for name, values in BAD.items():
        for value in values:
            with pytest.raises(InvalidRequest, match=name):
                SamplingParams(**{name: value})


def test_every_field_changes_something(endless: LLM) -> None:
    """A field that is accepted and ignored."""
    base = SamplingParams(
        seed=1, max_steps=6, max_tokens=90, entropy_bound=1.0, t_min=0.4, t_max=0.8,
        confidence_threshold=1.0, stability_threshold=9,
    )  # fmt: skip
    before = endless.generate("Hello", base, trace=True)
    for field in dataclasses.fields(SamplingParams):
        name = field.name
        if name == "ignore_tail":
            continue  # this model never ends: see `test_ignore_tail_reaches_the_sampler`
        if name == "stable_prefix":
            continue  # nothing settles here: see tests/engine/test_stable_prefix.py
        if name == "quality":
            continue  # it needs a bound that is fitted to the model
        if name == "thinking_budget":
            with pytest.raises(InvalidRequest, match=name):
                endless.generate("Hello", replace(base, thinking_budget=5))
            continue
        cut = name in ("stop", "bad_words")
        value = [before.text[4:8]] if cut else CHANGES[name]
        if name == "min_tokens":
            continue  # this model never ends: see tests/diffusion/test_control.py
        own = replace(base, confidence_threshold=50.0) if name == "stability_threshold" else base
        if name == "confidence_threshold":
            own = replace(base, stability_threshold=0, confidence_threshold=0.0)
        if name == "tries":
            own = replace(base, restart_after=1)
        plain = before if own is base else endless.generate("Hello", own, trace=True)
        changed = endless.generate("Hello", replace(own, **{name: value}), trace=True)
        assert replace(changed, seed=0) != replace(plain, seed=0), name


def test_ignore_tail_reaches_the_sampler(llm: LLM) -> None:
    """A draft that ends at once has no tail that counts, so two equal drafts are enough for it."""
    always = replace(llm.engine.spec, end_ids=tuple(range(llm.config.vocab_size)))
    engine = copy.copy(llm.engine)
    engine.spec = always
    params = SamplingParams(seed=1, max_steps=12, max_tokens=90, t_min=2.0, t_max=3.0)
    ids = tuple(llm.prompt_ids("Once upon a time"))
    steps = []
    for tail in (None, True):
        own = replace(params, ignore_tail=tail, confidence_threshold=1.0)
        output = list(engine.submit(Request(token_ids=ids, params=own)))[-1].output
        assert output is not None
        steps.append(output.usage.steps)
    assert steps[1] < steps[0]


def test_a_canvas_wider_than_the_models_is_refused(llm: LLM) -> None:
    """Positions beyond what the model was trained on."""
    with pytest.raises(InvalidRequest, match="canvas_length 97"):
        llm.generate("Hello", replace(QUICK, canvas_length=97))
    out = llm.generate("Hello", replace(QUICK, canvas_length=24), trace=True)
    assert {len(step.ids) for step in out.trace} == {24}


def test_thinking_budget_in_chat(endless: LLM) -> None:
    """The chat call does not tell the engine which ids open and close a thought."""
    out = endless.chat(HELLO, replace(QUICK, thinking_budget=0), thinking=True)
    assert out.finish_reason == "length"


def test_save_and_load(llm: LLM, tmp_path: Path) -> None:
    """What is saved is another model, or lacks the text files."""
    again = dgemma.load(dgemma.save(llm, tmp_path / "copy"), device="cpu")
    params = replace(QUICK, max_tokens=60)
    assert again.chat(HELLO, params) == llm.chat(HELLO, params)
    assert again.engine.spec == llm.engine.spec and again.defaults == llm.defaults


def test_without_a_tokenizer(llm: LLM, tmp_path: Path) -> None:
    """A checkpoint of weights alone cannot be used, or answers text with a traceback."""
    bare = shutil.copytree(bundled_models()["nano"], tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    other = dgemma.load(bare, device="cpu")
    ids = llm.prompt_ids("Hello")
    assert other.generate(ids, QUICK).token_ids == llm.generate(ids, QUICK).token_ids
    assert [event.type for event in other.stream(ids, QUICK)][-1] == "done"
    for call in (
        lambda: other.generate("Hello", QUICK),
        lambda: other.chat(HELLO, QUICK),
        lambda: other.stream("Hello", QUICK),
        lambda: other.generate(ids, replace(QUICK, stop=["x"])),
    ):
        with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
            call()


def test_without_a_template(tmp_path: Path) -> None:
    """A chat with a model that has no template is made up, or says nothing of generate()."""
    bare = shutil.copytree(bundled_models()["nano"], tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    other = dgemma.load(bare, device="cpu")
    with pytest.raises(TemplateError, match=r"generate\(\)"):
        other.chat(HELLO, QUICK)
    assert other.generate("Hello", QUICK).usage.steps > 0


@pytest.mark.parametrize(
    "prompt", ["", [], [[]], ["Hello", ""], [True], [1.5], [-1], [10**6], 5, None]
)
def test_bad_prompts(llm: LLM, prompt: Any) -> None:
    """A prompt that means nothing is answered; a batch with one bad prompt is half run."""
    with pytest.raises(InvalidRequest):
        llm.generate(prompt, QUICK)
    assert llm.engine.running == 0


@pytest.mark.parametrize("messages", [[], [{}], [{"role": "user"}], [{"role": "x", "content": ""}]])
def test_bad_messages(llm: LLM, messages: Any) -> None:
    """A conversation that means nothing is answered."""
    with pytest.raises((InvalidRequest, TemplateError)):
        llm.chat(messages, QUICK)


def test_more_prompts_than_may_wait(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large batch fails, or some of its answers are errors that nobody looks at."""
    monkeypatch.setattr(llm.engine.scheduler, "max_waiting", 2)
    quick = SamplingParams(seed=3, max_tokens=2, max_steps=1)
    outputs = llm.generate([[5, k] for k in range(3, 40)], quick)
    assert [output.index for output in outputs] == list(range(37))
    assert {output.finish_reason for output in outputs} <= {"stop", "length"}
    assert outputs[11].token_ids == llm.generate([5, 14], quick).token_ids


def test_n_and_misplaced_options(llm: LLM) -> None:
    """Options that cannot be honoured are ignored."""
    with pytest.raises(InvalidRequest, match="n must"):
        llm.generate("Hello", QUICK, n=0)
    for call in (llm.stream, llm.autoregress):
        with pytest.raises(InvalidRequest, match="thinking"):
            call("Hello", thinking=True)


def test_a_prompt_longer_than_the_context(llm: LLM) -> None:
    """A prompt that does not fit is cut silently, or its batch is half run."""
    most = llm.config.max_position_embeddings - llm.config.canvas_length
    with pytest.raises(ContextOverflow, match=f"at most {most}"):
        llm.generate([[5], [5] * (most + 1)], QUICK)
    assert llm.engine.running == 0


def test_choice_is_told(llm: LLM) -> None:
    """A device or dtype is taken without a reason."""
    assert llm.choice.device_reason and llm.choice.dtype_reason
    assert llm.model.dtype == llm.choice.dtype == torch.float32
