"""The tasks that draw: check, prepare models and pictures, generate and prove, deliver."""

from __future__ import annotations

import asyncio
import functools
import secrets
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from worker.answer import plain
from worker.errors import WorkerError
from worker.extensions import scripts
from worker.generation import init_images, iterations, payload
from worker.generation.init_images import InitImages
from worker.generation.payload import Payload
from worker.generation.picture_answer import PictureAnswer
from worker.job import request
from worker.job.img2img import Img2ImgRequest
from worker.job.models import Models
from worker.job.request import PictureRequest
from worker.job.template_file import hint_about_default
from worker.job.txt2img import Txt2ImgRequest
from worker.service.parts import Worker
from worker.service.task import Job, Task
from worker.service.waiting import together
from worker.stopwatch import Stopwatch
from worker.tasks import picture_result
from worker.tasks.finished_pictures import Finished, FinishedPictures
from worker.tasks.picture_result import PictureResult, Undelivered
from worker.webui.pipeline import NextJob

Request = TypeVar("Request", bound=PictureRequest)

# For looks at the files of a picture that is drawn: its own deadline must not lose it any more.
_LOOK_SECONDS = 120.0
MARK_EVERY = 300.0  # seconds between two use marks of a job's models; each holds for 15 minutes

# The pictures of an img2img job, and those of its extensions' units: field -> base64.
Brought = tuple["InitImages | None", dict[str, str]]


def check(worker: Worker, job: Job, model: type[Request]) -> Request:
    """The job's input, completed from its template and checked, with its wildcards resolved.

    Raises:
        InvalidInput: names what is wrong.
    """
    with job.stopwatch.phase("validate"):
        filled = worker.templates.fill_in(job.input, model.model_fields)
        wanted = request.check(filled, model)
        job.stopwatch.limit(wanted.timeout or worker.settings.job_timeout)
        worker.delivery.check(wanted.output)
        return worker.wildcards.resolve(wanted)


async def run(worker: Worker, job: Job, wanted: PictureRequest) -> PictureResult:
    """From the checked input to the delivered pictures."""

    def take_next() -> None:
        if not worker.engine.retiring:
            job.take_next()

    async with (
        FinishedPictures(worker, job, wanted.output) as finished,
        prepared(worker, job, wanted) as ready,
    ):
        # Also while the job waits for its turn. The engine reads the rest of it by itself.
        with worker.read_ahead.beside(_files_to_load(worker, ready.models)):
            turn = worker.turns.next(job.stopwatch, _checkpoint(worker, ready.models))
            async with turn as waiting:
                next_job = replace(waiting, may_come=take_next)
                generated = await generate(worker, job, ready, finished, next_job)
        take_next()
        return await deliver(worker, job, ready, generated, finished)


@dataclass(frozen=True)
class Ready:
    """A job whose models are found, checked and linked, and which the engine can draw.

    Attributes:
        requests: to the engine: the payload, or of a job that streams one for each iteration.
    """

    wanted: PictureRequest
    models: Models
    payload: Payload
    requests: Sequence[Payload]


@asynccontextmanager
async def prepared(worker: Worker, job: Job, wanted: PictureRequest) -> AsyncIterator[Ready]:
    """Have the job's models and pictures ready while the body runs.

    Raises:
        WorkerError: names what the engine or the store does not have, or which picture cannot be
            used; the engine was not used.
    """
    catalog = worker.engine.catalog
    names = payload.engine_names(wanted, catalog)
    with job.stopwatch.phase("prepare"):
        async with worker.preparing:
            models, (init, units) = await _models_and_pictures(worker, job, wanted)
    try:
        composed = payload.build(wanted, names, models, catalog.styles, init, pictures=units)
        async with _kept_in_store(worker, models):
            yield _ready(worker, job, wanted, models, composed)
    finally:
        worker.models.release(models)


@asynccontextmanager
async def _kept_in_store(worker: Worker, models: Models) -> AsyncIterator[None]:
    """Let no other worker on the volume evict the models while the body runs."""

    async def mark() -> None:
        while True:
            await asyncio.sleep(MARK_EVERY)
            with suppress(RuntimeError):  # no thread can be started now
                await asyncio.to_thread(worker.models.mark_used, models)

    marks = asyncio.create_task(mark())
    try:
        yield
    finally:
        marks.cancel()


def _ready(
    worker: Worker, job: Job, wanted: PictureRequest, models: Models, composed: Payload
) -> Ready:
    if not job.stream.is_open or wanted.n_iter == 1:
        return Ready(wanted, models, composed, [composed])
    why = iterations.why_whole(composed, worker.engine.catalog.scripts.get(composed.route, ()))
    if why is None:
        draw_seed = functools.partial(secrets.randbelow, iterations.MOST_SEEDS)
        return Ready(wanted, models, composed, iterations.split(composed, draw_seed))
    note = f"output.stream: the pictures come together when all are made, because {why}."
    composed = replace(composed, warnings=(*composed.warnings, note))
    return Ready(wanted, models, composed, [composed])


def _checkpoint(worker: Worker, models: Models) -> str:
    """The checkpoint that the engine must have loaded for these models."""
    return models.loaded.stem if models.loaded else worker.engine.default_checkpoint or ""


def _files_to_load(worker: Worker, models: Models) -> list[Path]:
    """The checkpoints that the engine must read for this job, in the order of their use."""
    files = [models.loaded, models.hr_checkpoint, models.refiner]
    return [file.path for file in files if file and not worker.engine.has_in_memory(file.stem)]


async def generate(
    worker: Worker, job: Job, ready: Ready, finished: FinishedPictures, next_job: NextJob
) -> PictureAnswer:
    """Draw and prove; only for the job whose turn it is. The last request lets the next job in."""
    began, answers, count = time.monotonic(), [], len(ready.requests)
    with job.stopwatch.phase("generate"):
        for number, one in enumerate(ready.requests):

            def report(part: Mapping[str, Any], number: int = number) -> None:
                elapsed = time.monotonic() - began
                job.progress.report(iterations.report_of_whole(part, number, count, elapsed))

            answer = await worker.engine.generate(
                one,
                job.stopwatch,
                report,
                arrange=functools.partial(_arrange, worker, ready.models),
                next_job=next_job if number == count - 1 else None,
            )
            answers.append(answer)
            images = answer.images
            finished.add(Finished(images, len(images) * count, answer.seeds, answer.grids))
    return iterations.joined(ready.payload, answers)


async def deliver(
    worker: Worker, job: Job, ready: Ready, generated: PictureAnswer, finished: FinishedPictures
) -> PictureResult:
    """The result with the delivered pictures."""
    with job.stopwatch.phase("deliver"):
        early = await finished.delivered()
        described = await _describe(worker, job, ready, generated)
        delivered = await asyncio.to_thread(
            worker.delivery.deliver,
            *(generated, plain(described), ready.wanted.output, job.id, early),
            stop=finished.stop,
        )
    job.stopwatch.pictures = len(generated.images) - generated.grids
    delivered["timings"] = job.stopwatch.timings()
    return PictureResult.model_construct(**delivered)


async def find_models(
    worker: Worker, job: Job, wanted: PictureRequest, *, were_loaded: bool = True
) -> Models:
    """Find or fetch the job's models; they are pinned until the caller releases them.

    Args:
        worker: has the model store.
        job: has the deadline.
        wanted: names the models.
        were_loaded: for the release, if the job ends before its models are ready.

    Raises:
        JobTimeout: they were not ready in time.
        WorkerError: a model cannot be used; its hint names the default template if that named it.
    """
    prepare = functools.partial(find_or_fetch, worker, wanted)
    release = functools.partial(worker.models.release, was_loaded=were_loaded)
    try:
        models: Models | None = await worker.threads.run_or_stop(job.stopwatch, prepare, release)
    except WorkerError as error:
        error.hint = f"{error.hint}{hint_about_default(wanted, job.input, error)}".lstrip()
        raise
    if models is None:
        hint = "The downloaded part is kept: send the job again, or raise `timeout`."
        raise job.stopwatch.expired("the models were not ready", hint=hint)
    return models


def find_or_fetch(worker: Worker, wanted: PictureRequest, stop: threading.Event) -> Models:
    """The models, pinned; the engine lists its folders again before the next picture."""
    models, new = worker.models.prepare_models_for_request(wanted, stop)
    if new:
        worker.engine.models_changed()
    if replaced := worker.models.take_replaced():
        worker.engine.files_replaced(replaced)
    return models


async def _models_and_pictures(
    worker: Worker, job: Job, wanted: PictureRequest
) -> tuple[Models, Brought]:
    """Both at the same time; the first failure ends the other one."""
    return await together(
        find_models(worker, job, wanted),
        _read_pictures(worker, job, wanted),
        undo=worker.models.release,
    )


async def _read_pictures(worker: Worker, job: Job, wanted: PictureRequest) -> Brought:
    """The pictures that the job brings, read and checked together."""
    own = wanted.images if isinstance(wanted, Img2ImgRequest) else {}
    of_units = scripts.read(wanted.alwayson_scripts).pictures()
    if not own and not of_units:
        return None, {}
    with job.stopwatch.phase("images"):
        pictures = await worker.decoded(job, {**own, **of_units})
        units = {field: pictures.pop(field).base64() for field in of_units}
        if not isinstance(wanted, Img2ImgRequest):
            return None, units
        return await asyncio.to_thread(init_images.read, wanted, pictures), units


def _arrange(worker: Worker, models: Models) -> bool:
    """Let the engine see what the job names; returns whether its embeddings changed."""
    if worker.models.arrange_vaes(models):
        worker.engine.models_changed()
    return worker.models.arrange_embeddings(models)


async def _describe(
    worker: Worker, job: Job, ready: Ready, generated: PictureAnswer
) -> Undelivered:
    """The result before its delivery."""
    in_thread = functools.partial(worker.threads.run, Stopwatch(_LOOK_SECONDS))
    used = await in_thread(picture_result.models_used, generated.facts, ready.models)
    if not used[0].sha256:  # not hashed here; the engine may have its hash
        sha256 = await worker.engine.checkpoint_sha256(used[0].name or "")
        used[0] = used[0].model_copy(update={"sha256": sha256})
    stats = await in_thread(worker.models.get_cache_stats)
    return Undelivered.model_construct(
        images=generated.images,
        parameters=generated.parameters,
        info=generated.info,
        models=used,
        cache_info=picture_result.cache_info(stats),
        timings=job.stopwatch.timings(),
        warnings=[*job.notes, *ready.payload.warnings, *await job.stream.warnings()],
        template=ready.wanted.template,
        resolved=picture_result.resolved_prompts(ready.wanted),
        startup=worker.startup.once(),
    )


def _drawing(name: str, description: str, fields: type[PictureRequest]) -> Task[Worker]:
    read = functools.partial(check, model=fields)
    return Task(name, description, run, PictureResult, fields, read)


TXT2IMG = _drawing(
    "txt2img", "Makes pictures from a prompt; the task of a job that names none.", Txt2ImgRequest
)
IMG2IMG = _drawing(
    "img2img",
    "Makes pictures from a picture and a prompt, or draws a masked part of it anew.",
    Img2ImgRequest,
)
