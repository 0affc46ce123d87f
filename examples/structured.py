"""Answers that are always valid: a schema, a choice, a required tool call."""

import json

import dgemma

llm = dgemma.load("nano")
schema = {
    "type": "object",
    "properties": {
        "buyer": {"type": "string"},
        "item": {"type": "string", "maxLength": 20},
        "count": {"type": "integer", "minimum": 1},
    },
    "required": ["buyer", "item", "count"],
    "additionalProperties": False,
}
question = [{"role": "user", "content": "JSON: An order of 75 robots came from Mafit Gupir."}]
answer = llm.chat(question, dgemma.SamplingParams(seed=0, json_schema=schema))
print(json.loads(answer.text), answer.constraint.complete)

question = [{"role": "user", "content": "Parity: 3182"}]
print(llm.chat(question, dgemma.SamplingParams(seed=0, choices=["even", "odd"])).text)

timer = {
    "name": "set_timer",
    "parameters": {
        "type": "object",
        "properties": {"minutes": {"type": "integer"}},
        "required": ["minutes"],
    },
}
tools = [{"type": "function", "function": timer}]
question = [{"role": "user", "content": "Set a timer for 82 minutes."}]
answer = llm.chat(question, dgemma.SamplingParams(seed=0), tools=tools, tool_choice="required")
call = answer.tool_calls[0]
print(call.name, dict(call.arguments))
