"""Autoregressive decoding by the same weights, for comparison with the canvas loop.

The encode mode with the tied head is an ordinary autoregressive Gemma. Decoding is greedy: the
most likely allowed id, at every token. It draws nothing, so all seeds give the same answer; fields
that steer denoising are refused, not ignored.
Knows nothing about batches, cached keys, text or stop strings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dgemma.diffusion.canvas import CanvasSpec, Generation
from dgemma.diffusion.generate import Encode
from dgemma.errors import EngineError, InvalidRequest
from dgemma.kernels.controls import Controls
from dgemma.params import REFUSED_BY_AUTOREGRESSIVE, SamplingParams

Greedy = Callable[[Tensor, Controls], Tensor]  # hidden [N, D] -> ids [N], -1 where not finite


@torch.no_grad()
def autoregress(
    prompt: Sequence[int], params: SamplingParams, spec: CanvasSpec, encode: Encode, greedy: Greedy
) -> Generation:
    """Token after token until an end id, `max_tokens` or the end of the context.

    Args:
        prompt: token ids.
        params: as the user gave them. `stop` strings are the caller's.
        spec: of the checkpoint; the canvas length plays no part.
        encode: the causal mode of the network.
        greedy: `Head.greedy`.

    Returns:
        A `Generation` without canvases; `steps` is one number, the passes of the network: one a
        token, the end id included; the pass over the prompt yields the first of them.

    Raises:
        InvalidRequest: a field of `REFUSED_BY_AUTOREGRESSIVE` is set, or the prompt is empty or
            too long.
        EngineError: the network returned numbers that are not finite.
    """
    for name in REFUSED_BY_AUTOREGRESSIVE:  # it would have to ignore them
        if getattr(params, name) is not None:
            raise InvalidRequest(
                f"{name} has no meaning for autoregressive decoding, which is greedy; leave it out"
            )
    spec.check_room(prompt, 1)
    controls = Controls(suppress_ids=spec.suppress_ids)
    limit = min(params.max_tokens or spec.context_length, spec.context_length - len(prompt))
    pending, answer = list(prompt), list[int]()  # ids to encode next, ids of the answer so far
    passes, ended = 0, False
    while not ended and len(answer) < limit:
        hidden = encode(torch.tensor([pending], device=spec.device))[0, -1:]  # [1, D]
        token = int(greedy(hidden, controls))
        if token < 0:
            raise EngineError(f"token {len(answer)}: not finite")
        passes, pending, ended = passes + 1, [token], token in spec.end_ids
        if not ended:
            answer.append(token)
    return Generation(
        token_ids=tuple(answer), finish_reason="stop" if ended else "length", steps=(passes,)
    )
