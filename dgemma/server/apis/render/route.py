"""`/ui/render`: Markdown to HTML that a page may show.

Knows the renderer. Knows nothing about answers.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from dgemma.server.apis.render.schema import Rendered, RenderRequest
from dgemma.server.body_route import BodyRoute
from dgemma.server.errors import PLAIN_ERRORS
from dgemma.server.exchange import HTTPExchange
from dgemma.server.json_reply import json_reply

router = APIRouter(tags=["service"], route_class=BodyRoute)


@router.post("/ui/render", response_model=Rendered, responses=PLAIN_ERRORS)
async def render(asked: RenderRequest, exchange: HTTPExchange) -> Response:
    """A text with Markdown, code and TeX as HTML for a page: no raw HTML, scripts, styles, images.

    A text that takes more than a few seconds is refused; show it as it stands.
    """
    work = exchange.renderer.render(exchange.owner, asked.markdown)
    html = await exchange.unless_gone(work)
    reply = await json_reply(exchange.aside, exchange.owner, {"html": html})
    reply.headers["Cache-Control"] = "no-store"
    return reply
