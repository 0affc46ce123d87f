"""What a run of the suite showed: a JSON file for `tests/verify.py`, a summary of the skips."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

MEASUREMENT = "measurement"


class Report:
    """Collects what a run showed and writes it as JSON: counts per test, skips, measurements.

    The cases of a parametrised test count together.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tests: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.skips: list[dict[str, str]] = []
        self.measurements: list[dict[str, object]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = report.nodeid.partition("[")[0]
        self.tests[test]["ms"] += round(1000 * report.duration)
        outcome = "xfailed" if hasattr(report, "wasxfail") else report.outcome
        if report.when == "call" or report.outcome != "passed":
            self.tests[test][outcome] += 1
        if outcome == "skipped":
            self.skips.append({"test": report.nodeid, "reason": reason_of(report)})
        if report.when == "teardown":
            rows: list[Any] = [row for key, row in report.user_properties if key == MEASUREMENT]
            self.measurements += [{"test": report.nodeid, **row} for row in rows]

    def pytest_sessionfinish(self) -> None:
        found = {"tests": self.tests, "skips": self.skips, "measurements": self.measurements}
        self.path.write_text(json.dumps(found, indent=1), encoding="utf-8")


def reason_of(report: pytest.TestReport) -> str:
    """Why a test was skipped."""
    assert isinstance(report.longrepr, tuple)
    return report.longrepr[2].removeprefix("Skipped: ")


def skips_by_reason(reports: list[pytest.TestReport]) -> list[str]:
    """One line for each reason, the most frequent first."""
    counts = Counter(reason_of(report) for report in reports)
    return [f"{count:5} {reason}" for reason, count in counts.most_common()]
