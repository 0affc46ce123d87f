"""Runs plans of `dgemma.compose` for a route: their requests are the caller's, and end with it.

A plan's events become the pieces that every API puts in its own words; a plain reply is their
fold. Knows plans and the service. Knows nothing about paths or bodies.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import takewhile
from typing import Any, Generic, TypeVar

from dgemma.compose.edit import Edited
from dgemma.compose.fill import Filled
from dgemma.compose.plan import Plan, refuse
from dgemma.compose.run import PlanEvent, begun, plan_events
from dgemma.errors import EngineError, bad_field
from dgemma.events import EventStream
from dgemma.params import REFUSED_BY_FILL, SamplingParams, canvas_width
from dgemma.server.errors import Refusal, cut_off
from dgemma.server.exchange import Exchange
from dgemma.server.pieces import End, Frame, Piece, Progress, Times, words
from dgemma.server.sampling_fields import Diffusion, SamplingFields
from dgemma.server.service import Service
from dgemma.text.answer import first_stop, held
from dgemma.types import Output, Request, TextDelta

T = TypeVar("T")


class PlanRun(Generic[T]):
    """A plan that runs for a route.

    Attributes:
        width: positions of its widest canvas.
    """

    def __init__(
        self, exchange: Exchange, plan: Plan[T], shown: Diffusion | None = None, *,
        segments: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            shown: says which drafts are shown; None: none.
            segments: those that the plan's parts are of a canvas, whose whole draft is then shown.
        """
        self.width = 0
        self._exchange, self._plan = exchange, plan
        self._shown = shown or Diffusion()
        self._segments = segments
        self._requests: list[Request] = []
        self._started_ms: list[float] = []  # when each was started
        self._framed: set[int] = set()  # requests of which a frame was shown
        self._began = time.perf_counter()
        self._frame_s: float | None = None

    async def begin(self) -> None:
        """Do the work before the first request, so that a refusal comes before a stream.

        Raises:
            DGemmaError: the plan cannot be carried out.
        """
        work = self._exchange.in_thread(begun, self._plan)
        self._plan = await self._exchange.unless_gone(work)

    async def events(self) -> AsyncGenerator[PlanEvent[T], None]:
        """The plan's events; closing this, or cancelling its task, ends all that it has begun.

        Raises:
            DGemmaError, Refusal: the plan or one of its requests fails.
        """
        service, shown = self._exchange.service, self._shown
        source = plan_events(
            self._plan, self._start, self._exchange.in_thread, frames=shown.stream != "off",
            search=shown.stream_search, alternatives=shown.stream_alternatives,
        )  # fmt: skip
        try:
            async for event in source:
                if event.type == "frame" and self._frame_s is None:
                    self._frame_s = self.seconds
                yield event
        except (EngineError, Refusal) as error:
            if service.ended:
                raise cut_off() from error
            raise
        finally:
            await source.aclose()

    async def _start(self, requests: Sequence[Request]) -> list[EventStream]:
        service = self._exchange.service
        for request in requests:
            if request.mode == "diffusion":
                self.width = max(self.width, canvas_width(request.params, service.facts.canvas))
        self._requests += requests
        self._started_ms += [1000 * self.seconds] * len(requests)
        return await service.submit(requests, owner=self._exchange.owner)

    async def result(self) -> T:
        """The plan's result."""
        async with aclosing(self.events()) as events:
            async for event in events:
                if event.type == "done":
                    return event.outcome
        raise AssertionError("a plan ends with its result")

    def piece(self, event: PlanEvent[T]) -> Frame | Progress | None:
        """A draft, or the progress of a request, if it is to be shown."""
        own, facts, service = event.event, self._exchange.service.facts, self._exchange.service
        if own is None or self._shown.stream == "off":
            return None
        request, tokenizer = self._requests[event.request], facts.tokenizer
        own = replace(own, t_ms=self._started_ms[event.request] + own.t_ms)
        places: list[dict[str, Any]] = [
            {
                "part": self._segments[at.part] if self._segments else at.part,
                "start": at.start, "stop": at.stop,
            } for at in event.places
        ]  # fmt: skip
        tags = {"request": event.request, "places": places}
        if own.type != "frame":
            return Progress(own, len(request.token_ids), tags)
        if own.step % self._shown.stream_interval and event.request in self._framed:
            return None
        self._framed.add(event.request)
        ids = list(takewhile(lambda i: i not in facts.end_ids, own.ids))
        for place, at in zip(places, event.places, strict=True):
            place["text"] = at.text(tokenizer, ids)
        text = own.text
        if places and not (self._segments or request.chat):
            text = "".join(place["text"] for place in places)
        return Frame(own, text, "", "", service.most_steps(request), tags)

    def tokens(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self._exchange.service.facts.tokenizer.encode(text))

    @property
    def seconds(self) -> float:
        """Time since the beginning."""
        return time.perf_counter() - self._began

    def end(self, output: Output, text_s: float | None = None) -> End:
        """An answer of the plan as if one request had given it.

        Args:
            text_s: seconds to its first text; None: its text comes now.
        """
        now = self.seconds
        text_s = (text_s or now) if output.text else None
        return End(output, Times(frame_s=self._frame_s, text_s=text_s, total_s=now), self.width)

    def end_of(
        self, found: Filled | Edited, text: str, tokens: int, stopped_by: str | None = None,
        text_s: float | None = None,
    ) -> End:  # fmt: skip
        """The same for a text, with the cost of all requests that led to it."""
        last = found.outputs[-1] if found.outputs else Output()
        prompt = last.usage.prompt_tokens
        output = Output(
            text=text, seed=found.seed, restart_after=last.restart_after, stopped_by=stopped_by,
            usage=replace(found.usage, prompt_tokens=prompt, completion_tokens=tokens),
        )  # fmt: skip
        return self.end(output, text_s)


_INSTEAD = {
    "diffusion_seed_canvas": "give a segment the role seed",
    "diffusion_pinned": "give segments with text",
    "diffusion_read_only": "use read_only",
    "logprob_token_ids": "use return.alternatives",
    "diffusion.strength": "use strength",
}
"""Fields without meaning for a plan, and the remedy of /v1/canvas for each, if it has one."""


def plan_params(
    body: SamplingFields, service: Service, *, stop: bool = False, strength: bool = False,
    segments: bool = False,
) -> SamplingParams:  # fmt: skip
    """The parameters of a plan that makes its canvases itself.

    Args:
        stop: the route fills a hole, and cuts its text at stop strings itself.
        strength: the route uses `diffusion.strength`.
        segments: the route is /v1/canvas.

    Raises:
        InvalidRequest, Refusal: a field has no meaning for such a plan; the message names it.
    """
    shown = body.denoising
    barred = {
        "diffusion_seed_canvas": body.diffusion_seed_canvas is not None,
        "diffusion_pinned": body.diffusion_pinned is not None,
        "diffusion_read_only": body.diffusion_read_only,
        "logprob_token_ids": body.logprob_token_ids is not None,
        "diffusion.strength": shown.strength is not None and not strength,
        "diffusion.stable_prefix": shown.stable_prefix,
        "diffusion.edits": shown.edits and not segments,
        "verdict": body.values()["verdict"],
    }
    for name, given in barred.items():
        if given:
            instead = _INSTEAD.get(name)
            other = "" if instead is None else f", or {instead if segments else 'use /v1/canvas'}"
            raise bad_field(
                name, f"has no meaning for canvases made from texts; leave it out{other}"
            )
    params = body.params(service.settings.limits)
    if not stop:
        return params
    params = replace(params, stop=None)
    why = "the text around a hole is given; steer by max_tokens or logit_bias"
    refuse(params, REFUSED_BY_FILL, why)
    return params


def indented(text: str, least: int) -> str:
    """A text up to the first line, the first aside, that is indented by less."""
    first, *lines = text.split("\n")
    kept = [first]
    for line in lines:
        bare = line.lstrip(" \t")
        if bare and len(line) - len(bare) < least:
            break
        kept.append(line)
    return "\n".join(kept)


def _settled(text: str, stop: Sequence[str], indent: int) -> str:
    """As much of a text as stays, however it goes on."""
    found = first_stop(text, stop)
    text = text[: found[0]] if found else text[: len(text) - held(text, stop)]
    kept = indented(text, indent)
    if found or len(kept) < len(text) or not indent:
        return kept
    last = kept.rpartition("\n")
    return kept if last[2].strip(" \t") or not last[1] else last[0]


async def infill_pieces(
    run: PlanRun[Filled], *, stop: str | Sequence[str] | None = None, indent: int = 0
) -> AsyncGenerator[Piece, None]:
    """The pieces of a hole's text, as soon as they can no longer change.

    Args:
        stop: the text ends before the first of these.
        indent: it ends before a line that is indented by less.
    """
    stop = [stop] if isinstance(stop, str) else stop or ()
    so_far = sent = ""
    text_s: float | None = None
    async with aclosing(run.events()) as events:
        async for event in events:
            if event.type == "text":
                so_far += event.text
                fresh = _settled(so_far, stop, indent)[len(sent) :]
                text_s = run.seconds if fresh and text_s is None else text_s
            elif event.type == "done":
                end = _end(run, event.outcome, stop, text_s)
                fresh = indented(end.output.text, indent)[len(sent) :]
            else:
                piece = run.piece(event)
                if piece is not None:
                    yield piece
                continue
            sent += fresh
            for word in words(fresh):
                yield TextDelta(word)
    yield end


def _end(run: PlanRun[Filled], filled: Filled, stop: Sequence[str], text_s: float | None) -> End:
    """The end of a hole's text, cut at a stop string."""
    hole = filled.holes[0]
    found = first_stop(hole.text, stop)
    if found is None:
        return run.end_of(filled, hole.text, len(hole.token_ids), None, text_s)
    text = hole.text[: found[0]]
    return run.end_of(filled, text, run.tokens(text), found[1], text_s)


async def whole_pieces(
    run: PlanRun[T], finished: Callable[[T], tuple[str, End]]
) -> AsyncGenerator[Piece, None]:
    """The pieces of a text that is known at the end alone, with the plan's drafts before it."""
    async with aclosing(run.events()) as events:
        async for event in events:
            if event.type == "done":
                text, end = finished(event.outcome)
                for word in words(text):
                    yield TextDelta(word)
                yield end
            elif (piece := run.piece(event)) is not None:
                yield piece
