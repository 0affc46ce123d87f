"""Nano as a GGUF file: the same answers, in every command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import dgemma
from dgemma.cli.main import main
from dgemma.errors import CheckpointError, TokenizerError
from dgemma.llm import LLM
from dgemma.params import RELEASED
from dgemma.weights.names import to_ours
from tests.support.gguf_checkpoint import keys_of, rope_freqs, tensors_of, vocabulary_keys, write
from tests.support.gguf_files import Key
from tests.support.nano import nano

pytestmark = pytest.mark.model

NANO = Path(dgemma.__file__).parent / "assets" / "nano"
CHAT = [{"role": "user", "content": "What is 17 + 25?"}]


def packed(name: str) -> str:
    """Q8_0 where the rows are whole blocks; those of the experts' down projections are not."""
    if "router" in name or "experts.down_proj" in name:
        return "BF16"
    return "Q8_0"


def keys() -> dict[str, Key]:
    """Sizes, vocabulary and template of nano."""
    config = nano().config
    ids = Key("i32[]", list(config.suppress_ids))
    return {**keys_of(config), **vocabulary_keys(NANO), "dgemma.suppress_token_ids": ids}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Nano's tensors by our names."""
    found = {to_ours(name): value for name, value in load_file(NANO / "model.safetensors").items()}
    return {name: value for name, value in found.items() if name is not None}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Any]) -> Path:
    """A directory of one file, with what lies beside a checkpoint."""
    tensors, _ = tensors_of(state, lambda name: "BF16")
    path = tmp_path_factory.mktemp("gguf")
    write(path / "nano-BF16.gguf", keys(), [*tensors, rope_freqs(nano().config)])
    for name in ("dgemma.json", "calibration.json"):
        (path / name).write_bytes((NANO / name).read_bytes())
    return path


@pytest.fixture(scope="module")
def llm(directory: Path) -> Iterator[LLM]:
    """The file, loaded."""
    with dgemma.load(directory / "nano-BF16.gguf", device="cpu", dtype="float32") as found:
        yield found


def test_the_same_model(llm: LLM) -> None:
    """Config, sampler, ids and calibration, but for what a GGUF file has no key for."""
    own, right = llm.config, nano().config
    assert own == replace(right, extra=own.extra, dtype=None)
    assert llm.defaults.merged(RELEASED) == nano().defaults.merged(RELEASED)
    assert llm.single_turn == nano().single_turn
    assert llm.engine.spec.end_ids == nano().engine.spec.end_ids
    assert llm.calibration == nano().calibration
    assert repr(llm).startswith("LLM('nano-BF16.gguf', ")


def test_the_same_answers(llm: LLM) -> None:
    """Text in and out, with a grammar, too."""
    for given in ({"seed": 3, "max_steps": 8}, {"seed": 4, "regex": "[0-9]+", "max_steps": 4}):
        one, other = llm.chat(CHAT, **given), nano().chat(CHAT, **given)
        assert one.token_ids == other.token_ids and one.text == other.text
    ids = [llm.tokenizer.encode(text) for text in ("Größe 😀 <turn|>",) if llm.tokenizer]
    assert ids == [nano().frontend.tokenizer.encode("Größe 😀 <turn|>")]


def test_packed_answers(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    """A packed file answers as the directory of its unpacked numbers does."""
    tensors, meant = tensors_of(state, lambda name: "BF16")
    for index, (name, one) in enumerate(zip(state, list(tensors), strict=True)):
        if meant[name].dim() > 1 and packed(name) == "Q8_0":
            data, meant[name] = q8_0(meant[name])
            tensors[index] = replace(one, kind=8, data=data)
    file = write(tmp_path / "m.gguf", keys(), tensors)
    copytree(NANO, tmp_path / "plain")
    stored = {name: to_ours(name) for name in load_file(NANO / "model.safetensors")}
    unpacked = {name: meant[ours].contiguous() for name, ours in stored.items() if ours}
    save_file(unpacked, tmp_path / "plain" / "model.safetensors")
    (tmp_path / "dgemma.json").write_bytes((NANO / "dgemma.json").read_bytes())
    answers = []
    for path in (file, tmp_path / "plain"):
        with dgemma.load(
            path, device="cpu", dtype="float32", calibration=NANO / "calibration.json"
        ) as llm:
            answers.append(llm.chat(CHAT, seed=3, max_steps=8).token_ids)
    assert answers[0] == answers[1]


def q8_0(value: torch.Tensor) -> tuple[bytes, torch.Tensor]:
    """Blocks of 32 with a scale each: the bytes, and the numbers that they mean."""
    rows = value.float().reshape(-1, 32)
    scale = (rows.abs().amax(-1, keepdim=True) / 127).to(torch.float16)
    codes = (rows / scale.float().clamp(min=1e-8)).round().clamp(-127, 127).to(torch.int8)
    blocks = torch.cat((scale.view(torch.uint8), codes.view(torch.uint8)), -1)
    return blocks.numpy().tobytes(), (scale.float() * codes).view(value.shape)


def test_commands(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory of one file, and the file itself."""
    for model in (directory, directory / "nano-BF16.gguf"):
        assert main(["info", str(model), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["directory"].endswith("nano-BF16.gguf") and facts["layers"] == 6
        assert main(["doctor", str(model), "--device", "cpu", "--json"]) == 0
        rows = {row["what"]: row for row in json.loads(capsys.readouterr().out)}
        assert rows["model"]["reason"].endswith("nano-BF16.gguf")
        asked = ["generate", "--model", str(model), "--device", "cpu", "--max-steps", "4"]
        assert main([*asked, "What is 2 + 3?"]) == 0
        assert capsys.readouterr().out.strip()


def test_check_says_what_it_cannot(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`transformers` has no reader for this arch."""
    assert main(["check", str(directory)]) == 2
    assert "transformers does not read for this model" in capsys.readouterr().err


def test_a_file_without_text(tmp_path: Path, state: dict[str, Any], llm: LLM) -> None:
    """Prompts of ids work, and text says what is missing."""
    tensors, _ = tensors_of(state, lambda name: "BF16")
    path = write(tmp_path / "m.gguf", keys_of(nano().config), tensors)
    with dgemma.load(path, device="cpu") as found:
        assert found.generate(nano().chat_ids(CHAT), max_tokens=4, max_steps=4).token_ids
        with pytest.raises(TokenizerError, match=r"m\.gguf has no tokenizer"):
            found.generate("text")


def test_saving_says_what_it_cannot(llm: LLM, tmp_path: Path) -> None:
    """A directory would lack the vocabulary."""
    with pytest.raises(CheckpointError, match="holds its tokenizer in a way"):
        dgemma.save(llm, tmp_path / "out")
