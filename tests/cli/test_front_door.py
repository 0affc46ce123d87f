"""The way in: how the model is named, what the help shows, which mistakes are refused at once."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import dgemma
from dgemma import device
from dgemma.cli import main as cli
from dgemma.cli.options import DTYPES, SAMPLING
from dgemma.weights.find import bundled_models
from tests.support.commands import Ran, parser_of


@pytest.mark.fault("N 27")
def test_help_and_version(run: Callable[..., Ran]) -> None:
    """`dgemma help chat`, which many programs know, is refused."""
    assert run("help") == run("--help") and run("help", "chat") == run("chat", "--help")
    assert (
        run("version") == run("-V") == run("--version") == (0, f"dgemma {dgemma.__version__}\n", "")
    )


@pytest.mark.fault("N 20")
@pytest.mark.process
def test_as_a_module() -> None:
    """`python -m dgemma`, for those whose PATH lacks the program."""
    command = [sys.executable, "-m", "dgemma", "--version"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == f"dgemma {dgemma.__version__}\n"


@pytest.mark.fault("N 21", "N 51")
@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name != "list"])
def test_the_model_is_named_alike_everywhere(command: str) -> None:
    """A command whose model has another place or another option than those of the others."""
    parser = parser_of(command)
    places = [action.dest for action in parser._actions if not action.option_strings]
    before = ["step"] if places[0] == "measure" else []
    after = ["x"] if places[-1] != "model" else []
    both = [[*before, "some", *after], [*before, *after, "--model", "some"],
            ["-m", "some", *before, *after], [*before, "some", *after, "-m", "some"],
            [*before, "-m", "some", "some", *after], [*before, "some", "--", *after]]  # fmt: skip
    for words in both:
        found = parser.parse(words)
        assert found.model == "some"
        assert not after or getattr(found, places[-1]) in ("x", Path("x"))
    assert parser.parse([*before, *after]).model == "nano"
    usage = parser.format_help().replace("[PROMPT]", "PROMPT").replace("[OUT]", "OUT")
    assert f"[MODEL] {places[-1].upper()}" in usage or not after


def test_options_stand_anywhere() -> None:
    """`dgemma generate nano --seed 1 PROMPT` takes the model for the prompt."""
    parser = parser_of("generate")
    for words in ("nano --seed 1 x", "--seed 1 nano x", "nano x --seed 1", "x --seed 1 -m nano"):
        found = parser.parse(words.split())
        assert (found.model, found.prompt, found.seed) == ("nano", "x", 1)
    found = parser.parse(["nano", "--", "--seed"])
    assert (found.model, found.prompt, found.seed) == ("nano", "--seed", None)


@pytest.mark.fault("N 26")
@pytest.mark.process
def test_wrong_names_are_refused_before_torch_is_loaded() -> None:
    """A typing mistake costs the seconds that importing torch takes."""
    mistakes = [
        ["demo", "nono"],
        *[[name, "nono"] for name in ("chat", "serve", "info", "check", "calibrate", "evaluate",
                                        "doctor")],
        ["generate", "nono", "x"], ["infill", "nono", "___"], ["bench", "step", "nono"],
        ["edit", "nono", __file__, "--span", "1"], ["decide", "nono", "x", "--predicate", "Is it?"],
        ["quantize", "nono", "x", "--format", "fp8"], ["convert", "nono", "x", "--to", "mlx"],
        ["bench", "scale"], ["chat", "--dtype", "fp16"],
        ["generate", "x", "--device", "gpu"], ["generate", "x", "--max-tokens", "0"],
        ["pull", "nano"],
    ]  # fmt: skip
    code = (
        "import sys, json\nfrom dgemma.cli.main import main\n"
        f"for words in json.loads({json.dumps(json.dumps(mistakes))}):\n"
        "    try: code = main(words)\n"
        "    except SystemExit as end: code = end.code\n"
        "    assert code == (2 if words[0] != 'pull' else 0), words\n"
        "    assert 'torch' not in sys.modules, words\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("did you mean 'nano'") == len(cli.COMMANDS) - 3  # pull, list, rm


def test_dtypes_are_those_of_the_library() -> None:
    """A dtype that the library knows is refused by the command line, or the other way round."""
    assert set(DTYPES) == {"auto", *device.DTYPES}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_examples_of_the_help_are_right(command: str, run: Callable[..., Ran]) -> None:
    """An example that the command would refuse."""
    _, out, _ = run(command, "--help")
    examples = re.findall(rf"^  dgemma {command} ?(.*)$", out, re.MULTILINE)
    assert examples
    for words in examples:
        parser_of(command).parse(shlex.split(words))


@pytest.mark.fault("N 25")
def test_common_options_come_first(run: Callable[..., Ran]) -> None:
    """A newcomer reads of entropy bounds before the length of the answer, without any default."""
    _, out, _ = run("generate", "--help")
    heads = [out.index(f"\n{title}") for title in SAMPLING]
    assert heads == sorted(heads) and out.index("\noptions:") < heads[0]
    assert heads[0] < out.index("  --max-tokens N") < heads[-1] < out.index("  --entropy-bound X")
    text = " ".join(out.split())
    assert "may accept (0.1)" in text and "(drawn; see --json)" in text
    _, out, _ = run("serve", "--help")
    assert "(127.0.0.1)" in out and "open requests (512)" in out


@pytest.mark.fault("N 46")
def test_the_bundled_model_is_not_pulled(run: Callable[..., Ran]) -> None:
    """A request to the network for a model that is here."""
    code, out, err = run("pull", "nano")
    assert (code, out.strip()) == (0, str(bundled_models()["nano"])) and "comes with" in err
