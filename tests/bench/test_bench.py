"""`dgemma bench` and `python -m bench.NAME` as a user meets them, on a model too small to time."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from bench.stretch import narrowed, stacked
from dgemma.bench import ceilings, clock, step
from dgemma.bench.drive import prompt_ids
from dgemma.bench.drive import run as drive
from dgemma.bench.make import make
from dgemma.bench.shapes import MINI, REAL, shape
from dgemma.cli.bench import IN_A_CHECKOUT
from dgemma.errors import CheckpointError, InvalidRequest
from dgemma.llm import LLM, load
from dgemma.model.size import measure
from dgemma.params import SamplingParams
from dgemma.weights.files import open_checkpoint
from tests.support.commands import Ran, run_command

Run = Callable[..., Ran]
COPY_BYTES = 1 << 20


@pytest.fixture(autouse=True)
def small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings of a machine take seconds; here only that they are there matters."""
    monkeypatch.setattr(ceilings, "COPY_BYTES", COPY_BYTES)
    monkeypatch.setattr(ceilings, "RATE_SHAPE", (16, 64, 64))


# -- shapes and random checkpoints -----------------------------------------------------------------


@pytest.mark.slow
def test_shapes() -> None:
    """A benchmark at other sizes than it says."""
    assert measure(shape("real")).parameters == pytest.approx(25.2e9, rel=0.005)
    three = shape("real-layers:3")
    assert three.layer_types == ("sliding_attention",) * 2 + ("full_attention",)
    assert measure(three).parameters == pytest.approx(3.2e9, rel=0.02)
    assert REAL.layer_types == (*["sliding_attention"] * 5, "full_attention") * 5
    assert MINI.layer_types.count("full_attention") == 2 and MINI.num_layers == 8
    for wrong in ("real-layers:0", "real-layers:31", "real-layers", "real:3", "minni"):
        with pytest.raises(InvalidRequest):
            shape(wrong)


def test_made_checkpoint_loads(tiny: Path, llm: LLM) -> None:
    """Shards that do not fit their index; weights that are all alike; another dtype."""
    assert len(list(tiny.glob("*.safetensors"))) > 2
    checkpoint = open_checkpoint(tiny)
    assert (
        checkpoint.dtype == "bfloat16"
        and checkpoint.config.layer_types == shape("tiny").layer_types
    )
    assert checkpoint.nbytes == 2 * sum(p.numel() for p in llm.model.parameters())
    for name, value in llm.model.named_parameters():
        if value.dim() < 2:
            assert torch.equal(value, torch.ones_like(value))
        else:
            assert value.std().item() == pytest.approx(value.shape[-1] ** -0.5, rel=0.2), name


def test_same_seed_same_weights(tiny: Path, tmp_path: Path) -> None:
    """Two machines compare different models; the size of a shard changes the numbers."""
    again = make(shape("tiny"), tmp_path / "again")
    assert [p.name for p in again.glob("*.safetensors")] == ["model.safetensors"]
    one, two = (load(path, device="cpu").model.state_dict() for path in (tiny, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_transformers_loads_what_is_made(tiny: Path, llm: LLM) -> None:
    """A checkpoint of our own dialect: the comparison would be of two models."""
    pytest.importorskip("transformers")
    from dgemma.evaluate.parity import reference_model

    theirs = reference_model(tiny, torch.float32, torch.device("cpu"), eager=False)
    table = theirs.get_output_embeddings().weight
    assert torch.equal(table, llm.model.embed.weight)
    ids = torch.tensor([prompt_ids(llm.config, 24)])
    canvas = torch.tensor([prompt_ids(llm.config, llm.config.canvas_length, 1)])
    with torch.inference_mode():
        cache = llm.model.new_cache(1, 64)
        llm.model.encode(ids, cache)
        ours = llm.model.head.logits(llm.model.denoise(canvas, cache))
        other = theirs(input_ids=ids, decoder_input_ids=canvas).logits
    # 2e-5 is what fp32 rounding makes in the parity tests; a lost weight makes about 1.
    assert ((ours - other).abs().max() / other.abs().max()).item() < 2e-5


def test_make_refuses_a_full_directory(tmp_path: Path) -> None:
    """A model of the user is overwritten; half a checkpoint stays behind."""
    (tmp_path / "mine").write_text("x")
    with pytest.raises(CheckpointError, match="empty directory"):
        make(shape("tiny"), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


# -- driving the engine ----------------------------------------------------------------------------


def test_drive_runs_every_step(llm: LLM) -> None:
    """An early stop, or a prefill that is counted as a step (prompts longer than a chunk)."""
    prompt = prompt_ids(llm.config, llm.engine.chunk + 5)
    seen: list[int] = []

    class Around:
        def __enter__(self) -> None:
            seen.append(len(seen))

        def __exit__(self, *_: object) -> None:
            pass

    timeline = drive(llm, [prompt, prompt], 5, lambda number: Around())
    assert len(timeline.step_ms) == 5 and seen == [0, 1, 2, 3, 4]
    assert timeline.steady_ms == timeline.step_ms[1:] and timeline.encode_ms > 0
    assert llm.engine.running == 0


def test_stretched_models_leave_the_model_alone(llm: LLM) -> None:
    """A benchmark that changes the model it measures, or measures another one."""
    prompt = prompt_ids(llm.config, 20)
    params = SamplingParams(seed=3, max_steps=3, max_tokens=16)
    before = llm.generate(prompt, params).token_ids
    more = stacked(llm, (*["sliding_attention"] * 4, "full_attention"))
    assert len(more.model.layers) == 5 and len(llm.model.layers) == 3
    assert len(drive(more, [prompt], 3).step_ms) == 3
    assert more.model.layers[0].mlp.up_proj.weight is llm.model.layers[1].mlp.up_proj.weight
    assert narrowed(llm, 4).engine.spec.length == 4
    assert len(drive(narrowed(llm, 4), [prompt], 2).step_ms) == 2
    same = stacked(llm, llm.config.layer_types)
    assert llm.generate(prompt, params).token_ids == before
    assert same.generate(prompt, params).finish_reason == "length"


def test_parts_add_up(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that is counted twice, or not at all.

    The clock goes on by a second whenever it is read: twice around what is watched.
    """
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=count().__next__))
    found, prefill = step.split(llm, prompt_ids(llm.config, 20), 6)
    assert set(found.parts_ms) == {*step.PARTS, "rest"}
    assert all(ms > 0 for ms in found.parts_ms.values())
    assert sum(found.parts_ms.values()) == found.watched_ms
    assert found.parts_ms["rest"] == (found.watched_ms + 1e3) / 2
    assert found.parts_ms["attention"] == 1e3 * len(llm.model.layers)
    assert found.total_ms == prefill == 1e3
    assert "read" not in vars(llm.model.head)


def test_products_are_those_of_the_step(llm: LLM) -> None:
    """A product is forgotten: the ceiling is then too low to be reached, or too easy."""
    prompt = prompt_ids(llm.config, 40)
    routed = step.routed_rows(llm, prompt)
    config = llm.config
    rows = config.canvas_length
    assert all(sum(layer) == rows * config.top_k_experts for layer in routed)
    keys = step.visible_keys(llm, 40)
    assert keys == {0: rows + 15, 1: rows + 15, 2: rows + 40}
    with torch.inference_mode():
        found = ceilings.products(llm.model, rows, keys, routed)
    flop = sum(p.flop for p in found)
    # Every weight but the experts' is met once a row, the table twice, an expert's by its rows.
    parameters = list(llm.model.parameters())
    table = config.vocab_size * config.hidden_size
    matrices = sum(p.numel() for p in parameters if p.dim() == 2) + table
    stacks = sum(p.numel() for p in parameters if p.dim() == 3)
    experts = stacks * config.top_k_experts / config.num_experts
    scores = 0
    for layer, seen in keys.items():
        scores += 2 * config.num_attention_heads * config.attention(layer).head_dim * seen
    assert flop == pytest.approx(2 * rows * (matrices + experts + scores))
    assert all(p.ms > 0 and p.part in step.PARTS for p in found)


# -- the command -----------------------------------------------------------------------------------


def checked(report: dict[str, Any], measure_: str, model: Path) -> dict[str, Any]:
    """What every report must carry; its values."""
    program = "python -m bench." if measure_ == "scale" else "dgemma bench "
    assert report["command"].startswith(f"{program}{measure_} {model}")
    assert {
        "processor",
        "cores",
        "threads",
        "cores busy before",
        "memory",
        "GPU",
        "versions",
        "commit",
    } <= set(report["machine"])
    assert all(report["machine"].values())
    assert {"model", "sizes", "device", "dtype", "attention"} <= set(report["subject"])
    assert report["tables"] and report["notes"]
    values: dict[str, Any] = report["values"]
    return values


@pytest.mark.process
@pytest.mark.parametrize(
    ("measure_", "words"),
    [
        ("step", ("--prompt", "20", "--steps", "3")),
        ("generate", ("--prompt", "20", "--max-tokens", "16", "--runs", "1")),
        (
            "scale",
            ("--prompts", "8,32,64", "--canvases", "4,8", "--batches", "1,2", "--layers", "1,2",
             "--steps", "2", "--prompt", "20"),
        ),
    ],
)  # fmt: skip
def test_reports(
    measure_: str, words: tuple[str, ...], tiny: Path, tmp_path: Path, run: Run
) -> None:
    """A report without what repeats it, or a number that only people can read."""
    json_, svg = tmp_path / "r.json", tmp_path / "r.svg"
    draw = ("--svg", str(svg)) if measure_ == "scale" else ()
    code, out, err = run(measure_, str(tiny), *words, "--json", str(json_), *draw)
    assert code == 0, err
    assert "command: `" in out and "| --" not in out and "\n|---|" in out
    values = checked(json.loads(json_.read_text()), measure_, tiny)
    if measure_ == "step":
        assert values["step_over_products"] > 0 and values["copy_gb_s"] > 0
        assert set(values["matrix_gflop_s"]) == {"bfloat16", "float32"}
        assert set(values["split"]["parts_ms"]) == {*step.PARTS, "rest"}
    elif measure_ == "generate":
        first = values["runs"][0]
        assert first["usage"]["completion_tokens"] <= 16
        assert 0 < first["first_frame_ms"] <= first["first_commit_ms"] <= first["total_ms"]
    else:
        ElementTree.fromstring(svg.read_text())
        axes = {series["axis"] for series in values["series"]}
        assert axes == {"prompt", "canvas", "batch", "layers"}
        assert {"sliding layer", "full layer"} <= {s["name"] for s in values["series"]}
        assert all(size["allocated_bytes"] > 0 for size in values["cache"])


@pytest.mark.slow
def test_compare(tiny: Path, tmp_path: Path, run: Run) -> None:
    """Two programs that cannot be run beside each other."""
    pytest.importorskip("transformers")
    json_ = tmp_path / "r.json"
    code, out, err = run(
        "compare", str(tiny), "--prompt", "20", "--pairs", "1", "--steps", "3", "--modes", "plain",
        "--threads", "1", "--json", str(json_),
    )  # fmt: skip
    assert code == 0, err
    values = checked(json.loads(json_.read_text()), "compare", tiny)
    assert values["plain"]["step_ratio"] > 0 and values["plain"]["prefill_ratio"] >= 0
    assert err.count("pair 1 of 1") == 2


@pytest.mark.process
def test_llama(tmp_path: Path, run: Run) -> None:
    """A llama.cpp that is not read, or whose arguments are taken for ours."""
    llama, json_ = tmp_path / "llama", tmp_path / "r.json"
    llama.write_text(
        "#!/bin/sh\n[ \"$2\" = 'two words' ] || exit 3\n"
        'echo "total time: 60.0ms, time per step: 20.00ms (3 steps over 1 blocks)" >&2\n'
    )
    llama.chmod(llama.stat().st_mode | stat.S_IXUSR)
    code, out, err = run(
        "llama", "--runs", "2", "--json", str(json_), str(llama), "-p", "two words"
    )
    assert code == 0, err
    values = json.loads(json_.read_text())["values"]
    assert [one["step_ms"] for one in values["runs"]] == [20.0, 20.0]
    assert run("llama", str(llama), "-p", "one")[2].endswith("ended with code 3: nothing\n")


def test_make(tmp_path: Path, run: Run) -> None:
    """A random checkpoint that `dgemma` itself cannot read."""
    target = tmp_path / "made"
    code, out, err = run("--make", "tiny", str(target))
    assert (code, out.strip()) == (0, str(target.resolve())), err
    assert load(target, device="cpu").tokenizer is None
    assert [p.name for p in tmp_path.iterdir()] == ["made"], "something was left behind"


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ((), "name a measurement"),
        (("stp", "nano"), "did you mean 'step'"),
        (("step", "nano", "--pairs", "3"), "belongs to compare"),
        (("step", "nano", "--prompt", "0"), "at least 1"),
        (("step", "nano", "--prompt", "999999"), "takes 1 to"),
        (("step", "nano", "--threads", "0"), "at least 1"),
        (("step", "nano", "--stepz", "3"), "did you mean '--steps'"),
        (("step", "nano", "--json", "/no/such/place/x.json"), "no directory"),
        (("compare", "nano", "--modes", "tunned"), "did you mean 'tuned'"),
        (("llama", "/no/such/llama"), "no such program"),
        (("serving", "nano", "--svg", "/no/such/place/x.svg"), "no directory"),
        (("scalr", "nano"), "unknown measurement"),
        (("compare", "nano", "--cache", "statik"), "did you mean 'static'"),
        (("compare", "nano", "--prompt", "999999"), "takes 1 to"),
        (("scale", "nano", "--axes", "promt"), "did you mean 'prompt'"),
        (("scale", "nano", "--layers", "1,two"), "numbers above 0"),
        (("--make", "huge", "x"), "known: real"),
        (("--make", "real-layers:99", "x"), "1 to 30"),
        (("--make", "tiny"), "expected 2 arguments"),
        (("step", "--make", "tiny", "x"), "leave out step"),
        (("--make", "tiny", "x", "--steps", "3"), "leave out --steps"),
        (("--make", "tiny", "x", "--dtype", "float16"), "leave out --dtype"),
    ],
)
def test_wrong_use(words: tuple[str, ...], remedy: str, run: Run) -> None:
    """A mistake ends in a traceback, or in hours of measuring something else."""
    code, out, err = run(*words)
    assert code == 2 and out == ""
    assert err.count("error:") == 1 and remedy in err and "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def test_programs_that_are_not_in_the_wheel(capsys: pytest.CaptureFixture[str]) -> None:
    """A user of the wheel meets a benchmark that is gone, without a word on where it is."""
    code, out, err = run_command(("bench", "scale", "nano"), capsys)
    assert (code, out) == (2, "") and "in a checkout run: python -m bench.scale --help" in err
    _, out, _ = run_command(("bench", "--help"), capsys)
    assert "scale: " not in out and "python -m bench.NAME" in out
    for name in IN_A_CHECKOUT:
        assert find_spec(f"bench.{name}") is not None
