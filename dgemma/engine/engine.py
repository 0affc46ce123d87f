"""The engine: takes requests, runs one forward per step over rows in any phase, reports events.

Knows the model, the sampler and the caches. Knows nothing about text, files or servers. There is no
thread of its own: whoever waits for an event drives the engine, one step at a time, under a lock.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dgemma.diffusion.canvas import CanvasSpec
from dgemma.diffusion.sampler import questions, step_all
from dgemma.diffusion.schedule import Schedule
from dgemma.engine.request import Limits, Progress, resolve
from dgemma.engine.row import Enough, Row
from dgemma.kernels.controls import Controls
from dgemma.kernels.vocabulary import Vocabulary
from dgemma.model.transformer import DiffusionGemma
from dgemma.types import Event, Request, SamplingParams

CHUNK = 512
"""Most prompt tokens of one request that a step encodes."""


class Engine:
    """Runs any number of requests on one model.

    A request's tokens do not depend on the others: its random numbers come from its own seed, its
    keys are never padded, and every row of a product is computed by itself.
    """

    def __init__(
        self,
        model: DiffusionGemma,
        *,
        end_ids: Sequence[int] | None = None,
        defaults: SamplingParams | None = None,
        chunk: int = CHUNK,
    ) -> None:
        """
        Args:
            model: on its device, in eval mode.
            end_ids: ids that end an answer; None: those of the config.
            defaults: the checkpoint's own sampler.
            chunk: most prompt tokens of one request that a step encodes.
        """
        config = model.config
        self.model = model
        self.defaults = defaults or SamplingParams()
        self.chunk = chunk
        self.spec = CanvasSpec(
            length=config.canvas_length,
            vocab_size=config.vocab_size,
            context_length=config.max_position_embeddings,
            end_ids=tuple(config.eos_token_ids if end_ids is None else end_ids),
            pad_id=config.pad_token_id,
            suppress_ids=config.suppress_ids,
            device=model.device,
        )
        self.limits = Limits(
            context=self.spec.context_length,
            canvas=self.spec.length,
            vocab_size=self.spec.vocab_size,
        )
        self.vocabulary = Vocabulary(
            model.embed.weight, config.final_logit_softcapping, model.embed_scale()
        )
        self._controls = Controls(suppress_ids=self.spec.suppress_ids)
        self._rows: list[Row] = []
        self._lock = threading.RLock()

    def submit(self, request: Request, enough: Enough | None = None) -> Stream:
        """Take a request; it runs while its stream, or any other, is iterated.

        Args:
            enough: see `Enough`. Asked within the step, so a request ends at the same place however
                late its events are read.

        Raises:
            InvalidRequest, ContextOverflow: it cannot be honoured; nothing was started.
        """
        resolved = resolve(request, self.defaults, self.limits, seed=secrets.randbits(63))
        spec = self.spec.narrowed(resolved.params)
        limits = replace(self.limits, canvas=spec.length)
        progress = Progress(resolved, limits, pending=list(resolved.token_ids))
        cache = self.model.new_cache(1, self.limits.context).rows[0]
        row = Row(progress, cache, spec, Schedule.of(resolved.params), enough)
        with self._lock:
            self._rows.append(row)
            row.begin()
            if progress.output is not None:
                self._retire(row)
        return Stream(self, row)

    @property
    def running(self) -> int:
        """Requests that are not finished."""
        return len(self._rows)

    def cancel(self, row: Row) -> None:
        """End a request now; its last event is queued. Harmless after the end."""
        with self._lock:
            if row.progress.output is None:
                row.progress.finish("cancelled")
                self._retire(row)

    @torch.inference_mode()
    def step(self) -> None:
        """One forward over all live rows, whatever their phase."""
        with self._lock:
            rows = list(self._rows)
            if not rows:
                return
            try:
                hidden = self.model.forward_rows([row.part(self.chunk) for row in rows])
                pairs = list(zip(rows, hidden, strict=True))
                canvases = [(row, states) for row, states in pairs if row.canvas is not None]
                encoded = [(row, states) for row, states in pairs if row.canvas is None]
                for width in {row.spec.length for row, _ in canvases}:
                    self._denoised([pair for pair in canvases if pair[0].spec.length == width])
                self._encoded(encoded)
            except Exception as error:  # told to every request that was in the step
                for row in rows:
                    row.progress.finish("error", f"{type(error).__name__}: {error}")
            for row in rows:
                if row.progress.output is not None:
                    self._retire(row)

    def _denoised(self, rows: list[tuple[Row, Tensor]]) -> None:
        """Read the vocabulary for all canvases of one length together and step each."""
        canvases = [row.canvas for row, _ in rows if row.canvas is not None]
        schedules = [row.schedule for row, _ in rows]
        hidden = torch.cat([states for _, states in rows])
        asked = questions(canvases, schedules)
        reading = self.vocabulary.read(hidden, *asked, self._controls)
        after = step_all(canvases, reading, schedules, self.spec)
        for (row, _), canvas in zip(rows, after, strict=True):
            row.stepped(canvas)

    def _encoded(self, rows: list[tuple[Row, Tensor]]) -> None:
        """Rows with nothing left to encode begin a canvas, or choose their next token."""
        ready = [(row, states) for row, states in rows if not row.progress.pending]
        twins = [pair for pair in ready if pair[0].progress.request.mode == "autoregressive"]
        if twins:
            last = torch.cat([states[-1:] for _, states in twins])
            tokens = self.vocabulary.greedy(last, self._controls).tolist()
            for (row, _), token in zip(twins, tokens, strict=True):
                row.chose(token)
        for row, _ in ready:
            if row.progress.request.mode == "diffusion":
                row.begin_canvas()

    def _retire(self, row: Row) -> None:
        """Take a finished row out and queue its last event."""
        if row not in self._rows:
            return  # cancelled during this step: its stream was collected as garbage
        self._rows.remove(row)
        output = row.progress.output
        assert output is not None
        row.events.append(Event(type="done", index=output.index, output=output))


class Stream(Iterator[Event]):
    """The events of one request. Iterating drives the engine; closing or dropping it cancels."""

    def __init__(self, engine: Engine, row: Row) -> None:
        self._engine = engine
        self._row = row
        self._over = False

    def __next__(self) -> Event:
        while not self._row.events:
            if self._over:
                raise StopIteration
            self._engine.step()
        event = self._row.events.popleft()
        self._over = event.type == "done"
        return event

    def close(self) -> None:
        """Cancel the request if it still runs; its "done" event stays to be read."""
        self._engine.cancel(self._row)

    def __del__(self) -> None:
        self.close()  # nobody can read the events any more
