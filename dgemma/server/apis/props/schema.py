"""The reply of `/props`: what the server and its model are.

Knows fields. Knows nothing about HTTP.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class Token(BaseModel):
    """A control token."""

    id: int
    name: str


class Ids(BaseModel):
    """Ids with a meaning."""

    bos: int | None = Field(description="begins a plain prompt")
    end: list[int] = Field(description="end an answer")
    turn_end: int = Field(description="ends the model's turn")
    fill: int = Field(description="follows the end on a canvas")
    control: list[Token] = Field(description="all control tokens; text never becomes one")


class Limits(BaseModel):
    """What one request may ask for; null: as much as the context holds."""

    context: int = Field(description="positions of prompt and answer together")
    canvas_length: int
    prompt_tokens: int | None
    max_tokens: int | None
    max_steps: int | None
    n: int
    body_bytes: int
    json_depth: int
    json_values: int
    messages: int
    schema_bytes: int
    schema_depth: int
    open_requests: int
    open_per_key: int
    render_characters: int = Field(description="of a text for /ui/render")


class Abilities(BaseModel):
    """What may be asked for; what is false is refused, or no use."""

    chat: bool = Field(description="there is a chat template")
    turns: bool = Field(description="the model was trained on more than one turn")
    tools: bool = Field(description="the chat template shows tools")
    thinking: bool = Field(description="the chat template can ask for a thought")
    images: bool
    constrain: bool = Field(description="llguidance is installed")
    code: bool = Field(description="the model was trained to write code")


class Modalities(BaseModel):
    """llama.cpp's name of what a prompt may hold beside text."""

    vision: bool
    audio: bool


class GenerationSettings(BaseModel):
    """llama.cpp's form of the defaults."""

    n_ctx: int
    params: dict[str, Any] = Field(description="as `sampler`")


class Props(BaseModel):
    """The server and its model; from `default_generation_settings` on the names are llama.cpp's."""

    version: str = Field(description="of dgemma")
    model: str
    names: list[str]
    device: str
    dtype: str
    parameters: int
    vocabulary: int = Field(description="number of token ids")
    sampler: dict[str, Any] = Field(description="what a request gets that sets none of these")
    tokens: Ids
    limits: Limits
    can: Abilities
    examples: list[str] = Field(description="prompts that the model answers well")
    page: bool = Field(description="whether there is a page at /")
    default_generation_settings: GenerationSettings
    total_slots: int = Field(description="answers that are denoised at a time")
    model_path: str = Field(description="the model's name; no path of the server's is told")
    chat_template: str = Field(description="empty: there is none")
    bos_token: str
    eos_token: str
    modalities: Modalities
    build_info: str
