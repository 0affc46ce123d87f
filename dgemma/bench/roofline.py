"""A denoising step's bytes and operations by formula, and the time that a GPU needs at least.

The formulas are in `FORMULAS`, which the report prints. A lower bound, not a forecast: it knows no
kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dgemma.bench.precisions import (
    BF16,
    PRECISIONS,
    Precision,
    attention_weights,
    held_bytes,
    weight_bytes,
)
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
b     bytes of a number: 2; of a packed weight in the mean, with its scales, as in its file

attention, a layer  W          = D h (2 H + 2 G); in full layers, without values, D h (2 H + G)
                    operations = 2 N W + 4 N H h S
                    bytes      = b W + 4 C G h S
dense, an MLP       operations = 6 N D F
                    bytes      = 3 b D F
experts, a layer    operations = 2 N D E + 6 N K D F
                    bytes      = 2 D E + 3 b D F E (1 - (1 - K/E)^N)
vocabulary          operations = 4 N D V
                    bytes      = 4 V D

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
    "Precisions: products are in 16 bit, and at its rate, even if the weights are packed; "
    "FP8 has attention and MLPs in 8 bit where the card multiplies them. Embedding and routers are "
    "in 16 bit; so is the self-conditioning of FP8, NVFP4 and int4. Q4_K_M mixes formats as its "
    "file does. What unpacking costs is left out.",
    "Rates are the vendor's for dense products with fp32 sums. A GPU that cannot hold the "
    "weights is shown as if it could.",
)


@dataclass(frozen=True, slots=True)
class GpuRate:
    """A GPU by its data sheet.

    Attributes:
        gb_s: memory bandwidth.
        tflop8_s: of products of 8-bit floats; that of 16 bit where there are none.
        tflop_s: dense 16-bit products with fp32 sums.
        memory_gb: all of it.
    """

    name: str
    gb_s: float
    tflop_s: float
    memory_gb: float
    tflop8_s: float


GPUS = (
    GpuRate("H200", 4800, 989, 141, 1979),
    GpuRate("H100", 3350, 989, 80, 1979),
    GpuRate("RTX 5090", 1792, 209.5, 32, 419),
    GpuRate("RTX 4090", 1008, 165.2, 24, 330.3),
    GpuRate("RTX 3090", 936, 71, 24, 71),
)
"""SXM versions of the first two. Source: NVIDIA's data sheets and architecture white papers."""

CANVASES = (1, 4, 16)
PROMPT = 1024


@dataclass(frozen=True, slots=True)
class StepCost:
    """Operations and bytes of a part of a step; `flop8` of the operations are in 8 bit."""

    part: str
    flop: float
    bytes: float
    flop8: float = 0.0

    def ms(self, gpu: GpuRate) -> tuple[float, str]:
        """At least so long, and which of the two limits: memory or rate."""
        moved = self.bytes / gpu.gb_s / 1e6
        computed = (self.flop - self.flop8) / gpu.tflop_s / 1e9 + self.flop8 / gpu.tflop8_s / 1e9
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


def step_cost(
    config: ModelConfig, canvases: int, prompt: int, precision: Precision = BF16
) -> list[StepCost]:
    """The parts of a step; see `FORMULAS`.

    Args:
        canvases: C, in one forward.
        prompt: tokens before each canvas.
        precision: of the weights.
    """
    rows, width = canvases * config.canvas_length, config.hidden_size
    flop = products = moved = 0.0
    for layer, kind in enumerate(config.layer_types):
        shape, full = config.attention(layer), kind == "full_attention"
        heads, groups, h = config.num_attention_heads, shape.num_key_value_heads, shape.head_dim
        keys = config.canvas_length + (prompt if full else min(prompt, config.sliding_window - 1))
        weights = attention_weights(config, layer)
        products += 2 * rows * weights
        flop += 4 * rows * heads * h * keys
        moved += weight_bytes(precision.attention, width) * weights
        moved += 2 * 2 * canvases * groups * h * keys
    layers, inner = config.num_layers, config.intermediate_size
    dense, own = width * inner, weight_bytes
    mlp = 2 * own(precision.dense_up, width) + own(precision.dense_down, inner)
    mlps = layers * mlp + (mlp if precision.conditioning else 6.0)
    count, chosen, inner = config.num_experts, config.top_k_experts, config.moe_intermediate_size
    expert = 2 * own(precision.expert_up, width) + own(precision.expert_down, inner)
    read = count * (1 - (1 - chosen / count) ** rows)
    table = config.vocab_size * width
    eight = precision.eight_bit
    return [
        StepCost("attention", products + flop, moved, products * eight),
        StepCost("dense", 6 * rows * dense * (layers + 1), mlps * dense,
                 6 * rows * dense * layers * eight),
        StepCost(
            "experts",
            2 * rows * layers * (width * count + chosen * 3 * width * inner),
            layers * (2 * width * count + expert * width * inner * read),
        ),
        StepCost("vocabulary", 4 * rows * table, 2 * 2 * table),
    ]  # fmt: skip


def predictions(config: ModelConfig) -> list[StepPrediction]:
    """Steps of `CANVASES`."""
    return [StepPrediction(n, PROMPT, step_cost(config, n, PROMPT)) for n in CANVASES]


@dataclass(frozen=True, slots=True)
class PrecisionPrediction:
    """A step of one canvas with the weights of one kind of file.

    Attributes:
        precision, file: its name, and where it is found.
        weight_bytes: of all weights.
        step: the prediction.
    """

    precision: str
    file: str
    weight_bytes: float
    step: StepPrediction


def precision_predictions(config: ModelConfig, parameters: int) -> list[PrecisionPrediction]:
    """A step of one canvas in each precision.

    Args:
        config: of the network.
        parameters: how many it has.
    """
    return [
        PrecisionPrediction(
            one.name,
            one.file,
            held_bytes(config, one, parameters),
            StepPrediction(1, PROMPT, step_cost(config, 1, PROMPT, one)),
        )
        for one in PRECISIONS
    ]


def precision_table(found: Sequence[PrecisionPrediction]) -> Table:
    """Those, beside the memory of each GPU."""
    rows: list[list[Cell]] = []
    for one in found:
        weights = one.weight_bytes / 1e9
        times = [
            f"{one.step.ms[gpu.name]:.1f}" + ("" if weights < gpu.memory_gb else ", does not fit")
            for gpu in GPUS
        ]
        read = sum(part.bytes for part in one.step.parts) / 1e9
        rows.append([one.precision, one.file, weights, read, *times])
    head = ("precision", "as in", "weights, GB", "read, GB", *(f"{gpu.name}, ms" for gpu in GPUS))
    return Table("Predicted: a step of one canvas after such a prompt, by precision", head, rows)


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
    return [
        Table(title, ("part", *head), rows),
        Table(several, ("canvases", *head), whole),
        precision_table(precision_predictions(config, parameters)),
    ]
