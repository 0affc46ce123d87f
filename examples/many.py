"""A person's question is answered while the work of a script runs in the background."""

import asyncio

import dgemma

llm = dgemma.load("nano")
ORDERS = ["JSON: Kavi Pavem ordered 12 drums.", "JSON: An order of 30 lamps came from Mira Kovar."]


def request(text, seed, **more):
    """A chat request; `more` sets its owner and its priority."""
    ids = llm.chat_ids([{"role": "user", "content": text}], tools=None, thinking=False)
    params = dgemma.SamplingParams(seed=seed, max_tokens=64)
    return dgemma.Request(token_ids=tuple(ids), params=params, chat=True, **more)


async def answer(asked):
    """Read a stream to its end without blocking the event loop."""
    return [event async for event in llm.submit(asked)][-1].output


async def main():
    work = [request(order, seed, owner="script", priority=-1) for seed, order in enumerate(ORDERS)]
    waiting = [asyncio.create_task(answer(one)) for one in work]
    await asyncio.sleep(0.01)
    print("person:", (await answer(request("What is your name?", 1, owner="me"))).text)
    for output in await asyncio.gather(*waiting):
        print("script:", output.text)


asyncio.run(main())
print(llm.counters().committed_tokens, "tokens committed")
llm.close()
