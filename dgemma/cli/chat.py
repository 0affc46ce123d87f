"""`dgemma chat`: a conversation, with a live view of the canvas."""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING, Any

from dgemma.cli.ask import Reader
from dgemma.cli.live import show
from dgemma.cli.options import add_model, add_sampling, open_model, sampling, say
from dgemma.cli.paint import Painter, verdict_text
from dgemma.errors import InvalidRequest, nearest
from dgemma.weights.find import bundled_models

if TYPE_CHECKING:
    from dgemma.llm import LLM
    from dgemma.params import SamplingParams

NANO_PROMPTS = (
    "What can you do?",
    "JSON: An order of 75 robots came from Mafit Gupir.",
    "Topic: Mira cooked soup.",
    "Parity: 3182",
)
"""Prompts that nano answers well with any seed; a test asks them."""
COMMANDS = ("/help", "/new", "/quit", "/exit")
HELP = '''\
/new     begin a new conversation
/quit    leave; so do /exit, Ctrl-D, and Ctrl-C twice
"""      begin and end a message of several lines; a paste is one message
Ctrl-C   stop the answer that is being written
Up       bring back an earlier line; none is kept after you leave'''
HOW = "/help lists the commands; /quit or Ctrl-D leaves."
ALONE = "It reads each message alone, without the ones before."
AGAIN = "(Ctrl-C again or /quit leaves)"
STOPPED = "(stopped)"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="a system message")
    parser.add_argument("--thinking", action="store_true", help="ask for thoughts and show them")
    add_sampling(parser)
    parser.epilog = f"example:\n  dgemma chat nano --temperature 0\n\nwhile it runs:\n{HELP}"


def run(arguments: argparse.Namespace) -> int:
    """Read messages until the end of input."""
    params = sampling(arguments)
    llm = open_model(arguments)
    chat = Chat(llm, params, arguments.system, arguments.thinking)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        reader = Reader(talking=False)
        while (message := reader.message()) is not None and chat.heed(message):
            pass
        return 0
    print(greeting(llm, arguments.model))
    reader, warned = Reader(talking=True), False
    while True:
        try:
            message = reader.message()
            warned = False
            if message is None:
                print()
                return 0
            if message in ("exit", "quit"):
                print("/quit leaves")
            elif not chat.heed(message):
                return 0
        except KeyboardInterrupt:
            if warned and not reader.begun:
                print()
                return 0
            warned = not reader.begun
            print(f"\n{AGAIN}" if warned else "")


def greeting(llm: LLM, name: str) -> str:
    """What a person reads first: what the model is, what to ask it, how to leave."""
    count = sum(p.numel() for p in llm.model.parameters())
    size = f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"
    lines = [f"{name}: {size} parameters, a context of {llm.config.max_position_embeddings:,}."]
    if llm.checkpoint.directory == bundled_models().get("nano"):
        lines = [f"nano is a toy of {size} parameters. It knows seven made-up tasks, nothing else."]
        lines += ["Try:", *(f"  {prompt}" for prompt in NANO_PROMPTS)]
    return "\n".join([*lines, *([ALONE] if llm.single_turn else []), HOW])


class Chat:
    """A conversation with a model: its messages so far, and what to do with the next one."""

    def __init__(
        self, llm: LLM, params: SamplingParams, system: str | None = None, thinking: bool = False
    ) -> None:
        """Raises:
        DGemmaError: the model cannot chat, or not with this system message.
        """
        self._llm, self._params, self._thinking = llm, params, thinking
        self._first = [{"role": "system", "content": system}] if system else []
        self._messages: list[dict[str, Any]] = [*self._first]
        llm.chat_ids([*self._first, {"role": "user", "content": "?"}], None, thinking)

    def heed(self, message: str) -> bool:
        """Carry out a command, or answer a message; false: the conversation is over."""
        word = re.fullmatch(r"/[\w-]*(?: .*)?", message)
        if message in ("/quit", "/exit"):
            return False
        if message == "/help":
            print(HELP)
        elif message == "/new":
            self._messages = [*self._first]
        elif word is not None:
            say(f"unknown command {message}{nearest(message, COMMANDS)}; /help lists them")
        elif message:
            self._answer(message)
        return True

    def _answer(self, message: str) -> None:
        """Write the answer; a message without one is as if it had not been sent."""
        llm, before = self._llm, self._first if self._llm.single_turn else self._messages
        messages = [*before, {"role": "user", "content": message}]
        try:
            ids = llm.chat_ids(messages, None, self._thinking)
            stream = llm.stream(messages, self._params, thinking=self._thinking)
        except InvalidRequest as error:
            say(f"dgemma: {error}")
            return
        painter = Painter(
            llm.frontend.tokenizer, llm.facts.end_ids, ids, self._params.merged(llm.defaults)
        )
        try:
            output = show(stream, painter)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            stream.close()
            output = stream.result()
            print(STOPPED)
        if output.verdict is not None:
            say(verdict_text(output.verdict))
        if output.error:
            say(f"dgemma: error: {output.error}")
        elif not (output.text or output.tool_calls or output.invalid_tool_calls) and (
            output.finish_reason == "stop"
        ):
            say("(no answer)")
        elif output.text or output.tool_calls or output.finish_reason != "cancelled":
            self._messages = [*messages, {"role": "assistant", "content": output.text}]
