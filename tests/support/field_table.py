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
from dgemma.server.apis.render.schema import RenderRequest
from dgemma.server.request_body import Body, Ignorable
from dgemma.server.sampling_fields import Diffusion, Edit, SamplingFields
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

DIFFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (path, body) for name, (path, body, _) in SHARED.items()},
    "`/infill`": ("/infill", {"input_prefix": "Dear ", "input_suffix": "."}),
    "`/v1/messages`": ("/v1/messages", {"messages": QUESTION, "max_tokens": 8}),
}
"""Routes with a `diffusion` object, and a request of each."""
PREDICTED: dict[str, dict[str, Any]] = {
    "chat": {"prediction": {"type": "content", "content": "Hello"}},
    "completions": {"diffusion_seed_canvas": [300]},
}
"""What `diffusion.strength` needs beside it."""
SHOWN: dict[str, Any] = {
    "max_steps": 3, "entropy_bound": 0.1, "t_min": 0.4, "t_max": 0.8, "confidence_threshold": 0.1,
    "stability_threshold": 1, "ignore_tail": True, "restart_after": 2, "tries": 2, "race": 2,
    "verdict": True, "quality": "careful", "canvas_length": "auto", "strength": 0.5,
    "stream": "text", "stream_interval": 2, "stream_search": True, "stable_prefix": True,
    "structure": "list:2",
    "stream_alternatives": 2, "edits": [{"step": 0, "position": 0, "do": "renoise"}],
}  # fmt: skip
"""A value of each field of `diffusion` that means something."""

OWN: dict[str, type[Body]] = {
    "`/v1/chat/completions`": ChatRequest, "`/v1/completions`": CompletionRequest,
    "`/v1/fim/completions`": FimRequest,
    "`/v1/edit/completions`, `/v1/apply/completions`": EditRequest, "`/v1/canvas`": CanvasRequest,
    "... its `segments`": Segment, "... its `return`": Returned,
    "... `edits` in `diffusion`": Edit,
    "`/infill`": InfillRequest, "... its `input_extra`": Extra, "`/v1/messages`": MessagesRequest,
    "`/v1/decisions`": DecisionsRequest, "`/v1/systemone`": SystemOneRequest,
    "`/tokenize`": TokenizeRequest, "`/detokenize`": DetokenizeRequest,
    "`/apply-template`": TemplateRequest, "`/ui/render`": RenderRequest,
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


def taken(route: str, name: str) -> bool:
    """Whether a route takes a field of `diffusion`; it is tried in the same way."""

    def full(request: Request) -> Any:
        raise Overloaded("tried")

    path, body = DIFFUSED[route]
    inner, more = {name: SHOWN[name]}, dict[str, Any]()
    if name.startswith("stream"):
        inner, more = {"stream": "ids"} | inner, {"stream": True}
    elif name == "strength":
        more = PREDICTED.get(route, {})
    response = serve(Recorder(full)).post(path, body | more | {"diffusion": inner})
    assert response.status_code in (200, 400, 429), response.text  # 200: a stream has begun
    return response.status_code != 400


def diffusion_rows() -> list[str]:
    """The fields of `diffusion`: those of all routes, and those of some."""
    routes = {
        name: [route for route in DIFFUSED if taken(route, name)] for name in Diffusion.model_fields
    }
    common = ", ".join(f"`{name}`" for name, found in routes.items() if len(found) == len(DIFFUSED))
    lines = [row(["`diffusion` of all of these, and of `/infill` and `/v1/messages`", common])]
    some = dict.fromkeys(tuple(found) for found in routes.values() if len(found) < len(DIFFUSED))
    for found in some:
        names = [f"`{name}`" for name, one in routes.items() if tuple(one) == found]
        shown = ", ".join(found).replace("with `suffix`", "completions with `suffix`")
        lines.append(row([f"... of {shown} alone", ", ".join(names)]))
    return lines


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
    for name, schema in OWN.items():
        if schema is InfillRequest:
            lines += diffusion_rows()
        lines.append(row([name, own_fields(schema)]))
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
