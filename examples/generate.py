"""Ask the bundled model for JSON and print what the answer cost."""

import dgemma

llm = dgemma.load("nano")
question = "JSON: An order of 75 robots came from Mafit Gupir."
answer = llm.chat([{"role": "user", "content": question}], dgemma.SamplingParams(seed=0))

print(question)
print(answer.text)
print(f"seed {answer.seed}, ended with {answer.finish_reason!r}")
print(f"{answer.usage.completion_tokens} tokens in {answer.usage.steps} denoising steps")

# generate() is the same without the chat template: plain text in, its continuation out.
plain = llm.generate("JSON:", dgemma.SamplingParams(seed=0, max_tokens=8))
print(f"without a template: {plain.text!r}, {plain.finish_reason}")
