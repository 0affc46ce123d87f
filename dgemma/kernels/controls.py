"""The controls that a caller may give to the head, and their effect on logits.

All controls act on the soft-capped logits before the temperature, as the oracle's own logits
processors do, and so before entropy, sample and soft embedding. They come in two kinds: those that
know a logit by its id alone (suppressed ids, bias, masks) act on any tile of columns; filters
(top-k, top-p, min-p) need whole rows.

Knows nothing about hidden states, tables or canvases.
Source: `transformers` 5.17 `generation_diffusion_gemma.py` (order), `logits_process.py` (filters).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dgemma.errors import InvalidRequest

WORD = 32
"""Ids in one word of a mask."""


class Bias(NamedTuple):
    """Sparse additions to logits; entries of one place add up.

    Attributes:
        rows: int64 [M], rows of the reading.
        ids: int64 [M].
        values: fp32 [M], in units of logits before the temperature.
    """

    rows: Tensor
    ids: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Masks:
    """Allowed ids as bitsets, shared by any number of positions.

    Attributes:
        table: int32 [G, ceil(V / 32)]; bit j of word w allows id 32 w + j.
        index: int64 [N], the bitset of each row; -1: every id is allowed.
    """

    table: Tensor
    index: Tensor

    def allows(self, ids: Tensor) -> Tensor:
        """bool [N]: whether a row has a bitset that allows the row's id; ids int64 [N]."""
        words = self.table[self.index.clamp(min=0), ids // WORD].long()
        return ((words >> ids % WORD) & 1).bool() & (self.index >= 0)

    def columns(self, low: int, high: int) -> Tensor:
        """bool [G, high - low]: which of the ids low..high-1 each bitset allows."""
        words = self.table[:, low // WORD : -(-high // WORD)]
        shifts = torch.arange(WORD, dtype=torch.int32, device=words.device)
        bits = ((words[:, :, None] >> shifts) & 1).flatten(1)
        start = low - low // WORD * WORD
        return bits[:, start : start + high - low].bool()


class Filters(NamedTuple):
    """Filters of whole rows, applied in this order; each value is one row's own.

    Attributes:
        top_k: int64 [N], keep the k most likely ids and their equals; 0: off.
        top_p: fp32 [N], keep the most likely ids until their mass reaches p; 1: off.
        min_p: fp32 [N], keep ids at least p times as likely as the likeliest; 0: off.
    """

    top_k: Tensor
    top_p: Tensor
    min_p: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Controls:
    """The requests to the head beside the defaults.

    Attributes:
        suppress_ids: ids with probability zero in every row: never the argmax, never the sample,
            no part of the entropy or of the soft embedding. Empty is the way of `transformers`.
        bias: additions to logits.
        masks: allowed ids of each row.
        filters: top-k, top-p and min-p of each row.
        pinned: int64 [N], the id that a row has whatever its hidden state says, -1 for none. Such a
            row's entropy is zero and its soft embedding the id's own; log-probabilities, where
            they are asked for, are still the hidden state's.
        logprobs: whether log-probabilities of argmax and sample are wanted.
        score_ids: int64 [N, S], ids whose log-probabilities are wanted as well.
        alternatives: how many of the most likely ids are wanted with their log-probabilities.
    """

    suppress_ids: tuple[int, ...] = ()
    bias: Bias | None = None
    masks: Masks | None = None
    filters: Filters | None = None
    pinned: Tensor | None = None
    logprobs: bool = False
    score_ids: Tensor | None = None
    alternatives: int = 0

    @property
    def wants_logprobs(self) -> bool:
        """Whether any log-probability is asked for."""
        return self.logprobs or self.score_ids is not None or self.alternatives > 0

    def scored(self, argmax: Tensor, sample: Tensor, likely: Sequence[Tensor]) -> Tensor:
        """The ids of `HeadLogprobs`: int64 [N], [N] and the most likely ones, [N, K] or none."""
        asked = [] if self.score_ids is None else [self.score_ids]
        return torch.cat([argmax[:, None], sample[:, None], *asked, *likely], dim=1)

    def check(self, size: int) -> None:
        """Refuse suppressed ids that cannot be meant.

        Raises:
            InvalidRequest: a suppressed id is not in the vocabulary, or all of it is suppressed;
                more alternatives than ids.
        """
        wrong = [i for i in self.suppress_ids if not 0 <= i < size]
        if wrong:
            raise InvalidRequest(f"suppress_ids {wrong} are not in the vocabulary of {size}")
        if len(set(self.suppress_ids)) == size:
            raise InvalidRequest("suppress_ids leaves no id of the vocabulary")
        if not 0 <= self.alternatives <= size:
            raise InvalidRequest(f"alternatives must be 0 to {size}, got {self.alternatives}")

    def rows(self, wanted: Tensor) -> Controls:
        """The controls of some rows (int64 [n], without repeats), renumbered from zero."""
        fields: dict[str, Any] = {}
        if self.bias is not None:
            match = self.bias.rows[:, None] == wanted[None]
            entry, row = match.nonzero(as_tuple=True)
            fields["bias"] = Bias(row, self.bias.ids[entry], self.bias.values[entry])
        if self.masks is not None:
            fields["masks"] = Masks(self.masks.table, self.masks.index[wanted])
        if self.filters is not None:
            fields["filters"] = Filters(*(values[wanted] for values in self.filters))
        if self.pinned is not None:
            fields["pinned"] = self.pinned[wanted]
        if self.score_ids is not None:
            fields["score_ids"] = self.score_ids[wanted]
        return replace(self, **fields) if fields else self

    @property
    def kind(self) -> tuple[bool, bool, int, int]:
        """Controls of one kind can be joined."""
        asked = 0 if self.score_ids is None else self.score_ids.shape[1]
        return self.filters is not None, self.wants_logprobs, asked, self.alternatives

    @staticmethod
    def join(parts: Sequence[tuple[Controls, int]], suppress_ids: tuple[int, ...]) -> Controls:
        """The controls of consecutive rows, each with its count, as one; all of one kind."""
        first = parts[0][0]
        masks, pinned, bias = list[Masks](), list[Tensor](), list[Bias]()
        groups = at = 0
        for part, count in parts:
            none = torch.full((count,), -1, dtype=torch.int64)
            if part.masks is not None:
                index = part.masks.index
                masks.append(Masks(part.masks.table, index + (index >= 0) * groups))
                groups += len(part.masks.table)
            else:
                masks.append(Masks(torch.empty(0), none))
            pinned.append(none if part.pinned is None else part.pinned)
            if part.bias is not None:
                bias.append(Bias(part.bias.rows + at, part.bias.ids, part.bias.values))
            at += count
        device = next((m.table.device for m in masks if m.table.numel()), None)
        fields: dict[str, Any] = {}
        if groups:
            tables = torch.cat([m.table for m in masks if m.table.numel()])
            fields["masks"] = Masks(tables, torch.cat([m.index.to(device) for m in masks]))
        held = [p.device for (part, _), p in zip(parts, pinned, strict=True)
                if part.pinned is not None]  # fmt: skip
        if held:
            fields["pinned"] = torch.cat([p.to(held[0]) for p in pinned])
        if bias:
            fields["bias"] = Bias(*map(torch.cat, zip(*bias, strict=True)))
        if first.filters is not None:
            filters = [part.filters for part, _ in parts if part.filters is not None]
            fields["filters"] = Filters(*map(torch.cat, zip(*filters, strict=True)))
        if first.score_ids is not None:
            ids = [part.score_ids for part, _ in parts if part.score_ids is not None]
            fields["score_ids"] = torch.cat(ids)
        return Controls(suppress_ids=suppress_ids, logprobs=first.logprobs,
                        alternatives=first.alternatives, **fields)  # fmt: skip

    def adjust(self, logits: Tensor, low: int = 0) -> Tensor:
        """Suppress, add and mask in place: fp32 [N, T] logits of the ids low..low+T-1."""
        high = low + logits.shape[1]
        inside = [i - low for i in self.suppress_ids if low <= i < high]
        if inside:
            logits[:, inside] = -torch.inf
        if self.bias is not None:
            hit = (self.bias.ids >= low) & (self.bias.ids < high)
            place = self.bias.rows[hit], self.bias.ids[hit] - low
            logits.index_put_(place, self.bias.values[hit], accumulate=True)
        if self.masks is not None:
            allowed = self.masks.columns(low, high)[self.masks.index.clamp(min=0)]
            barred = ~allowed & (self.masks.index >= 0)[:, None]
            logits.masked_fill_(barred, -torch.inf)
        return logits

    def adjust_ids(self, logits: Tensor, ids: Tensor) -> Tensor:
        """The same for chosen ids: fp32 [N, S] logits of int64 [N, S] ids, without filters."""
        for suppressed in self.suppress_ids:
            logits = logits.masked_fill(ids == suppressed, -torch.inf)
        if self.bias is not None:
            hit = (ids[self.bias.rows] == self.bias.ids[:, None]).float()
            logits = logits.index_add(0, self.bias.rows, hit * self.bias.values[:, None])
        if self.masks is not None:
            words = self.masks.table[self.masks.index.clamp(min=0)].gather(1, ids // WORD)
            barred = ((words >> (ids % WORD)) & 1) == 0
            logits = logits.masked_fill(barred & (self.masks.index >= 0)[:, None], -torch.inf)
        return logits

    def filter(self, logits: Tensor) -> Tensor:
        """Apply the filters in place to whole rows: fp32 [N, V]."""
        if self.filters is None:
            return logits
        f = self.filters
        largest = int(f.top_k.max())
        if largest:
            best = logits.topk(min(largest, logits.shape[1]), dim=-1).values
            last = best.gather(1, (f.top_k.clamp(1, best.shape[1]) - 1)[:, None])
            logits.masked_fill_((logits < last) & (f.top_k > 0)[:, None], -torch.inf)
        if bool((f.top_p < 1).any()):
            ordered, order = logits.sort(dim=-1, descending=True, stable=True)
            p = ordered.softmax(-1)
            cut = (p.cumsum(-1) - p >= f.top_p[:, None]) & (f.top_p < 1)[:, None]
            cut[:, 0] = False
            logits.masked_fill_(torch.zeros_like(cut).scatter_(1, order, cut), -torch.inf)
        if bool((f.min_p > 0).any()):
            floor = logits.amax(-1) + f.min_p.clamp(min=math.ldexp(1, -126)).log()
            low = logits < floor[:, None]
            logits.masked_fill_(low & (f.min_p > 0)[:, None], -torch.inf)
        return logits
