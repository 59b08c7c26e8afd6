"""The task `interrogate`: the engine describes a picture in words."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from worker.answer import ABOUT_NOTES, Absent, Answer, left_out
from worker.errors import EngineFault, EngineModelMissing
from worker.generation.answers import an_object, text
from worker.generation.call import Call
from worker.job.image_fields import ImageText
from worker.job.model_fields import ABOUT_TASK, TaskInput, Timeout
from worker.service.parts import Worker
from worker.service.task import Job, Task
from worker.stopwatch import ABOUT_COST

# A1111 v1.9.3 catches any failure of its CLIP interrogator, and answers 200 with this text.
_FAILED = "<error>"
_MODELS = {
    "clip": "BLIP and CLIP (1.2 GB)",
    "deepdanbooru": "the DeepDanbooru model (640 MB)",
}


class InterrogateRequest(TaskInput):
    """The input of a job that describes a picture."""

    task: Literal["interrogate"] = Field(description=ABOUT_TASK)
    image: ImageText
    model: Literal["clip", "deepdanbooru"] = Field(
        "clip", description="`clip` writes a sentence, `deepdanbooru` tags."
    )
    timeout: Timeout = None


class Caption(Answer):
    """The answer of the task `interrogate`."""

    caption: str = Field(description="The description, usable as a prompt.")
    model: str = Field(description="The model that wrote it.")
    timings: dict[str, float] = Field(
        description="Seconds of each phase: `prepare` (read the picture), `queue` (wait for the"
        " engine), `generate`; and their `total`." + ABOUT_COST
    )
    warnings: list[str] | Absent = left_out(ABOUT_NOTES)


async def run(worker: Worker, job: Job, wanted: InterrogateRequest) -> Caption:
    """Read the picture, then let the engine describe it.

    Raises:
        EngineModelMissing: the engine does not have the model, and could not download it.
    """
    job.stopwatch.limit(wanted.timeout or worker.settings.job_timeout)
    images = await worker.read_images(job, {"image": wanted.image})
    call = Call(
        "interrogate",
        {"image": images["image"].base64(), "model": wanted.model},
        lambda answer: _caption(answer, wanted.model),
        smaller="Use a card with more memory.",
    )
    async with worker.turns.next(job.stopwatch):
        with job.stopwatch.phase("generate"):
            try:
                caption = await worker.engine.call(call, job.stopwatch)
            except EngineFault as error:  # an IndexError, if DeepDanbooru's download failed
                raise _missing(wanted.model, f"{error.message} ") from error
    timings = job.stopwatch.timings()
    return Caption.model_construct(caption=caption, model=wanted.model, timings=timings)


def _caption(answer: Any, model: str) -> str:  # noqa: ANN401 - JSON
    caption = text(an_object(answer), "caption").strip()
    if not caption or _FAILED in caption:
        raise _missing(model)
    return caption


def _missing(model: str, said: str = "") -> EngineModelMissing:
    return EngineModelMissing(
        f"the engine could not describe the picture with {model!r}. {said}It needs {_MODELS[model]}"
        " of its own."
    )


TASK = Task(
    name="interrogate",
    description="Describes a picture in words, as a prompt.",
    fields=InterrogateRequest,
    run=run,
    output=Caption,
)
