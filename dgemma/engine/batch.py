"""One pass: a forward over the parts of all rows that take part, then the vocabulary.

Computes and changes nothing that a second try would miss. Knows nothing about order, pages beyond
those of a row's table, or what becomes of what it finds.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dgemma.diffusion.canvas import Canvas, CanvasSpec
from dgemma.diffusion.sampler import sampling_inputs, step_all
from dgemma.diffusion.stable import pin_prefix
from dgemma.engine.counters import Clock
from dgemma.engine.job import Scheduled
from dgemma.engine.row import Row, StepResult
from dgemma.kernels.controls import Controls
from dgemma.kernels.vocabulary import Vocabulary
from dgemma.model.cache import PagedMemory
from dgemma.model.transformer import DiffusionGemma

Work = tuple[Row, Scheduled]
"""A row and its part of a pass."""


class ModelRunner:
    """Runs passes on one model."""

    def __init__(
        self, model: DiffusionGemma, vocabulary: Vocabulary, memory: PagedMemory, counted: Clock
    ) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self.memory = memory
        self.counted = counted

    def run(self, work: list[Work], spec: CanvasSpec) -> list[StepResult]:
        """Forward and vocabulary for these rows. Changes nothing that a second try would miss."""
        begin = self.counted.now()
        parts = [row.parts(self.memory, scheduled) for row, scheduled in work]
        hidden = iter(self.model.forward_rows([part for own in parts for part in own]))
        self.counted.add("forward", begin)
        begin = self.counted.now()
        encoded, canvases = list[tuple[Row, Scheduled, Tensor]](), list[tuple[Row, Tensor]]()
        for row, scheduled in work:
            if scheduled.count:
                encoded.append((row, scheduled, next(hidden)))
            if scheduled.denoise:
                canvases.append((row, next(hidden)))
        after: dict[Row, Canvas] = {}
        alike: dict[object, list[tuple[Row, Tensor]]] = {}
        for row, states in canvases:
            assert row.canvas is not None
            key = row.spec.length, row.canvas.controls.kind
            alike.setdefault(key, []).append((row, states))
        for rows in alike.values():
            after |= self._denoised(rows, spec)
        sound, tokens = self._encoded(encoded, spec)
        scores = {row: self._scored(row, scheduled, h) for row, scheduled, h in encoded
                  if row.progress.request.mode == "score"}  # fmt: skip
        self.counted.add("vocabulary", begin)
        last = dict(canvases)
        return [
            StepResult(
                after.get(row),
                last.get(row),
                tokens.get(row),
                row not in sound or sound[row],
                scores.get(row, ()),
            )  # fmt: skip
            for row, _ in work
        ]

    def _scored(self, row: Row, scheduled: Scheduled, hidden: Tensor) -> tuple[float, ...]:
        """What the encoder gives to the tokens behind those that were encoded, as far as asked."""
        progress = row.progress
        done, first = progress.encoded, progress.request.score_from
        skip = max(0, first - 1 - done)
        ids = progress.context[done + skip + 1 : done + scheduled.count + 1]
        if not ids:
            return ()
        wanted = torch.tensor(ids, device=hidden.device)
        found: list[float] = self.vocabulary.scores(hidden[skip : skip + len(ids)], wanted).tolist()
        return tuple(found)

    def _denoised(self, rows: list[tuple[Row, Tensor]], spec: CanvasSpec) -> dict[Row, Canvas]:
        """Read the vocabulary for canvases of one length and kind together and step each."""
        canvases: list[Canvas] = []
        for row, _ in rows:
            assert row.canvas is not None
            canvases.append(row.canvas)
        schedules = [row.schedule for row, _ in rows]
        hidden = torch.cat([states for _, states in rows])
        parts = [(canvas.controls, len(canvas.ids)) for canvas in canvases]
        controls = Controls.join(parts, spec.suppress_ids)
        head_output = self.vocabulary.read(hidden, *sampling_inputs(canvases, schedules), controls)
        after = [
            pin_prefix(canvas, stepped, schedule, spec, self.vocabulary.embed)
            for canvas, stepped, schedule in zip(
                canvases, step_all(canvases, head_output, schedules, spec), schedules, strict=True
            )
        ]
        out = {row: canvas for (row, _), canvas in zip(rows, after, strict=True)}
        if len(rows) > 1:  # a canvas that is put aside must not keep the belief of all the others
            out = {row: replace(c, soft=None if c.soft is None else c.soft.clone())
                   for row, c in out.items()}  # fmt: skip
        return out

    def _encoded(
        self, rows: list[tuple[Row, Scheduled, Tensor]], spec: CanvasSpec
    ) -> tuple[dict[Row, bool], dict[Row, int]]:
        """Whether each is finite; and the twins' next tokens where nothing is left to encode."""
        if not rows:
            return {}, {}
        finite = torch.stack([torch.isfinite(states).all() for _, _, states in rows]).tolist()
        sound = {row: ok for (row, _, _), ok in zip(rows, finite, strict=True)}
        twins = [
            (row, states)
            for row, scheduled, states in rows
            if row.progress.request.mode == "autoregressive"
            and row.progress.encoded + scheduled.count == len(row.progress.context)
        ]
        if not twins:
            return sound, {}
        last = torch.cat([states[-1:] for _, states in twins])
        chosen = self.vocabulary.greedy(last, Controls(suppress_ids=spec.suppress_ids)).tolist()
        tokens = {row: token for (row, _), token in zip(twins, chosen, strict=True)}
        return sound | {row: sound[row] and token >= 0 for row, token in tokens.items()}, tokens


def out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory did not suffice."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
