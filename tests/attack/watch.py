"""`python -m tests.attack.watch PORT KEY SECONDS`: a neighbour of the attackers, as JSON.

Prints "ready", waits for a line. Then asks for /health every 50 ms, each time over a new
connection, and beside it chats in a loop.
"""

from __future__ import annotations

import json
import sys
import time
from threading import Thread

from tests.attack.wire import Caller

EVERY_S = 0.05
CHAT = {
    "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 32, "seed": 1,
}  # fmt: skip
PATIENCE_S = 30.0


def watch(caller: Caller, seconds: float) -> dict[str, object]:
    """Latencies in ms of /health and of small chats; a call that fails counts as it lasted."""
    until = time.monotonic() + seconds
    health, chats, failed = list[float](), list[float](), dict[str, int]()

    def ask(into: list[float], method: str, path: str, body: object, pause_s: float) -> None:
        while time.monotonic() < until:
            began = time.monotonic()
            status, _ = caller.call(method, path, body, PATIENCE_S)
            into.append(1000 * (time.monotonic() - began))
            if status != "200":
                failed[f"{path} {status}"] = failed.get(f"{path} {status}", 0) + 1
            time.sleep(max(0.0, pause_s - (time.monotonic() - began)))

    jobs = (
        (health, "GET", "/health", None, EVERY_S),
        (chats, "POST", "/v1/chat/completions", CHAT, EVERY_S),
    )
    threads = [Thread(target=ask, args=job, daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + PATIENCE_S + 5)
    return {"health_ms": health, "chat_ms": chats, "failed": failed}


if __name__ == "__main__":
    caller = Caller(int(sys.argv[1]), sys.argv[2])
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(watch(caller, float(sys.argv[3]))))
