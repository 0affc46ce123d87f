"""The head: from hidden states to an argmax, a sample, an entropy and a soft embedding a position.

Everything that needs all V logits of a position happens here and in `head_tiles` and nowhere
else: the soft cap, the temperature, the argmax, the sample, the entropy, the soft embedding. The
plain reference is here: it makes the logits of a few rows at a time and never those of a whole
batch. `sampling` says how one uniform picks a token, `controls` has everything else that a caller
may ask for.

Knows nothing about canvases, steps, requests or the source of the uniforms.
Source: `transformers` 5.17 `modeling_diffusion_gemma.py` (cap, soft embedding) and
`generation_diffusion_gemma.py` (temperature, argmax, entropy).
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import torch
from torch import Tensor

from dgemma.errors import InvalidRequest
from dgemma.kernels.controls import Controls
from dgemma.kernels.embedding import EmbeddingTable
from dgemma.kernels.head_output import HeadLogprobs, HeadOutput, joined
from dgemma.kernels.head_tiles import TiledReader, capped
from dgemma.kernels.linear import ROW_TILE, rows_linear
from dgemma.kernels.sampling import block_sums, entropy, log_total, pick

CHUNK_ELEMENTS = 1 << 23
"""Most logits made at a time: 32 MiB in fp32, about five such temporaries live at once."""

ROWS_LIMIT = 1 << 12
"""Largest vocabulary that is read row by row: the logits of a canvas then stay in cache."""

KERNELS = ("rows", "tiles", "triton")


def choose_head(size: int, device: torch.device) -> tuple[str, str]:
    """The name of the faster way for a vocabulary of `size` ids, and the reason as text."""
    if size <= ROWS_LIMIT:
        return "rows", f"{size} ids <= {ROWS_LIMIT}: whole rows of logits stay in cache"
    why = f"{size} ids > {ROWS_LIMIT}: streamed, the logits never exist in memory"
    if device.type == "cuda" and find_spec("triton") is not None:
        return "triton", f"{why}; {device}"
    return "tiles", why


class Head:
    """The operation bound to a tied embedding.

    Args:
        table: the embedding, which is the head as well.
        softcap: c of `c * tanh(logit / c)`.
        kernel: "rows" (the plain reference), "tiles" (streamed), "triton" (streamed, with kernels
            for CUDA) or "auto".
        device: the device of the run; None: that of the table.
    """

    def __init__(
        self,
        table: EmbeddingTable,
        softcap: float,
        kernel: str = "auto",
        device: torch.device | None = None,
    ) -> None:
        if kernel not in (*KERNELS, "auto"):
            raise InvalidRequest(f"unknown head kernel {kernel!r}; known: {KERNELS}")
        device = device or table.device
        self.table = table
        self.softcap = softcap
        self.rows_at_a_time = max(ROW_TILE, CHUNK_ELEMENTS // table.size)
        self.kernel, self.reason = choose_head(table.size, device)
        if kernel != "auto":
            self.kernel, self.reason = kernel, "asked for"
        self.tiles = TiledReader(table, softcap, device, triton=self.kernel == "triton")

    @torch.no_grad()
    def read(
        self,
        hidden: Tensor,
        temperature: Tensor,
        uniforms: Tensor,
        controls: Controls,
        likely: Tensor | None = None,
    ) -> HeadOutput:
        """Answers for any number of positions of any number of requests.

        Args:
            hidden: [N, D] after the final norm, in the table's dtype and on its device.
            temperature: fp32 [N], above zero.
            uniforms: fp32 [N], one uniform in [0, 1) a position.
            controls: further requests. Filters need whole rows and are always read row by row.
            likely: int64 [N], an id a row that may well be its argmax, such as the last step's.
                In 16 bit the belief then leaves out earlier what weighs nothing; a wrong guess
                costs time alone.

        Returns:
            A `HeadOutput` of N rows. In fp32 on a CPU no row's bits depend on the others.

        Raises:
            InvalidRequest: see `Controls.check`.
        """
        controls.check(self.table.size)
        if controls.pinned is not None:
            return self._read_held(hidden, temperature, uniforms, controls, controls.pinned, likely)
        if self.kernel != "rows" and controls.filters is None:
            return self.tiles.read(hidden, temperature, uniforms, controls, likely)
        rows = torch.arange(len(hidden), device=hidden.device)
        parts = []
        for r in torch.split(rows, self.rows_at_a_time):
            asked = controls if len(r) == len(rows) else controls.rows(r)
            parts.append(self._read_rows(hidden[r], temperature[r], uniforms[r], asked))
        return joined(parts)

    def _read_held(
        self,
        hidden: Tensor,
        temperature: Tensor,
        uniforms: Tensor,
        controls: Controls,
        pinned: Tensor,
        likely: Tensor | None,
    ) -> HeadOutput:
        """Pinned rows are looked up; only the others, and those with a score, are read."""
        free = (pinned < 0).nonzero()[:, 0]
        controls = replace(controls, pinned=None)
        ids = pinned.clamp(min=0)
        soft = self.embed(ids)
        entropy = torch.zeros_like(temperature)
        if controls.wants_logprobs:
            head_output = self.read(hidden, temperature, uniforms, controls, likely)
            got, logprobs = head_output, head_output.logprobs
            pick = free
        elif len(free):
            guess = None if likely is None else likely[free]
            asked = controls.rows(free)
            got = self.read(hidden[free], temperature[free], uniforms[free], asked, guess)
            logprobs, pick = None, torch.arange(len(free), device=free.device)
        else:
            return HeadOutput(ids, ids, entropy, soft)
        return HeadOutput(
            argmax=ids.index_copy(0, free, got.argmax[pick]),
            sample=ids.index_copy(0, free, got.sample[pick]),
            entropy=entropy.index_copy(0, free, got.entropy[pick]),
            soft=soft.index_copy(0, free, got.soft[pick]),
            logprobs=logprobs,
        )

    def embed(self, ids: Tensor) -> Tensor:
        """Scaled embeddings: int64 [...] -> [..., D]; also the belief of one who is certain."""
        return self.table.rows(ids) * self.table.scale()

    @torch.no_grad()
    def scores(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Log-probabilities of one id a row at temperature 1: [N, D], int64 [N] -> fp32 [N]."""
        parts = []
        for h, chosen in zip(
            *(torch.split(t, self.rows_at_a_time) for t in (hidden, ids)), strict=True
        ):
            logits = self.logits(h)
            picked = logits.gather(1, chosen[:, None])[:, 0]
            parts.append(picked - logits.logsumexp(-1))
        return torch.cat(parts)

    @torch.no_grad()
    def greedy(self, hidden: Tensor, controls: Controls) -> Tensor:
        """The argmax alone, for decoding token by token: [N, D] -> int64 [N].

        Rows that are not finite give -1.

        Raises:
            InvalidRequest: as in `read`.
        """
        return self._chosen(hidden, controls)

    @torch.no_grad()
    def draw(
        self, hidden: Tensor, temperature: Tensor, uniforms: Tensor, controls: Controls
    ) -> Tensor:
        """The sample alone, for decoding token by token: [N, D] -> int64 [N].

        Args:
            hidden, temperature, uniforms, controls: as in `read`.

        Returns:
            The ids that `read` would sample; rows that are not finite give -1.

        Raises:
            InvalidRequest: as in `read`.
        """
        return self._chosen(hidden, controls, temperature, uniforms)

    def _chosen(
        self, hidden: Tensor, controls: Controls, temperature: Tensor | None = None,
        uniforms: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The argmax of each row, or its sample where there are temperatures; -1: not finite."""
        controls.check(self.table.size)
        parts = []
        rows = torch.arange(len(hidden), device=hidden.device)
        for r in torch.split(rows, self.rows_at_a_time):
            logits = self.logits(hidden[r], controls.rows(r))
            finite = hidden[r].isfinite().all(-1) & ~logits.isnan().any(-1)
            if temperature is None or uniforms is None:
                chosen = logits.argmax(-1)
            else:
                tempered = logits / temperature[r, None]
                chosen = pick(tempered, block_sums(tempered), uniforms[r])
            parts.append(torch.where(finite, chosen, -1))
        return torch.cat(parts)

    @torch.no_grad()
    def judge(self, hidden: Tensor, ids: Tensor, controls: Controls) -> tuple[Tensor, Tensor]:
        """The argmax of each row and the score of one id, by one look at the logits.

        Returns:
            int64 [N] as `greedy` gives them, and fp32 [N] as `scores` does, without the controls.
        """
        controls.check(self.table.size)
        tops, scores = list[Tensor](), list[Tensor]()
        rows = torch.arange(len(hidden), device=hidden.device)
        for r in torch.split(rows, self.rows_at_a_time):
            logits = self.logits(hidden[r])
            picked = logits.gather(1, ids[r][:, None])[:, 0]
            scores.append(picked - logits.logsumexp(-1))
            logits = controls.rows(r).adjust(logits)
            finite = hidden[r].isfinite().all(-1) & ~logits.isnan().any(-1)
            tops.append(torch.where(finite, logits.argmax(-1), -1))
        return torch.cat(tops), torch.cat(scores)

    def logits(self, hidden: Tensor, controls: Controls | None = None) -> Tensor:
        """Soft-capped logits of a few rows under the controls: [..., D] -> fp32 [..., V].

        Ids that are suppressed, masked out or filtered away are at -inf. Without controls there
        may be gradients.
        """
        flat = rows_linear(hidden.reshape(-1, hidden.shape[-1]), self._whole())
        out = capped(flat.float(), self.softcap, exact=True)
        if controls is not None:
            out = controls.filter(controls.adjust(out))
        return out.view(*hidden.shape[:-1], -1)

    def soft_embedding(self, tempered: Tensor) -> Tensor:
        """The belief as an embedding: fp32 [..., V] -> [..., D].

        The logits are rounded to the weights' dtype before the fp32 softmax, as in the oracle.
        """
        dtype = self.table.dtype
        belief = tempered.to(dtype).softmax(-1, dtype=torch.float32).to(dtype)
        flat = rows_linear(belief.reshape(-1, belief.shape[-1]), self._whole().T)
        return (flat * self.table.scale()).view(*belief.shape[:-1], -1)

    def _whole(self) -> Tensor:
        return self.table.tile(0, self.table.size)

    def _read_rows(
        self, hidden: Tensor, temperature: Tensor, uniforms: Tensor, controls: Controls
    ) -> HeadOutput:
        plain = self.logits(hidden, controls)
        tempered = plain / temperature[:, None]
        sums = block_sums(tempered)
        argmax = tempered.argmax(-1)
        sample = pick(tempered, sums, uniforms)
        # The cap hides an infinite product, so the hidden state itself is looked at.
        nats = torch.where(hidden.isfinite().all(-1), entropy(sums), torch.nan)
        logprobs = None
        if controls.wants_logprobs:
            count = controls.alternatives
            ids = controls.scored(argmax, sample, [plain.topk(count).indices] if count else [])
            logprobs = HeadLogprobs(
                ids=ids,
                tempered=tempered.gather(1, ids) - log_total(sums)[:, None],
                plain=plain.gather(1, ids) - log_total(block_sums(plain))[:, None],
            )
        return HeadOutput(argmax, sample, nats, self.soft_embedding(tempered), logprobs)
