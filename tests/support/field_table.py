"""The tables of fields in docs/serving.md, from the schemas and from what the routes say.

python -m tests.support.field_table   writes them into the page
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import AfterValidator
from pydantic.fields import FieldInfo

from dgemma.errors import Overloaded
from dgemma.server.apis.canvas.schema import CanvasRequest, Returned, Segment
from dgemma.server.apis.chat.schema import ChatRequest
from dgemma.server.apis.completions.schema import CompletionRequest
from dgemma.server.apis.decisions.schema import DecisionsRequest, SystemOneRequest
from dgemma.server.apis.edit.schema import EditRequest
from dgemma.server.apis.fim.schema import Extra, FimRequest, InfillRequest
from dgemma.server.apis.messages.schema import CacheControl, MessagesRequest
from dgemma.server.apis.meta.schema import DetokenizeRequest, TemplateRequest, TokenizeRequest
from dgemma.server.request_body import Body, Ignorable
from dgemma.server.sampling_fields import Diffusion, SamplingFields
from dgemma.types import Request
from tests.support.bodies import APPLIED, MESSAGE
from tests.support.client import QUESTION, Recorder, serve
from tests.support.field_walk import FILLING, NO_FILLING

PAGE = Path(__file__).parents[2] / "docs/serving.md"
START, END = "<!-- fields:start -->\n", "<!-- fields:end -->"
TRIED: dict[str, Any] = FILLING | NO_FILLING | {"stop": "x"}
"""A value of each shared field that means something."""

SHARED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": QUESTION}, {"logprobs": True}),
    "completions": ("/v1/completions", {"prompt": "Hello"}, {"logprobs": 0}),
    "with `suffix`": ("/v1/completions", {"prompt": "Dear ", "suffix": "."}, {}),
    "fim": ("/v1/fim/completions", {"prompt": "Dear ", "suffix": "."}, {}),
    "edit": ("/v1/edit/completions", {"messages": [{"role": "user", "content": MESSAGE}]}, {}),
    "apply": ("/v1/apply/completions", {"messages": [{"role": "user", "content": APPLIED}]}, {}),
    "canvas": ("/v1/canvas", {"segments": [{"text": "Dear "}, {}, {"text": "."}]}, {}),
}
"""Routes that share fields: path, a request, and what `logprob_token_ids` needs beside it."""

OWN: dict[str, type[Body]] = {
    "`/v1/chat/completions`": ChatRequest, "`/v1/completions`": CompletionRequest,
    "`/v1/fim/completions`": FimRequest,
    "`/v1/edit/completions`, `/v1/apply/completions`": EditRequest, "`/v1/canvas`": CanvasRequest,
    "... its `segments`": Segment, "... its `return`": Returned,
    "`diffusion` of all of these, and of `/infill`": Diffusion,
    "`/infill`": InfillRequest, "... its `input_extra`": Extra, "`/v1/messages`": MessagesRequest,
    "`/v1/decisions`": DecisionsRequest, "`/v1/systemone`": SystemOneRequest,
    "`/tokenize`": TokenizeRequest, "`/detokenize`": DetokenizeRequest,
    "`/apply-template`": TemplateRequest,
}  # fmt: skip
IDLE = {InfillRequest: {"cache_prompt", "id_slot"}, Extra: {"time"},
        MessagesRequest: {"metadata", "service_tier"}}  # fmt: skip
"""Fields beside those of `Ignorable` that change nothing."""


def neutral_values(field: FieldInfo) -> str | None:
    """The only values that a field takes; None: it takes others."""
    for one in field.metadata:
        if isinstance(one, AfterValidator) and one.func.__qualname__.startswith("neutral."):
            values = inspect.getclosurevars(one.func).nonlocals["values"]
            return " or ".join(str(value).lower() for value in values) + " only"
    return None


def cell(route: str, name: str) -> str:
    """What a route does with a shared field: it is tried, and the model turns it away."""
    if name in Ignorable.model_fields:
        return "no effect"
    if (only := neutral_values(SamplingFields.model_fields[name])) is not None:
        return only

    def full(request: Request) -> Any:
        raise Overloaded("tried")

    path, body, scored = SHARED[route]
    more: dict[str, Any] = scored if name == "logprob_token_ids" else {}
    if name == "diffusion_pinned" and cell(route, "diffusion_seed_canvas") == "yes":
        more = {"diffusion_seed_canvas": [300]}
    response = serve(Recorder(full)).post(path, body | more | {name: TRIED[name]})
    assert response.status_code in (400, 429), response.text
    return "yes" if response.status_code == 429 else "-"


def row(cells: Iterable[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def own_fields(schema: type[Body]) -> str:
    """The fields of a request but for the shared ones."""
    shared = SamplingFields.model_fields if issubclass(schema, SamplingFields) else {}
    emitted = []
    for name, field in schema.model_fields.items():
        if name not in shared:
            idle = "no effect" if name in IDLE.get(schema, ()) else None
            note = idle or neutral_values(field)
            emitted.append(f"`{field.alias or name}`" + (f" ({note})" if note else ""))
    return ", ".join(emitted)


def tables() -> str:
    """Both tables."""
    lines = [row(["field", *SHARED]), "|---" * (len(SHARED) + 1) + "|"]
    for name in SamplingFields.model_fields:
        lines.append(row([f"`{name}`", *(cell(route, name) for route in SHARED)]))
    lines += ["", "| request | its own fields |", "|---|---|"]
    lines += [row([name, own_fields(schema)]) for name, schema in OWN.items()]
    kept = ", ".join(f"`{name}`" for name in CacheControl.model_fields)
    lines.append(row(["`cache_control` of Anthropic's blocks and tools (no effect)", kept]))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write them."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    PAGE.write_text(before + START + tables() + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
