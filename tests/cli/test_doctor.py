"""`dgemma doctor`: what it finds on this machine, and what it advises."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError

import pytest

from dgemma.cli import doctor
from tests.support.commands import Ran


@pytest.mark.fault("N 31")
def test_doctor_ends_with_a_verdict(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty rows, and whoever reads them must know which packages matter."""

    def lacking(name: str) -> str:
        if name in ("fastapi", "uvicorn", "triton"):
            raise PackageNotFoundError
        return "1.0"

    rows = {row["what"]: row for row in json.loads(run("doctor", "--json")[1])}
    assert rows["memory"]["value"].endswith("GB free") and rows["summary"]["value"] == "all good"
    monkeypatch.setattr(doctor, "version", lacking)
    last = run("doctor", "--device", "cpu")[1].splitlines()[-1].split(maxsplit=2)
    assert last[:2] == ["summary", "incomplete"]
    assert last[2] == "dgemma serve needs fastapi, uvicorn: pip install 'dgemma[server]'"
    monkeypatch.undo()
    assert doctor.summary({}, 2 * 10**9, 10**9)[1:] == (
        "incomplete",
        "the weights need 2 GB of memory and 1 GB are free: end other programs, or take a smaller "
        "model or dtype",
    )


def test_doctor(run: Callable[..., Ran]) -> None:
    """A choice without its reason."""
    code, out, _ = run("doctor", "--json")
    rows = json.loads(out)
    assert code == 0 and {"device", "dtype", "threads", "experts"} <= {row["what"] for row in rows}
    assert all(row["value"] and row["reason"] for row in rows)
    assert {"dgemma", "llguidance", "fastapi"} <= {row["what"] for row in rows}
    assert len(run("doctor")[1].splitlines()) == len(rows)


def test_doctor_names_the_cache(run: Callable[..., Ran]) -> None:
    """An option that commands take and do not pass on."""
    for words, row in (
        ((), "cache float32 auto: as the model"),
        (("--cache-dtype", "fp8"), "cache float8_e4m3fn asked for: full layers in e4m3"),
    ):
        assert row in " ".join(run("doctor", "--device", "cpu", *words)[1].split())


def test_doctor_names_the_attention_path(run: Callable[..., Ran]) -> None:
    """A path that was asked for by one word and is shown by another."""
    for words, rows in (
        ((), ("reference auto: on a CPU", "sdpa torch's own kernel")),
        (("--attention", "paged"), ("paged asked for", "gathered all requests at once")),
        (("--dtype", "bfloat16"), ("reference auto: on a CPU", "products 16-bit")),
    ):
        code, out, _ = run("doctor", "--device", "cpu", *words)
        text = " ".join(out.split())
        assert code == 0
        assert f"attention path {rows[0]}" in text and f"attention kernel {rows[1]}" in text
