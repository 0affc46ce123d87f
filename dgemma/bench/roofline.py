"""A denoising step's bytes and operations by formula, and the time that a GPU needs at least.

The formulas are in `FORMULAS`, which the report prints. A lower bound, not a forecast: it knows no
kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dgemma.bench.report import Cell, Listing, Table
from dgemma.model.config import ModelConfig

FORMULAS = Listing(
    "Formulas of the prediction",
    """\
C     canvases of L positions; N = C L rows
D     hidden size
H, G  query heads and key heads, each of h numbers
S     visible keys: prompt + L; in sliding layers at most window - 1 + L
F     inner width of an MLP or of an expert
E, K  experts, and those that a row goes to
V     ids of the vocabulary
b     bytes of a number: 2

attention, a layer  W          = D h (2 H + 2 G); in full layers, without values, D h (2 H + G)
                    operations = 2 N W + 4 N H h S
                    bytes      = b (W + 2 C G h S)
dense, an MLP       operations = 6 N D F
                    bytes      = 3 b D F
experts, a layer    operations = 2 N D E + 6 N K D F
                    bytes      = b (D E + 3 D F E (1 - (1 - K/E)^N))
vocabulary          operations = 4 N D V
                    bytes      = 2 b V D

time of a part = max(bytes / bandwidth, operations / rate)   "memory" or "rate" in the table
time of a step = sum of its parts""",
)
NOTES = (
    "The times are predicted, not measured. An operation is a product or a sum of floating-point "
    "numbers; bytes are those that memory must deliver at least. Norms, sampler, launches and the "
    "host are left out.",
    "dense: an MLP in each layer, and one for the self-conditioning. experts: those without a row "
    "are not read, and routing is taken as even.",
    "vocabulary: logits and soft embedding are two products with the table. For one canvas a tile "
    "of the table (184 MB) is larger than any of these caches; for many the rate limits. The tile "
    "of logits in between (32 MB with its weights) is taken to stay in the cache; the RTX 3090 has "
    "6 MB, so up to 10 N V more bytes.",
    "Rates are the vendor's for dense 16-bit products with fp32 sums. A GPU that cannot hold the "
    "weights is shown as if it could.",
)


@dataclass(frozen=True, slots=True)
class GpuRate:
    """A GPU by its data sheet.

    Attributes:
        gb_s: memory bandwidth.
        tflop_s: dense 16-bit products with fp32 sums.
        memory_gb: all of it.
    """

    name: str
    gb_s: float
    tflop_s: float
    memory_gb: float


GPUS = (
    GpuRate("H200", 4800, 989, 141),
    GpuRate("H100", 3350, 989, 80),
    GpuRate("RTX 5090", 1792, 209.5, 32),
    GpuRate("RTX 4090", 1008, 165.2, 24),
    GpuRate("RTX 3090", 936, 71, 24),
)
"""SXM versions of the first two. Source: NVIDIA's data sheets and architecture white papers."""

CANVASES = (1, 4, 16)
PROMPT = 1024


@dataclass(frozen=True, slots=True)
class StepCost:
    """Operations and bytes of a part of a step."""

    part: str
    flop: float
    bytes: float

    def ms(self, gpu: GpuRate) -> tuple[float, str]:
        """At least so long, and which of the two limits: memory or rate."""
        moved, computed = self.bytes / gpu.gb_s / 1e6, self.flop / gpu.tflop_s / 1e9
        return max((moved, "memory"), (computed, "rate"))


@dataclass(frozen=True, slots=True)
class StepPrediction:
    """A step of so many canvases, each after so long a prompt."""

    canvases: int
    prompt: int
    parts: Sequence[StepCost]

    @property
    def ms(self) -> dict[str, float]:
        """GPU -> milliseconds at least."""
        return {gpu.name: sum(part.ms(gpu)[0] for part in self.parts) for gpu in GPUS}


def step_cost(config: ModelConfig, canvases: int, prompt: int, size: int = 2) -> list[StepCost]:
    """The parts of a step; see `FORMULAS`.

    Args:
        canvases: C, in one forward.
        prompt: tokens before each canvas.
        size: bytes of a number.
    """
    rows, width = canvases * config.canvas_length, config.hidden_size
    flop = moved = 0.0
    for layer, kind in enumerate(config.layer_types):
        shape, full = config.attention(layer), kind == "full_attention"
        heads, groups, h = config.num_attention_heads, shape.num_key_value_heads, shape.head_dim
        keys = config.canvas_length + (prompt if full else min(prompt, config.sliding_window - 1))
        weights = width * h * (2 * heads + (1 if full else 2) * groups)
        flop += 2 * rows * weights + 4 * rows * heads * h * keys
        moved += size * (weights + 2 * canvases * groups * h * keys)
    layers, inner = config.num_layers, config.intermediate_size
    dense = 3 * width * inner * (layers + 1)
    count, chosen = config.num_experts, config.top_k_experts
    expert = 3 * width * config.moe_intermediate_size
    read = count * (1 - (1 - chosen / count) ** rows)
    table = config.vocab_size * width
    return [
        StepCost("attention", flop, moved),
        StepCost("dense", 2 * rows * dense, size * dense),
        StepCost(
            "experts",
            2 * rows * layers * (width * count + chosen * expert),
            size * layers * (width * count + expert * read),
        ),
        StepCost("vocabulary", 4 * rows * table, 2 * size * table),
    ]


def predictions(config: ModelConfig) -> list[StepPrediction]:
    """Steps of `CANVASES`."""
    return [StepPrediction(n, PROMPT, step_cost(config, n, PROMPT)) for n in CANVASES]


def roofline_tables(config: ModelConfig, parameters: int) -> list[Table]:
    """One canvas by parts, then steps of several.

    Args:
        config: of the network.
        parameters: how many it has.
    """
    head = ("GFLOP", "GB", "FLOP a byte", *(f"{gpu.name}, ms" for gpu in GPUS))
    found = predictions(config)
    rows: list[list[Cell]] = []
    for part in found[0].parts:
        times = ["{:.2f} ({})".format(*part.ms(gpu)) for gpu in GPUS]
        rows.append([part.part, part.flop / 1e9, part.bytes / 1e9, part.flop / part.bytes, *times])
    whole: list[list[Cell]] = []
    for one in found:
        flop, moved = sum(p.flop for p in one.parts), sum(p.bytes for p in one.parts)
        whole.append([one.canvases, flop / 1e9, moved / 1e9, flop / moved, *one.ms.values()])
    weights = 2 * parameters / 1e9
    room = [("yes" if weights < gpu.memory_gb else "no", gpu.memory_gb) for gpu in GPUS]
    held = ["{}, of {:.0f} GB".format(*one) for one in room]
    whole.append([f"holds the weights, {weights:.1f} GB", None, None, None, *held])
    after = f"a step of one canvas after a prompt of {PROMPT:,} tokens"
    title = f"Predicted: {after}, 26B in 16 bit, by parts"
    several = "Predicted: steps of several canvases, each after such a prompt"
    return [Table(title, ("part", *head), rows), Table(several, ("canvases", *head), whole)]
