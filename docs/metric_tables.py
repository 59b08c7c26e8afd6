"""The table of Prometheus' metrics, from gateway/local/metrics.py; docs/generate.py writes it."""

from __future__ import annotations

from prometheus_client import Metric

from gateway.local.metrics import of_engine, of_jobs, of_models, of_worker
from worker.service.counters import Counters, Ended
from worker.service.report import Place, Queue, WorkerHealth
from worker.tasks.health import Disk, EngineHealth, ModelsHealth, StoredModels

_MEMORY = {"free": 1, "used": 2, "total": 3}


def worker(counters: Counters) -> WorkerHealth:
    """A worker of RunPod whose numbers are all known."""
    return WorkerHealth.model_construct(
        version="0.1.0",
        revision="abc",
        place=Place.model_construct(pod="p", endpoint="e", data_center="EU-RO-1", volume=None),
        uptime_seconds=60.0,
        gpu_seconds=counters.gpu_seconds,
        usd_per_second=0.00031,
        jobs=counters.jobs(),
        phases=counters.phase_seconds(),
        queue=counters.queue() if counters.queue else Queue(waiting=0, oldest_seconds=0.0),
        startup={"engine": 20.0, "total": 21.0},
    )


def measured() -> tuple[EngineHealth, ModelsHealth]:
    """An engine on a GPU and a store with a budget."""
    engine = EngineHealth.model_construct(
        state="running",
        ready=True,
        device="cuda",
        gpu="NVIDIA L4",
        driver="570.86.16",
        attention="sdp",
        checkpoint="first",
        checkpoints_limit=2,
        restarts=1,
        retiring=None,
        memory={"ram": _MEMORY, "cuda": {"system": _MEMORY}},
    )
    models = ModelsHealth.model_construct(
        found=3,
        fetched=2,
        bytes_fetched=10,
        stored={"checkpoints": StoredModels(count=1, total_size=5)},
        left_out=[],
        disk=Disk(budget=100, free=50),
        cached=[],
    )
    return engine, models


def metrics() -> list[Metric]:
    """Each metric, with at least one value."""
    counters = Counters()
    counters.ended[Ended("txt2img", "completed")] += 1
    for phase in ("generate", "total"):
        counters.phases[phase].observe(1.0)
    process, (engine, models) = worker(counters), measured()
    return [
        *(*of_jobs(counters, process), *of_worker(process)),
        *(*of_engine(engine, process), *of_models(models)),
    ]


def table() -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Each metric with its name in queries, its type, its labels and its meaning."""
    rows: list[tuple[str, ...]] = []
    for metric in metrics():
        labels = sorted({label for sample in metric.samples for label in sample.labels} - {"le"})
        suffix = {"counter": "_total", "info": "_info"}.get(metric.type, "")
        shown = ", ".join(f"`{label}`" for label in labels)
        rows.append((f"`{metric.name}{suffix}`", metric.type, shown, metric.documentation))
    return ("metric", "type", "labels", "meaning"), rows
