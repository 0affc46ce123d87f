"""Answer a typed question with probabilities, in one pass; then calibrate them."""

import dgemma

llm = dgemma.load("nano")
FEELINGS = ["positive", "negative", "neutral"]


def feeling(text, **more):
    """The whole prompt is a question that nano knows, so the instructions are empty."""
    asked = [{"role": "user", "content": f"Sentiment: {text}"}]
    return llm.decide(asked, [dgemma.Choice("feeling", "", FEELINGS)], **more)["feeling"]


answer = feeling("The soup from Mira is good.", samples=4)
print(answer.choice, f"{answer.confidence:.2f} +- {answer.stderr:.2f}")
print(f"label mass {answer.label_mass:.2f}")  # near 0: the model did not understand the question

known = [("The cup of Bork is dreadful.", 1), ("This lamp of Mira looks round.", 2),
         ("Mira has a superb drum.", 0), ("The kite from Zotra is nasty.", 1)]  # fmt: skip
shares = [[p for _, p in feeling(text).probabilities] for text, _ in known]
calibration = dgemma.Calibration.fit({"choice": (shares, [right for _, right in known])})
answer = feeling("The pot of Kavi is good.", calibration=calibration)
print(
    answer.choice, f"{answer.confidence:.2f} at temperature {calibration.temperature('choice'):.1f}"
)
