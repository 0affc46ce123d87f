"""The request and the reply of `/ui/render`.

Knows fields. Knows nothing about HTTP.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from dgemma.server.request_body import Body

MOST_CHARACTERS = 200_000
"""Characters of a text that is rendered."""


class RenderRequest(Body):
    """A text as a model writes it."""

    markdown: Annotated[str, Field(max_length=MOST_CHARACTERS)]


class Rendered(BaseModel):
    """The text for a page."""

    html: str = Field(description="tags and attributes of a fixed list; no style, no image")
