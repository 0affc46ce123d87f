"""A process that compiles strangers' grammars for a server: `python -m` this module.

A grammar may crash the library, or take all time or memory; here it takes this process alone. The
process reads requests and writes replies, each a length of four bytes and as much JSON. It ends
with its input; when one grammar takes longer than allowed, the system's alarm ends it, whatever it
is in the middle of. Knows nothing about who asks. It must not import torch.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from dgemma.constrain.json_schema import accepted_schema
from dgemma.constrain.precompiled import precompile
from dgemma.errors import DGemmaError, InvalidRequest, MissingExtra
from dgemma.text.tokenizer import Tokenizer

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None  # type: ignore[assignment]

SIZE = 4
"""Bytes of a message's length."""
MIB = 1 << 20

Answer = Callable[[str, Any], dict[str, Any]]
"""From the kind of a grammar and its value to the reply."""


def framed(value: Any) -> bytes:
    """A message."""
    body = json.dumps(value).encode("ascii")
    return len(body).to_bytes(SIZE, "big") + body


def compiler_of(tokenizer: Tokenizer, end_ids: tuple[int, ...]) -> Answer:
    """Compiles for one vocabulary. The kind "schema" is only checked, for decisions."""

    def answer(kind: str, value: Any) -> dict[str, Any]:
        if kind == "schema":
            accepted_schema(value, kind)
            return {}
        return precompile(kind, value, tokenizer, end_ids).packed()

    return answer


def answered(
    answer: Answer, request: dict[str, Any], megabytes: int, work: str, library: str
) -> dict[str, Any]:
    """The reply to a request; "last" in it: the process ends after it."""
    kind = request["kind"]
    try:
        return {"made": answer(kind, request["value"])}
    except InvalidRequest as error:
        return {"refused": str(error), "field": error.field}
    except MissingExtra as error:
        return {"missing": str(error)}
    except MemoryError:
        return {"refused": f"{kind} takes more than {megabytes} MB to {work}; simplify it",
                "field": kind, "last": True}  # fmt: skip
    except RecursionError:
        return {"refused": f"{kind} is nested too deep to {work}; simplify it", "field": kind}
    except Exception as error:
        return {"failed": type(error).__name__}
    except BaseException as error:  # a panic of a library
        return {"refused": f"{kind}: the {library} failed on it ({type(error).__name__}); "
                "simplify it", "field": kind, "last": True}  # fmt: skip


def used() -> int | None:
    """Bytes of address space of this process; None: this system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def limit_memory(megabytes: int) -> None:
    """Let this process take so much more memory than it has now, where the system can do that."""
    if resource is None:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if (size := used()) is not None:
        most = size + megabytes * MIB
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def serve(answer: Answer, given: BinaryIO, out: BinaryIO, options: dict[str, Any]) -> None:
    """Answer requests until there are no more; `options` as in `run`."""
    seconds, megabytes = math.ceil(options["seconds"]), options["megabytes"]
    said = options.get("work", "compile"), options.get("library", "grammar library")
    limit_memory(megabytes)
    begun = used()
    out.write(framed({"ready": True}))
    out.flush()
    while size := given.read(SIZE):
        request = json.loads(given.read(int.from_bytes(size, "big")))
        if hasattr(signal, "setitimer"):  # its default action ends the process in native code, too
            signal.setitimer(signal.ITIMER_REAL, seconds)
        reply = answered(answer, request, megabytes, *said)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        now = used()
        if begun is not None and now is not None and now - begun > megabytes * MIB // 2:
            reply["last"] = True  # what it keeps is missing to the next grammar
        out.write(framed(reply))
        out.flush()
        if reply.get("last"):
            return


def run(make: Callable[[dict[str, Any]], Answer]) -> None:
    """The process: its first argument is JSON with "seconds", "megabytes", "work", "library" (see
    `WorkProcesses`) and what `make` reads.

    Args:
        make: from these to what answers.
    """
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    options = json.loads(sys.argv[1])
    try:
        answer = make(options)
    except DGemmaError as error:
        out.write(framed({"failed": str(error)}))
        out.flush()
        return
    quiet = os.open(os.devnull, os.O_WRONLY)
    for one in (1, 2):  # a library's complaint may hold what a user wrote
        os.dup2(quiet, one)
    serve(answer, sys.stdin.buffer, out, options)


def make(options: dict[str, Any]) -> Answer:
    """Load the tokenizer, and compile something small, so that the first request is quick.

    Raises:
        TokenizerError: it cannot be loaded.
        MissingExtra: llguidance is not installed.
    """
    tokenizer = Tokenizer.from_checkpoint(options["directory"])
    answer = compiler_of(tokenizer, tuple(options["end_ids"]))
    answer("choices", ["a"])
    return answer


if __name__ == "__main__":
    run(make)
