"""`dgemma generate`: answer a prompt as a chat message, or continue it as raw text."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from dgemma.cli.files import read_argument
from dgemma.cli.options import add_model, add_sampling, open_model, sampling
from dgemma.errors import InvalidRequest
from dgemma.types import Output


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser, then="PROMPT")
    add = parser.add_argument
    add("prompt", metavar="PROMPT", help="the prompt, or - for standard input")
    add("--raw", action="store_true", help="continue the text, no chat template")
    add("--thinking", action="store_true", help="ask for a thought first")
    add("--autoregressive", action="store_true", help="decode token by token, no denoising")
    add("--json", action="store_true", help="print the whole output as JSON")
    add_sampling(parser)
    parser.epilog = "example:\n  dgemma generate nano 'JSON: Mira Kovar is 31 years old.'"


def as_json(output: Output) -> str:
    """An output for programs."""
    values = asdict(output)
    values["usage"]["tokens_per_step"] = output.usage.tokens_per_step
    for name in ("trace", "prompt_ids"):
        values.pop(name)
    return json.dumps(values, ensure_ascii=False)


def run(arguments: argparse.Namespace) -> int:
    """Print the answer; 1 where it ended with an error."""
    text = read_argument("-") if arguments.prompt == "-" else arguments.prompt
    if not text.strip():
        raise InvalidRequest("the prompt is empty; give some text")
    if arguments.raw and arguments.thinking:
        raise InvalidRequest("--thinking needs the chat template; leave out --raw")
    params = sampling(arguments)
    llm = open_model(arguments)
    chat = llm.template is not None and not arguments.raw
    messages = [{"role": "user", "content": text}]
    if arguments.autoregressive:
        prompt = messages if chat else text
        output = llm.autoregress(prompt, params, thinking=arguments.thinking)
    elif chat:
        output = llm.chat(messages, params, thinking=arguments.thinking)
    else:
        output = llm.generate(text, params)
    if arguments.json:
        print(as_json(output))
    else:
        if output.thinking:
            print(f"[thought] {output.thinking}\n")
        for call in output.tool_calls:
            print(f"[call] {call.name}({json.dumps(dict(call.arguments), ensure_ascii=False)})")
        for broken in output.invalid_tool_calls:
            print(f"[invalid call] {broken.text} ({broken.error})")
        print(output.text)
    if output.error:
        print(f"dgemma: error: {output.error}", file=sys.stderr)
    return 1 if output.finish_reason == "error" else 0
