"""A batch with seeds: two prompts, two drafts of each. A draft alone is the same."""

import dgemma

llm = dgemma.load("nano")
questions = ("Topic: Vuval played a tune.", "JSON: An order of 75 robots came from Mafit Gupir.")
prompts = [llm.chat_ids([{"role": "user", "content": q}], None, False) for q in questions]

drafts = llm.generate(prompts, dgemma.SamplingParams(seed=7, max_tokens=64), n=2)
for number, draft in enumerate(drafts):  # the drafts of a prompt are adjacent
    print(f"{questions[number // 2]} [seed {draft.seed}] {draft.text}")

alone = llm.generate(prompts[1], dgemma.SamplingParams(seed=8, max_tokens=64))
assert alone.token_ids == drafts[3].token_ids
print("the last draft again, alone: the same tokens")
