"""`dgemma quantize` and `dgemma convert`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from dgemma.cli import quantize
from dgemma.evaluate.paired import Setting
from dgemma.params import SamplingParams
from dgemma.weights.find import bundled_models
from dgemma.weights.writers import write
from tests.support.commands import Ran

NANO = bundled_models()["nano"]
COPIED = {"README.md", "chat_template.jinja", "dgemma.json", "generation_config.json",
          "config.json", "tokenizer.json", "tokenizer_config.json",
          "model.safetensors"}  # fmt: skip


def test_formats_and_layouts_are_those_of_the_writers() -> None:
    """A format that the command offers and cannot write, or the other way round."""
    from dgemma.cli import convert

    assert tuple(quantize.FORMATS) == write.FORMATS
    assert set(convert.LAYOUTS) == set(write.TARGETS)


def test_quantize(tmp_path: Path, run: Callable[..., Ran]) -> None:
    """Files that are not copied, one that was fitted for other weights, a report without errors."""
    out = tmp_path / "out"
    code, said, _ = run("quantize", str(out), "--format", "fp8", "--keep", "layers.0", "layers.1")
    assert code == 0 and {p.name for p in out.iterdir()} == COPIED
    assert "| experts | 0.885 | 0." in said and "calibration.json is left out" in said
    assert said.splitlines()[-1] == str(out)
    code, said, _ = run("quantize", "nano", str(tmp_path / "a.gguf"), "--format", "gguf-q8_0",
                        "--json")  # fmt: skip
    found = json.loads(said)
    assert code == 0 and found["classes"]["attention"]["error"] < 0.006
    assert found["formats"]["Q8_0"] == 47 and Path(found["out"]).stat().st_size < 2.2e6


@pytest.mark.fault("Q 18")
def test_experts_that_do_not_shrink(tmp_path: Path, run: Callable[..., Ran]) -> None:
    """bitsandbytes #1849: 16-bit experts in a "4-bit" file; the report has bytes for each class."""
    said = [
        run("quantize", str(tmp_path / name), "--format", "int8", *keep)[1]
        for name, keep in (("all", []), ("some", ["--keep", "*experts*"]))
    ]
    assert ["the experts did not shrink" in one for one in said] == [False, True]
    shares = [one.partition("| experts | 0.885 | ")[2][:5] for one in said]
    assert float(shares[0]) < 0.55 and shares[1] == "0.885"


@pytest.mark.model
def test_int4_is_searched_with_a_text(tmp_path: Path, run: Callable[..., Ran]) -> None:
    """`--data` that is not read, or changes nothing."""
    files = {"a.txt": "Once upon a time. " * 9, "b.jsonl": json.dumps({"prompt": "2 + 2 = "})}
    made = []
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        out = tmp_path / name.partition(".")[0]
        code, said, err = run("quantize", str(out), "--format", "int4", "--symmetric",
                              "--data", str(tmp_path / name))  # fmt: skip
        assert code == 0, err
        assert "one group a row" in said and "vLLM" not in said
        made.append((out / "model.safetensors").read_bytes())
    assert len(made[0]) == len(made[1]) and made[0] != made[1]


@pytest.mark.model
@pytest.mark.fault("Q 5")
def test_before_and_after(
    tmp_path: Path, run: Callable[..., Ran], caplog: pytest.LogCaptureFixture
) -> None:
    """`--evaluate` that compares the source with itself, or other examples."""
    caplog.set_level("INFO", "dgemma")
    out = str(tmp_path / "out")
    code, said, _ = run("quantize", out, "--format", "int8", "--evaluate", "2", "--json")
    results = json.loads(said)["evaluation"]
    assert code == 0 and list(results) == ["sudoku", "json"]
    for before, after in results.values():
        assert (before["name"], after["name"], before["n"], after["n"]) == ("", "int8", 2, 2)
    assert "compressed-tensors" in caplog.text  # what was loaded the second time


@pytest.mark.fault("Q 4")
def test_more_passes_are_warned_of() -> None:
    """A packed model that takes longer than the one that it was made from, without a word."""

    def pair(*steps: int) -> list[Setting]:
        return [Setting("", SamplingParams(), [1.0], [s]) for s in steps]

    assert quantize.more_passes("json", pair(10, 11)) is None
    assert "json takes 1.20 x the passes" in (quantize.more_passes("json", pair(10, 12)) or "")


@pytest.mark.parametrize("to", ["safetensors", "mlx", "gguf"])
def test_convert(to: str, tmp_path: Path, run: Callable[..., Ran]) -> None:
    """A layout that the next command cannot read."""
    out = tmp_path / ("out.gguf" if to == "gguf" else "out")
    code, said, _ = run("convert", str(out), "--to", to)
    assert code == 0 and said.splitlines()[-1] == str(out)
    code, said, _ = run(
        "convert", str(out), str(tmp_path / "again"), "--to", "safetensors", "--json"
    )
    assert code == 0 and json.loads(said)["classes"]["experts"]["bytes_after"] == 884_736
    names = {p.name for p in (tmp_path / "again").iterdir()}
    assert {"tokenizer.json", "chat_template.jinja"} <= names


@pytest.mark.parametrize(("words", "said"), [
    (["quantize", "nano", "out"], "name OUT and --format"),
    (["quantize", "--format", "fp8"], "name OUT and --format"),
    (["quantize", "out", "--format", "int5"], "did you mean 'int"),
    (["quantize", "out", "--format", "fp8", "--symmetric"], "is for --format int4 or int4-all"),
    (["quantize", "out", "--format", "fp8", "--data", "x.txt"], "is for --format int4 or int4-all"),
    (["quantize", "out", "--format", "int4", "--data", "none.txt"], "none.txt: no such file"),
    (["quantize", "out", "--format", "int4", "--data", "empty.txt"], "empty.txt is empty"),
    (["quantize", "there", "--format", "fp8"], "there is there already"),
    (["quantize", "out.gguf", "--format", "fp8"], "leave .gguf out"),
    (["quantize", "out", "--format", "gguf-q4_0"], "end its name in .gguf"),
    (["quantize", "model", "model", "--format", "fp8"], "is the model itself"),
    (["quantize", "out", "--format", "fp8", "--keep", "layers.9"], "--keep: 'layers.9' names"),
    (["quantize", "nothing", "out", "--format", "fp8"], "no model named 'nothing'"),
    (["convert", "out"], "name OUT and --to"),
    (["convert", "out", "--to", "onnx"], "invalid choice: 'onnx'"),
    (["convert", "model", "model", "--to", "mlx"], "is the model itself"),
])  # fmt: skip
def test_refused(
    words: list[str], said: str, tmp_path: Path, run: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """An hour of work before an error, or a file that was overwritten."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(NANO, "model")
    Path("there").mkdir()
    Path("there/file").touch()
    Path("empty.txt").write_text("\n")
    before = sorted(p.name for p in tmp_path.iterdir())
    code, out, err = run(*words)
    assert (code, out) == (2, "") and said in err
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_nothing_is_left_of_a_failure(
    tmp_path: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a GGUF file under the name of a whole one."""

    def full(*_: object) -> SimpleNamespace:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dgemma.weights.writers.gguf_container.as_bytes", full)
    code, _, err = run("convert", str(tmp_path / "a.gguf"), "--to", "gguf")
    assert code == 2 and "a.gguf: [Errno 28] No space left" in err
    assert list(tmp_path.iterdir()) == []
