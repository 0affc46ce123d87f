"""Other people's clients, as they are, each in an environment of its own (`make verify`).

A folder beside this file has the script, `calls.py URL KEY`, and what pip installs for it. The
environments stay in `.venv/clients`, and are made anew when their requirements change.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from dgemma.tasks import make_example
from tests.support.client_environments import environment
from tests.support.live import KEY, Live, running

pytestmark = pytest.mark.process

HERE = Path(__file__).parent
CLIENTS = ("anthropic", "langchain", "lm_eval")


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    """One server for all."""
    with running("--max-tokens", "128") as live:
        yield live


@pytest.mark.full
@pytest.mark.parametrize("name", CLIENTS)
def test_client(name: str, server: Live, tmp_path: Path, record: Callable[..., None]) -> None:
    """Catches what only the client's own code would notice: a field it needs, an event it cannot
    fold, a default that is refused."""
    python = environment(name)
    examples = [make_example("json", "heldout", 1, number) for number in range(8)]
    lines = [
        json.dumps({"question": one.messages[0]["content"], "answer": one.answer})
        for one in examples
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    told = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "ANTHROPIC_"))}
    done = subprocess.run(
        [python, str(HERE / name / "calls.py"), server.url, KEY],
        cwd=tmp_path, env={**told, "HOME": str(tmp_path)}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert name.replace("_", "-") in done.stdout.replace("_", "-")
    record(f"client {name}", done.stdout.strip().splitlines()[-1])
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_each_client_is_here() -> None:
    """Catches a folder with a script that nobody runs, and requirements that are not pinned."""
    assert {path.parent.name for path in HERE.glob("*/calls.py")} == set(CLIENTS)
    for name in CLIENTS:
        lines = (HERE / name / "requirements.txt").read_text().splitlines()
        assert all(line.startswith("#") or "==" in line for line in lines)
