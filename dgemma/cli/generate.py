"""`dgemma generate`: answer a prompt as a chat message, or continue it as raw text."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from dgemma.cli.files import read_argument
from dgemma.cli.live import LEGEND, LIVE, show
from dgemma.cli.options import add_model, add_sampling, open_model, sampling, say
from dgemma.cli.paint import Painter, verdict_text
from dgemma.errors import InvalidRequest
from dgemma.types import Output, Request

MEANING = """\
PROMPT becomes a message in the model's chat template, as `llm.chat` does it in Python.
With --raw it is text to go on with, as for `llm.generate`."""
MODES = ("diffusion", "autoregressive", "exact")
EXAMPLE = "example:\n  dgemma generate nano 'JSON: Mira Kovar is 31 years old.'"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser, then="PROMPT")
    add = parser.add_argument
    about = "the prompt; - or none: read it from standard input"
    add("prompt", nargs="?", metavar="PROMPT", help=about)
    add("--raw", action="store_true", help="continue the text, no chat template")
    add("--thinking", action="store_true", help="ask for a thought first")
    about = "autoregressive: token by token; exact: the same answer in fewer passes (diffusion)"
    add("--mode", choices=MODES, default="diffusion", help=about)
    add("--live", action="store_true", help=LIVE)
    add("--json", action="store_true", help="print the whole output as JSON")
    add_sampling(parser)
    parser.epilog = f"{MEANING}\n\n{EXAMPLE}\n\n{LEGEND}"


def as_json(output: Output) -> str:
    """An output for programs."""
    values = asdict(output)
    values["usage"]["tokens_per_step"] = output.usage.tokens_per_step
    if output.verdict is not None:
        values["verdict"] |= {"mean": output.verdict.mean, "minimum": output.verdict.minimum,
                              "score": output.verdict.score}  # fmt: skip
    for name in ("trace", "prompt_ids"):
        values.pop(name)
    return json.dumps(values, ensure_ascii=False)


def run(arguments: argparse.Namespace) -> int:
    """Print the answer as it comes; 1 where it ended with an error."""
    if arguments.raw and arguments.thinking:
        raise InvalidRequest("--thinking needs the chat template; leave out --raw")
    plain = [f"--mode {arguments.mode}"] * (arguments.mode != "diffusion")
    for option in ["--json"] * arguments.json + plain:
        if arguments.live:
            raise InvalidRequest(f"--live shows drafts, and {option} has none; choose one")
    params = sampling(arguments)
    text = _prompt(arguments)
    llm = open_model(arguments)
    chat = llm.template is not None and not arguments.raw
    if not (chat or arguments.raw):
        say("the model has no chat template: it continues the prompt as raw text, as with --raw")
    messages = [{"role": "user", "content": text}]
    ids = llm.chat_ids(messages, None, arguments.thinking) if chat else llm.prompt_ids(text)
    events = llm.submit(
        Request(token_ids=tuple(ids), params=params, chat=chat, frames=arguments.live,
                mode=arguments.mode)
    )  # fmt: skip
    if arguments.json:
        output = events.result()
        print(as_json(output))
    else:
        painter = Painter(
            llm.frontend.tokenizer, llm.facts.end_ids, ids if chat else None,
            params.merged(llm.defaults),
        )  # fmt: skip
        output = show(events, painter if arguments.live else None)
        if output.verdict is not None:
            say(verdict_text(output.verdict, output.usage.discarded_steps))
    if output.error:
        say(f"dgemma: error: {output.error}")
    return 1 if output.finish_reason == "error" else 0


def _prompt(arguments: argparse.Namespace) -> str:
    """The text of the argument, or of standard input.

    Raises:
        InvalidRequest: there is none.
    """
    given: str | None = arguments.prompt
    if given is not None:
        text = read_argument("-") if given == "-" else given
        if text.strip():
            return text
        raise InvalidRequest("the prompt is empty; give some text")
    piped = sys.stdin is not None and not sys.stdin.isatty()
    if piped and (text := read_argument("-")).strip():
        return text
    hint = "; --choices takes all words after it, so write that first" if arguments.choices else ""
    raise InvalidRequest(f"there is no PROMPT; give one, or pipe it to standard input{hint}")
