"""`dgemma serve`: a model over HTTP, in the words of OpenAI's API and of others.

Knows options, signals and what is printed. Knows nothing about routes.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
from pathlib import Path

from dgemma.cli.options import add_model, open_model
from dgemma.errors import InvalidRequest, MissingExtra
from dgemma.server.auth import Keys
from dgemma.server.settings import ServerLimits, Settings

PER_LIMIT = {
    "body_bytes": "bytes of a request's body",
    "prompt_tokens": "tokens of a prompt",
    "max_tokens": "tokens of an answer, also where a request names none",
    "max_steps": "denoising steps of a canvas that a request may name",
    "schema_bytes": "characters of a schema, a grammar, or all tools",
    "schema_depth": "levels of a schema",
    "n": "answers of one request",
    "open_requests": "requests that are worked on at a time",
    "open_per_key": "the same for one API key",
}
"""Limits that have an option, `--max-...`, and what they bound."""

BACKLOG = 2048
"""Connections that may wait to be accepted."""


def option_of(name: str) -> str:
    """The option of a limit: body_bytes -> --max-body-bytes, max_tokens -> --max-tokens."""
    return f"--max-{name.removeprefix('max_').replace('_', '-')}"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser, positional=True)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=8000, help="port; 0: any free one")
    parser.add_argument(
        "--served-name", action="append", metavar="NAME",
        help="the model's name in requests; repeatable, the first one is in replies",
    )  # fmt: skip
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE",
        help="API keys, one a line; those in DGEMMA_API_KEYS count as well",
    )  # fmt: skip
    parser.add_argument(
        "--cors-origin", action="append", metavar="ORIGIN",
        help="origin of web pages that may call; repeatable",
    )  # fmt: skip
    for name, about in PER_LIMIT.items():
        parser.add_argument(option_of(name), type=int, metavar="COUNT", help=f"most {about}")
    parser.add_argument("--max-running", type=int, default=32, help="answers denoised at a time")
    parser.add_argument(
        "--heartbeat-s", type=float, default=10.0, help="seconds of silence before a comment"
    )
    parser.add_argument(
        "--grace-s", type=float, default=10.0,
        help="seconds that open requests get to finish when the server is told to stop",
    )  # fmt: skip
    parser.add_argument("--log-text", action="store_true", help="log what users write, too")


def settings_of(arguments: argparse.Namespace) -> Settings:
    """What the options say.

    Raises:
        InvalidRequest: a value out of range, or a key file that cannot be used.
    """
    if not 0 <= arguments.port < 65536:
        raise InvalidRequest(f"--port must be 0 to 65535, got {arguments.port}")
    given = {
        name: value
        for name in PER_LIMIT
        if (value := getattr(arguments, option_of(name)[2:].replace("-", "_"))) is not None
    }
    names = arguments.served_name or [Path(arguments.model).name, arguments.model]
    return Settings(
        names=tuple(dict.fromkeys(names)),
        keys=Keys.load(arguments.api_key_file, os.environ),
        limits=ServerLimits(**given),
        cors_origins=tuple(arguments.cors_origin or ()),
        log_text=arguments.log_text,
        heartbeat_s=arguments.heartbeat_s,
        grace_s=arguments.grace_s,
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, before the model is loaded: a port that is taken is told at once.

    Who connects while the model is being loaded waits.

    Raises:
        InvalidRequest: it cannot.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise InvalidRequest(f"--host {host} is no address of this machine ({error})") from error
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


def hello(url: str, name: str, keyed: bool) -> str:
    """Where the server listens and how to try it."""
    key = " -H 'Authorization: Bearer YOUR_KEY'" if keyed else ""
    body = '{"messages": [{"role": "user", "content": "Who are you?"}], "stream": true}'
    return (
        f"serving {name} at {url} (docs at {url}/docs); try:\n"
        f"  curl -N {url}/v1/chat/completions{key} \\\n"
        f"    -H 'content-type: application/json' \\\n    -d '{body}'"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop."""
    try:
        import uvicorn

        from dgemma.server.app import create_app
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"{error.name} is not installed; get it with: pip install 'dgemma[server]'"
        ) from error

    settings = settings_of(arguments)
    bound = listen(arguments.host, arguments.port)
    llm = open_model(arguments, max_running=arguments.max_running)
    app = create_app(llm, settings)
    for noisy in ("uvicorn", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

    class Server(uvicorn.Server):
        """Ends what is still open when the grace is over, so that each stream says so."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            host, port = bound.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            url = f"http://{shown}:{port}"
            print(hello(url, settings.names[0], bool(settings.keys)), flush=True)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            service = app.state.service
            service.turn_away()
            print("stopping; open requests may finish", file=sys.stderr, flush=True)
            asyncio.get_running_loop().call_later(settings.grace_s, service.end_all)
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="on",
        timeout_graceful_shutdown=int(settings.grace_s) + 5,
    )  # fmt: skip
    server = Server(config)
    server.run(sockets=[bound])
    return 0 if server.started else 1
