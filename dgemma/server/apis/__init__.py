"""The APIs, one folder each; an app includes `ROUTERS`."""

from __future__ import annotations

from fastapi import APIRouter

from dgemma.server.apis.canvas import route as canvas
from dgemma.server.apis.chat import route as chat
from dgemma.server.apis.completions import route as completions
from dgemma.server.apis.decisions import route as decisions
from dgemma.server.apis.edit import route as edit
from dgemma.server.apis.fim import route as fim
from dgemma.server.apis.messages import route as messages
from dgemma.server.apis.meta import route as meta
from dgemma.server.apis.props import route as props
from dgemma.server.apis.render import route as render

ROUTERS: list[APIRouter] = [
    chat.router, completions.router, fim.router, edit.router, messages.router, decisions.router,
    canvas.router, meta.router, props.router, render.router,
]  # fmt: skip
