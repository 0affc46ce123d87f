"""One pass: a forward over the parts of all scheduled sequences, then the vocabulary.

Computes, and changes nothing that a second try would miss. It must not know the order of the
sequences, or the use of its results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from dgemma.device import wide
from dgemma.diffusion.canvas import Canvas, CanvasSpec
from dgemma.diffusion.exact import choose
from dgemma.diffusion.sampler import decide, likely_ids, propose, sampling_inputs
from dgemma.diffusion.stable import pin_prefix
from dgemma.engine.commit import CanvasState, Reading
from dgemma.engine.counters import Counters
from dgemma.engine.plan import Scheduled
from dgemma.engine.sequence import Sequence
from dgemma.engine.step import StepResult, segments
from dgemma.kernels.controls import Controls
from dgemma.model.cache import PagedMemory
from dgemma.model.transformer import DiffusionGemma
from dgemma.types import PAGE


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
        for scheduled in work:
            if scheduled.denoise:
                self._copy_forks(scheduled.sequence)
        inputs = [segment for scheduled in work for segment in segments(scheduled)]
        batch = self.model.make_batch(inputs, self.memory)
        hidden = iter(batch.split(self.model(batch)))
        self.counted.add_time("forward", begin)
        begin = self.counted.now()
        encoded, last = list[tuple[Scheduled, Tensor]](), dict[Sequence, tuple[Tensor, ...]]()
        for scheduled in work:
            if scheduled.count:
                encoded.append((scheduled, next(hidden)))
            if scheduled.denoise:
                rows = scheduled.sequence.state.rows
                last[scheduled.sequence] = tuple(next(hidden) for _ in range(rows))
        read = Readback()
        canvases = self._denoised(last, spec, read)
        tokens = self._encoded(encoded, spec, read)
        scores = {s.sequence: read.put(self._scored(s, states)) for s, states in encoded
                  if s.sequence.request.mode == "score"}  # fmt: skip
        readings = {s.sequence: self._reading(s.sequence, states, spec, read)
                    for s, states in encoded if s.reading}  # fmt: skip
        tails = {s.sequence: states[-1].clone() for s, states in encoded if s.sequence.read_first}
        read.fetch()
        after = canvases()
        finite, chosen = tokens()
        read_out = {seq: reading() for seq, reading in readings.items()}
        finite |= {seq: finite[seq] and min(one.choices) >= 0 for seq, one in read_out.items()}
        self.counted.add_time("vocabulary", begin)
        return [
            StepResult(
                after.get(seq, ()), last.get(seq, ()), chosen.get(seq), finite.get(seq, True),
                tuple(scores[seq]()) if seq in scores else (), tails.get(seq),
                read_out.get(seq),
            )
            for seq in (scheduled.sequence for scheduled in work)
        ]  # fmt: skip

    def _copy_forks(self, seq: Sequence) -> None:
        """Give each canvas of a race the tokens before it that share a block with it."""
        table, length = seq.block_table, len(seq.context)
        assert table is not None
        for fork in table.forks:
            if length % PAGE and fork.copied != length:
                full, sliding = table.full[fork.first], table.sliding[fork.first]
                self.memory.copy("full_attention", full, fork.full[0], length % PAGE)
                self.memory.copy("sliding_attention", sliding, fork.sliding[0], length % PAGE)
            fork.copied = length

    def _scored(self, scheduled: Scheduled, hidden: Tensor) -> Tensor:
        """The encoder's scores of the tokens after the encoded ones, as far as asked."""
        seq = scheduled.sequence
        skip = max(0, seq.request.score_from - 1 - seq.encoded)
        ids = seq.context[seq.encoded + skip + 1 : seq.encoded + scheduled.count + 1]
        if not ids:
            return hidden.new_zeros(0)
        wanted = torch.tensor(ids, device=hidden.device)
        return self.head.scores(hidden[skip : skip + len(ids)], wanted)

    def _reading(
        self, seq: Sequence, hidden: Tensor, spec: CanvasSpec, read: Readback
    ) -> Callable[[], Reading]:
        """The encoder's opinion of proposed ids; to be called after the fetch."""
        if seq.request.mode == "exact":
            chosen = read.put(self._chosen(seq, hidden, spec))
            return lambda: Reading(tuple(map(int, chosen())), (), hidden)
        state: CanvasState = seq.state
        assert state.tail is not None
        rows, count = torch.cat((state.tail[None], hidden)), len(hidden)
        ids = torch.tensor([*seq.proposed, 0], device=rows.device)
        made = self.head.judge(rows, ids, Controls(suppress_ids=spec.suppress_ids))
        choices, logprobs = (read.put(part) for part in made)
        kept = hidden.clone()  # they must not keep the hidden states of all others
        return lambda: Reading(tuple(map(int, choices())), tuple(logprobs()[:count]), kept)

    def _chosen(self, seq: Sequence, hidden: Tensor, spec: CanvasSpec) -> Tensor:
        """The encoder's next tokens in the exact mode: [N, D] -> int64 [N]."""
        temperature = seq.request.params.temperature or 0.0
        return choose(self.head, hidden, seq.seed, len(seq.committed), temperature, spec)

    def _denoised(
        self, hidden: dict[Sequence, tuple[Tensor, ...]], spec: CanvasSpec, read: Readback
    ) -> Callable[[], dict[Sequence, tuple[Canvas, ...]]]:
        """The canvases after a step, from their hidden states; to be called after the fetch."""
        alike: dict[object, list[Sequence]] = {}
        for seq in hidden:
            state: CanvasState = seq.state
            assert state.canvas is not None
            alike.setdefault((len(state.canvas.ids), state.canvas.controls.kind), []).append(seq)
        groups = [
            (
                sequences,
                self._stepped(
                    sequences, [rows for s in sequences for rows in hidden[s]], spec, read
                ),
            )
            for sequences in alike.values()
        ]

        def known() -> dict[Sequence, tuple[Canvas, ...]]:
            found: dict[Sequence, tuple[Canvas, ...]] = {}
            for sequences, canvases in groups:
                after = iter(canvases())
                found |= {seq: tuple(next(after) for _ in hidden[seq]) for seq in sequences}
            return found

        return known

    def _stepped(
        self, sequences: list[Sequence], hidden: list[Tensor], spec: CanvasSpec, read: Readback
    ) -> Callable[[], list[Canvas]]:
        """Read the vocabulary for canvases of one length and kind together and step each."""
        states: list[CanvasState] = [seq.state for seq in sequences]
        pairs = [(canvas, s.schedule) for s in states if s.tries for canvas in s.tries.running]
        canvases, schedules = [canvas for canvas, _ in pairs], [schedule for _, schedule in pairs]
        sizes = [(canvas.controls, len(canvas.ids)) for canvas in canvases]
        controls = Controls.join(sizes, spec.suppress_ids)
        inputs = torch.cat(hidden), *sampling_inputs(canvases, schedules)
        head_output = self.head.read(*inputs, controls, likely_ids(canvases))
        proposal = propose(canvases, head_output, schedules, spec)
        verdicts = read.put(proposal.verdicts)

        def finished() -> list[Canvas]:
            numbers = verdicts()
            rows = [numbers[low : low + 3] for low in range(0, len(numbers), 3)]
            stepped = decide(canvases, proposal, rows, schedules)
            after = [
                pin_prefix(canvas, then, schedule, spec, self.head.embed)
                for canvas, then, schedule in zip(canvases, stepped, schedules, strict=True)
            ]
            if len(after) == 1:
                return after
            # A canvas that is preempted must not keep the soft embeddings of all the others.
            return [replace(c, soft=None if c.soft is None else c.soft.clone()) for c in after]

        return finished

    def _encoded(
        self, encoded: list[tuple[Scheduled, Tensor]], spec: CanvasSpec, read: Readback
    ) -> Callable[[], tuple[dict[Sequence, bool], dict[Sequence, int]]]:
        """Whether each is finite; the next token of each autoregressive answer that is encoded."""
        if not encoded:
            return lambda: ({}, {})
        checked = read.put(torch.stack([torch.isfinite(states).all() for _, states in encoded]))
        last = {
            s.sequence: states[-1:]
            for s, states in encoded
            if s.sequence.request.mode in ("autoregressive", "exact")
            and s.sequence.encoded + s.count == len(s.sequence.context)
        }
        drawn = [seq for seq in last if seq.request.params.temperature]
        greedy = [seq for seq in last if not seq.request.params.temperature]
        tokens = {seq: read.put(self._chosen(seq, last[seq], spec)) for seq in drawn}
        together: Callable[[], list[float]] = list
        if greedy:
            rows = torch.cat([last[seq] for seq in greedy])
            together = read.put(self.head.greedy(rows, Controls(suppress_ids=spec.suppress_ids)))

        def known() -> tuple[dict[Sequence, bool], dict[Sequence, int]]:
            finite = {s.sequence: bool(ok) for (s, _), ok in zip(encoded, checked(), strict=True)}
            chosen = {seq: int(token) for seq, token in zip(greedy, together(), strict=True)}
            chosen |= {seq: int(token()[0]) for seq, token in tokens.items()}
            return finite | {seq: finite[seq] and t >= 0 for seq, t in chosen.items()}, chosen

        return known


class Readback:
    """Numbers of a pass that the host needs, fetched from the device all in one piece.

    The host waits for the device once a pass, whatever the sequences are.
    """

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._numbers: list[float] = []
        self._size = 0

    def put(self, values: Tensor) -> Callable[[], list[float]]:
        """Ask for these numbers; the result gives them after the fetch. floats hold ids exactly."""
        low, self._size = self._size, self._size + values.numel()
        high = self._size
        self._parts.append(wide(values.flatten()))
        return lambda: self._numbers[low:high]

    def fetch(self) -> None:
        """Wait for the device."""
        if self._parts:
            self._numbers = torch.cat(self._parts).tolist()


def out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory did not suffice."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
