"""The task `png_info`: what a picture's file tells about how it was made; without the engine."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from pydantic import Field

from worker.answer import ABOUT_NOTES, Absent, Answer, left_out
from worker.images.png_info import describe
from worker.job.image_fields import ImageText
from worker.job.model_fields import ABOUT_TASK, TaskInput, Timeout
from worker.service.parts import Worker
from worker.service.task import Job, Task


class PngInfoRequest(TaskInput):
    """The input of a job that reads a picture's parameters."""

    task: Literal["png_info"] = Field(description=ABOUT_TASK)
    image: ImageText
    timeout: Timeout = None


class PngInfo(Answer):
    """The answer of the task `png_info`: the keys of A1111's route png-info, and ours."""

    info: str = Field(description="The infotext; empty if the picture has none.")
    items: dict[str, Any] = Field(
        description="The other texts of the file by name, such as ComfyUI's `workflow`."
    )
    parameters: dict[str, Any] = Field(
        description="The values in the infotext by A1111's names, such as `Seed`, as texts."
    )
    warnings: list[str] | Absent = left_out(ABOUT_NOTES)
    left_out: list[str] = Field(description="Names of the texts that are too long to return.")
    timings: dict[str, float] = Field(description="Seconds: `prepare`; and their `total`.")


async def run(worker: Worker, job: Job, wanted: PngInfoRequest) -> PngInfo:
    """Read the file; the engine may be busy or not running."""
    job.stopwatch.limit(wanted.timeout or worker.settings.job_timeout)
    images = await worker.read_images(job, {"image": wanted.image})
    found = await asyncio.to_thread(describe, images["image"])  # a long text takes seconds
    return PngInfo.model_construct(
        info=found.info,
        items=dict(found.items),
        parameters=dict(found.parameters),
        left_out=list(found.left_out),
        timings=job.stopwatch.timings(),
    )


TASK = Task(
    name="png_info",
    description="Reads the generation parameters in a picture's file.",
    fields=PngInfoRequest,
    run=run,
    output=PngInfo,
    is_quick=True,
)
