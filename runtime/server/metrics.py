"""What a server counts and times, for Prometheus. It has a registry of its own."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import Callable, ContextManager, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        labels = ("task", "target")
        self.requests = Counter(
            "blip_edge_requests",
            "Requests by path and status",
            ("path", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "blip_edge_request_seconds",
            "Time of a request, reading it included",
            ("path",),
            registry=self.registry,
        )
        self.tokens = Counter(
            "blip_edge_generated_tokens", "Generated tokens", registry=self.registry
        )
        self.in_flight = self._gauge("requests_in_flight", "Requests accepted")
        self._waiting = self._gauge("requests_waiting", "Requests in queues")
        self._ready = self._gauge("ready", "Whether every net is loaded")
        self._batch_rows = Histogram(
            "blip_edge_batch_rows",
            "Requests worked on together",
            labels,
            buckets=_BATCH_SIZES,
            registry=self.registry,
        )
        self._batch_seconds = Histogram(
            "blip_edge_batch_seconds", "Time of a batch", labels, registry=self.registry
        )

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"blip_edge_{name}", text, registry=self.registry)

    def watch(self, waiting: Callable[[], int], ready: Callable[[], bool]) -> None:
        """Reads these two whenever somebody asks for the metrics."""
        self._waiting.set_function(waiting)
        self._ready.set_function(ready)

    def batches(self, task: str, target: str) -> Callable[[int], ContextManager[None]]:
        """What measures the batches of one task on one target."""
        rows = self._batch_rows.labels(task, target)
        seconds = self._batch_seconds.labels(task, target)

        @contextmanager
        def measure(count: int) -> Iterator[None]:
            rows.observe(count)
            begin = time.perf_counter()
            try:
                yield
            finally:
                seconds.observe(time.perf_counter() - begin)

        return measure

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        found: bytes = generate_latest(self.registry)
        return found
