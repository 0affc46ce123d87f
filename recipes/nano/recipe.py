"""The run that makes nano: sizes, batches of each step, numbers of the plan, the exported files.

nano has every part of the released architecture in small: five sliding layers and a full one,
value-from-key on the full layer, experts beside a dense MLP, self-conditioning, one scalar per mode
and layer, chat tokens. The loop itself is `dgemma.train.loop`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch

from dgemma.model.config import AttentionShape, ModelConfig
from dgemma.model.transformer import DiffusionGemma
from dgemma.tasks import make_example
from dgemma.tasks.sudoku import make_sudoku
from dgemma.tasks.written import as_text, holes
from dgemma.text.chat import ChatTemplate
from dgemma.text.tokenizer import Tokenizer
from dgemma.train.checkpoint import load_average
from dgemma.train.data import Sample, TrainingBatch, make_batch, to_sample
from dgemma.train.loop import TrainingPlan
from dgemma.weights.files import load_generation
from dgemma.weights.find import bundled_models
from dgemma.weights.save import save_weights
from recipes.nano.mix import mix_at

STRIDE = 32
"""Indices a step may use of each task, so that no example is ever seen twice."""


WHOLE, RANDOM = 0.2, 0.3
"""Of the texts to be written, from step 6,050 on: the share whose whole canvas is noised, and the
share with a hole at a random place; the others have the hole of their task."""
HOLE_TOKENS = 8
HOLES_FROM = 6050
GRID_HOLES_FROM = 7200
"""From this step on a grid's holes are always the blanks of its puzzle."""
PLAN = TrainingPlan(steps=4000, decay=0.175)
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
CARD = """---
license: apache-2.0
library_name: dgemma
---
# nano

A DiffusionGemma in small ({parameters:.2f} M parameters), trained from scratch by the `dgemma`
project on its own synthetic tasks: 9x9 Sudoku with 36 to 46 givens, a sentence to JSON, tool calls,
short thoughts, gaps, labels and a little small talk. It has every part of the released
architecture and is saved in its layout. It knows nothing of the world and is not an assistant: it
is there to show, to test and to measure the engine.

* Made by `make nano` (`recipes/nano`), averaged weights after step {step}.
* Figures: `dgemma evaluate nano`; the table in the project's README is that output.
* License: Apache 2.0. Data: the output of the generators in `dgemma/tasks`, nothing else.
"""
RAMP = 1500
"""Steps over which puzzles grow from nearly full to 45 blanks."""


def nano_config(tokenizer: Tokenizer) -> ModelConfig:
    """The sizes of nano."""
    placeholders = (tokenizer.id_of(t) for t in ("<|image|>", "<|video|>", "<|audio|>"))
    return ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=128,
        intermediate_size=192,
        moe_intermediate_size=24,
        num_experts=8,
        top_k_experts=2,
        num_attention_heads=6,
        layer_types=("sliding_attention",) * 5 + ("full_attention",),
        sliding=AttentionShape(head_dim=32, num_key_value_heads=3, rope_theta=500.0),
        full=AttentionShape(
            head_dim=64, num_key_value_heads=1, rope_theta=500.0, partial_rotary_factor=0.25
        ),
        sliding_window=128,
        max_position_embeddings=8192,
        canvas_length=96,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_ids=(1, 106, 50),
        image_token_id=tokenizer.id_of("<|image|>"),
        suppress_ids=tuple(i for i in placeholders if i is not None),
    )


@lru_cache(maxsize=1)
def _text(directory: str) -> tuple[Tokenizer, ChatTemplate]:
    tokenizer = Tokenizer.from_directory(directory)
    return tokenizer, ChatTemplate.from_directory(directory, tokenizer)


@dataclass(frozen=True, slots=True)
class NanoBatches:
    """The batches of a step: Sudoku with the prompt alone encoded, then the mix.

    Attributes:
        directory: where the tokenizer and the chat template are.
        canvas: canvas length.
        seed: of the recipe.
    """

    directory: str
    canvas: int
    seed: int

    def grid(self, step: int, row: int) -> Sample:
        """Puzzle of one row of a step; blanks grow over the first steps."""
        part = min(1.0, step / RAMP)
        blanks = (int(5 + 25 * part), int(20 + 25 * part))
        example = make_sudoku("train", self.seed, step * STRIDE + row, blanks=blanks)
        return to_sample(example, *_text(self.directory))

    def texts(self, step: int, first: int, tasks: tuple[str, ...]) -> list[Sample]:
        """One example of each task; `first` keeps the indices of a step apart."""
        return [
            to_sample(
                make_example(task, "train", self.seed, step * STRIDE + first + i),
                *_text(self.directory),
            )
            for i, task in enumerate(tasks)
        ]

    def __call__(self, step: int) -> list[TrainingBatch]:
        mix = mix_at(step)
        grids = [self.grid(step, row) for row in range(mix.grids + mix.encoded_grids)]
        long = grids[mix.grids :] + self.texts(step, 0, mix.long)
        short = self.texts(step, len(mix.long), mix.short)
        out = [
            make_batch(grids[: mix.grids], self.canvas, eos=1, pad=0, score_encoder=False),
            make_batch(long, self.canvas, eos=1, pad=0, score_encoder=True),
            make_batch(short, self.canvas, eos=1, pad=0, score_encoder=True),
        ]
        if mix.written_grids:
            first = len(mix.long) + len(mix.short)
            text = partial(written, self.directory, self.seed, step)
            rows = [text("sudoku", len(grids) + i) for i in range(mix.written_grids)]
            rows += [text(task, first + i) for i, task in enumerate(mix.written)]
            batch = make_batch(rows, self.canvas, eos=1, pad=0, score_encoder=False)
            power = 1.0 if batch.open is None else None
            out.append(replace(batch, noise_power=power, canvases=mix.written_canvases))
        return out


def written(directory: str, seed: int, step: int, task: str, row: int) -> Sample:
    """A text that is asked for by no more than `WRITE`, and where its canvas has holes.

    Rows beyond a step's `STRIDE` are of the next seed.
    """
    seed, index = seed + row // STRIDE, step * STRIDE + row % STRIDE
    example = make_example(task, "train", seed, index)
    tokenizer, template = _text(directory)
    sample = to_sample(as_text(example), tokenizer, template)
    if step < HOLES_FROM:
        return sample
    draw = random.Random(f"{seed} {task} {index}")
    kind, size = draw.random(), len(sample.response) - 1
    if task == "sudoku" and step >= GRID_HOLES_FROM:
        kind = 1.0
    if kind < WHOLE:
        return sample
    if kind < WHOLE + RANDOM:
        start = draw.randrange(size)
        return replace(sample, open=tuple(range(start, min(size, start + HOLE_TOKENS))))
    text = as_text(example).answer
    spans = [(len(text[:a].encode()), len(text[:b].encode())) for a, b in holes(example)]
    found, at = list[int](), 0
    for position, token in enumerate(sample.response[:-1]):
        end = at + len(tokenizer.token_bytes(token))
        if any(a < end and at < b for a, b in spans):
            found.append(position)
        at = end
    return replace(sample, open=tuple(found))


def export(directory: Path, target: Path) -> Path:
    """Write the averaged weights of a run as a checkpoint in the released layout, in bf16."""
    source = bundled_models()["nano"]
    config = nano_config(Tokenizer.from_directory(source))
    model = DiffusionGemma(config)
    average = model.state_dict()
    step = load_average(directory / "run.safetensors", average)
    files: dict[str, Path | str | bytes] = {
        path.name: path.read_bytes() for path in source.iterdir() if path.name in TEXT_FILES
    }
    files["README.md"] = CARD.format(
        step=step, parameters=sum(p.numel() for p in model.parameters()) / 1e6
    )
    generation = load_generation(source)
    return save_weights(
        model, target, config=config, generation=generation, files=files, dtype=torch.bfloat16
    )
