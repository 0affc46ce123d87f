"""Ask the bundled model for JSON and print the cost of the answer."""

import dgemma

llm = dgemma.load("nano")
question = "JSON: An order of 75 robots came from Mafit Gupir."
messages = [{"role": "user", "content": question}]
params = dgemma.SamplingParams(seed=0, max_tokens=64)

answer = llm.chat(messages, params)
print(answer.text)
print(f"{answer.usage.completion_tokens} tokens in {answer.usage.steps} denoising steps")
print(f"seed {answer.seed}, ended with {answer.finish_reason!r}")

# generate() has no chat template: it takes plain text or token ids, here those of the same chat.
ids = llm.chat_ids(messages, tools=None, thinking=False)
assert llm.generate(ids, params).text == answer.text
