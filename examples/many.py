"""A person's question answered while a script's drafts run in the background."""

import asyncio

import dgemma

llm = dgemma.load("nano")


def request(text, seed, **where):
    """A chat request; `where` says whose it is and how urgent."""
    ids = llm.chat_ids([{"role": "user", "content": text}], tools=None, thinking=False)
    params = dgemma.SamplingParams(seed=seed, max_tokens=64)
    return dgemma.Request(token_ids=tuple(ids), params=params, **where)


async def answer(asked):
    """Read a stream to its end without holding up the event loop."""
    return [event async for event in llm.submit(asked, chat=True)][-1].output


async def main():
    drafts = [request("12+34", seed, owner="script", priority=-1) for seed in range(4)]
    waiting = [asyncio.create_task(answer(draft)) for draft in drafts]
    await asyncio.sleep(0.01)
    print("person:", (await answer(request("What is your name?", 1, owner="me"))).text)
    print("script:", [output.text for output in await asyncio.gather(*waiting)])


asyncio.run(main())
counted = llm.counters()
print(f"{counted.committed_tokens} tokens in {counted.passes} passes")
print(f"{counted.prefix_hit_tokens} prompt tokens were cached")
llm.close()
