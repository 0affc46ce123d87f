"""What routes take from a request: the service, and whose request it is.

Both are coroutines: the framework runs plain functions in a pool of threads, which may be full.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from dgemma.server.service import Service


async def service_of(request: Request) -> Service:
    """The service behind the app; for `Depends`."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


async def owner_of(request: Request) -> str:
    """Whose request it is; for `Depends`."""
    owner = request.scope["dgemma.owner"]
    assert isinstance(owner, str)
    return owner


TheService = Annotated[Service, Depends(service_of)]
Owner = Annotated[str, Depends(owner_of)]
