"""Typed questions answered with probabilities by one reading, and a temperature fitted to them."""

import dgemma

llm = dgemma.load("nano")
FEELINGS = ["positive", "negative", "neutral"]


def feeling(text, **how):
    """The whole prompt is the question that nano was trained on."""
    asked = [{"role": "user", "content": f"Sentiment: {text}"}]
    return llm.decide(asked, [dgemma.Choice("feeling", "", FEELINGS)], **how)["feeling"]


answer = feeling("Mira says the lamp is great.", samples=4)
print(answer.choice, answer.probabilities, "standard error", answer.stderr)

known = [("The cup of Bork is dreadful.", 1), ("This lamp of Mira looks round.", 2),
         ("Mira has a superb drum.", 0), ("The kite from Zotra is nasty.", 1)]  # fmt: skip
shares = [[p for _, p in feeling(text).probabilities] for text, _ in known]
calibration = dgemma.Calibration.fit({"choice": (shares, [right for _, right in known])})
print(calibration, feeling("The pot of Kavi is good.", calibration=calibration).probabilities)
