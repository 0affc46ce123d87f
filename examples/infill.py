"""Fill gaps so that both sides fit; then rewrite one word in place."""

import dgemma

llm = dgemma.load("nano")
params = dgemma.SamplingParams(seed=1)

for before, after in (("Mira has a ", " that lays eggs."), ("Mira ate ", " apple.")):
    filled = llm.infill(before, after, params)
    hole = filled.holes[0]
    print(f"{filled.text}  ({hole.text!r}, confidence {hole.confidence:.2f})")

# A search finds the length of each hole.
hole = llm.fill(["Dear ", dgemma.Hole(), ", this is for you, Mira."], params).holes[0]
tokens = next(trial.tokens for trial in hole.lengths if trial.chosen)
print(f"{hole.text}: {tokens} tokens, the best of {len(hole.lengths)} lengths")

text = "Mira has a dog that gives milk."
start = text.index("dog")
edited = llm.edit(text, spans=[(start, start + 3)], strength=0.8, params=params)
print(text, "->", edited.text)
