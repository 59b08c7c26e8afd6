"""`/metrics` in Prometheus' text format: the numbers of the task `health`, from its objects."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.service.counters import Counters
from worker.service.report import WorkerHealth
from worker.tasks.health import EngineHealth, ModelsHealth

logger = logging.getLogger(__name__)

_PREFIX = "a1111_worker"
_STATES = ("running", "restarting", "failed", "unknown")  # of the engine's process
_FRESH = 5.0  # seconds for which a measurement is not repeated
_PATIENCE = 2.0  # seconds that a scrape waits for a new one

Measured = tuple[EngineHealth, ModelsHealth]


class Metrics(Collector):
    """The worker's metrics.

    A scrape waits at most `patience` for the engine and the disk; without their answer it has the
    numbers of the last measurement.

    Args:
        counters: jobs by how they ended, and the seconds of their phases.
        worker: returns the numbers of this process, at once.
        measure: asks the engine and the model store; blocks, so it is called in a thread.
        patience: seconds that a scrape waits for `measure`.
        fresh: seconds for which a measurement is not repeated.
        clock: returns seconds.
    """

    def __init__(
        self,
        counters: Counters,
        worker: Callable[[], WorkerHealth],
        measure: Callable[[], Measured],
        *,
        patience: float = _PATIENCE,
        fresh: float = _FRESH,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._counters = counters
        self._worker = worker
        self._measure = measure
        self._patience = patience
        self._fresh = fresh
        self._clock = clock
        self._measured: Measured | None = None
        self._measured_at = 0.0
        self._has_failed = False
        self._measuring: asyncio.Task[None] | None = None
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The numbers now; those of the engine and the store as of the last measurement."""
        worker = self._worker()
        yield from of_jobs(self._counters, worker)
        yield from of_worker(worker)
        if self._measured is None:
            return
        engine, models = self._measured
        age = self._clock() - self._measured_at
        yield _gauge("measurement_age_seconds", "Age of the numbers about engine and store.", age)
        yield from of_engine(engine, worker)
        yield from of_models(models)

    async def refresh(self) -> None:
        """Measure again if the last measurement is old; returns after `patience` at the latest."""
        is_old = self._measured is None or self._clock() - self._measured_at >= self._fresh
        if self._measuring is None and is_old:
            self._measuring = asyncio.create_task(self._measure_once())
        if self._measuring is not None:
            await asyncio.wait({self._measuring}, timeout=self._patience)

    async def _measure_once(self) -> None:
        try:
            self._measured = await asyncio.to_thread(self._measure)
            self._measured_at = self._clock()
            self._has_failed = False
        except Exception:  # the other numbers do not depend on it
            if not self._has_failed:
                logger.exception("the engine and the store could not be measured")
            self._has_failed = True
        finally:
            self._measuring = None

    def route(self) -> Route:
        """The route `/metrics`."""

        async def metrics(_request: Request) -> Response:
            await self.refresh()
            return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

        return Route("/metrics", metrics)


# The metrics; one without a value is left out -----------------------------------------------------


def of_jobs(counters: Counters, worker: WorkerHealth) -> Iterator[Metric]:
    """Jobs and their seconds."""
    jobs = CounterMetricFamily(
        f"{_PREFIX}_jobs",
        "Ended jobs. `outcome`: completed, failed, cancelled, timed_out. `code`: the error's.",
        labels=("task", "outcome", "code"),
    )
    for ended, count in counters.ended.items():
        jobs.add_metric(ended, count)
    yield jobs
    yield _gauge("jobs_running", "Jobs that run.", counters.running_count)
    if worker.queue:
        yield _gauge("jobs_waiting", "Jobs that wait.", worker.queue.waiting)
        yield _gauge(
            *("oldest_waiting_seconds", "For how long the oldest of them has waited."),
            worker.queue.oldest_seconds,
        )
    phases = HistogramMetricFamily(
        f"{_PREFIX}_phase_seconds", "Seconds of the phases of ended jobs.", labels=("phase",)
    )
    whole = HistogramMetricFamily(f"{_PREFIX}_job_seconds", "Seconds of ended jobs.")
    for name, histogram in counters.phases.items():
        family, labels = (whole, ()) if name == "total" else (phases, (name,))
        family.add_metric(labels, histogram.cumulative(), histogram.seconds)
    yield from (phases, whole)
    yield _counter(
        "gpu_seconds", "Seconds in which the engine worked for a job.", counters.gpu_seconds
    )


def of_worker(worker: WorkerHealth) -> Iterator[Metric]:
    """The process, its start and its price."""
    yield InfoMetricFamily(
        f"{_PREFIX}_build",
        "Version, and the commit of the image.",
        {"version": worker.version, "revision": worker.revision or ""},
    )
    yield _gauge("uptime_seconds", "Seconds since the worker's start.", worker.uptime_seconds)
    yield _gauges("startup_seconds", "Seconds of the start's parts.", "part", worker.startup)
    if worker.usd_per_second is not None:
        text = "RunPod's price of a second of this worker in dollars, as of docs/costs.md."
        yield _gauge("usd_per_second", text, worker.usd_per_second)


def of_engine(engine: EngineHealth, worker: WorkerHealth) -> Iterator[Metric]:
    """The engine's process and its memory."""
    states = {state: float(engine.state == state) for state in _STATES}
    yield _gauges("engine_state", "1 for the state of the engine's process.", "state", states)
    yield _gauge("engine_ready", "1 if the engine is ready and answers.", engine.ready)
    yield _gauge("engine_retiring", "1 if this worker asks to be replaced.", bool(engine.retiring))
    yield _counter("engine_restarts", "Restarts of the engine.", engine.restarts)
    gpu = {"device": engine.device, "gpu": engine.gpu, "driver": engine.driver}
    place = {"data_center": worker.place.data_center}
    labels = {name: value or "" for name, value in (gpu | place).items()}
    yield InfoMetricFamily(f"{_PREFIX}_gpu", "GPU, driver and data center.", labels)
    memory = engine.memory or {}
    for name, report, title in (
        ("gpu_memory", _part(_part(memory, "cuda"), "system"), "of the GPU's memory"),
        ("ram", _part(memory, "ram"), "of the memory, as the engine sees it"),
    ):
        words = {"used": "used", "free": "free", "total": "size"}
        for key, word in words.items():
            if isinstance(value := report.get(key), int | float):
                yield _gauge(f"{name}_{word}_bytes", f"Bytes {title}: {word}.", value)


def of_models(models: ModelsHealth) -> Iterator[Metric]:
    """The models of jobs and the store."""
    yield _counter("models_found", "Models that jobs found in the store.", models.found)
    yield _counter("models_fetched", "Models that were downloaded for jobs.", models.fetched)
    yield _counter("fetched_bytes", "Bytes that were downloaded for jobs.", models.bytes_fetched)
    files = {kind: _number(one, "count") for kind, one in models.stored.items()}
    sizes = {kind: _number(one, "total_size") for kind, one in models.stored.items()}
    yield _gauges("store_files", "Files of the model store.", "kind", files)
    yield _gauges("store_bytes", "Their bytes.", "kind", sizes)
    yield _gauge("store_left_out_files", "Files hidden from the engine.", len(models.left_out))
    if models.disk.budget is not None:
        text = "Bytes that fetched models may use."
        yield _gauge("store_budget_bytes", text, models.disk.budget)
    if models.disk.free is not None:
        yield _gauge("store_free_bytes", "Free bytes of the store's disk.", models.disk.free)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"{_PREFIX}_{name}", text, value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", text, value)


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family


def _part(value: Any, key: str) -> Mapping[str, Any]:  # noqa: ANN401 - JSON of the engine
    part = value.get(key) if isinstance(value, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def _number(stored: Any, key: str) -> float:  # noqa: ANN401 - a StoredModels, or its fields
    return float(stored[key] if isinstance(stored, Mapping) else getattr(stored, key))
