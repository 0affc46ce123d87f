"""Random requests drawn from the server's own OpenAPI document, over a real socket."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.support.bodies import ALL
from tests.support.live import HEADERS, Live, check_events, running

pytestmark = pytest.mark.process

NARROW = (
    "--max-tokens", "4", "--max-prompt-tokens", "400", "--max-n", "2", "--max-steps", "16",
    "--max-body-bytes", "1048576", "--max-schema-bytes", "4096",
)  # fmt: skip
LOOSE = [positive_data_acceptance]
"""Not asked: JSON Schema cannot say which fields go together, so a fitting body may be refused."""
REPLY_S = 30
"""A request without an answer by then hangs."""


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    """A server whose answers are short."""
    with running(*NARROW) as live:
        yield live


@pytest.fixture(scope="module")
def operations(server: Live) -> list[Any]:
    """What the document says that can be called."""
    document = httpx.get(f"{server.url}/openapi.json", headers=HEADERS).json()
    for path in document["paths"].values():
        for operation in path.values():
            for response in operation["responses"].values():
                # It would be read as the schema of one event, as OpenAPI 3.2's itemSchema is.
                response.get("content", {}).get("text/event-stream", {}).pop("schema", None)
    schema = schemathesis.openapi.from_dict(document)
    return [found.ok() for found in schema.get_all_operations()]


def send(operation: Any, mode: GenerationMode, many: int, server: Live, full: bool) -> Counter[int]:
    """So many cases of one operation: statuses and how often each came.

    A case fails for a 5xx, for a status, content type or body that the document does not declare,
    for data it forbids being taken, and for no answer.
    """
    statuses: Counter[int] = Counter()
    with requests.Session() as session:

        @hypothesis.seed(1)
        @hypothesis.settings(
            max_examples=many, database=None, derandomize=not full, deadline=None,
            phases=[Phase.generate], suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @hypothesis.given(operation.as_strategy(generation_mode=mode), st.randoms())
        def one(case: Any, draw: random.Random) -> None:
            if mode is GenerationMode.POSITIVE and operation.path in ALL:
                # Mostly refused for its first few fields; one that is answered, with a random
                # field or two in it, is often taken, and so gets to the model.
                base = ALL[operation.path]
                names = sorted(set(case.body) - set(base) - {"model"}) or sorted(case.body)
                some = draw.sample(names, min(len(names), draw.choice((1, 1, 2, 3))))
                case.body = base | {name: case.body[name] for name in some}
            response = case.call_and_validate(
                base_url=server.url, session=session, headers=HEADERS, timeout=REPLY_S,
                excluded_checks=LOOSE,
            )  # fmt: skip
            statuses[response.status_code] += 1
            if response.headers["content-type"][0].startswith("text/event-stream"):
                check_events(response.text)

        one()
    return statuses


def test_random_requests(
    operations: list[Any], server: Live, full: bool, count: Callable[[int, int], int],
    record: Callable[..., None],
) -> None:  # fmt: skip
    """Catches a crash, a hang, a reply that is not as declared, a body taken against the schema."""
    each = -(-count(100, 2000) // (2 * len(ALL)))
    statuses: Counter[int] = Counter()
    assert set(ALL) == {found.path for found in operations if found.method == "post"}
    for operation in operations:
        forbidden = [GenerationMode.NEGATIVE] * (operation.path in ALL)
        for mode in (GenerationMode.POSITIVE, *forbidden):
            statuses += send(operation, mode, each, server, full)
    record("fuzz, cases", statuses.total(), ">= 100, in full 2000")
    record("fuzz, statuses", ", ".join(f"{k}: {v}" for k, v in sorted(statuses.items())))
    assert statuses[200] and statuses[400] and not [code for code in statuses if code >= 500]
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert "Traceback" not in server.log.read_text()
