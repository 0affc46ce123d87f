"""Request bodies that the server answers: one for every path, and richer ones."""

from __future__ import annotations

from typing import Any

from tests.support.client import ASK, QUESTION

EDIT, APPLY = "/v1/edit/completions", "/v1/apply/completions"
MESSAGE = """<|recently_viewed_code_snippets|>
<|recently_viewed_code_snippet|>
code_snippet_file_path: a.py
x = 1
<|/recently_viewed_code_snippet|>
<|/recently_viewed_code_snippets|>

<|current_file_content|>
current_file_path: b.py
import a
<|code_to_edit|>
def f():
    return <|cursor|>a.x
<|/code_to_edit|>
f()
<|/current_file_content|>

<|edit_diff_history|>
-y = 1
+y = 2
<|/edit_diff_history|>
"""

APPLIED = (
    "<|original_code|>\na = 1\n<|/original_code|>\n<|update_snippet|>\na = 2\n<|/update_snippet|>"
)


def said(content: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 8, "seed": 1}


STATE = "The soup was good."
DECISIONS: dict[str, Any] = {"input": STATE, "canvas_length": 32, "questions": [
    {"type": "predicate", "name": "food", "instructions": "Is it about food?"},
    {"type": "choice", "name": "tone", "instructions": "Which tone?", "choices": [
        {"value": "glad", "description": "they liked it"}, {"value": "sad"},
    ]},
    {"type": "score", "name": "stars", "instructions": "How good?",
     "levels": [{"label": "bad"}, {"label": "fair"}, {"label": "good", "description": "very"}]},
]}  # fmt: skip
NAMED: dict[str, Any] = {"state": STATE, "canvas_length": 32, "questions": {
    "food": {"type": "noul", "instructions": "Is it about food?"},
    "tone": {"type": "choice", "instructions": "Which tone?",
             "criteria": {"glad": "they liked it", "sad": ""}},
    "stars": {"type": "score", "instructions": "How good?", "criteria": ["bad", "fair", "good"]},
}}  # fmt: skip

TOOLS = [{"name": "add", "description": "adds", "input_schema": {
    "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
}}]  # fmt: skip
USED = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "sum", "signature": ""},
        {"type": "text", "text": "I add."},
        {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 2}, "caller": None},
    ]},
    {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "4"}]},
        {"type": "text", "text": "Well?", "cache_control": {"type": "ephemeral"}},
    ]},
]  # fmt: skip

QUICK: dict[str, Any] = {"seed": 1, "max_tokens": 2,
                         "diffusion": {"max_steps": 1, "canvas_length": 32}}  # fmt: skip
HOLE = [{"text": "Dear "}, {"min_length": 1, "max_length": 1}, {"text": "."}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Hello"} | QUICK,
    "/v1/fim/completions": {"prompt": "Dear ", "suffix": "."} | QUICK,
    "/infill": {"input_prefix": "Dear ", "input_suffix": ".", "n_predict": 2, "seed": 1,
                "diffusion": {"max_steps": 1, "canvas_length": 32}},
    "/v1/edit/completions": said(MESSAGE) | QUICK,
    "/v1/apply/completions": said(APPLIED) | QUICK,
    "/v1/messages": {"messages": QUESTION} | QUICK,
    "/v1/decisions": DECISIONS,
    "/v1/systemone": NAMED,
    "/v1/canvas": {"segments": HOLE, "seed": 1, "diffusion": {"max_steps": 1}},
}  # fmt: skip
STREAMED = (
    "/v1/completions", "/v1/fim/completions", "/infill", "/v1/messages", EDIT, APPLY, "/v1/canvas",
)  # fmt: skip

ALL: dict[str, dict[str, Any]] = BODIES | {
    "/v1/chat/completions": ASK,
    "/v1/messages/count_tokens": {"messages": QUESTION},
    "/tokenize": {"content": "Hello"},
    "/detokenize": {"tokens": [300]},
    "/apply-template": {"messages": QUESTION},
    "/ui/render": {"markdown": "*a* $x$"},
}
"""A body that is answered for every path that takes one."""
