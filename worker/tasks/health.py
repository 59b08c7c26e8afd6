"""The task `health`: what the worker, its engine and its model store are doing."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, Literal

from pydantic import Field

from worker import VERSION, kept_log
from worker.answer import ABOUT_NOTES, Absent, Answer, AnswerPart, left_out
from worker.config.platform_settings import one_line
from worker.config.prices import usd_per_second
from worker.config.settings import Settings
from worker.files import write_atomically
from worker.models.store.space import free_bytes
from worker.service.parts import Worker
from worker.service.report import Place, WorkerHealth
from worker.service.task import Job, Task

# Seconds; the answer is of use only while somebody waits, and a volume may never answer.
_PATIENCE = 45.0  # a hung engine is noticed after 30


class EngineHealth(AnswerPart):
    """The engine's process."""

    state: str = Field(
        description="State of its process: `running`, `restarting`, `failed`, or `unknown` without"
        " start.sh."
    )
    ready: bool = Field(description="Whether it has made a picture since its start and answers.")
    device: Literal["cuda", "cpu"] | None = Field(
        description="Where it computes; null if start.sh has not started it."
    )
    gpu: str | None = Field(description="Name of its GPU; null on the CPU, or if unknown.")
    driver: str | None = Field(description="Version of that GPU's driver; null if unknown.")
    attention: str | None = Field(
        description="Its implementation of attention: `xformers`, `sdp` (torch's own), or the flag"
        " of `WEBUI_ARGS` that chooses another; null if start.sh has not started it."
    )
    checkpoint: str | None = Field(description="The checkpoint of its last picture.")
    checkpoints_limit: int | None = Field(
        description="How many checkpoints it keeps in memory, the last used ones; null if the"
        " worker does not decide it."
    )
    restarts: int = Field(description="Number of its restarts.")
    retiring: str | None = Field(description="Why this worker asks to be replaced, if it does.")
    memory: dict[str, Any] | None = Field(description="RAM and GPU memory as A1111 reports them.")


class StoredModels(AnswerPart):
    """Model files of one kind."""

    count: int = Field(description="Number of files.")
    total_size: int = Field(description="Their size in bytes.")


class LeftOutFile(AnswerPart):
    """A file of the operator that the engine does not see."""

    file: str = Field(description="Its folder and its name.")
    reason: str = Field(description="Why it cannot be used.")


class Disk(AnswerPart):
    """The space of the model store, in bytes."""

    budget: int | None = Field(
        description="What the fetched models may use, `MODELS_BUDGET_GB`; null: all of the disk."
    )
    free: int | None = Field(description="Free bytes of its disk; null if it cannot be read.")


class CachedRepository(AnswerPart):
    """A repository in the Hugging Face cache."""

    repo: str = Field(description="Its name, `org/name`.")
    commit: str = Field(description="The commit that `main` means in the cache.")
    files: int = Field(description="Number of its model files.")
    bytes: int = Field(description="Their size.")


class ModelsHealth(AnswerPart):
    """The models of jobs since the worker's start."""

    found: int = Field(description="Number of models that jobs found in the store.")
    fetched: int = Field(description="Number of models that were downloaded for jobs.")
    bytes_fetched: int = Field(description="Bytes that were downloaded.")
    stored: dict[str, StoredModels] = Field(
        description="What the store holds: `checkpoints`, `loras`, `vaes`, `embeddings`."
    )
    disk: Disk = Field(description="The space for them.")
    cached: list[CachedRepository] = Field(
        description="Up to 20 repositories in [the Hugging Face cache](cached-models.md), which is"
        " only read and is not part of `stored`."
    )
    left_out: list[LeftOutFile] = Field(
        description="Up to 20 of your own files that are hidden from the engine, because A1111"
        " could not use them."
    )


class Health(Answer):
    """The answer of the task `health`."""

    worker: WorkerHealth = Field(description="The worker's process.")
    engine: EngineHealth = Field(description="The engine's process.")
    models: ModelsHealth = Field(description="The models of jobs, and the model store.")
    timings: dict[str, float] = Field(description="Seconds: `total`.")
    warnings: list[str] | Absent = left_out(ABOUT_NOTES)


async def run(worker: Worker, job: Job, _checked: object) -> Health:
    """Ask the engine and the model store; it does not wait for other jobs or for the engine."""
    job.stopwatch.limit(_PATIENCE)
    late = "the engine's memory and the files of models were not read"
    engine, models = await worker.threads.run(job.stopwatch, measure, worker, late=late)
    return Health.model_construct(
        worker=of_worker(worker, asked_by=job.id),
        engine=engine,
        models=models,
        timings=job.stopwatch.timings(),
    )


def keep(worker: Worker) -> None:
    """Write what is known at once into RUN_DIR, for `handler.py --diagnose`.

    So it is there when the worker hangs or has died. A failure of the disk changes nothing else.
    """
    if worker.settings.supervisor_pid is None:
        return
    known = {"worker": of_worker(worker).model_dump(mode="json"), "engine": worker.engine.known()}
    with suppress(OSError):
        write_atomically(worker.settings.run_dir / kept_log.HEALTH, json.dumps(known))


def of_worker(worker: Worker, asked_by: str | None = None) -> WorkerHealth:
    """The numbers of this process, at once."""
    settings, counters = worker.settings, worker.counters
    return WorkerHealth.model_construct(
        version=VERSION,
        revision=one_line(settings.revision),
        place=Place.model_construct(None, **settings.place),
        uptime_seconds=round(counters.uptime_seconds, 1),
        gpu_seconds=round(counters.gpu_seconds, 3),
        usd_per_second=usd_per_second(settings),
        jobs=counters.jobs(asked_by),
        queue=counters.queue() if counters.queue else None,
        phases=counters.phase_seconds(),
        startup=dict(worker.startup.seconds),
    )


def measure(worker: Worker) -> tuple[EngineHealth, ModelsHealth]:
    """Ask the engine and the model store; blocks, at most as long as the engine's client waits."""
    settings = worker.settings
    engine = EngineHealth.model_construct(
        None,
        **worker.engine.health(),
        device=settings.engine_device,
        gpu=one_line(settings.engine_gpu),
        driver=one_line(settings.engine_driver),
        attention=one_line(settings.engine_attention),
    )
    models = ModelsHealth.model_construct(None, **worker.models.health(), disk=_disk(settings))
    return engine, models


def _disk(settings: Settings) -> Disk:
    budget, free = settings.models_budget_gb, None
    with suppress(OSError):  # a network volume that is gone
        free = free_bytes(settings.models_dir)
    return Disk.model_construct(budget=None if budget is None else round(budget * 1e9), free=free)


TASK = Task(
    name="health",
    description="Reports what the worker, its engine and its model store are doing.",
    run=run,
    output=Health,
    is_quick=True,
)
