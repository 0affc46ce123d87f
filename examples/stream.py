"""Print a chat answer; then watch another one while it is denoised."""

import dgemma

llm = dgemma.load("nano")
answer = llm.chat([{"role": "user", "content": "What can you do?"}], dgemma.SamplingParams(seed=1))
print(answer.text)

messages = [{"role": "user", "content": "What is your name?"}]
print()
for event in llm.stream(messages, dgemma.SamplingParams(seed=1)):
    if event.type == "frame":  # one per denoising step
        sure = sum(event.accepted)
        print(f"step {event.step}: {sure}/{len(event.ids)} accepted, draft {event.text!r}")
    elif event.type == "commit":  # one per canvas
        print(f"canvas {event.canvas} committed after {event.step} steps: {event.text!r}")
    else:  # "done", always the last
        print(f"{event.output.text}  [{event.output.finish_reason}]")
