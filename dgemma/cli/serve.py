"""`dgemma serve`: a model over HTTP, with the APIs of OpenAI and others."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

from dgemma.cli.options import add_calibration, add_model, open_model
from dgemma.errors import InvalidRequest, MissingExtra
from dgemma.files.gguf import SPLIT
from dgemma.server.auth import ADMIN_VARIABLE, Keys
from dgemma.server.log import set_format
from dgemma.server.settings import BACKLOG, ServerLimits, Settings

PER_LIMIT = {
    "body_bytes": "bytes of a request's body",
    "messages": "messages of a conversation",
    "prompt_tokens": "tokens of a prompt",
    "max_tokens": "tokens of an answer, also if a request sets none",
    "max_steps": "denoising steps of a canvas, in all its tries, that a request may set",
    "schema_bytes": "characters of a schema, a grammar, or all tools",
    "schema_depth": "levels of a schema",
    "compile_s": "seconds to compile a grammar",
    "compile_mb": "megabytes to compile a grammar",
    "n": "answers of one request, each canvas of a race counted",
    "json_values": "values and names in a request's body",
    "open_requests": "open requests",
    "open_per_key": "open requests per API key",
    "connections": "connections, or as many as ulimit -n leaves room for",
    "connections_per_address": "connections of one client address",
    "connections_per_second": "new connections of one client address read in a second",
}
"""Limits that have an option, `--max-...`, and their meaning."""


SWITCH_S = 1e-5
"""Seconds that a thread may keep Python's lock while others want it. The engine gives it away at
each operation of torch, a thousand times a step; with Python's own 5 ms it would wait as often for
threads that read strangers' texts."""


def option_of(name: str) -> str:
    """The option of a limit: body_bytes -> --max-body-bytes, max_tokens -> --max-tokens."""
    return f"--max-{name.removeprefix('max_').replace('_', '-')}"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    add("--port", type=int, default=8000, help="port; 0: any free one (8000)")
    name = "name of the model in requests; repeatable (MODEL)"
    add("--served-name", action="append", metavar="NAME", help=name)
    keys = "API keys, one a line; keys in DGEMMA_API_KEYS are accepted too"
    add("--api-key-file", type=Path, metavar="FILE", help=keys)
    admin = "keys that open /metrics, one a line; also in DGEMMA_ADMIN_KEYS"
    add("--admin-key-file", type=Path, metavar="FILE", help=admin)
    origin = "web pages from here may call the server; repeatable"
    add("--cors-origin", action="append", metavar="URL", help=origin)
    name = "a further name that the server may be called by; repeatable (when it listens on this "
    add("--allowed-host", action="append", metavar="NAME", help=name + "machine only: localhost)")
    add("--no-page", action="store_true", help="show no page at /")
    add_calibration(parser)
    learn = "keep what restart_after=auto stands for up to date with the answers"
    add("--learn-restart", action="store_true", help=learn)
    add("--log-text", action="store_true", help="log the text of users, too")
    add = parser.add_argument_group("limits").add_argument
    for name, about in PER_LIMIT.items():
        default = getattr(ServerLimits(), name) or "the model's"
        add(option_of(name), dest=name, type=int, metavar="N", help=f"maximum {about} ({default})")
    add("--max-running", type=int, metavar="N", default=32, help="answers denoised at a time (32)")
    share = "share cached prompts among API keys; faster, but each key can time those of others"
    add("--share-prefix-cache", action="store_true", help=share)
    heartbeat = "seconds of silence before a stream sends a comment (10)"
    add("--heartbeat-s", type=float, metavar="X", default=10.0, help=heartbeat)
    grace = "seconds that open requests get to finish when the server stops (10)"
    add("--grace-s", type=float, metavar="X", default=10.0, help=grace)
    parser.epilog = "example:\n  dgemma serve nano --port 8080"


def short_name(model: str) -> str:
    """What a client calls a model: the last part of its name, without the endings of GGUF files."""
    last = Path(model).name.rpartition(":")[2]
    whole = SPLIT.sub("", last)
    return whole.removesuffix(".gguf") or last


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings that the options give.

    Raises:
        InvalidRequest: a value out of range, or a key file that cannot be used.
    """
    if not 0 <= arguments.port < 65536:
        raise InvalidRequest(f"--port must be 0 to 65535, got {arguments.port}")
    given = {name: getattr(arguments, name) for name in PER_LIMIT}
    limits = ServerLimits(**{name: value for name, value in given.items() if value is not None})
    names = arguments.served_name or [short_name(arguments.model), arguments.model]
    return Settings(
        names=tuple(dict.fromkeys(names)),
        keys=Keys.load(arguments.api_key_file, os.environ),
        admin_keys=Keys.load(arguments.admin_key_file, os.environ, ADMIN_VARIABLE),
        limits=limits,
        cors_origins=tuple(arguments.cors_origin or ()),
        page=not arguments.no_page,
        log_text=arguments.log_text,
        heartbeat_s=arguments.heartbeat_s,
        grace_s=arguments.grace_s,
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, before the model is loaded: a port that is taken is refused at once.

    A client that connects while the model is being loaded waits.

    Raises:
        InvalidRequest: it cannot.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise InvalidRequest(
            f"--host {host} is not an address of this machine ({error})"
        ) from error
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise InvalidRequest(
            f"cannot listen at {host}:{port} ({error}); choose another --host or --port"
        ) from error
    return bound


def hello(url: str, name: str, keyed: bool, page: bool) -> str:
    """The addresses of the server and of its page, and a command that tries it."""
    key = " -H 'Authorization: Bearer YOUR_KEY'" if keyed else ""
    shown = f"; open {url}/ in a browser" + " and give the key" * keyed if page else ""
    body = '{"messages": [{"role": "user", "content": "Who are you?"}], "stream": true}'
    return (
        f"serving {name} at {url}{shown}; try:\n"
        f"  curl -N {url}/v1/chat/completions{key} \\\n"
        f"    -H 'content-type: application/json' \\\n    -d '{body}'"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal stops it."""
    try:
        from dgemma.server.app import create_app
        from dgemma.server.compiler import GrammarCompiler
        from dgemma.server.hosts import hosts_of
        from dgemma.server.listener import Server
        from dgemma.server.renderer import RenderProcesses
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"{error.name} is not installed; get it with: pip install 'dgemma[server]'"
        ) from error

    # Else one client's long texts fill the tokenizer's own pool, which knows no turns.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.setswitchinterval(SWITCH_S)
    settings = settings_of(arguments)
    bound = listen(arguments.host, arguments.port)
    own = hosts_of(arguments.host, bound.getsockname()[0], arguments.allowed_host or ())
    settings = replace(settings, hosts=own)
    llm = open_model(
        arguments, max_running=arguments.max_running,
        share_prefix_cache=arguments.share_prefix_cache, learn_restart=arguments.learn_restart,
    )  # fmt: skip
    compiler = GrammarCompiler(
        llm.frontend.source, llm.facts.end_ids, seconds=settings.limits.compile_s,
        megabytes=settings.limits.compile_mb,
    )  # fmt: skip
    set_format(sys.stderr)
    for noisy in ("uvicorn", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.ERROR)  # what clients do wrong is ours to tell

    def ready(url: str) -> None:
        print(hello(url, settings.names[0], bool(settings.keys), settings.page), flush=True)

    app = create_app(llm, settings, compiler, RenderProcesses())
    server = Server(app, bound, compiler.start, ready)
    server.run(sockets=[bound])
    return 0 if server.started else 1
