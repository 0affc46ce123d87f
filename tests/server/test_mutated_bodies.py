"""Thousands of bodies with random faults, over a real socket."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import httpx
import pytest

from tests.support.live import HEADERS, running
from tests.support.mutated_bodies import mutated_body

pytestmark = [pytest.mark.process, pytest.mark.model]

SHORT = ("--max-tokens", "4", "--max-prompt-tokens", "400", "--max-n", "2", "--max-steps", "4")
REPLY_S = 60
"""A request without an answer by then hangs."""


@pytest.mark.fault("R M1")
def test_mutated_bodies(
    count: Callable[[int, int], int], record: Callable[..., None]
) -> None:  # fmt: skip
    """Catches a 5xx, a hang, a traceback: whatever a body holds, it is answered or refused."""
    statuses, wrong = Counter[int](), []
    with running(*SHORT) as live, httpx.Client(headers=HEADERS, timeout=REPLY_S) as client:
        for number in range(count(60, 2000)):
            path, data = mutated_body(number)
            reply = client.post(
                live.url + path, content=data, headers={"content-type": "application/json"}
            )
            statuses[reply.status_code] += 1
            if reply.status_code >= 500:
                wrong.append(number)
        assert httpx.get(f"{live.url}/health").status_code == 200
        log = live.log.read_text()
    record("mutated bodies", ", ".join(f"{k}: {v}" for k, v in sorted(statuses.items())), "no 5xx")
    assert not wrong and "Traceback" not in log
    assert statuses[200] and statuses[400]
