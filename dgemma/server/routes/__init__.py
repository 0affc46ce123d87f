"""The routes, one module per API; `ROUTERS` is what an app includes."""

from __future__ import annotations

from fastapi import APIRouter

from dgemma.server.routes import (
    canvas,
    chat,
    completions,
    decisions,
    edit,
    fim,
    messages,
    meta,
)

ROUTERS: list[APIRouter] = [
    chat.router, completions.router, fim.router, edit.router, messages.router, decisions.router,
    canvas.router, meta.router,
]  # fmt: skip
