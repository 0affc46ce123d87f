"""`python -m bench.packed`: a 16-bit checkpoint and its twins of 8 and 4 bits, in turns.

The twins are made in memory from the same weights: attention, MLPs and experts in groups of 32, and
the rest as it is. All three then run in one process, one after the other, several times over.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.chart import Lines
from bench.run import Say, ascending, main
from dgemma.bench.clock import Watch, now_ms
from dgemma.bench.drive import Where, prompt_ids, run
from dgemma.bench.report import Cell, Report, Table, plain
from dgemma.bench.stats import median, shares
from dgemma.bench.step import PARTS, watch_parts
from dgemma.cli.options import positive
from dgemma.errors import InvalidRequest
from dgemma.llm import LLM
from dgemma.model.transformer import DiffusionGemma
from dgemma.params import SamplingParams
from dgemma.quant.affine import Affine
from dgemma.quant.modules import keeps_packed, kept_bytes, put, swap
from dgemma.quant.packed import Packed, joined, stacked
from dgemma.types import Request

GROUP = 32
ROWS = 64
"""Of a matrix that are packed at a time, so that they stay in the cache."""

RELEASED_LAYERS = 30
PLENTY = 1e9
"""Bytes for each number: room for every kernel."""

ROOMS = {8: PLENTY, 4: 0.0}
"""With no room, 4-bit experts stay at 4 bits; attention and MLPs become int8 in both."""

NOTES = (
    "Layers are scaled to the released 30: all parts but the vocabulary and the self-conditioning, "
    "which is taken as one more MLP of `dense`. `rest` counts as a part of the layers.",
    "Medians over the turns of each turn's median step. The parts are timed by the clock, so other "
    "programs on the machine slow all sides; only the ratios say something then.",
    "`bytes` are those of attention, MLPs and experts, over their bytes in 16 bit.",
)


@dataclass(frozen=True)
class Turn:
    """One side, once.

    Attributes:
        bits: 16, 8 or 4.
        what: "canvas, prompt 64" or "token, prompt 64".
        parts_ms: medians over the steps.
        thirty_ms: the same step with thirty layers.
    """

    bits: int
    what: str
    parts_ms: dict[str, float]
    thirty_ms: float


def is_packed(name: str) -> bool:
    """Whether a weight of ours is attention's, an MLP's or an expert's."""
    return name.startswith("layers.") and "proj" in name and "router" not in name


def affine(weight: Tensor, bits: int, group: int = GROUP) -> Packed:
    """The nearest codes of a matrix or a stack, [..., R, K], with a scale and a bias a group.

    Raises:
        InvalidRequest: the groups do not divide K.
    """
    if weight.dim() > 2:
        return stacked([affine(matrix, bits, group) for matrix in weight])
    if len(weight) > ROWS:
        return joined([affine(rows, bits, group) for rows in torch.split(weight, ROWS)])
    rows, columns = weight.shape
    if columns % group:
        raise InvalidRequest(f"{columns} columns; this program takes multiples of {group}")
    groups = weight.float().view(rows, -1, group)
    low, high = groups.aminmax(dim=-1)
    scale = (high - low).clamp(min=1e-12) / (2**bits - 1)
    codes = groups.sub_(low[..., None]).div_(scale[..., None]).round_().to(torch.uint8)
    codes = codes.view(rows, columns)
    if bits == 4:
        codes = codes[:, 0::2] | (codes[:, 1::2] << 4)
    parts = {"codes": codes, "scale": scale.bfloat16(), "bias": low.bfloat16()}
    return Packed(Affine(bits, group), columns, parts)


def twin(
    plain_model: DiffusionGemma, bits: int, device: torch.device, group: int = GROUP
) -> DiffusionGemma:
    """A network with packed weights, which shares all others."""
    state = plain_model.state_dict()
    with torch.device("meta"):
        model = DiffusionGemma(plain_model.config)
    swap(model, {name: Affine(bits, group) for name in state if is_packed(name)})
    model.choose_kernels(device, plain_model.dtype, room=ROOMS[bits])
    for name, value in state.items():
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        if keeps_packed(owner):
            put(owner, leaf, affine(value, bits, group))
        else:
            setattr(owner, leaf, nn.Parameter(value, requires_grad=False))
    return model.eval()


def layer_bytes(model: nn.Module) -> int:
    """Of attention, MLPs and experts, as they are kept."""
    total = sum(kept_bytes(module) for module in model.modules() if keeps_packed(module))
    named = model.named_parameters()
    return total + sum(value.nbytes for name, value in named if is_packed(name))


def split(llm: LLM, drive: Callable[[Callable[[], None]], list[float]]) -> dict[str, float]:
    """Milliseconds of the parts of a step: medians without the first step.

    Args:
        drive: runs the steps and calls its argument after each; their milliseconds.
    """
    rows: list[dict[str, float]] = []
    with Watch(llm.choice.device) as watch:
        watch_parts(watch, llm)
        watch.add("vocabulary", llm.model.head, "_chosen")
        totals = drive(lambda: rows.append(watch.take()))
    each = [
        shares(total, {part: row.get(part, 0.0) for part in PARTS})
        for total, row in zip(totals[1:], rows[1:], strict=True)
    ]
    return {part: median([row[part] for row in each]) for part in (*PARTS, "rest")}


def canvas(llm: LLM, prompt: int, steps: int) -> dict[str, float]:
    """The parts of a denoising step."""
    ids = prompt_ids(llm.config, prompt)

    def drive(after: Callable[[], None]) -> list[float]:
        @contextmanager
        def around(number: int) -> Iterator[None]:
            yield
            after()

        return run(llm, [ids], steps, around).step_ms

    return split(llm, drive)


def decoding(llm: LLM, prompt: int, tokens: int) -> dict[str, float]:
    """The parts of a pass that makes one token; the first pass encodes the prompt."""
    ids, engine = prompt_ids(llm.config, prompt), llm.engine
    engine.forget()

    def drive(after: Callable[[], None]) -> list[float]:
        params = SamplingParams(max_tokens=tokens)
        stream = engine.submit(Request(token_ids=ids, params=params, mode="autoregressive"))
        spent = []
        while engine.running:
            start = now_ms(llm.choice.device)
            engine.step()
            spent.append(now_ms(llm.choice.device) - start)
            after()
        stream.close()
        return spent

    return split(llm, drive)


def thirty(parts: dict[str, float], layers: int, once: bool) -> float:
    """Milliseconds with thirty layers.

    Args:
        once: whether `dense` holds the self-conditioning, one MLP more than layers.
    """
    fixed = parts["vocabulary"] + (parts["dense"] / (layers + 1) if once else 0.0)
    return fixed + RELEASED_LAYERS / layers * (sum(parts.values()) - fixed)


def take_turns(sides: dict[int, LLM], options: argparse.Namespace, say: Say) -> list[Turn]:
    """All sides at all prompts, one after the other, several times over."""
    found = []
    layers = next(iter(sides.values())).config.num_layers
    for prompt in options.prompts:
        for number in range(options.turns):
            for bits, llm in sides.items():
                parts = canvas(llm, prompt, options.steps)
                found.append(
                    Turn(bits, f"canvas, prompt {prompt}", parts, thirty(parts, layers, True))
                )
                parts = decoding(llm, prompt, options.tokens)
                found.append(
                    Turn(bits, f"token, prompt {prompt}", parts, thirty(parts, layers, False))
                )
            said = ", ".join(
                f"{t.bits} bit {t.thirty_ms:,.0f} ms" for t in found[-2 * len(sides) :]
            )
            say(f"prompt {prompt}, turn {number + 1}: {said}")
    return found


def table_of(turns: Sequence[Turn], sizes: dict[int, int]) -> Table:
    """The result for people: medians over turns, and their ratios to 16 bit."""
    rows: list[list[Cell]] = []
    for what in dict.fromkeys(turn.what for turn in turns):
        base = median([t.thirty_ms for t in turns if (t.what, t.bits) == (what, 16)])
        for bits in sizes:
            mine = [t for t in turns if (t.what, t.bits) == (what, bits)]
            whole = median([t.thirty_ms for t in mine])
            parts = [median([t.parts_ms[part] for t in mine]) for part in (*PARTS, "rest")]
            rows.append([what, bits, *parts, whole, whole / base, sizes[bits] / sizes[16]])
    head = ("what", "bits", *PARTS, "rest", "thirty layers, ms", "/ 16 bit", "bytes / 16 bit")
    return Table("Packed weights beside 16 bit, ms", head, rows)


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the program."""
    parser.add_argument("--prompts", type=ascending(int), default=[64, 1024], metavar="LIST",
                        help="tokens of the prompts (64,1024)")  # fmt: skip
    for name, value, what in (
        ("turns", 2, "of each side"),
        ("steps", 4, "denoising steps of a turn; the first is not counted"),
        ("tokens", 6, "decoded in a turn; the first is not counted"),
    ):
        parser.add_argument(f"--{name}", type=positive, default=value, help=f"{what} ({value})")


def measure(where: Where, options: argparse.Namespace, say: Say) -> tuple[Report, Sequence[Lines]]:
    """All sides.

    Raises:
        InvalidRequest: the model does not run on a CPU in bf16, or there is nothing to count.
    """
    llm = where.open()
    if llm.choice.device.type != "cpu" or llm.choice.dtype != torch.bfloat16:
        raise InvalidRequest("packed weights are compared on a CPU; use --device cpu --dtype bf16")
    if options.steps < 2 or options.tokens < 2:
        raise InvalidRequest("the first step is not counted; give --steps and --tokens above 1")
    sides = {16: llm}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small pieces: two threads would only wait for each other
    for bits in ROOMS:
        say(f"packing in {bits} bits")
        model = twin(llm.model, bits, llm.choice.device)
        sides[bits] = LLM(model, llm.checkpoint, llm.choice, llm.tokenizer, llm.template)
        for part, name, why in model.kernels[:2]:
            say(f"  {part}: {name} ({why})")
    torch.set_num_threads(threads)
    with torch.inference_mode():
        sizes = {bits: layer_bytes(side.model) for bits, side in sides.items()}
        turns = take_turns(sides, options, say)
    table = table_of(turns, sizes)
    return where.report("Packed weights", llm, [table], plain(turns), NOTES), ()


if __name__ == "__main__":
    sys.exit(main("packed", __doc__, configure, measure))
