"""A chat of two turns, and what happens inside each answer while it is denoised."""

import dgemma

llm = dgemma.load("nano")
messages = []
for question in ("What is your name?", "Topic: Vuval played a tune."):
    messages.append({"role": "user", "content": question})
    print(f"> {question}")
    for event in llm.stream(messages, dgemma.SamplingParams(seed=1, max_steps=12)):
        if event.type == "frame":
            sure = sum(event.accepted)
            draft = event.text.partition("<turn|>")[0]
            print(f"  step {event.step}: {sure}/{len(event.ids)} accepted, draft {draft!r}")
        elif event.type == "commit":
            print(f"  canvas {event.canvas} committed: {event.text!r}")
        else:
            output = event.output
    print(output.text)
    messages.append({"role": "assistant", "content": output.text})
