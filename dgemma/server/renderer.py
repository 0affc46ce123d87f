"""Renders Markdown beside the event loop: in processes, or in a thread.

Knows owners and turns. Knows nothing about Markdown.
"""

from __future__ import annotations

from typing import Protocol

from dgemma.server.aside import Aside
from dgemma.server.compiler import WorkProcesses
from dgemma.server.render import render

SECONDS, MEGABYTES = 10, 512
"""For one text. The longest answers need 1 to 3 seconds, of a processor that others want too."""


class Renderer(Protocol):
    """What the service needs of a `RenderProcesses`."""

    async def render(self, owner: str, markdown: str) -> str:
        """A text as HTML; see `dgemma.server.render.render`."""
        ...

    async def close(self) -> None:
        """End what runs."""
        ...


class RenderProcesses:
    """Two processes, started when they are needed; of each owner one text at a time."""

    def __init__(
        self, module: str = "dgemma.server.render_process", seconds: int = SECONDS
    ) -> None:
        """`module`: what the processes run; `seconds`: for one text."""
        self._processes = WorkProcesses(
            {}, seconds=seconds, megabytes=MEGABYTES, module=module, work="render",
            library="Markdown library",
        )  # fmt: skip

    async def render(self, owner: str, markdown: str) -> str:
        """See `Renderer`.

        Raises:
            InvalidRequest: it takes too long, or too much memory.
            EngineError: no process can be started.
        """
        made = await self._processes.compile(owner, "markdown", markdown)
        assert made is not None
        return str(made["html"])

    async def close(self) -> None:
        """See `Renderer`."""
        await self._processes.close()


class RenderThread:
    """For people who trust each other: nothing ends a text that takes long."""

    def __init__(self, aside: Aside) -> None:
        self._aside = aside

    async def render(self, owner: str, markdown: str) -> str:
        """See `Renderer`."""
        return await self._aside.run(owner, render, markdown)

    async def close(self) -> None:
        """See `Renderer`."""
