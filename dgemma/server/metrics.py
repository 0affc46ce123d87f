"""Metrics for Prometheus: the engine's counters, our own of HTTP, and the process itself.

Knows names and units of metrics. Knows nothing about requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_STATES = ("waiting", "running", "restart_after", "pages_")
"""Beginnings of names of counters that can go down."""


class _Engine(Collector):
    """The engine's counters, read when they are asked for."""

    def __init__(self, counters: Callable[[], Any]) -> None:
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        counted = self._counters()
        for field in fields(counted):
            value, about = float(getattr(counted, field.name)), f"{field.name} of the engine"
            name = f"dgemma_{field.name}"
            if name.endswith("_s"):
                name = name[:-2] + "_seconds"
            if field.name.startswith(_STATES):
                yield GaugeMetricFamily(name, about, value=value)
            else:
                yield CounterMetricFamily(name, about, value=value)


def _tasks() -> int:
    """Tasks of the event loop that this is called in; 0: in none."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0


class Metrics:
    """One server's counts, in a registry of its own."""

    def __init__(self, counters: Callable[[], Any]) -> None:
        """`counters` gives a dataclass of numbers."""
        self.registry = CollectorRegistry()
        self.registry.register(_Engine(counters))
        ProcessCollector(registry=self.registry)  # memory, open files; nothing but on Linux
        self.requests = Counter(
            "dgemma_http_requests", "requests answered", ("route", "method", "status"),
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "dgemma_http_request_seconds", "from a request's first byte to its reply's last",
            ("route",), buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.first_text = Histogram(
            "dgemma_first_text_seconds", "until the first text, thought or call is committed",
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.open = Gauge(
            "dgemma_http_open_requests", "requests that are worked on", registry=self.registry
        )
        self.tasks = Gauge(
            "dgemma_event_loop_tasks", "tasks of the event loop", registry=self.registry
        )
        self.tasks.set_function(_tasks)
        self.prompt_tokens = Counter(
            "dgemma_prompt_tokens", "of all answers", registry=self.registry
        )
        self.completion_tokens = Counter(
            "dgemma_completion_tokens", "of all answers", registry=self.registry
        )

        self.discarded_steps = Counter(
            "dgemma_discarded_steps", "denoising steps whose canvas was begun anew",
            registry=self.registry,
        )  # fmt: skip

    def text(self) -> bytes:
        """All of it in Prometheus' own format."""
        found: bytes = generate_latest(self.registry)
        return found
