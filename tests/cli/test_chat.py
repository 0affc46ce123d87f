"""`dgemma chat`: what a person types, pastes and interrupts, and what the model is sent."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgemma.cli import chat
from dgemma.cli.ask import Reader
from dgemma.cli.chat import NANO_PROMPTS, Chat, greeting
from dgemma.errors import InvalidRequest
from dgemma.params import SamplingParams
from dgemma.tasks import make_sudoku
from tests.support.commands import Ran
from tests.support.nano import nano
from tests.support.pseudo_terminal import (
    END,
    ENTER,
    INTERRUPT,
    LEFT,
    UP,
    Session,
    pasted,
    session,
)

ANSWERS = {
    "What can you do?": "I solve Sudoku, write JSON, call tools and fill gaps.",
    "JSON: An order of 75 robots came from Mafit Gupir.":
        '{"buyer":"Mafit Gupir","item":"robot","count":75}',
    "Topic: Mira cooked soup.": "food",
    "Parity: 3182": "even",
}  # fmt: skip
NAME = "I am nano, a small DiffusionGemma."
PUZZLE = make_sudoku("heldout", 1, 0)


@pytest.fixture
def pipe(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Runs `dgemma chat` with a text on standard input."""

    def chatted(text: str, *words: str) -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        return run("chat", *words)

    return chatted


@pytest.mark.model
@pytest.mark.fault("N 6")
def test_nano_answers_the_prompts_that_it_greets_with(pipe: Callable[..., Ran]) -> None:
    """A newcomer copies a prompt and gets nonsense."""
    assert set(NANO_PROMPTS) == set(ANSWERS)
    for seed in range(3):
        ran = pipe("\n".join(NANO_PROMPTS), "--seed", str(seed))
        assert ran == (0, "".join(f"{ANSWERS[prompt]}\n" for prompt in NANO_PROMPTS), "")


@pytest.mark.model
@pytest.mark.fault("N 6")
def test_the_greeting_says_what_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A newcomer takes a toy for an assistant, or another model for the toy."""
    text = greeting(nano(), "nano")
    assert "nano is a toy of 1.6 M parameters" in text and "/help" in text
    assert all(f"\n  {prompt}\n" in text for prompt in NANO_PROMPTS) and chat.ALONE in text
    assert all(len(line) < 80 for line in f"{text}\n{chat.HELP}".split("\n"))
    monkeypatch.setattr(chat, "bundled_models", dict)
    monkeypatch.setattr(nano(), "single_turn", False)
    text = greeting(nano(), "some/model")
    assert text == f"some/model: 1.6 M parameters, a context of 8,192.\n{chat.HOW}"


@pytest.mark.model
@pytest.mark.fault("N 4")
def test_the_second_question(pipe: Callable[..., Ran]) -> None:
    """A model that was trained on single turns gets a history, and breaks."""
    assert nano().single_turn
    code, out, err = pipe("What is your name?\nWhat can you do?\nParity: 3182\n", "--seed", "0")
    assert (code, err) == (0, "")
    assert out == f"{NAME}\n{ANSWERS['What can you do?']}\neven\n"


@pytest.mark.model
def test_an_empty_answer_is_said(pipe: Callable[..., Ran]) -> None:
    """A blank line, of which nobody can tell whether it is an answer."""
    ran = pipe("Parity: 3182\nParity: 3181\n", "--seed", "0", "--stop", "even")
    assert ran == (0, "\nodd\n", "(no answer)\n")


@pytest.mark.model
def test_what_the_model_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other models forget what was said, or `/new` does not make them forget."""
    sent: list[list[tuple[str, str]]] = []
    stream = nano().stream

    def recorded(messages: Any, *given: Any, **more: Any) -> Any:
        sent.append([(one["role"], one["content"]) for one in messages])
        return stream([messages[-1]], *given, **more)

    monkeypatch.setattr(nano(), "stream", recorded)
    monkeypatch.setattr(nano(), "single_turn", False)
    talk = Chat(nano(), SamplingParams(seed=0), "Be brief.")
    for message in ("Parity: 3182", "/new x", "Hello", "/new", "Hi", ""):
        assert talk.heed(message)
    told = [("system", "Be brief."), ("user", "Parity: 3182")]
    assert sent[0] == told
    assert sent[1] == [*told, ("assistant", "even"), ("user", "Hello")]
    assert sent[2] == [told[0], ("user", "Hi")]


@pytest.mark.model
@pytest.mark.fault("N 14")
def test_commands(pipe: Callable[..., Ran]) -> None:
    """A misspelt command goes to the model, and its answer is nonsense."""
    code, out, err = pipe("/exot\n/\n/helpme\n/help\n/etc/hosts\n/exit\nParity: 1\n", "--seed", "0")
    assert code == 0 and chat.HELP in out
    assert err.splitlines() == [
        "unknown command /exot (did you mean '/exit'?); /help lists them",
        "unknown command /; /help lists them",
        "unknown command /helpme (did you mean '/help'?); /help lists them",
    ]
    assert len(out.removeprefix(chat.HELP).splitlines()) == 2 and "even" not in out


@pytest.mark.model
@pytest.mark.fault("N 11")
def test_messages_of_several_lines(pipe: Callable[..., Ran]) -> None:
    """A Sudoku becomes ten messages of one line each."""
    for text in (
        f'"""\n{PUZZLE.question}\n"""\n',
        f'"""{PUZZLE.question}"""',
        f'"""{PUZZLE.question}',
    ):
        assert pipe(text, "--seed", "1") == (0, f"{PUZZLE.answer}\n", "")


@pytest.mark.model
@pytest.mark.fault("N 19")
def test_thoughts_are_shown(pipe: Callable[..., Ran]) -> None:
    """A thought is seen in the drafts and gone in the end."""
    question = "Which is larger, 417 or 481?"
    asked = [{"role": "user", "content": question}]
    wanted = nano().chat(asked, seed=0, thinking=True)
    assert wanted.thinking and wanted.text
    ran = pipe(question, "--thinking", "--seed", "0")
    assert ran == (0, f"[thought] {wanted.thinking}\n\n{wanted.text}\n", "")


def test_a_pipe_that_is_not_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are not UTF-8 end in a traceback."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff\n"), "utf-8"))
    with pytest.raises(InvalidRequest, match="not UTF-8"):
        Reader(talking=False).message()


def left_by(talk: Session, keys: str) -> None:
    """End a conversation."""
    talk.send(keys)
    assert talk.ended() == 0


@pytest.mark.process
@pytest.mark.fault("N 11", "N 12", "N 13", "N 14")
def test_in_a_terminal() -> None:
    """Keys that edit a line are sent as text; a paste is cut into messages; Ctrl-C at a prompt ends
    the program at once, or never."""
    with session(["-m", "dgemma", "chat", "--seed", "1"]) as talk:
        talk.expect(f"{chat.HOW}\n> ")
        talk.send("?arity: 3182" + LEFT * 11 + "\x7fP" + ENTER)
        talk.expect("even\n> ")
        talk.send(UP + ENTER)
        talk.expect("even\n> ")
        talk.send(pasted(PUZZLE.question))
        talk.expect(PUZZLE.question[-9:])
        talk.send(ENTER)
        talk.expect(f"{PUZZLE.answer}\n> ")
        talk.send(f'"""Parity:{ENTER}')
        talk.expect(". ")
        talk.send(f'3182{ENTER}"""{ENTER}')
        talk.expect("even\n> ")
        talk.send(f"exit{ENTER}")
        talk.expect("/quit leaves\n> ")
        talk.send("half a line")
        talk.expect("half a line")
        talk.send(INTERRUPT)
        talk.expect("> ")
        talk.send(INTERRUPT)
        talk.expect(f"{chat.AGAIN}\n> ")
        talk.send(f"Parity: 3182{ENTER}")
        talk.expect("even\n> ")
        talk.send(INTERRUPT)
        assert "leaves" not in talk.expect(f"{chat.AGAIN}\n> ")
        left_by(talk, INTERRUPT)


@pytest.mark.process
@pytest.mark.fault("N 13", "N 16")
def test_an_answer_is_stopped() -> None:
    """Ctrl-C ends the program, a stale draft stays, or keys that were typed early are lost."""
    long = ["--min-tokens", "7000", "--seed", "1"]
    with session(["-m", "dgemma", "chat", *long], NO_COLOR="1") as talk:
        talk.expect("> ")
        talk.send(f"What is your name?{ENTER}")
        talk.expect("nano")
        talk.send("/quit")
        talk.send(INTERRUPT)
        talk.expect(f"{chat.STOPPED}\n> ")
        talk.expect("/quit")
        left_by(talk, ENTER)
        written = talk.screen.getvalue()
        assert "38;5" not in written and "\x1b[J" in written


@pytest.mark.process
@pytest.mark.fault("N 16")
def test_a_terminal_that_knows_nothing() -> None:
    """TERM=dumb shows an empty screen."""
    with session(["-m", "dgemma", "chat", "--seed", "1"], TERM="dumb") as talk:
        talk.expect(f"{chat.HOW}\n> ")
        talk.send(f"Parity: 3182{ENTER}")
        talk.expect("even\n> ")
        left_by(talk, END)
        assert "\x1b" not in talk.screen.getvalue()


READ = """
from dgemma.cli.ask import Reader
reader = Reader(talking=True)
while (text := reader.message()) is not None:
    print(repr(text))
"""


@pytest.mark.process
@pytest.mark.fault("N 11")
@pytest.mark.parametrize("library", [True, False])
def test_pasted_lines_without_brackets(library: bool, tmp_path: Path) -> None:
    """Without the readline library, or in a terminal that does not bracket a paste, it is cut."""
    path = os.environ.get("PYTHONPATH", "")
    if not library:
        (tmp_path / "readline.py").write_text("raise ImportError('there is none')\n")
        path = f"{tmp_path}{os.pathsep}{path}"
    with session(["-c", READ], PYTHONPATH=path) as talk:
        talk.expect("> ")
        talk.send(f"one{ENTER}two{ENTER}three")
        talk.expect("three")
        talk.send(ENTER)
        talk.expect("'one\\ntwo\\nthree'\n> ")
        talk.send(f"four{ENTER}")
        talk.expect("'four'\n> ")
        talk.send(END)
        assert talk.ended() == 0
