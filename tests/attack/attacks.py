"""`python -m tests.attack.attacks NAME PORT KEY SECONDS`: one class of abuse, bounded in time.

Prints "ready" once it is prepared, waits for a line, abuses, prints how often each answer came.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

from tests.attack.models import FILES, start
from tests.attack.page import BOMBS, HEADS
from tests.attack.wire import ATTACKER, Answers, Caller, at_once, failure, held, status_of
from tests.support.bodies import ALL
from tests.support.mutated_bodies import mutated_body

Run = Callable[[float], Answers]
"""Abuses a server until a moment of `time.monotonic`."""
Attack = Callable[[Caller], Run]
ATTACKS: dict[str, tuple[str, Attack]] = {}
"""Name -> what it does, and the function that prepares it."""

CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 8, "seed": 1}
MB = 1 << 20


def attack(about: str) -> Callable[[Attack], Attack]:
    """Add a function to `ATTACKS` under its name."""

    def add(function: Attack) -> Attack:
        ATTACKS[function.__name__.replace("_", " ")] = about, function
        return function

    return add


def with_schema(schema: Any) -> dict[str, Any]:
    """A chat under a schema."""
    return ASK | {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    }


def with_tool(schema: Any) -> dict[str, Any]:
    """A chat with a strict tool."""
    tool = {"name": "heat", "strict": True, "parameters": {
        "type": "object", "properties": {"x": schema}, "required": ["x"],
        "additionalProperties": False,
    }}  # fmt: skip
    return ASK | {"tools": [{"type": "function", "function": tool}], "tool_choice": "required"}


@attack("schemas whose proofs grow with 2^depth; clients hang up after 2 s")
def schema_proofs(caller: Caller) -> Run:
    def one(number: int) -> str:
        depth = 48 + number
        places: dict[str, Any] = {
            f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(depth)
        }
        places[f"a{depth}"] = {"type": "object"}
        return caller.post(CHAT, with_schema({"$ref": "#/$defs/a0", "$defs": places}), 2)

    return partial(at_once, 16, one)


@attack("patterns of 40,000 brackets, and others that expressions over user text may choke on")
def patterns(caller: Caller) -> Run:
    texts = ("[" * 40_000, "(" * 40_000, "(?:a|" * 8_000, "a{1,9}" * 8_000, "\\" * 40_001)

    def one(number: int) -> str:
        pattern = texts[number % len(texts)]
        make = with_schema if number % 2 else with_tool
        return caller.post(CHAT, make({"type": "string", "pattern": pattern}), 10)

    return partial(at_once, 5, one)


@attack("grammars that are slow to compile, or crash the library")
def grammars(caller: Caller) -> Run:
    schemas = (
        {"const": -(2**63)}, {"type": "integer", "enum": [1 - 2**63, 0]},
        {"type": "integer", "multipleOf": 1_000_000_000},
        {"type": "integer", "multipleOf": 16_777_216},
        {"type": "string", "pattern": "^((a{1,30}){1,30}){1,30}$"},
        {"type": "array", "items": {"type": "string"}, "minItems": 2**20},
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(3_000)},
         "additionalProperties": False},
        {"enum": [f"word {i}" for i in range(20_000)]},
    )  # fmt: skip
    numbers = count()

    def one(number: int) -> str:
        schema = schemas[next(numbers) % len(schemas)]
        return caller.post(CHAT, (with_schema if number % 2 else with_tool)(schema), 5)

    return partial(at_once, 8, one)


@attack("expressions whose shortest closing text is long to find, four at a time")
def closing_texts(caller: Caller) -> Run:
    bodies = (
        ASK | {"guided_regex": "(.*a.*b.*c){20}", "max_tokens": 200},
        with_schema({"type": "array", "items": {"type": "string"}, "minItems": 100,
                     "maxItems": 300}) | {"max_tokens": 200},
    )  # fmt: skip
    return partial(at_once, 4, lambda number: caller.post(CHAT, bodies[number % 2], 20))


@attack("16 at a time: texts of 480 kB to tokenise")
def long_texts(caller: Caller) -> Run:
    text = "The hen sees the cow. " * 22_000
    return partial(at_once, 16, lambda _: caller.post("/tokenize", {"content": text}, 20))


@attack("chats of 100,000 messages; 2 + 2 MB to fill in; 1.5 MB to edit")
def long_prompts(caller: Caller) -> Run:
    message = {"role": "user", "content": "a"}
    edit = ALL["/v1/edit/completions"]["messages"][0]["content"]
    bodies = (
        (CHAT, ASK | {"messages": [message] * 100_000}),
        ("/v1/fim/completions", ALL["/v1/fim/completions"]
         | {"prompt": "a b " * (MB // 2 - 100), "suffix": "c d " * (MB // 2 - 100)}),
        ("/v1/edit/completions", ALL["/v1/edit/completions"] | {"messages": [
            {"role": "user", "content": edit.replace("a.x", "a.x\n" * (MB // 3))}]}),
    )  # fmt: skip
    encoded = [(path, json.dumps(body).encode()) for path, body in bodies]
    return partial(at_once, 3, lambda number: caller.post(*encoded[number], 20))


@attack("bodies of 1 to 4 MB: a million lists, objects, ids, biases; pieces of a long text")
def large_bodies(caller: Caller) -> Run:
    lists, objects = (
        "[" + "[]," * 1_300_000 + "[]]",
        ",".join(f'"{i}":{{}}' for i in range(280_000)),
    )
    start = json.dumps(ASK)[:-1]
    bodies = (
        (CHAT, f'{start}, "metadata": {{"a": {lists}}}}}'),
        (CHAT, f'{start}, "metadata": {{{objects}}}}}'),
        ("/detokenize", json.dumps({"tokens": [9] * 1_300_000})),
        (CHAT, json.dumps(ASK | {"allowed_token_ids": [9] * 1_300_000})),
        (CHAT, json.dumps(ASK | {"logit_bias": {str(i): 1 for i in range(280_000)}})),
        ("/tokenize", json.dumps({"content": "a b " * (MB - 100), "with_pieces": True})),
    )
    encoded = [(path, text.encode()) for path, text in bodies]
    return partial(at_once, 3, lambda n: caller.post(*encoded[next(turn) % len(encoded)], 20))


turn = count()


@attack("numbers that nothing can hold, in every place for a number")
def numbers(caller: Caller) -> Run:
    long = "9" * 5_000
    bodies = [
        json.dumps(ASK)[:-1] + f', "{name}": {value}}}'
        for name in ("seed", "temperature", "max_tokens", "top_k", "top_p", "n", "logprobs",
                     "thinking_budget", "diffusion_max_steps", "diffusion_canvas_length")
        for value in (long, f"-{long}", "1e999", "-0", "1e-999", f"{long}.5", "true", '"1"')
    ] + [
        json.dumps(ASK | {"logit_bias": {key: 1}})
        for key in (long, f"-{long}", "\u0661", "1_0", " 1", "1e3", "0x1", "")
    ]  # fmt: skip
    return partial(
        at_once, 2, lambda _: caller.post(CHAT, bodies[next(turn) % len(bodies)].encode())
    )


@attack("1,100 connections whose headers never end")
def slow_headers(caller: Caller) -> Run:
    return partial(held, caller, 1_100, b"POST / HTTP/1.1\r\nHost: localhost\r\nX-A: ", b"a")


@attack("600 connections that say nothing")
def idle_connections(caller: Caller) -> Run:
    return partial(held, caller, 600, b"", b"")


@attack("280 bodies that come byte by byte, while the neighbour uploads too")
def slow_bodies(caller: Caller) -> Run:
    head = caller.head(CHAT, "Content-Length: 1000000") + b"\r\n{"
    return partial(held, caller, 280, head, b" ")


@attack("a body of a million chunks of one byte")
def many_chunks(caller: Caller) -> Run:
    piece = b"1\r\n \r\n" * 1_000

    def one(_: int) -> str:
        try:
            with caller.socket() as sock:
                sock.sendall(caller.head(CHAT, "Transfer-Encoding: chunked") + b"\r\n")
                for _ in range(1_000):
                    sock.sendall(piece)
                sock.sendall(b"0\r\n\r\n")
                return status_of(sock)
        except OSError as error:
            return failure(error)

    return partial(at_once, 1, one)


@attack("requests that HTTP/1.1 forbids: two lengths, folded headers, unknown versions, noise")
def broken_http(caller: Caller) -> Run:
    body = json.dumps(ASK).encode()
    length = f"Content-Length: {len(body)}"
    chunked = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    both = caller.head(CHAT, length, "Transfer-Encoding: chunked") + b"\r\n"
    random_bytes = random.Random(1).randbytes(4_000)
    texts = (
        both + chunked, caller.head(CHAT, length, "X-A: b", " folded") + b"\r\n" + body,
        b"POST / HTTP/9.9\r\nHost: localhost\r\n\r\n", random_bytes, b"\r\n" * 2_000,
        caller.head(CHAT, "Content-Length: -1") + b"\r\n",
        caller.head(CHAT, "Content-Length: " + "9" * 5_000) + b"\r\n",
        caller.head(CHAT, length, "Content-Length: 5") + b"\r\n" + body,
        caller.head(CHAT, "X-A: " + "a" * MB) + b"\r\n",
        caller.head("/" + "a" * 100_000, length) + b"\r\n" + body,
        caller.head(CHAT, "Transfer-Encoding: chunked") + b"\r\nffffffffffffffff\r\n",
    )  # fmt: skip
    return partial(at_once, 2, lambda _: caller.raw(texts[next(turn) % len(texts)]))


@attack("3 requests of 16 answers with 6,000 tokens each")
def long_answers(caller: Caller) -> Run:
    body = ASK | {"max_tokens": 6_000, "min_tokens": 6_000, "n": 16, "stream": True}
    return partial(_unread, caller, body, 3, True)


@attack("streams of 8 answers with all drafts, which nobody reads")
def unread_streams(caller: Caller) -> Run:
    body = ASK | {"max_tokens": 6_000, "min_tokens": 6_000, "n": 8, "stream": True}
    body["diffusion"] = {"stream": "tokens"}
    return partial(_unread, caller, body, 8, False)


def _unread(caller: Caller, body: Any, streams: int, read: bool, until: float) -> Answers:
    """Open streams and hold them; read them only if so asked."""
    found, sockets = Answers(), []
    data = json.dumps(body).encode()
    for _ in range(streams):
        try:
            sock = caller.socket()
            sock.settimeout(5.0)
            head = caller.head(
                CHAT, f"Content-Length: {len(data)}", "Content-Type: application/json"
            )
            sock.sendall(head + b"\r\n" + data)
            sockets.append(sock)
        except OSError as error:
            found[failure(error)] += 1

    def drain(sock: Any) -> None:
        with suppress(OSError, TimeoutError):
            found[status_of(sock)] += 1
            while read and time.monotonic() < until and sock.recv(65_536):
                pass

    threads = [Thread(target=drain, args=(sock,), daemon=True) for sock in sockets]
    for thread in threads:
        thread.start()
    time.sleep(max(0.0, until - time.monotonic()))
    for sock in sockets:
        sock.close()
    return found


@attack("races of 16, 64 tries of a canvas that never converges, careful ones; clients hang up")
def races_and_restarts(caller: Caller) -> Run:
    long = ASK | {"max_tokens": 4_000, "min_tokens": 4_000}
    never = {"confidence_threshold": 0.0, "tries": 64}
    bodies = (
        long | {"diffusion": never | {"race": 16, "restart_after": 1}},
        long | {"diffusion": never | {"restart_after": 48, "quality": "careful"}, "n": 16},
        long | {"diffusion": never | {"quality": "careful", "restart_after": 0, "race": 16}},
        long | {"diffusion": never | {"race": 4, "restart_after": 48}, "n": 4, "logprobs": True},
    )  # fmt: skip

    def one(number: int) -> str:
        return caller.post(CHAT, bodies[number % len(bodies)], 0.5 if number % 2 else 5)

    return partial(at_once, 8, one)


@attack("16 drafted answers of 4,000 tokens, and others that end at a stop string; clients hang up")
def exact_drafts(caller: Caller) -> Run:
    bodies = (
        ASK | {"max_tokens": 4_000, "n": 16, "mode": "exact", "temperature": 100.0},
        ASK | {"max_tokens": 4_000, "n": 16, "mode": "exact", "stop": ["e", "an"]},
        ASK | {"max_tokens": 4_000, "mode": "exact", "temperature": 1.0},
    )  # fmt: skip

    def one(number: int) -> str:
        return caller.post(CHAT, bodies[number % len(bodies)], 0.5 if number % 2 else 5)

    return partial(at_once, 6, one)


@attack("requests whose client hangs up at once, hundreds a second")
def hanging_up(caller: Caller) -> Run:
    body = json.dumps(ASK | {"max_tokens": 2_000, "min_tokens": 2_000, "n": 4}).encode()
    data = caller.head(CHAT, f"Content-Length: {len(body)}") + b"\r\n" + body

    def one(number: int) -> str:
        try:
            with caller.socket() as sock:
                sock.sendall(data)
                time.sleep(0.01 * (1 + number % 4))
            return "left"
        except OSError as error:
            return failure(error)

    return partial(at_once, 16, one)


@attack("bodies of every route with random faults")
def mutated_bodies(caller: Caller) -> Run:
    numbers = count()

    def one(_: int) -> str:
        path, body = mutated_body(next(numbers))
        return caller.post(path, body, 20)

    return partial(at_once, 4, one)


@attack("paths that lead out of the page's folder, and names of other hosts; none may be answered")
def paths_and_hosts(caller: Caller) -> Run:
    def one(_: int) -> str:
        head = HEADS[next(turn) % len(HEADS)]
        status = caller.raw(head)
        return f"broke: {head[:60]!r}" if status == "200" else status

    return partial(at_once, 4, one)


@attack("Markdown, code and TeX that take their parsers long, or become much HTML")
def render_bombs(caller: Caller) -> Run:
    def one(_: int) -> str:
        text = BOMBS[next(turn) % len(BOMBS)]
        return caller.post("/ui/render", {"markdown": text}, 30)

    return partial(at_once, 4, one)


@attack("a second server that is started on broken model files, one after the other")
def broken_models(_: Caller) -> Run:
    names = count()

    def run(until: float) -> Answers:
        with TemporaryDirectory() as directory:
            paths = [Path(directory, name) for name in FILES]
            for path, data in zip(paths, FILES.values(), strict=True):
                path.write_bytes(data)
            return at_once(1, lambda _: start(paths[next(names) % len(paths)]), until)

    return run


if __name__ == "__main__":
    name, port, key, seconds = sys.argv[1:]
    run = ATTACKS[name][1](Caller(int(port), key, ATTACKER))
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(run(time.monotonic() + float(seconds))))
