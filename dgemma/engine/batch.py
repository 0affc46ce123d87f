"""One pass: a forward over the parts of all scheduled sequences, then the vocabulary.

Computes, and changes nothing that a second try would miss. It must not know the order of the
sequences, or the use of its results.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dgemma.diffusion.canvas import Canvas, CanvasSpec
from dgemma.diffusion.sampler import sampling_inputs, step_all
from dgemma.diffusion.stable import pin_prefix
from dgemma.engine.counters import Counters
from dgemma.engine.scheduler import Scheduled
from dgemma.engine.sequence import Sequence
from dgemma.engine.step import CanvasState, StepResult, segments
from dgemma.kernels.controls import Controls
from dgemma.model.cache import PagedMemory
from dgemma.model.transformer import DiffusionGemma


class ModelRunner:
    """Runs passes on one model."""

    def __init__(self, model: DiffusionGemma, memory: PagedMemory, counted: Counters) -> None:
        self.model = model
        self.head = model.head
        self.memory = memory
        self.counted = counted

    def run(self, work: list[Scheduled], spec: CanvasSpec) -> list[StepResult]:
        """Forward and vocabulary. Changes nothing that a second try would miss."""
        begin = self.counted.now()
        inputs = [segment for scheduled in work for segment in segments(scheduled)]
        batch = self.model.make_batch(inputs, self.memory)
        hidden = iter(batch.split(self.model(batch)))
        self.counted.add_time("forward", begin)
        begin = self.counted.now()
        encoded, last = list[tuple[Scheduled, Tensor]](), dict[Sequence, Tensor]()
        for scheduled in work:
            if scheduled.count:
                encoded.append((scheduled, next(hidden)))
            if scheduled.denoise:
                last[scheduled.sequence] = next(hidden)
        after = self._denoised(last, spec)
        finite, tokens = self._encoded(encoded, spec)
        scores = {s.sequence: self._scored(s, states) for s, states in encoded
                  if s.sequence.request.mode == "score"}  # fmt: skip
        self.counted.add_time("vocabulary", begin)
        return [
            StepResult(
                after.get(seq), last.get(seq), tokens.get(seq), finite.get(seq, True),
                scores.get(seq, ()),
            )
            for seq in (scheduled.sequence for scheduled in work)
        ]  # fmt: skip

    def _scored(self, scheduled: Scheduled, hidden: Tensor) -> tuple[float, ...]:
        """The encoder's scores of the tokens after the encoded ones, as far as asked."""
        seq = scheduled.sequence
        skip = max(0, seq.request.score_from - 1 - seq.encoded)
        ids = seq.context[seq.encoded + skip + 1 : seq.encoded + scheduled.count + 1]
        if not ids:
            return ()
        wanted = torch.tensor(ids, device=hidden.device)
        found: list[float] = self.head.scores(hidden[skip : skip + len(ids)], wanted).tolist()
        return tuple(found)

    def _denoised(self, hidden: dict[Sequence, Tensor], spec: CanvasSpec) -> dict[Sequence, Canvas]:
        """The canvases after a step, from their hidden states."""
        alike: dict[object, list[Sequence]] = {}
        for seq in hidden:
            state: CanvasState = seq.state
            assert state.canvas is not None
            alike.setdefault((state.spec.length, state.canvas.controls.kind), []).append(seq)
        after: dict[Sequence, Canvas] = {}
        for sequences in alike.values():
            states = torch.cat([hidden[seq] for seq in sequences])
            after |= zip(sequences, self._stepped(sequences, states, spec), strict=True)
        return after

    def _stepped(self, sequences: list[Sequence], hidden: Tensor, spec: CanvasSpec) -> list[Canvas]:
        """Read the vocabulary for canvases of one length and kind together and step each."""
        states: list[CanvasState] = [seq.state for seq in sequences]
        canvases = [state.canvas for state in states if state.canvas is not None]
        schedules = [state.schedule for state in states]
        sizes = [(canvas.controls, len(canvas.ids)) for canvas in canvases]
        controls = Controls.join(sizes, spec.suppress_ids)
        head_output = self.head.read(hidden, *sampling_inputs(canvases, schedules), controls)
        after = [
            pin_prefix(canvas, stepped, schedule, spec, self.head.embed)
            for canvas, stepped, schedule in zip(
                canvases, step_all(canvases, head_output, schedules, spec), schedules, strict=True
            )
        ]
        if len(after) == 1:
            return after
        # A canvas that is preempted must not keep the soft embeddings of all the others.
        return [replace(c, soft=None if c.soft is None else c.soft.clone()) for c in after]

    def _encoded(
        self, encoded: list[tuple[Scheduled, Tensor]], spec: CanvasSpec
    ) -> tuple[dict[Sequence, bool], dict[Sequence, int]]:
        """Whether each is finite; the next token of each autoregressive answer that is encoded."""
        if not encoded:
            return {}, {}
        checked = torch.stack([torch.isfinite(states).all() for _, states in encoded]).tolist()
        finite = {s.sequence: ok for (s, _), ok in zip(encoded, checked, strict=True)}
        last = {
            s.sequence: states[-1:]
            for s, states in encoded
            if s.sequence.request.mode == "autoregressive"
            and s.sequence.encoded + s.count == len(s.sequence.context)
        }
        if not last:
            return finite, {}
        rows, controls = torch.cat(list(last.values())), Controls(suppress_ids=spec.suppress_ids)
        tokens: list[int] = self.head.greedy(rows, controls).tolist()
        chosen = dict(zip(last, tokens, strict=True))
        return finite | {seq: finite[seq] and token >= 0 for seq, token in chosen.items()}, chosen


def out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory did not suffice."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
