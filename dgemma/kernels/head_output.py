"""The answers of the head for each position.

Knows nothing about how they are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class HeadLogprobs(NamedTuple):
    """Natural logarithms of probabilities of some ids of each position, controls included.

    Attributes:
        ids: int64 [N, 2 + S + K]: argmax, sample, the S asked ids, the K most likely ones in
            falling order (the lowest id first among equals is not promised).
        tempered: fp32 [N, 2 + S + K], under the tempered distribution; -inf for barred ids.
        plain: fp32 [N, 2 + S + K], the same at temperature 1.
    """

    ids: Tensor
    tempered: Tensor
    plain: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class HeadOutput:
    """The answers for N positions; every row depends on its own hidden state alone.

    Attributes:
        argmax: int64 [N], the most likely id; the lowest one among equals.
        sample: int64 [N], drawn from the tempered distribution.
        entropy: fp32 [N], nats of the tempered distribution. NaN if the hidden state or a logit is
            not finite or the controls leave no id; the other fields of such a row mean nothing
            (ids stay in range).
        soft: [N, D] in the weights' dtype, the belief as an embedding, for the next step.
        logprobs: only if the controls ask.
    """

    argmax: Tensor
    sample: Tensor
    entropy: Tensor
    soft: Tensor
    logprobs: HeadLogprobs | None = None


def joined(parts: Sequence[HeadOutput]) -> HeadOutput:
    """The outputs of consecutive rows as one."""
    if len(parts) == 1:
        return parts[0]
    scores = [part.logprobs for part in parts if part.logprobs is not None]
    argmax, sample, entropy, soft = map(
        torch.cat, zip(*((p.argmax, p.sample, p.entropy, p.soft) for p in parts), strict=True)
    )
    logprobs = HeadLogprobs(*map(torch.cat, zip(*scores, strict=True))) if scores else None
    return HeadOutput(argmax, sample, entropy, soft, logprobs)
