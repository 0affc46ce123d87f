"""`dgemma chat`: a conversation, with a live view of the canvas."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from dgemma.cli.live import is_terminal, show
from dgemma.cli.options import add_model, add_sampling, open_model, sampling
from dgemma.errors import InvalidRequest

HELP = "/new begins a new conversation, /quit or Ctrl-D ends"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="a system message")
    parser.add_argument("--thinking", action="store_true", help="ask for thoughts")
    add_sampling(parser)
    parser.epilog = "example:\n  dgemma chat nano --temperature 0"


def run(arguments: argparse.Namespace) -> int:
    """Read turns until the end of input."""
    params = sampling(arguments)
    llm = open_model(arguments)
    tokenizer = llm.tokenizer
    first = [{"role": "system", "content": arguments.system}] if arguments.system else []
    messages: list[dict[str, Any]] = list(first)
    llm.chat_ids([*first, {"role": "user", "content": "?"}], None, False)  # fails early, clearly
    assert tokenizer is not None
    talking = is_terminal(sys.stdout) and sys.stdin.isatty()
    if talking:
        print(f"{arguments.model}: {HELP}")
    while True:
        try:
            line = input("> " if talking else "").strip()
        except EOFError:
            return 0
        if line == "/quit":
            return 0
        if line == "/new":
            messages = list(first)
        elif line:
            messages.append({"role": "user", "content": line})
            try:
                stream = llm.stream(messages, params, thinking=arguments.thinking)
            except InvalidRequest as error:
                messages.pop()
                print(f"dgemma: {error}", file=sys.stderr)
                continue
            output = show(
                stream, lambda i: tokenizer.decode([i]), frozenset(llm.engine.spec.end_ids)
            )
            if output.error:
                print(f"dgemma: error: {output.error}", file=sys.stderr)
                messages.pop()  # as if it had not been asked
            else:
                messages.append({"role": "assistant", "content": output.text})
