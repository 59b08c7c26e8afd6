"""`/metrics` in Prometheus' text format, from the numbers that the task `health` reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.service.counters import Counters

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
_PREFIX = "a1111_worker"


class Metrics(Collector):
    """The worker's metrics.

    Args:
        counters: jobs by how they ended.
        in_queue: returns the number of jobs that wait.
        restarts: returns the number of the engine's restarts.
    """

    def __init__(
        self, counters: Counters, in_queue: Callable[[], int], restarts: Callable[[], int]
    ) -> None:
        self._counters = counters
        self._in_queue = in_queue
        self._restarts = restarts
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._phases = Histogram(
            f"{_PREFIX}_phase_seconds",
            "Seconds of the phases of jobs; `total` is the whole job.",
            ("phase",),
            buckets=_SECONDS,
            registry=self._registry,
        )

    def observe(self, answer: Mapping[str, Any]) -> None:
        """Count the phases of a job that has its answer."""
        timings = answer.get("timings")
        for phase, seconds in (timings if isinstance(timings, Mapping) else {}).items():
            self._phases.labels(phase).observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """The numbers now."""
        counters = self._counters
        jobs = CounterMetricFamily(
            f"{_PREFIX}_jobs", "Jobs by how they ended.", labels=("outcome",)
        )
        for outcome, count in counters.ended.items():
            jobs.add_metric((outcome,), count)
        failures = CounterMetricFamily(
            f"{_PREFIX}_failures", "Failed jobs by error code.", labels=("code",)
        )
        for code, count in counters.failures.items():
            failures.add_metric((code,), count)
        yield from (jobs, failures)
        yield GaugeMetricFamily(f"{_PREFIX}_jobs_waiting", "Jobs that wait.", self._in_queue())
        yield GaugeMetricFamily(f"{_PREFIX}_jobs_running", "Jobs that run.", counters.running_count)
        yield CounterMetricFamily(
            f"{_PREFIX}_engine_restarts", "Restarts of the engine.", self._restarts()
        )

    def route(self) -> Route:
        """The route `/metrics`."""

        async def metrics(_request: Request) -> Response:
            return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

        return Route("/metrics", metrics)
