"""Requests and replies of the small routes: models, health, and the tokenizer over HTTP.

Knows fields. Knows nothing about HTTP.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from dgemma.server.apis.chat.schema import Messages, TemplateOptions, Tools
from dgemma.server.request_body import Body
from dgemma.server.sampling_fields import Ids


class ModelCard(BaseModel):
    """A model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int = Field(description="positions of prompt and answer together")
    canvas_length: int


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(BaseModel):
    """Whether requests are taken."""

    status: Literal["ok"]


class TokenizeRequest(Body):
    """A text, or a conversation under the chat template."""

    model: str | None = None
    content: str | None = Field(default=None, description="llama.cpp's name of the text")
    prompt: str | None = Field(default=None, description="vLLM's name of the text")
    messages: Messages | None = None
    tools: Tools | None = None
    chat_template_kwargs: TemplateOptions | None = None
    add_special: bool | None = Field(default=None, description="BOS in front; of a text alone")
    with_pieces: bool | None = Field(default=None, description="tokens as objects with their texts")


class PieceOfText(BaseModel):
    """A token with its text."""

    id: int
    piece: str


class Tokens(BaseModel):
    """The ids."""

    tokens: list[int] | list[PieceOfText] = Field(description="objects for with_pieces")
    count: int
    max_model_len: int


class DetokenizeRequest(Body):
    """Ids."""

    model: str | None = None
    tokens: Ids


class Content(BaseModel):
    """A text."""

    content: str


class TemplateRequest(Body):
    """A conversation."""

    model: str | None = None
    messages: Messages
    tools: Tools | None = None
    chat_template_kwargs: TemplateOptions | None = None


class Prompt(BaseModel):
    """A conversation as the model reads it."""

    prompt: str
