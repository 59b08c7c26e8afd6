"""The task `openai`: a request of OpenAI's images API, as RunPod hands it to a worker.

It becomes a job of the task txt2img or img2img, or the list of models. Its answer and its error
have OpenAI's shape, so that OpenAI's clients can read them.
"""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, cast

from PIL import Image
from pydantic import Field

from worker.answer import Absent, Answer, AnswerPart, left_out, plain
from worker.clients.nothing_asked import is_blank
from worker.errors import InvalidInput, JobError, TemplateNotFound, WorkerError
from worker.images.input_image import InputImage
from worker.job import request
from worker.job.image_fields import check_form
from worker.job.model_fields import ABOUT_TASK, Strict
from worker.service.parts import Worker
from worker.service.task import Job, Task
from worker.shown import shown
from worker.translation import openai_images as openai
from worker.translation.openai_images import ImagesRequest, ServedModels

_OPAQUE = 255
_HEAD = 400_000  # characters of base64: a file's first part, which has its size


class OpenAIRequest(Strict):
    """A request of OpenAI's API."""

    task: Literal["openai"] = Field("openai", description=ABOUT_TASK)
    openai_route: str = Field(
        description="`/v1/images/generations`, `/v1/images/edits`, `/v1/models` or `/v1/models/ID`."
    )
    openai_input: dict[str, Any] | None = Field(
        None,
        description="The body of the request; fields that are not OpenAI's are those of a job.",
    )


class GeneratedImage(AnswerPart):
    """One picture."""

    b64_json: str | Absent = left_out("The file in base64.")
    url: str | Absent = left_out("Its URL in the bucket.")
    revised_prompt: str | Absent = left_out(
        "Only with `wildcards`: the prompt after the choice of words."
    )


class ListedModel(AnswerPart):
    """A model that `model` can name."""

    id: str = Field(description="Its name.")
    object: Literal["model"] = Field(description="Always `model`.")
    created: int = Field(description="Unix time of this answer, in seconds.")
    owned_by: str = Field(description="What it is: `default`, `template` or `checkpoint`.")


class OpenAIAnswer(Answer):
    """OpenAI's answer: the pictures, or models. The keys below `usage` are ours."""

    created: int | Absent = left_out("Unix time in seconds.")
    data: list[GeneratedImage] | list[ListedModel] | Absent = left_out(
        "The pictures; of `/v1/models` the models."
    )
    background: Literal["opaque"] | Absent = left_out("Always `opaque`.")
    output_format: Literal["png", "jpeg", "webp"] | Absent = left_out("Format of the pictures.")
    size: str | Absent = left_out("WIDTHxHEIGHT of the first picture, if it is in the answer.")
    usage: dict[str, Any] | Absent = left_out("OpenAI bills tokens; here all numbers are 0.")
    object: Literal["list", "model"] | Absent = left_out("Of `/v1/models` and `/v1/models/ID`.")
    id: str | Absent = left_out("Of `/v1/models/ID`.")
    owned_by: str | Absent = left_out("Of `/v1/models/ID`.")
    info: str | Absent = left_out("A1111's facts about the pictures, such as seeds, as JSON text.")
    models: list[dict[str, Any]] | Absent = left_out("The models that were used, as in a result.")
    template: str | Absent = left_out("The template that was used.")
    delivery: dict[str, Any] | Absent = left_out("How they were delivered, as in a result.")
    timings: dict[str, float] = Field(description="As those of a txt2img job.")
    warnings: list[str] | Absent = left_out(
        "Sentences about what was changed, went wrong or has no effect."
    )


class OpenAIFailure(Answer):
    """OpenAI's error; RunPod takes `error` out of it and reports the job as FAILED."""

    error: str = Field(description="`<CODE>: what happened. What to do.`")
    detail: str = Field(description="The same.")
    object: Literal["error"] = Field(description="Always `error`.")
    message: str = Field(description="What happened, and what to do.")
    type: openai.ErrorType = Field(description="OpenAI's word.")
    param: str | None = Field(description="The parameter that is wrong, if it is one.")
    code: str = Field(description="The error's code in small letters; docs/errors.md lists them.")
    status: int = Field(description="The HTTP status that the gateway answers.")


def read(_worker: Worker, job: Job) -> OpenAIRequest:
    """Check the form; the parameters are checked by `run`.

    Raises:
        InvalidInput: the job has other fields, or there is no such route.
    """
    wanted = request.check(job.input, OpenAIRequest)
    openai.route_of(wanted.openai_route)
    return wanted


async def run(worker: Worker, job: Job, wanted: OpenAIRequest) -> OpenAIAnswer:
    """Draw, or list the models.

    Raises:
        WorkerError: as the task that draws; `param` in the details names OpenAI's parameter.
    """
    route, model = openai.route_of(wanted.openai_route)
    if route == openai.MODELS:
        return _listed(await worker.threads.run(job.stopwatch, _served, worker), model, job)
    asked = openai.read(route, wanted.openai_input or {})
    if asked.stream:
        raise _refused(
            "stream = true: a queue job returns its pictures at once.",
            "stream",
            "Leave out `stream`, or send the request to the gateway or the bridge, which stream.",
        )
    if asked.job.get("output", {}).get("delivery") == "s3" and not worker.delivery.has_bucket:
        raise _refused(
            "response_format = 'url': this endpoint has no bucket.",
            "response_format",
            'Ask for "b64_json", or set BUCKET_ENDPOINT_URL and its keys on the endpoint.',
        )
    drawn = replace(job, input=await _job_input(worker, job, asked))
    answer = await worker.tasks[asked.task](worker, drawn)
    return _images(plain(answer), asked)


def _refused(message: str, param: str, hint: str = "") -> InvalidInput:
    return InvalidInput(message, hint=hint, param=param)


def _served(worker: Worker) -> ServedModels:
    templates = {name: one.name for name, one in worker.templates.get_templates().items()}
    return ServedModels(templates, worker.models.list_files("checkpoint"))


async def _job_input(worker: Worker, job: Job, asked: ImagesRequest) -> dict[str, Any]:
    """The input of the job that draws."""
    model: dict[str, str] = {}
    if asked.model:
        served = await worker.threads.run(job.stopwatch, _served, worker)
        model = served.fields(asked.model)
    own = [name for name in ("template", "checkpoint") if not is_blank(asked.job.get(name))]
    if model and own:
        raise _refused(
            f"model = {shown(asked.model)} and {own[0]} = {shown(asked.job[own[0]])} name two"
            " models: send one of them.",
            "model",
        )
    fields = {"task": asked.task, **asked.job, **model}
    return fields | await _of_edit(worker, job, asked) if asked.image else fields


async def _of_edit(worker: Worker, job: Job, asked: ImagesRequest) -> dict[str, Any]:
    """The pictures of an edit, and what OpenAI means by a mask.

    OpenAI draws the transparent part of the mask anew, and returns the whole picture.
    """
    if asked.mask is None:
        return {"init_images": [asked.image]}
    try:
        check_form(asked.mask)
    except ValueError as error:
        raise _refused(f"mask = {shown(asked.mask)}: {error}.", "mask") from None
    with job.stopwatch.phase("images"):
        mask = (await worker.decoded(job, {"mask": asked.mask}))["mask"]
    if not await asyncio.to_thread(_has_transparency, mask):
        raise _refused(
            "mask has no transparent part, so it marks nothing.",
            "mask",
            "Send a PNG whose transparent part is what is drawn anew; its colours do not count.",
        )
    whole = {"inpaint_full_res": False, "inpainting_fill": 1, **asked.job}
    chosen = {name: whole[name] for name in ("inpaint_full_res", "inpainting_fill")}
    pictures = {"init_images": [asked.image], "mask": mask.base64(), "inpainting_mask_invert": 1}
    return {**chosen, **pictures}


def _has_transparency(picture: InputImage) -> bool:
    with Image.open(io.BytesIO(picture.data), formats=("PNG", "JPEG", "WEBP")) as image:
        if image.mode != "RGBA":
            return False
        low, _ = cast("tuple[int, int]", image.getchannel("A").getextrema())
        return low < _OPAQUE


# The answer -------------------------------------------------------------------------------------


def _images(result: Mapping[str, Any], asked: ImagesRequest) -> OpenAIAnswer:
    """OpenAI's answer for the result of a job that drew."""
    images, delivery = result["images"], result["delivery"]
    inline = delivery["method"] == "base64"
    revised = result.get("resolved", {}).get("prompt")
    name = "b64_json" if inline else "url"
    ours = ("info", "models", "template", "delivery", "timings")
    fields: dict[str, Any] = {key: result.get(key) for key in ours}
    return OpenAIAnswer.model_construct(
        created=int(time.time()),
        data=[
            GeneratedImage.model_construct(**{name: one, "revised_prompt": revised})
            for one in images
        ],
        background="opaque",
        output_format=delivery["format"],
        size=_size(images[0]) if inline and images else None,
        usage=openai.NO_USAGE,
        warnings=[*asked.notes, *result["warnings"]],
        **fields,
    )


def _size(image: str) -> str | None:
    """WIDTHxHEIGHT of a file in base64; None if its first part does not say it."""
    head = image[: _HEAD // 4 * 4]
    try:
        with Image.open(io.BytesIO(base64.b64decode(head))) as picture:
            return f"{picture.width}x{picture.height}"
    except (OSError, ValueError):
        return None


def _listed(served: ServedModels, model: str | None, job: Job) -> OpenAIAnswer:
    created = int(time.time())
    timings = job.stopwatch.timings()
    listed = [
        ListedModel.model_construct(
            id=one, object="model", created=created, owned_by=served.kind(one)
        )
        for one in served.ids()
    ]
    if model is None:
        return OpenAIAnswer.model_construct(object="list", data=listed, timings=timings)
    found = next((one for one in listed if one.id == model), None)
    if found is None:
        raise served.unknown(model)
    return OpenAIAnswer.model_construct(**vars(found), timings=timings)


def failure_of(error: WorkerError, job: Job) -> OpenAIFailure:
    """OpenAI's error for this one."""
    details = error.details
    is_of_job = isinstance(error, JobError)
    status = cast("int", details.get("status")) or openai.status_of(error.code, is_of_job=is_of_job)
    return OpenAIFailure.model_construct(
        error=str(error),
        detail=str(error),
        object="error",
        message=f"{error.message} {error.hint}".rstrip(),
        type=openai.type_of(status),
        param=_parameter(error, job),
        code=error.code.lower(),
        status=status,
    )


def _parameter(error: WorkerError, job: Job) -> str | None:
    details = error.details
    if "param" in details:
        return cast("str | None", details["param"])
    if isinstance(error, TemplateNotFound):
        return "template"
    body = job.input.get("openai_input") if isinstance(job.input, Mapping) else None
    sent = {*body, "prompt"} if isinstance(body, Mapping) else set()
    problems = details.get("problems")
    named = [details["field"]] if "field" in details else problems
    return openai.parameter_of(named, sent) if isinstance(named, list) else None


TASK = Task(
    name="openai",
    description="Answers a request of OpenAI's images API; the job names `openai_route` instead of"
    " the task.",
    fields=OpenAIRequest,
    read=read,
    run=run,
    output=OpenAIAnswer,
    named_by=frozenset({"openai_route", "openai_input"}),
    failure=failure_of,
)
