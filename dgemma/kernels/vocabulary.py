"""The vocabulary operation: hidden states in, one token's worth of answers a position out.

Everything that needs all V logits of a position happens here and nowhere else: the soft cap, the
temperature, the argmax, the sample, the entropy and the soft embedding. This is the plain
reference: it makes the logits of a few rows at a time and never those of a whole batch.

How one uniform picks a token. The V ids are cut into fixed blocks of 256. A block is known by its
largest logit and by sums of `exp(logit - largest)` over exactly its own columns (fp32). Blocks are
put together in fp64: the uniform picks a block by inverse CDF, and what is left of it picks an id
inside that block. No number depends on how many rows or columns are worked on at a time, so a
streamed kernel needs to keep only three numbers a block, and any tiling gives the same token.

Knows nothing about canvases, steps, requests or where the uniforms come from.
Source: `transformers` 5.17 `modeling_diffusion_gemma.py` (cap, soft embedding) and
`generation_diffusion_gemma.py` (temperature, argmax, entropy).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma.errors import InvalidRequest
from dgemma.kernels.experts import ROW_TILE, rows_linear

BLOCK = 256
"""Ids in a block of the inverse CDF. Part of the meaning of a seed: never change it."""

CHUNK_ELEMENTS = 1 << 23
"""Most logits made at a time: 32 MiB in fp32, about five such temporaries live at once."""

LOWEST = torch.finfo(torch.float32).min
BELOW_ONE = 1.0 - 2.0**-53


@dataclass(frozen=True, slots=True)
class Controls:
    """What is asked of the vocabulary operation beside the defaults.

    Attributes:
        suppress_ids: ids with probability zero: never the argmax, never the sample, no part of
            the entropy or of the soft embedding. Empty is the behaviour of `transformers`.
        logprobs: whether `Reading.logprobs` is wanted.
    """

    suppress_ids: tuple[int, ...] = ()
    logprobs: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Logprobs:
    """Natural logarithms of probabilities of a position's argmax and of its sample.

    Attributes:
        tempered: fp32 [N, 2], under the tempered distribution; column 0 argmax, 1 sample.
        plain: fp32 [N, 2], the same at temperature 1.
    """

    tempered: Tensor
    plain: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """The answers for N positions; every row depends on its own hidden state alone.

    Attributes:
        argmax: int64 [N], the most likely id; the lowest one among equals.
        sample: int64 [N], drawn from the tempered distribution.
        entropy: fp32 [N], nats of the tempered distribution. NaN where the hidden state or a
            logit is not finite; the other fields of such a row mean nothing (ids stay in range).
        soft: [N, D] in the weights' dtype, the belief as an embedding, for the next step.
        logprobs: only where `Controls.logprobs` asked.
    """

    argmax: Tensor
    sample: Tensor
    entropy: Tensor
    soft: Tensor
    logprobs: Logprobs | None = None


@dataclass(frozen=True, slots=True, eq=False)
class BlockSums:
    """All that the inverse CDF and the entropy need to know of the logits.

    Attributes:
        top: fp32 [N, V/256], the largest logit of each block (finite also if all are -inf).
        mass: fp32 [N, V/256], sum of e = exp(logit - top) over the block.
        moment: fp32 [N, V/256], sum of e * (logit - top) over the block.
    """

    top: Tensor
    mass: Tensor
    moment: Tensor


class Vocabulary:
    """The operation bound to a tied embedding table.

    Args:
        table: [V, D], the embedding, which is the head as well.
        softcap: c of `c * tanh(logit / c)`.
        embed_scale: scalar tensor in the table's dtype that scales every embedding.
    """

    def __init__(self, table: Tensor, softcap: float, embed_scale: Tensor) -> None:
        self.table = table
        self.softcap = softcap
        self.embed_scale = embed_scale
        self.rows_at_a_time = max(ROW_TILE, CHUNK_ELEMENTS // table.shape[0])
        self._columns: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def read(
        self, hidden: Tensor, temperature: Tensor, keys: Tensor, controls: Controls
    ) -> Reading:
        """Answers for any number of positions of any number of requests.

        Args:
            hidden: [N, D] after the final norm, in the table's dtype.
            temperature: fp32 [N], above zero.
            keys: fp32 [N], one uniform in [0, 1) a position.
            controls: what else is asked; the same for all rows.

        Returns:
            A `Reading` of N rows. In fp32 on a CPU the bits of a row do not depend on the others.

        Raises:
            InvalidRequest: a suppressed id is not in the vocabulary, or all of it is suppressed.
        """
        size = self.rows_at_a_time
        inputs = (hidden, temperature, keys)
        pieces = zip(*(torch.split(x, size) for x in inputs), strict=True)
        return _joined([self._read_rows(h, t, k, controls) for h, t, k in pieces])

    @torch.no_grad()
    def greedy(self, hidden: Tensor, controls: Controls) -> Tensor:
        """The argmax alone, for decoding token by token: [N, D] -> int64 [N].

        Rows that are not finite give -1.

        Raises:
            InvalidRequest: as in `read`.
        """
        parts = []
        for h in torch.split(hidden, self.rows_at_a_time):
            logits = self.logits(h, controls)
            finite = h.isfinite().all(-1) & ~logits.isnan().any(-1)
            parts.append(torch.where(finite, logits.argmax(-1), -1))
        return torch.cat(parts)

    @torch.no_grad()
    def logits(self, hidden: Tensor, controls: Controls) -> Tensor:
        """Soft-capped logits of a few rows, suppressed ids at -inf: [N, D] -> fp32 [N, V].

        Raises:
            InvalidRequest: as in `read`.
        """
        out = rows_linear(hidden, self.table).float()
        out = out.div_(self.softcap).tanh_().mul_(self.softcap)
        if controls.suppress_ids:
            out[:, self._suppressed(controls.suppress_ids)] = -torch.inf
        return out

    def soft_embedding(self, tempered: Tensor) -> Tensor:
        """The belief as an embedding: fp32 [N, V] -> [N, D].

        The logits are rounded to the weights' dtype before the fp32 softmax, as in the oracle.
        """
        dtype = self.table.dtype
        belief = tempered.to(dtype).softmax(-1, dtype=torch.float32).to(dtype)
        return rows_linear(belief, self.table.T) * self.embed_scale

    def _read_rows(
        self, hidden: Tensor, temperature: Tensor, keys: Tensor, controls: Controls
    ) -> Reading:
        plain = self.logits(hidden, controls)
        tempered = plain / temperature[:, None]
        sums = block_sums(tempered)
        argmax = tempered.argmax(-1)
        sample = pick(tempered, sums, keys)
        # The cap hides an infinite product, so the hidden state itself is looked at.
        nats = torch.where(hidden.isfinite().all(-1), entropy(sums), torch.nan)
        logprobs = None
        if controls.logprobs:
            ids = torch.stack((argmax, sample), -1)
            logprobs = Logprobs(
                tempered=tempered.gather(1, ids) - log_total(sums)[:, None],
                plain=plain.gather(1, ids) - log_total(block_sums(plain))[:, None],
            )
        return Reading(argmax, sample, nats, self.soft_embedding(tempered), logprobs)

    def _suppressed(self, ids: tuple[int, ...]) -> Tensor:
        if ids not in self._columns:
            size = self.table.shape[0]
            wrong = [i for i in ids if not 0 <= i < size]
            if wrong:
                raise InvalidRequest(f"suppress_ids {wrong} are not in the vocabulary of {size}")
            if len(set(ids)) == size:
                raise InvalidRequest("suppress_ids leaves no id of the vocabulary")
            self._columns[ids] = torch.tensor(ids, dtype=torch.int64, device=self.table.device)
        return self._columns[ids]


def block_sums(logits: Tensor) -> BlockSums:
    """The sums of each block of 256 ids: fp32 [N, V] -> three times [N, ceil(V / 256)]."""
    blocks = _blocks(logits)  # [N, V/256, 256]
    top = blocks.amax(-1).clamp_(min=LOWEST)
    below = blocks - top[:, :, None]
    e = below.exp()
    # A suppressed id is at -inf, where e * below would be 0 * inf.
    return BlockSums(top, e.sum(-1), below.clamp_(min=LOWEST).mul_(e).sum(-1))


def entropy(sums: BlockSums) -> Tensor:
    """Nats of each row, fp32 [N]; NaN where a logit is not finite."""
    top, weight, scale = _together(sums)
    moment = (sums.moment.double() + sums.mass.double() * (sums.top.double() - top)) * scale
    total = weight.sum(-1)
    return (total.log() - moment.sum(-1) / total).clamp_(min=0.0).float()


def log_total(sums: BlockSums) -> Tensor:
    """Logarithm of the sum of exp over all logits, fp32 [N]."""
    top, weight, _ = _together(sums)
    return (top[:, 0] + weight.sum(-1).log()).float()


def pick(logits: Tensor, sums: BlockSums, keys: Tensor) -> Tensor:
    """One id a row by inverse CDF, first over blocks and then inside one.

    Args:
        logits: fp32 [N, V].
        sums: of these logits.
        keys: fp32 [N], uniforms in [0, 1).

    Returns:
        int64 [N]; an id of probability zero is never picked. Rows with NaN give some id.
    """
    block, rest = pick_block(sums, keys)
    rows = torch.arange(len(keys), device=keys.device)
    inside = _blocks(logits)[rows, block]  # [N, 256]
    return block * BLOCK + pick_inside(inside, sums.top[rows, block], rest)


def pick_block(sums: BlockSums, keys: Tensor) -> tuple[Tensor, Tensor]:
    """The first block whose cumulated mass exceeds key * total.

    Returns:
        int64 [N] the block, and fp64 [N] in [0, 1) how far into it the key reaches.
    """
    _, weight, _ = _together(sums)
    reached = weight.cumsum(-1)
    target = keys.double() * reached[:, -1]
    block = (reached <= target[:, None]).sum(-1)
    before = F.pad(reached, (1, 0)).gather(1, block[:, None])[:, 0]
    rest = (target - before) / weight.gather(1, block[:, None])[:, 0]
    return block, rest.clamp_(0.0, BELOW_ONE)


def pick_inside(logits: Tensor, top: Tensor, rest: Tensor) -> Tensor:
    """The first id of one block whose cumulated mass exceeds rest * total.

    Args:
        logits: fp32 [N, 256], the block's own; -inf beyond the vocabulary.
        top: fp32 [N], the largest of them.
        rest: fp64 [N] of `pick_block`.

    Returns:
        int64 [N] in [0, 256).
    """
    reached = (logits - top[:, None]).exp().double().cumsum(-1)
    return (reached <= (rest * reached[:, -1])[:, None]).sum(-1)


def _blocks(logits: Tensor) -> Tensor:
    """[N, V] -> [N, ceil(V / 256), 256], filled up with -inf."""
    rows, size = logits.shape
    if size % BLOCK:
        logits = F.pad(logits, (0, -size % BLOCK), value=-torch.inf)
    return logits.view(rows, -1, BLOCK)


def _together(sums: BlockSums) -> tuple[Tensor, Tensor, Tensor]:
    """fp64: the row's largest logit [N, 1], each block's mass on the row's scale and the scale."""
    top = sums.top.double().amax(-1, keepdim=True)
    scale = (sums.top.double() - top).exp()
    return top, sums.mass.double() * scale, scale


def _joined(parts: Sequence[Reading]) -> Reading:
    if len(parts) == 1:
        return parts[0]
    logprobs = [part.logprobs for part in parts if part.logprobs is not None]
    return Reading(
        argmax=torch.cat([part.argmax for part in parts]),
        sample=torch.cat([part.sample for part in parts]),
        entropy=torch.cat([part.entropy for part in parts]),
        soft=torch.cat([part.soft for part in parts]),
        logprobs=Logprobs(
            torch.cat([part.tempered for part in logprobs]),
            torch.cat([part.plain for part in logprobs]),
        )
        if logprobs
        else None,
    )
