"""A client of OpenAI's chat API that keeps the time: closed and open loops of streamed requests.

httpx comes with the extra `[hub]`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from time import perf_counter

import httpx

from bench.traffic import Ask, Drafts, EventReader, TrafficSample
from dgemma.errors import InvalidRequest

Send = Callable[[Ask, float], Awaitable[TrafficSample]]
"""From a request and the clock's time at which it is due to its sample."""


@asynccontextmanager
async def opened(
    url: str, key: str | None, model: str, drafts: Drafts, timeout_s: float
) -> AsyncIterator[Send]:
    """A client of a server.

    Args:
        url: of the server, without /v1.

    Raises:
        InvalidRequest: nobody answers there, or there is no such model.
    """
    headers = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    timeout = httpx.Timeout(timeout_s)
    async with httpx.AsyncClient(
        base_url=url, headers=headers, limits=limits, timeout=timeout
    ) as client:
        await _check(client, url, model)

        async def send(ask: Ask, due: float) -> TrafficSample:
            return await _asked(client, ask.body(model, drafts), due, timeout_s)

        yield send


async def _check(client: httpx.AsyncClient, url: str, model: str) -> None:
    try:
        response = await client.get("/v1/models")
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise InvalidRequest(f"--url {url}: no server answers there ({error})") from error
    if response.status_code in (401, 403):
        raise InvalidRequest(f"--url {url} wants another API key; name its variable by --key-env")
    if response.status_code != 200:  # not every server has this route
        return
    try:
        names = [one["id"] for one in response.json()["data"]]
    except (ValueError, KeyError, TypeError):
        return
    if model not in names:
        raise InvalidRequest(f"there is no model {model!r} at {url}; known: {', '.join(names)}")


async def _asked(
    client: httpx.AsyncClient, body: dict[str, object], due: float, timeout_s: float
) -> TrafficSample:
    """Send one request and read its stream to the end."""
    sample, reader = TrafficSample(), EventReader()
    try:
        async with (
            asyncio.timeout(timeout_s),
            client.stream("POST", "/v1/chat/completions", json=body) as response,
        ):
            if response.status_code != 200:
                sample.failure = f"status {response.status_code}"
                return sample
            async for piece in response.aiter_bytes():
                now_s = perf_counter() - due
                for data in reader.feed(piece):
                    sample.read(data, now_s)
    except (TimeoutError, httpx.TimeoutException):
        sample.failure = "time-out"
    except httpx.TransportError:
        sample.failure = "connection lost"
    except (json.JSONDecodeError, AttributeError, TypeError):
        sample.failure = "malformed event"
    if sample.end_s is None and not sample.failure:
        sample.failure = "stream without an end"
    return sample


async def closed(send: Send, work: Sequence[Ask], concurrency: int) -> list[TrafficSample]:
    """So many callers, each of whom sends the next request when its last one is answered."""
    began, waiting, out = perf_counter(), iter(work), list[TrafficSample]()

    async def caller() -> None:
        for ask in waiting:
            due = perf_counter()
            sample = await send(ask, due)
            sample.due_s = due - began
            out.append(sample)

    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return out


async def open_loop(send: Send, work: Sequence[Ask], at_s: Sequence[float]) -> list[TrafficSample]:
    """Requests that come when they come, however many are still open."""
    began = perf_counter()

    async def one(ask: Ask, due_s: float) -> TrafficSample:
        await asyncio.sleep(began + due_s - perf_counter())
        sample = await send(ask, began + due_s)
        sample.due_s = due_s
        return sample

    return list(await asyncio.gather(*map(one, work, at_s)))
