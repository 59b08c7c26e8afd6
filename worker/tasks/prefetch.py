"""The task `prefetch`: models are found or fetched, checked and linked; nothing is drawn."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, create_model

from worker.answer import Absent, Answer, AnswerPart, left_out
from worker.errors import InvalidInput
from worker.formats.model_file import ModelFile
from worker.formats.names import Kind
from worker.job import txt2img
from worker.job.model_fields import ABOUT_TASK, TaskInput
from worker.job.models import Models, wanted_models
from worker.job.request import check
from worker.job.txt2img import Txt2ImgRequest
from worker.service.parts import Worker
from worker.service.task import Job, Task
from worker.tasks import picture_result
from worker.tasks.picture_result import CacheInfo
from worker.tasks.pictures import find_models

# The fields of a txt2img job that name models, and the others that it needs.
FIELDS = (
    *("template", "checkpoint", "loras", "vae", "embeddings"),
    *("refiner_checkpoint", "hr_checkpoint_name", "timeout"),
)
# Without these, the fields on the left would have no effect.
_NEEDED: dict[str, dict[str, Any]] = {
    "refiner_checkpoint": {"refiner_switch_at": 0.8},
    "hr_checkpoint_name": {"enable_hr": True, "denoising_strength": 0.5},
}

_fields: dict[str, Any] = {
    "task": (Literal["prefetch"], Field(description=ABOUT_TASK)),
    **{
        name: (Txt2ImgRequest.model_fields[name].annotation, Txt2ImgRequest.model_fields[name])
        for name in FIELDS
    },
}
PrefetchRequest = create_model(
    "PrefetchRequest",
    __base__=TaskInput,
    __doc__="The input of a job that prepares models: the fields of a txt2img job that name them.",
    **_fields,
)


class PrefetchedModel(AnswerPart):
    """A model that jobs can now use without a download."""

    kind: Kind = Field(description="Kind of the model.")
    name: str = Field(description="Its file name in the model store.")
    sha256: str | None = Field(
        description="SHA-256 of the file; null for a checkpoint of the operator, which is not read."
    )
    size: int = Field(description="Bytes.")
    source: str = Field(description="Where it was fetched from; `job` for a file of the operator.")
    fetched: bool = Field(description="Whether this job downloaded it.")
    role: Literal["refiner", "hr_checkpoint"] | Absent = left_out(
        "Of a further checkpoint: the refiner, or the one of the second pass."
    )


class Prefetched(Answer):
    """The answer of the task `prefetch`."""

    models: list[PrefetchedModel] = Field(description="The models, checkpoint first.")
    cache_info: CacheInfo = Field(description="What the model store holds.")
    timings: dict[str, float] = Field(
        description="Seconds: `validate`, `prepare` (find or fetch the models); and their `total`."
    )
    warnings: list[str] = Field(description="Sentences about models that do not fit together.")


def check_input(worker: Worker, job: Job) -> Txt2ImgRequest:
    """The txt2img job whose models are prepared.

    Raises:
        InvalidInput: names what is wrong.
    """
    with job.stopwatch.phase("validate"):
        check(job.input, PrefetchRequest)
        given = {name: one for name, one in _mapping(job.input).items() if name in FIELDS}
        asked = worker.templates.fill_in(given)
        needed = [more for name, more in _NEEDED.items() if _mapping(asked).get(name)]
        wanted = txt2img.parse(functools.reduce(operator.or_, needed, dict(_mapping(asked))))
        job.stopwatch.limit(wanted.timeout or worker.settings.job_timeout)
        if not wanted_models(wanted):
            raise InvalidInput("the job names no model.", hint=f"Send {', '.join(FIELDS[:5])}.")
    return wanted


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


async def run(worker: Worker, job: Job, wanted: Txt2ImgRequest) -> Prefetched:
    """Prepare the models, as for a picture; the engine lists them before its next picture."""
    in_thread = functools.partial(worker.threads.run, job.stopwatch)
    with job.stopwatch.phase("prepare"):
        async with worker.preparing:
            stored = await in_thread(worker.models.stored, wanted)
            models = await find_models(worker, job, wanted, were_loaded=False)
    try:
        listed = await in_thread(_models, models, stored)
    finally:
        worker.models.release(models, was_loaded=False)
    stats = await in_thread(worker.models.get_cache_stats)
    return Prefetched.model_construct(
        models=listed,
        cache_info=picture_result.cache_info(stats),
        timings=job.stopwatch.timings(),
        warnings=[*job.notes, *models.notes],
    )


def _models(models: Models, stored: set[Path]) -> list[PrefetchedModel]:
    roles: dict[ModelFile | None, Any] = {
        models.refiner: "refiner",
        models.hr_checkpoint: "hr_checkpoint",
        models.checkpoint: None,
    }
    return [
        PrefetchedModel.model_construct(
            kind=file.kind,
            name=file.filename,
            sha256=file.verified_sha256 if file.kind == "checkpoint" else file.sha256(),
            size=file.size,
            source=file.source or "job",
            fetched=_origin(file) not in stored,
            role=roles.get(file),
        )
        for file in models.checked_files()
        if file.source != "merged"
    ]


def _origin(file: ModelFile) -> Path:
    return file.converted_from.path if file.converted_from else file.path


TASK = Task(
    name="prefetch",
    description="Fetches and checks models, so that later jobs need no download; draws nothing.",
    fields=PrefetchRequest,
    read=check_input,
    run=run,
    output=Prefetched,
)
