"""The command line: every command answers, every mistake gives one clear line and exit code 2."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dgemma import device
from dgemma.cli import main as cli
from dgemma.cli.paint import verdict_text
from dgemma.model.config import AttentionShape, ModelConfig
from dgemma.model.hf_config import write_config
from dgemma.types import Verdict
from dgemma.weights.find import bundled_models
from tests.support.commands import Ran
from tests.support.nano import nano
from tests.support.sources import ROOT

WEIGHTS = "model.safetensors"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of nano that a test may break."""
    return Path(shutil.copytree(bundled_models()["nano"], tmp_path / "broken"))


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit a JSON file in place."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def truncated(at: Path) -> None:
    """Half of the weights' file."""
    whole = (at / WEIGHTS).read_bytes()
    (at / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def missing_shard(at: Path) -> None:
    """An index that names two shards, one of them absent."""
    weights = load_file(at / WEIGHTS)
    names = sorted(weights)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    save_file({name: weights[name] for name in names[:5]}, at / shards[0])
    placed = {name: shards[k >= 5] for k, name in enumerate(names)}
    (at / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    (at / WEIGHTS).unlink()


def wrong_shape(at: Path) -> None:
    """One tensor with a row less."""
    weights = load_file(at / WEIGHTS)
    name = next(name for name in sorted(weights) if weights[name].dim() == 2)
    save_file(weights | {name: weights[name][1:].clone()}, at / WEIGHTS)


def nan_weights(at: Path) -> None:
    """One number that is none."""
    weights = load_file(at / WEIGHTS)
    weights[sorted(weights)[3]].view(-1)[0] = torch.nan
    save_file(weights, at / WEIGHTS)


def broken_json(at: Path) -> None:
    """A config.json cut off in the middle."""
    text = (at / "config.json").read_text()
    (at / "config.json").write_text(text[: len(text) // 2])


def unknown_key(at: Path) -> None:
    """A key of the text part that nobody knows."""
    change_json(at / "config.json", lambda v: v["text_config"].update(hidden_sizes=3))


def unknown_tokenizer(at: Path) -> None:
    """A tokenizer of a kind that is not read."""
    change_json(at / "tokenizer.json", lambda v: v["model"].update(type="Magic"))


@pytest.mark.parametrize(
    ("breaks", "remedy"),
    [
        (truncated, "download"),
        (missing_shard, "download"),
        (wrong_shape, "download"),
        (nan_weights, "take another checkpoint"),
        (broken_json, "restore"),
        (unknown_key, "strict"),
        (unknown_tokenizer, "tokenizer.json"),
    ],
)
def test_broken_checkpoint(
    breaks: Callable[[Path], None], remedy: str, copy: Path, run: Callable[..., Ran]
) -> None:
    """A broken checkpoint ends in a traceback, in text made of noise, or with exit code 0."""
    breaks(copy)
    before = sorted(copy.parent.rglob("*"))
    code, out, err = run("generate", "--model", str(copy), "Hello")
    assert code == 2 and out == ""
    assert err.count("error:") == 1 and err.startswith("dgemma: error: ")
    assert remedy in err and "Traceback" not in err
    assert sorted(copy.parent.rglob("*")) == before, "something was written"


@pytest.mark.model
@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("generate", ""), "give some text"),
        (("generate", "  \n"), "give some text"),
        (("generate", "--raw", "--thinking", "x"), "--raw"),
        (("generate", "word " * 9000), "shorten"),
        (("generate", "--raw", "word " * 9000), "shorten"),
        (("generate", "--max-tokens", "0", "x"), "at least 1"),
        (("generate", "--max-tokens", "-4", "x"), "at least 1"),
        (("generate", "--max-tokens", "many", "x"), "int"),
        (("generate", "--mode", "autoregressive", "--max-steps", "4", "x"), "leave it out"),
        (("generate", "--max-stepz", "4", "x"), "did you mean '--max-steps'"),
        (("generate", "--max-tok", "4", "x"), "did you mean '--max-tokens'"),
        (("generate", "--max-tok=4", "x"), "did you mean '--max-tokens'"),
        (("doctor", "--js"), "did you mean '--json'"),
        (("--vers",), "did you mean '--version'"),
        (("--",), "no command"),
        (("generate", "--device", "abacus", "x"), "choose from 'auto', 'cpu', 'cuda'"),
        (("generate", "--device", "gpu", "x"), "did you mean 'cuda'"),
        (("generate", "--dtype", "int3", "x"), "choose from 'auto', 'float32'"),
        (("chat", "--dtype", "fp16"), "did you mean 'float16'"),
        (("evaluate", "--mode", "difusion"), "did you mean 'diffusion'"),
        (("chat", "-v"), "unrecognized arguments: -v\n"),
        (("generate", "--model", "nono", "x"), "did you mean 'nano'"),
        (("generate",), "there is no PROMPT; give one, or pipe it"),
        (("generate", "-"), "the prompt is empty"),
        (("generate", "--live", "--json", "x"), "--json has none"),
        (("generate", "--live", "--mode", "exact", "x"), "--mode exact has none"),
        (("generate", "--mode", "plain", "x"), "choose from 'diffusion', 'autoregressive'"),
        (("genrate", "x"), "did you mean 'generate'"),
        (("evaluate", "--tasks", "sudku"), "did you mean 'sudoku'"),
        (("evaluate", "-n", "0"), "at least 1"),
        (("info", "nono"), "did you mean 'nano'"),
        (("info", __file__), "is a file; name its directory"),
        (("info", "--prompt", "9999999"), "at most"),
        (("info", "--batch", "0"), "at least 1"),
        (("chat", "one", "-m", "two"), "two models, 'one' and 'two'; name one"),
        (("generate", "a", "b", "c"), "unrecognized arguments: c; a PROMPT of several words"),
        (("generate", "Hello", "world"), "A PROMPT of several words goes in quotes."),
        (("generate", "--choices", "even", "odd", "x"), "--choices takes all words after it"),
        (("decide", "x", "--choice", "good", "bad"), "write 'good?', or '' good bad"),
        (("decide", "x", "--score", "low", "high level"), "or '' low 'high level'"),
        (("decide", "--choice", "Which?", "good", "x"), "--choice takes all words after it"),
        (("run", "nano"), "try: dgemma demo, dgemma chat"),
    ],
)
def test_wrong_use(
    words: tuple[str, ...], remedy: str, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake of the user ends in a traceback, or says nothing that helps."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    code, out, err = run(*words)
    assert code == 2 and out == ""
    assert err.count("error:") == 1 and remedy in err and "Traceback" not in err


@pytest.mark.fault("N 22")
@pytest.mark.parametrize("option", ["--choice", "--score"])
def test_choices_without_a_question(option: str, run: Callable[..., Ran]) -> None:
    """The first choice is taken for the question, and never among the answers."""
    code, out, err = run("decide", "Sentiment: good.", option, "positive", "negative", "neutral")
    assert (code, out) == (2, "")
    assert "write 'positive?', or '' positive negative neutral" in err


@pytest.mark.model
def test_generate(run: Callable[..., Ran]) -> None:
    """JSON for programs that does not parse, or differs between runs with one seed."""
    words = ("generate", "--seed", "5", "--max-tokens", "20", "--max-steps", "4", "What is 1+1?")
    code, out, err = run(*words, "--json")
    assert (code, err) == (0, "")
    values = json.loads(out)
    assert values["seed"] == 5 and len(values["token_ids"]) <= 20
    assert values["usage"]["completion_tokens"] == len(values["token_ids"])
    assert "tokens_per_step" in values["usage"]
    code, plain, _ = run(*words)
    assert code == 0 and values["text"] in plain


@pytest.mark.model
@pytest.mark.parametrize("more", [("--raw",), ("--thinking",), ("--stop", "a"), ()])
def test_generate_ways(
    more: tuple[str, ...], run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option that breaks the command; the prompt is read from standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hello")))
    words = ("generate", "-", "--max-tokens", "9", "--max-steps", "2", "--json", *more)
    code, out, err = run(*words)
    assert (code, err) == (0, "") and json.loads(out)["finish_reason"] in ("stop", "length")


@pytest.mark.model
@pytest.mark.fault("N 23", "N 24")
@pytest.mark.parametrize("words", [(), ("-",), ("-m", "nano"), ("nano", "-")])
def test_generate_reads_a_pipe(
    words: tuple[str, ...], run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`echo x | dgemma generate` asks for a prompt, or does not give it as a chat message."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Parity: 3182\n")))
    assert run("generate", *words, "--seed", "0") == (0, "even\n", "")
    _, out, _ = run("generate", "--help")
    assert "`llm.chat`" in out and "`llm.generate`" in out


@pytest.mark.model
@pytest.mark.fault("N 24")
@pytest.mark.parametrize("way", ["", "--raw", "--mode autoregressive"])
def test_generate_streams(
    way: str, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text comes in one piece at the end, or is another than that of the whole output."""
    pieces: list[str] = []

    class Pipe(io.StringIO):
        def write(self, text: str) -> int:
            pieces.append(text)
            return super().write(text)

    words = ["generate", "What is your name?", *way.split()]
    words += (
        []
        if "autoregressive" in way
        else ["--seed", "3", "--min-tokens", "240", "--max-steps", "8"]
    )
    words += ["--max-tokens", "250"]
    wanted = json.loads(run(*words, "--json")[1])
    monkeypatch.setattr(sys, "stdout", Pipe())
    assert cli.main(words) == 0
    assert "".join(pieces).rstrip("\n") == wanted["text"].rstrip("\n")
    assert len([piece for piece in pieces if piece.strip()]) > 1


@pytest.mark.model
def test_generate_autoregressive(run: Callable[..., Ran]) -> None:
    """The autoregressive mode cannot be reached from the command line."""
    code, out, _ = run(
        "generate", "--mode", "autoregressive", "--max-tokens", "3", "--json", "Hello"
    )
    assert code == 0 and json.loads(out)["usage"]["canvases"] == 0


@pytest.mark.model
def test_verdict(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    """`--verdict` that is read and not told, told among the answer, or other than in Python."""
    wanted = nano().chat([{"role": "user", "content": "Parity: 3182"}], seed=0, verdict=True)
    assert wanted.verdict is not None
    words = ("generate", "Parity: 3182", "--seed", "0", "--verdict")
    line = f"{verdict_text(wanted.verdict)}\n"
    assert run(*words) == (0, f"{wanted.text}\n", line)
    found = json.loads(run(*words, "--json")[1])["verdict"]
    assert (found["mean"], found["minimum"]) == (wanted.verdict.mean, wanted.verdict.minimum)
    assert tuple(found["logprobs"]) == wanted.verdict.logprobs
    assert json.loads(run(*words[:-1], "--json")[1])["verdict"] is None
    monkeypatch.setattr(sys, "stdin", io.StringIO("Parity: 3182\n"))
    assert run("chat", "--seed", "0", "--verdict") == (0, f"{wanted.text}\n", line)


def test_the_line_of_a_verdict() -> None:
    """A line that hides what a person must know: doubts, no rest, canvases that stayed unlikely."""
    verdict = Verdict(logprobs=(-0.5, -1.5), disagreements=(1,), steps=3)
    told = "verdict: log-probability -1.000 a token, -1.500 at least; 1 of 2 tokens not the first "
    assert verdict_text(verdict) == f"{told}choice; 3 steps, converged"
    assert verdict_text(verdict, 2) == f"{told}choice; 3 steps, 2 more discarded, converged"
    poor = replace(verdict, converged=False, below=2)
    assert verdict_text(poor).endswith("3 steps, not converged, 2 unlikely in every try")


def test_info(run: Callable[..., Ran]) -> None:
    """Sizes that are typed, not computed, or that disagree with the weights."""
    code, out, _ = run("info", "nano", "--json")
    facts = json.loads(out)
    weights = load_file(bundled_models()["nano"] / WEIGHTS)
    assert code == 0 and facts["parameters"] == sum(w.numel() for w in weights.values())
    code, out, _ = run("info", "nano")
    assert code == 0 and "parameters" in out


def released_sizes() -> ModelConfig:
    """The config of the released model, text part."""
    layers: Any = (*["sliding_attention"] * 5, "full_attention") * 5
    return ModelConfig(
        vocab_size=262_144, hidden_size=2816, intermediate_size=2112, moe_intermediate_size=704,
        num_experts=128, top_k_experts=8, num_attention_heads=16,
        layer_types=layers,
        sliding=AttentionShape(head_dim=256, num_key_value_heads=8, rope_theta=1e4),
        full=AttentionShape(
            head_dim=512, num_key_value_heads=2, rope_theta=1e6, partial_rotary_factor=0.25
        ),
        sliding_window=1024, max_position_embeddings=262_144,
    )  # fmt: skip


def test_info_of_the_released_sizes(tmp_path: Path, run: Callable[..., Ran]) -> None:
    """The arithmetic of parameters: 25.2 B in all and 3.8 B active, the embedding once."""
    (tmp_path / "config.json").write_text(json.dumps(write_config(released_sizes())))
    code, out, err = run("info", str(tmp_path), "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts["parameters"] == pytest.approx(25.2e9, rel=0.005)
    assert facts["active_parameters"] == pytest.approx(3.8e9, rel=0.02)
    assert facts["weight_bytes"]["bfloat16"] == 2 * facts["parameters"]


@pytest.mark.fault("N English")
def test_the_page_shows_what_info_prints(tmp_path: Path, run: Callable[..., Ran]) -> None:
    """Sizes of the released model on a page that another version printed."""
    page = (ROOT / "docs/released-weights.md").read_text(encoding="utf-8")
    [shown] = re.findall(r"released sizes:\n```\n(.*?)```", page, re.DOTALL)
    (tmp_path / "config.json").write_text(json.dumps(write_config(released_sizes())))
    _, out, _ = run("info", str(tmp_path))
    assert shown.count("\n") > 8 and shown in out


@pytest.mark.fault("N 32")
@pytest.mark.parametrize("free", [10**6, 10**12])
def test_info_says_whether_the_model_fits(
    free: int, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty gigabytes are downloaded for a machine that cannot hold them."""
    monkeypatch.setattr(device, "free_bytes", lambda _: free)
    facts = json.loads(run("info", "nano", "--json")[1])
    assert facts["machine"]["fits"] == (free > facts["run"]["peak_bytes"]) == (free > 10**9)
    [line] = [line for line in run("info")[1].splitlines() if "this machine" in line]
    wanted = "the run fits: 1000 GB" if free > 10**9 else "does not fit (a shorter --prompt"
    assert wanted in line


@pytest.mark.model
def test_chat_reads_turns(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe gets prompts and colours, or an end of input is an error."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n\n/new\nWho are you?\n/quit\nnever\n"))
    code, out, err = run("chat", "--max-tokens", "12", "--max-steps", "3", "--system", "Be brief.")
    assert (code, err) == (0, "")
    assert out.count("\n") >= 2 and "\x1b" not in out and "> " not in out
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert run("chat") == (0, "", "")


@pytest.mark.model
def test_chat_goes_on_after_a_refusal(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message that is too long ends the conversation, or stays in it."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("word " * 9000 + "\nHello\n"))
    code, out, err = run("chat", "--max-tokens", "5", "--max-steps", "2")
    assert code == 0 and err.count("shorten") == 1 and out.endswith("\n")


@pytest.mark.model
def test_generate_without_a_template(run: Callable[..., Ran], copy: Path) -> None:
    """A question that is silently continued as raw text."""
    (copy / "chat_template.jinja").unlink()
    words = ("generate", str(copy), "--max-tokens", "3", "--max-steps", "1", "Hello there")
    code, _, err = run(*words)
    assert code == 0 and "no chat template" in err and "--raw" in err
    assert "no chat template" not in run(*words, "--raw")[2]
