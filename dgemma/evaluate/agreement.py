"""Whether this program and `transformers` agree on a checkpoint, as nearly as rounding allows.

How far rounding takes two right programs apart depends on the checkpoint: in one with random
weights it may be a hundred times as far as in a trained one. So `transformers` is also compared
with itself, by kernels that add up in another order, and that difference sets the limit.
Knows what is compared, and the verdict; `parity` knows how both programs are run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from dgemma.diffusion.schedule import Schedule
from dgemma.evaluate.parity import (
    EAGER,
    other_kernels,
    our_generate,
    quiet,
    reference_generate,
    reference_model,
    use_kernels,
)
from dgemma.llm import LLM
from dgemma.params import SamplingParams

CANVASES = 2
SMALLEST_LIMIT = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}
"""Of the difference of logits, relative to their scale; for checkpoints that round well."""
SPREADS = 8
"""The limit in units of the reference's difference from itself. On 36 random networks our
difference was at most 2 of them; a scalar of one layer that is wrong by 0.1 % gave 48 or more."""
LARGEST_LIMIT = 0.25
"""Beyond it a comparison says nothing: rounding alone changes the logits out of recognition."""

Report = Callable[[str, int, int], None]
"""Called with what runs, the steps that are done, and how many there are at most."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the comparison found.

    Attributes:
        transformers: its version.
        dtype: of both programs.
        step_difference: the largest difference of the logits of one step, with and without
            self-conditioning, relative to the largest logit.
        reference_spread: the same between kernels of the reference itself.
        tolerance: the limit of `step_difference`.
        tokens, steps: of the reference's generation; None: only the step was compared.
        differing_tokens: of our generation with the same draws.
        same_steps: whether each canvas took as many steps.
        reference_differing_tokens: of the reference's generation with its other kernels, which
            runs only if ours differs.
    """

    transformers: str
    dtype: str
    step_difference: float
    reference_spread: float
    tolerance: float
    tokens: int | None = None
    steps: tuple[int, ...] | None = None
    differing_tokens: int | None = None
    same_steps: bool | None = None
    reference_differing_tokens: int | None = None

    @property
    def same_step(self) -> bool:
        """Whether the logits of one step agree; not if rounding alone takes them far apart."""
        return self.decides and self.step_difference <= self.tolerance

    @property
    def decides(self) -> bool:
        """Whether a step can tell a right program from a wrong one on this checkpoint."""
        return self.tolerance <= LARGEST_LIMIT

    @property
    def same_tokens(self) -> bool | None:
        """Whether the generations are the same; None: not compared."""
        return None if self.tokens is None else self.differing_tokens == 0

    @property
    def passed(self) -> bool:
        """Both agree, or the generations differ as the reference's own do."""
        same = self.tokens is None or (self.same_tokens and self.same_steps)
        return self.same_step and bool(same or self.reference_differing_tokens)

    def as_values(self) -> dict[str, Any]:
        """All of it, for programs."""
        return asdict(self) | {"same_tokens": self.same_tokens, "passed": self.passed}


@quiet()
def compare(
    llm: LLM, prompt: str, seed: int, *, step_only: bool = False, report: Report = lambda *_: None
) -> Agreement:
    """One step's logits, and in fp32 one generation, by both programs with the same draws.

    In 16 bit rounding may turn a token whoever computes it, so the step alone is compared.

    Args:
        step_only: leave the generation out in fp32, too.

    Raises:
        MissingExtra: `transformers` is not installed.
    """
    dtype, device = llm.choice.dtype, llm.choice.device
    report("transformers loads the checkpoint", 0, 0)
    reference = reference_model(llm.checkpoint.path, dtype, device)
    ids = llm.prompt_ids(prompt) if llm.tokenizer is not None else [llm.config.bos_token_id or 0]
    tokens = torch.tensor([ids], device=device)
    report("one denoising step", 0, 0)
    difference, spread = _one_step(llm, reference, tokens, seed)
    limit = max(SMALLEST_LIMIT[dtype], SPREADS * spread)
    made = partial(
        Agreement, version("transformers"), str(dtype).removeprefix("torch."), difference, spread,
        limit,
    )  # fmt: skip
    if step_only or dtype != torch.float32:
        return made()
    return made(**_generations(llm, reference, tokens, seed, report))


@torch.inference_mode()
def _one_step(llm: LLM, reference: Any, tokens: Tensor, seed: int) -> tuple[float, float]:
    """Our difference from the reference, and the reference's from itself: see `Agreement`.

    Each on one canvas of noise [1, C], as the first step and as one that is conditioned on it.
    """
    size = (1, llm.config.canvas_length)
    generator = torch.Generator().manual_seed(seed)
    canvas = torch.randint(llm.config.vocab_size, size, generator=generator).to(tokens.device)

    def theirs(kernels: dict[str, str], before: Tensor | None) -> Tensor:
        use_kernels(reference, kernels)
        logits: Tensor = reference(
            input_ids=tokens, decoder_input_ids=canvas, self_conditioning_logits=before
        ).logits
        return logits.float()

    cache, head = llm.model.new_cache(1, tokens.shape[1] + 1 + size[1]), llm.model.head
    llm.model.encode(tokens, cache)
    found: list[tuple[float, float]] = []
    before = None
    for _ in range(2):
        plain = theirs(EAGER, before)
        scale = plain.abs().max()
        soft = None if before is None else head.soft_embedding(before)
        ours = head.logits(llm.model.denoise(canvas, cache, soft))
        others = (theirs(kernels, before) for kernels in other_kernels(llm.config, tokens.shape[1]))
        spread = max(((other - plain).abs().max() / scale).item() for other in others)
        found.append((((ours - plain).abs().max() / scale).item(), spread))
        before = plain
    use_kernels(reference, EAGER)
    # Of the two steps the one that tells more: the conditioned one may round without bounds.
    telling = [pair for pair in found if SPREADS * pair[1] <= LARGEST_LIMIT] or found[:1]
    smallest = SMALLEST_LIMIT[llm.choice.dtype]
    return max(telling, key=lambda pair: pair[0] / max(smallest, SPREADS * pair[1]))


def _generations(
    llm: LLM, reference: Any, tokens: Tensor, seed: int, report: Report
) -> dict[str, Any]:
    """The fields of `Agreement` about whole generations."""
    params = SamplingParams(seed=seed).merged(llm.defaults)
    schedule = Schedule.of(params)
    most = CANVASES * schedule.max_steps

    def steps_of(who: str) -> Callable[[int], None]:
        return lambda done: report(f"{who} generates", done, most)

    ids = tokens[0].tolist()
    ours = our_generate(llm, ids, params, canvases=CANVASES, on_step=steps_of("dgemma"))
    made = [i for canvas in ours.canvases for i in canvas]

    def theirs(who: str) -> tuple[list[int], tuple[int, ...]]:
        run = reference_generate(
            reference, tokens, [seed], schedule, canvases=CANVASES,
            end_ids=llm.engine.spec.end_ids, pad_id=llm.engine.spec.pad_id,
            on_step=steps_of(who),
        )  # fmt: skip
        return run.ids[0].tolist(), run.steps

    wanted, steps = theirs("transformers")
    differing, same_steps = _differing(made, wanted), ours.steps == steps
    found = {"tokens": len(wanted), "steps": steps, "differing_tokens": differing,
             "same_steps": same_steps}  # fmt: skip
    if differing == 0 and same_steps:
        return found
    own = 0
    for kernels in other_kernels(llm.config, len(ids)):
        use_kernels(reference, kernels)
        own = max(own, _differing(theirs("transformers, with other kernels,")[0], wanted))
        if own:
            break
    return found | {"reference_differing_tokens": own}


def _differing(one: list[int], other: list[int]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=False)) + abs(len(one) - len(other))
