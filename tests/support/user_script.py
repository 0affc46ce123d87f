"""A user's script. `make wheel` type-checks it away from the checkout, against either install.

Under `mypy --strict` an ignore without an error is an error. So each marked line proves that the
types of an output reach the user: a misspelt name there is found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import dgemma

llm = dgemma.load("nano")
params = dgemma.SamplingParams(max_tokens=32, seed=0)
messages = [{"role": "user", "content": "What is your name?"}]

answer = llm.chat(messages, params)
text: str = answer.text
steps: int = answer.usage.steps
print(text, steps, answer.finish_reason)

outputs = llm.generate(["one", "two"], params)
print([output.text for output in outputs])

for event in llm.stream(messages, params):
    if event.type == "commit":
        print(event.text)

filled = llm.infill("Mira has a ", " that gives milk.", params)
print(filled.text)

if TYPE_CHECKING:
    print(answer.txet)  # type: ignore[attr-defined]
    print(answer.usage.stpes)  # type: ignore[attr-defined]
    print(outputs[0].txet)  # type: ignore[attr-defined]
    print(event.txet)  # type: ignore[attr-defined]
    print(filled.txet)  # type: ignore[attr-defined]
