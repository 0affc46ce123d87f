"""Holes in a text, filled so that both sides fit; then one span of it written anew."""

import dgemma

llm = dgemma.load("nano")
params = dgemma.SamplingParams(seed=1)

filled = llm.infill("Dear ", ", this is for you, Mira.", params)
hole = filled.holes[0]
print(filled.text, f"(hole: {hole.text!r}, confidence {hole.confidence:.2f})")
print("lengths tried:", [(trial.tokens, round(trial.score, 2)) for trial in hole.lengths])

several = llm.fill(["The ", dgemma.Hole(), " of Mira gives ", dgemma.Hole(), "."], params)
print(several.text)

text = "Today Mira is here. Hello, Bork!"
start = text.index("Bork")
edited = llm.edit(text, spans=[(start, start + 4)], strength=1.0, params=params)
print(edited.text)
