"""The task `health`: what the worker, its engine and its model store are doing."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from pydantic import Field

from worker.answer import ABOUT_NOTES, Absent, Answer, AnswerPart, left_out
from worker.config.runpod_settings import one_line
from worker.service.parts import Worker
from worker.service.report import WorkerHealth
from worker.service.task import Job, Task


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


class ModelsHealth(AnswerPart):
    """The models of jobs since the worker's start."""

    found: int = Field(description="Number of models that jobs found in the store.")
    fetched: int = Field(description="Number of models that were downloaded for jobs.")
    bytes_fetched: int = Field(description="Bytes that were downloaded.")
    stored: dict[str, StoredModels] = Field(
        description="What the store holds: `checkpoints`, `loras`, `vaes`, `embeddings`."
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
    engine = await asyncio.to_thread(worker.engine.health)
    settings = worker.settings
    engine |= {
        "device": settings.engine_device,
        "gpu": one_line(settings.engine_gpu),
        "driver": one_line(settings.engine_driver),
        "attention": one_line(settings.engine_attention),
    }
    models = await asyncio.to_thread(worker.models.health)
    return Health.model_construct(
        worker=worker.counters.health(worker.startup.seconds, asked_by=job.id),
        engine=EngineHealth.model_construct(**engine),
        models=ModelsHealth.model_construct(**models),
        timings=job.stopwatch.timings(),
    )


TASK = Task(
    name="health",
    description="Reports what the worker, its engine and its model store are doing.",
    run=run,
    output=Health,
    is_quick=True,
)
