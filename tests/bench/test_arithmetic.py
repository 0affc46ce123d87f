"""The numbers of a report are those of its measurements: lines, medians, shares, charts."""

from __future__ import annotations

import argparse
import json
import math
import mmap
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch

from bench import offline, run, scale
from bench.chart import Lines, as_svg, ticks
from bench.llama import parse
from bench.stats import fit
from dgemma.bench import child, compare, generate, machine
from dgemma.bench.clock import Growth, Watch, status_bytes, timed_ms
from dgemma.bench.machine import load
from dgemma.bench.report import Report, Table, as_cell, plain
from dgemma.bench.stats import median, ratio, shares
from dgemma.errors import EngineError
from dgemma.types import Usage

CPU = torch.device("cpu")


def test_fit_of_a_known_line() -> None:
    """A slope or an R2 with a slip in it: every claim of `scale` rests on them."""
    line = fit([1, 2, 4, 8], [5, 7, 11, 19])
    assert line is not None
    assert (line.slope, line.intercept, line.r2) == pytest.approx((2, 3, 1))
    assert line.at(10) == pytest.approx(23)
    # By hand: means 2 and 2, slope 1/2, intercept 1, residuals -.5 1 -.5, so r2 = 1 - 1.5 / 2.
    rough = fit([1, 2, 3], [1, 3, 2])
    assert rough is not None
    assert (rough.slope, rough.intercept, rough.r2) == pytest.approx((0.5, 1, 0.25))
    flat = fit([1, 2, 3], [4, 4, 4])
    assert flat is not None and (flat.slope, flat.r2) == (0, 1)
    assert fit([3, 3], [1, 2]) is None and fit([], []) is None


def test_medians_and_ratios() -> None:
    """One slow run moves the result; a ratio the wrong way round."""
    assert median([3, 1, 900]) == 3 and math.isnan(median([]))
    assert ratio([1, 2, 50], [8, 4, 0.1]) == 0.5
    assert math.isnan(ratio([1], [])) and math.isnan(ratio([1], [0]))


def test_shares_add_up() -> None:
    """Parts of a step that are more, or less, than the step."""
    parts = shares(10.0, {"a": 3.0, "b": 5.5})
    assert parts == {"a": 3.0, "b": 5.5, "rest": 1.5} and sum(parts.values()) == 10
    assert shares(1.0, {"a": 1.25})["rest"] == 0


def test_sliding_layers_are_fitted_beyond_the_window() -> None:
    """The rise up to the window is taken for a slope behind it."""
    points = [(64.0, 1.0), (512.0, 2.0), (1024.0, 3.0), (2048.0, 3.0), (4096.0, 3.0)]
    series = scale.Series("prompt", "token", "sliding layer", points, fitted_from=1024)
    assert series.line is not None
    assert series.line.slope == pytest.approx(0) and series.change == pytest.approx(0)
    whole = scale.Series("prompt", "token", "full layer", [(100, 2.0), (300, 3.0)])
    assert whole.change == pytest.approx(0.5)


@pytest.mark.parametrize("text", ["", "1,,2", "0", "-3", "4,x", "1.5"])
def test_wrong_sizes(text: str) -> None:
    """A list that cannot be read is measured in part."""
    with pytest.raises(argparse.ArgumentTypeError, match="numbers above 0"):
        run.sizes(text)


def test_sizes_are_sorted() -> None:
    """A prompt is lengthened, never shortened."""
    assert run.sizes("64, 16,16") == [16, 64]


def test_pairs_take_turns(tmp_path: Path) -> None:
    """A A B B, a first step that counts, or one mode's runs in the other's median."""
    order: list[tuple[str, bool]] = []

    def begin(program: str, job: compare.CompareRun, extra: object) -> dict[str, object]:
        order.append((program, bool(extra)))
        slow = 2.0 if program == "transformers" else 1.0
        return {"prefill_ms": 10 * slow, "first_frame_ms": 10 * slow + 99,
                "step_ms": [99.0, slow, slow, 5.0], "peak_bytes": 1e9}  # fmt: skip

    job = compare.CompareRun(str(tmp_path), 64, 4, "cpu", "bfloat16", 2)
    said: list[str] = []
    results = compare.measure(job, 2, list(compare.MODES), said.append, begin)
    once = [(p, tuned) for tuned in (False, True) for p in ("ours", "transformers")]
    assert order == 2 * once and len(said) == len(order)
    found = plain(compare.values(results))
    for mode in compare.MODES:
        assert found[mode]["step_ratio"] == 0.5 and found[mode]["prefill_ratio"] == 0.5
        assert found[mode]["ours"]["step_ms"] == [1.0, 1.0]
        assert found[mode]["ours"]["first_frame_ms"] == [109.0, 109.0]
    assert len(compare.table(results, 64).rows) == 4


def test_the_child_gets_what_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The two programs run at different sizes."""
    job = compare.CompareRun(str(tmp_path), 64, 4, "cpu", "bfloat16", 2)
    asked: list[compare.CompareRun] = []

    def measured(job: compare.CompareRun) -> dict[str, object]:
        asked.append(job)
        return {"step_ms": [1.0]}

    monkeypatch.setattr(child, "PROGRAMS", dict.fromkeys(compare.PROGRAMS, measured))

    def in_this_process(command: list[str], **_: object) -> SimpleNamespace:
        code = child.main(*command[3:])
        return SimpleNamespace(returncode=code, stdout=capsys.readouterr().out, stderr="")

    monkeypatch.setattr(compare.subprocess, "run", in_this_process)
    for program in compare.PROGRAMS:
        assert compare.start_child(program, job, {})["step_ms"] == [1.0]
    assert asked == [job, job]


def test_llama_lines() -> None:
    """A line of another build is not understood, or an earlier turn's is taken."""
    old = "total time: 8000.00ms, time per step: 800.00ms, sampling time per step: 1.00ms\n"
    new = "total time: 651.50ms, time per step: 65.15ms (10 steps over 1 blocks, entropy-bound)"
    assert parse(old, "x").step_ms == 800 and parse(old, "x").steps is None
    both = parse(old + new, "x")
    assert (both.step_ms, both.total_ms, both.steps, both.blocks) == (65.15, 651.5, 10, 1)
    with pytest.raises(EngineError, match="printed no line"):
        parse("hello", "x")


def test_rates_are_told_apart() -> None:
    """Canvas or step tokens sold as tokens of the answer."""
    usage = Usage(prompt_tokens=5, completion_tokens=30, canvases=2, steps=12)
    rates = generate.TimedAnswer(usage, 256, 2000.0, 100.0, 900.0).rates
    assert rates == {
        "committed_tokens_per_s": 15,
        "canvas_tokens_per_s": 256,
        "step_tokens_per_s": 1536,
        "committed_tokens_per_step": 2.5,
    }


def test_watch_leaves_nothing_behind() -> None:
    """A timer that stays on the model, or that changes what a module returns."""
    layer = torch.nn.Linear(4, 4)
    x = torch.randn(2, 4)
    with Watch(CPU) as watch:
        watch.add("linear", layer)
        assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
        assert watch.take()["linear"] > 0 and watch.take() == {}
    assert "forward" not in vars(layer)


def test_short_actions_are_shared_out() -> None:
    """What is repeated to be timed at all is told as if done once."""
    calls = []
    found = timed_ms(lambda: calls.append(1), CPU, 3)
    assert len(found) == 3 and len(calls) > 3 * 2 and min(found) > 0


@pytest.mark.skipif(status_bytes("RssAnon") is None, reason="no /proc/self/status here")
def test_growth_sees_a_buffer() -> None:
    """Memory that is taken and given back within a step goes unseen."""
    size = 64_000_000
    with Growth(CPU) as growth:
        # Of its own: not memory that an earlier test has given back.
        buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        buffer[:] = bytes(1) * size
        seen = growth.samples + 2  # one of them begins now or later
        while growth.samples < seen:
            time.sleep(0.001)
        buffer.close()
    assert growth.growth_bytes is not None and growth.growth_bytes >= 0.9 * size
    assert growth.device_growth_bytes is None


def test_ticks_are_round() -> None:
    """An axis that ends below its bars, or counts in 0.73s."""
    for top in (0.003, 0.9, 1, 7, 10, 262, 5128, 1e9):
        scale_ = ticks(top)
        assert scale_[0] == 0 and scale_[-1] >= top * 0.999 and 4 <= len(scale_) <= 7
    assert ticks(10) == [0, 2.5, 5, 7.5, 10] and ticks(0) == ticks(1)
    assert ticks(float("nan")) == ticks(1)


def test_charts_are_xml_with_names_and_units() -> None:
    """A chart that no browser draws, or nobody can read."""
    points: list[tuple[float, float]] = [(1, 1), (2, 2)]
    fitted = Lines("Growth", "prompt, tokens", "ms", {"s": points}, {"s": fit([1, 2], [1, 2])})
    joined = Lines("Steps <now>", "x", "y", {"a & b": points}, {})
    text = as_svg([joined, fitted], ["dgemma bench", "a machine"])
    root = ElementTree.fromstring(text)
    words = {node.text for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"Steps <now>", "a machine", "a & b", "ms", "prompt, tokens", "x", "y", "s"} <= words
    assert "nan" not in text
    circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == 4
    paths = list(root.iter("{http://www.w3.org/2000/svg}polyline"))
    assert [len(path.attrib["points"].split()) for path in paths] == [2, 2]


def test_report_has_what_repeats_it() -> None:
    """A figure without command, machine or commit; JSON that is not JSON."""
    table = Table("T", ("what", "ms"), [["a", 1.2345], ["b", float("nan")], ["c", None]])
    report = Report("R", "dgemma bench x", {"model": "m"}, [table],
                    {"x": float("inf"), "y": [1.0]}, ["why"], {"commit": "abc"})  # fmt: skip
    text = report.as_markdown()
    for part in ("`dgemma bench x`", "commit: abc", "model: m", "| a | 1.23 |", "| b | - |", "why"):
        assert part in text
    values = json.loads(json.dumps(plain(report), allow_nan=False))
    assert values["values"] == {"x": None, "y": [1.0]} and values["machine"] == {"commit": "abc"}


@pytest.mark.process
def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that another program's load has spoilt pass for the model's."""
    assert machine.busy() == "" and machine.facts()["cores busy before"] == "0.0"
    monkeypatch.setattr(machine, "load", lambda: 2.0)
    assert "2.0" in machine.busy() and machine.facts()["cores busy before"] == "2.0"
    monkeypatch.setattr(machine, "load", lambda: None)
    assert machine.busy() == "" and machine.facts()["cores busy before"] == "unknown"


@pytest.mark.process
def test_other_programs_are_seen() -> None:
    """The load is that of a command that is long over, or nothing at all."""
    if not Path("/proc/stat").exists():
        pytest.skip("nothing tells how busy this machine is")
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert load.__wrapped__() > machine.QUIET
    finally:
        loop.kill()
        loop.wait()


def test_values_for_programs() -> None:
    """A number that is worked out, and so is in no field, is missing in the JSON."""
    wait = offline.Wait(2, [1.0], [7.0], [3.0])
    assert plain(wait) == {
        "concurrency": 2, "alone_ms": [1.0], "loaded_ms": [7.0], "step_ms": [3.0],
        "extra_steps": [2.0],
    }  # fmt: skip


def test_cells() -> None:
    """Numbers that lose, or pretend to, digits."""
    shown = [as_cell(v) for v in (0.0, 0.01234, 1.0, 12.345, 123.4, 9007.4, 7, "x", None)]
    assert shown == ["0", "0.0123", "1.00", "12.3", "123", "9,007", "7", "x", "-"]
    assert plain({"a": [float("nan"), (1.0,)]}) == {"a": [None, [1.0]]}
