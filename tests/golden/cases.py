"""The requests behind the golden tokens. To add one: a line here, then the writing command.

The prompts are made by the package's own makers of examples, but the command freezes what they made
together with the answer. So the test knows nothing of this file, nor of the makers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from dgemma import LLM
from dgemma.tasks import Example, make_example

Found = tuple[str, str, dict[str, Any]]
"""A case's name, its kind and its request."""

COUNTED = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12},
           "count": {"type": "integer"}}, "required": ["name", "count"],
           "additionalProperties": False}  # fmt: skip
HELLO = "What is your name?"
STORY = "The old man walks to the river. He has a red boat and two dogs."


def cases(name: str, llm: LLM) -> Iterator[Found]:
    """All cases of a model.

    Args:
        name: of the model.
        llm: the model itself, for its tokenizer.
    """
    if name != "nano":
        yield from by_ids(3 if name == "dense" else 7, llm.config.canvas_length)
        return
    yield from plain()
    yield from on_the_canvas(llm)
    yield from constrained()
    yield from other_modes()
    yield from shaped()
    yield from sampled(llm)
    yield from composed()


def example(task: str, index: int) -> Example:
    return make_example(task, "heldout", 7, index)


def told(task: str, index: int) -> list[dict[str, str]]:
    return [dict(message) for message in example(task, index).messages]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def ask(messages: list[dict[str, str]], seed: int, **params: Any) -> dict[str, Any]:
    """An answer in a chat."""
    return {"call": "chat", "messages": messages, "params": {"seed": seed, **params}}


def submit(messages: list[dict[str, str]], seed: int, canvas: Any, **params: Any) -> dict[str, Any]:
    """An answer with something fixed on its canvas."""
    return {"messages": messages, "params": {"seed": seed, **params}, "canvas": canvas}


def plain() -> Iterator[Found]:
    """Nothing asked but a seed."""
    for task in ("sudoku", "json", "tools", "gaps", "labels", "chat"):
        request = ask(told(task, 1), 1)
        if tools := [dict(tool) for tool in example(task, 1).tools]:
            request["tools"] = tools
        yield f"plain-{task}", "plain", request
    yield "plain-sudoku-other", "plain", ask(told("sudoku", 5), 2)
    yield "plain-thinking", "plain", ask(told("thought", 2), 3) | {"thinking": True}
    yield "plain-text", "plain", {"text": STORY, "params": {"seed": 4, "max_steps": 12}}
    yield "plain-one-token", "plain", {"ids": [2], "params": {"seed": 5, "max_steps": 8}}


def on_the_canvas(llm: LLM) -> Iterator[Found]:
    """Ids that stand on the canvas from the start, pinned or as a draft."""
    assert llm.tokenizer is not None
    write = llm.tokenizer.encode
    grid = example("sudoku", 9)
    answer = write(grid.answer)
    givens = grid.question.split("\n", 1)[1]
    assert len(answer) == len(givens), "a token a cell"
    known = [p for p, cell in enumerate(givens) if cell != "."]
    on_grid = {"ids": [t if p in known else -1 for p, t in enumerate(answer)], "pinned": known}
    yield "pinned-givens", "pinned", submit(told("sudoku", 9), 1, on_grid)
    start = write('{"buyer":')
    held = {"ids": start, "pinned": list(range(len(start)))}
    yield "pinned-start", "pinned", submit(told("json", 3), 2, held)
    middle = {"ids": [-1] * 6 + write(" and"), "pinned": list(range(6, 6 + len(write(" and"))))}
    yield "pinned-middle", "pinned", submit(told("chat", 4), 3, middle, max_steps=16)
    every = {"ids": answer, "pinned": list(range(len(answer)))}
    yield "pinned-whole-grid", "pinned", submit(told("sudoku", 9), 4, every)
    wrong = [answer[-1 - p] if p % 7 == 3 else t for p, t in enumerate(answer)]
    for number, strength in enumerate((0.0, 0.3, 0.6, 1.0)):
        draft = {"ids": wrong, "strength": strength}
        request = submit(told("sudoku", 9), 10 + number, draft)
        yield f"seeded-grid-{strength}", "seeded", request
    words = {"ids": write("My name is Bob."), "strength": 0.4}
    yield "seeded-words", "seeded", submit(user(HELLO), 20, words)
    both = {"ids": wrong, "pinned": known[::2], "strength": 0.5}
    both["ids"] = [answer[p] if p in known[::2] else t for p, t in enumerate(wrong)]
    yield "seeded-and-pinned", "seeded", submit(told("sudoku", 9), 21, both)


def constrained() -> Iterator[Found]:
    """Answers within a language, and calls of tools."""

    def kept(name: str, messages: list[dict[str, str]], seed: int, **params: Any) -> Found:
        return f"kept-{name}", "constrained", ask(messages, seed, max_tokens=60, **params)

    yield kept("schema", told("json", 6), 1, json_schema=COUNTED)
    yield kept("any-json", told("json", 7), 2, json_schema=True)
    yield kept("schema-against-its-will", user(HELLO), 3, json_schema=COUNTED)
    yield kept("regex-digits", user(HELLO), 4, regex="[0-9]{3}-[0-9]{4}")
    yield kept("regex-grid", told("sudoku", 3), 5, max_steps=16, regex="([1-9]{9}\n){8}[1-9]{9}")
    yield kept("grammar", told("chat", 5), 6, grammar='start: ("yes" | "no") " " /[a-z]{2,6}/ "."')
    yield kept(
        "table", user("Make a table."), 7, grammar="markdown-table", max_steps=16, restart_after=0
    )
    yield kept("choices", told("labels", 4), 8, choices=["music", "food", "sport", "weather"])
    yield kept(
        "choices-alike",
        user(HELLO),
        9,
        max_steps=16,
        choices=["Goodbye.", "Good morning.", "Good night."],
    )
    for number, choice in enumerate(("auto", "required")):
        tools: list[Any] = json.loads(json.dumps(example("tools", 8).tools))
        for tool in tools:
            tool["function"]["strict"] = True
            tool["function"]["parameters"]["additionalProperties"] = False
        request = ask(told("tools", 8), 10 + number, max_tokens=60)
        request |= {"tools": tools, "tool_choice": choice}
        yield f"kept-strict-tools-{choice}", "constrained", request
    request = ask(user(HELLO), 101, max_tokens=60, max_steps=12)
    request |= {"tools": json.loads(json.dumps(example("tools", 9).tools))}
    yield "kept-call-of-any", "constrained", request | {"tool_choice": "required"}


def other_modes() -> Iterator[Found]:
    """The twin, and scores."""
    for task in ("json", "sudoku", "chat"):
        request = {
            "messages": told(task, 2),
            "mode": "autoregressive",
            "params": {"max_tokens": 40},
        }
        yield f"twin-{task}", "autoregressive", request
    yield "twin-text", "autoregressive", {
        "text": "The dog", "mode": "autoregressive", "params": {"max_tokens": 24},
    }  # fmt: skip
    yield "score-text", "scored", {"text": STORY, "mode": "score"}
    yield "score-end", "scored", {"messages": told("json", 2), "mode": "score", "score_from": 20}
    yield "logprobs-none", "scored", ask(told("json", 4), 1, logprobs=0)
    yield "logprobs-top", "scored", ask(told("gaps", 3), 2, logprobs=5)
    asked = ask(told("labels", 3), 3, logprobs=2, logprob_token_ids=[300, 400, 500])
    yield "logprobs-of-ids", "scored", asked
    seen = {"read_only": True}
    yield "read-only", "scored", submit(told("labels", 6), 4, seen, logprobs=1, canvas_length=8)


def shaped() -> Iterator[Found]:
    """A prefix told early, canvases of other widths, and many of them."""
    for number, task in enumerate(("sudoku", "json", "chat")):
        request = {"messages": told(task, 11 + number), "params": {"seed": 30 + number}}
        request["params"]["stable_prefix"] = True
        yield f"prefix-{task}", "stable-prefix", request
    story = {"text": STORY, "params": {"seed": 33, "max_steps": 10, "stable_prefix": True}}
    yield "prefix-text", "stable-prefix", story
    yield "narrow-8", "narrow", ask(told("chat", 6), 40, canvas_length=8, max_steps=16)
    yield "narrow-32", "narrow", ask(told("json", 8), 102, canvas_length=32, max_steps=12)
    yield "narrow-auto", "narrow", ask(told("json", 9), 42, canvas_length="auto", max_tokens=48)
    yield "narrow-1", "narrow", ask(told("labels", 9), 43, canvas_length=1)
    endless = {"min_tokens": 60, "max_tokens": 60, "max_steps": 5}
    yield "many-chat", "several", ask(told("chat", 8), 105, canvas_length=16, **endless)
    yield "many-json", "several", ask(told("json", 10), 100, canvas_length=12, max_steps=8)
    yield "many-sudoku", "several", ask(told("sudoku", 12), 52, canvas_length=30)
    long = {"min_tokens": 150, "max_tokens": 150, "max_steps": 4}
    yield "many-whole", "several", ask(told("gaps", 5), 53, **long)


def sampled(llm: LLM) -> Iterator[Found]:
    """What steers a draw: one option a case."""
    assert llm.tokenizer is not None
    write = llm.tokenizer.encode
    options: dict[str, dict[str, Any]] = {
        "top-p": {"top_p": 0.7},
        "top-k": {"top_k": 3},
        "min-p": {"min_p": 0.2},
        "greedy": {"temperature": 0},
        "hot": {"temperature": 1.5, "max_steps": 20},
        "schedule": {"t_min": 0.1, "t_max": 1.2, "max_steps": 20},
        "entropy-bound": {"entropy_bound": 2.0},
        "thresholds": {"confidence_threshold": 0.05, "stability_threshold": 3},
        "ignore-tail": {"ignore_tail": True},
        "few-steps": {"max_steps": 3},
    }
    for number, (name, params) in enumerate(options.items()):
        yield f"option-{name}", "sampler", ask(told("sudoku", 20 + number), number, **params)
    digits = [write(digit)[0] for digit in "123456789"]
    yield "option-bias", "sampler", ask(user(HELLO), 60, logit_bias={digits[6]: 8.0}, max_tokens=9)
    only = ask(user(HELLO), 61, allowed_token_ids=digits, max_tokens=12, max_steps=16)
    yield "option-allowed", "sampler", only
    yield "option-bad-words", "sampler", ask(told("labels", 1), 62, bad_words=["music", "food"])
    yield "option-stop", "sampler", ask(told("json", 12), 63, stop=[","])
    masks = {"allowed": [digits, digits[:2]], "masks": [0, 0, 1, -1, 1]}
    yield "option-masks", "sampler", submit(told("sudoku", 31), 64, masks, max_steps=16)
    biased = {"bias": [[0, digits[0], 9.0], [1, digits[1], 9.0]]}
    yield "option-position-bias", "sampler", submit(told("sudoku", 32), 65, biased)
    opened = write("<|channel>thought\n", control=True)
    thought = {"ids": opened, "pinned": list(range(len(opened)))}
    short = {"thinking_budget": 4, "canvas_length": 12, "max_tokens": 40, "max_steps": 8}
    budget = submit(told("thought", 6), 100, thought, **short)
    yield "option-thinking-budget", "sampler", budget | {"thinking": True, "chat": True}


def composed() -> Iterator[Found]:
    """Plans that make requests of their own."""
    params = {"seed": 1, "max_steps": 8}
    yield "fill-word", "plan", {
        "call": "fill", "parts": ["Mira has a ", {"max_tokens": 3}, " dog."], "params": params,
    }  # fmt: skip
    two = ["The ", {"max_tokens": 2}, " is red and the ", {"max_tokens": 2}, " is blue."]
    yield "fill-two", "plan", {"call": "fill", "parts": two, "params": params, "search": False}
    yield "edit-span", "plan", {
        "call": "edit", "text": "Mira has a red boat.", "spans": [[11, 14]], "params": params,
        "strength": 0.8,
    }  # fmt: skip
    yield "edit-gently", "plan", {
        "call": "edit", "text": STORY, "instruction": "Make it short.", "strength": 0.3,
        "params": params,
    }  # fmt: skip


def by_ids(first: int, width: int) -> Iterator[Found]:
    """On a random network: ids in, ids out, one case of most kinds."""
    prompt = [(first * 37 + 11 * p * p) % 150 + 4 for p in range(40)]
    small = {"max_tokens": width - 2, "max_steps": 12, "temperature": 0.4}

    def on(number: int, **more: Any) -> dict[str, Any]:
        canvas = more.pop("canvas", None)
        request = {"ids": prompt[: 5 + number], "params": {"seed": number} | small | more}
        return request | ({"canvas": canvas} if canvas else {})

    half = {"ids": prompt[:8], "pinned": [0, 2, 4, 6]}
    yield "plain", "plain", on(1)
    yield "plain-long-prompt", "plain", on(first) | {"ids": prompt}
    yield "pinned", "pinned", on(first + 10, canvas=half | {"strength": 1.0})
    yield "seeded", "seeded", on(4, canvas={"ids": prompt[:width], "strength": 0.3})
    yield "twin", "autoregressive", {
        "ids": prompt[:20], "mode": "autoregressive", "params": {"max_tokens": 24},
    }  # fmt: skip
    yield "score", "scored", {"ids": prompt, "mode": "score", "score_from": 8}
    yield "logprobs", "scored", on(5, logprobs=2, logprob_token_ids=[7, 8])
    yield "prefix", "stable-prefix", on(6, stable_prefix=True)
    yield "narrow", "narrow", on(7, canvas_length=6, max_tokens=6)
    yield "several", "several", on(8, canvas_length=6, max_tokens=20)
    yield "top-k", "sampler", on(9, top_k=2)
    yield "masks", "sampler", on(10, canvas={"allowed": [prompt[:5]], "masks": [0, 0, -1, 0]})
