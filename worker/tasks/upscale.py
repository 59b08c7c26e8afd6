"""The task `upscale`: the engine enlarges the pictures that a job brings."""

from __future__ import annotations

import asyncio
import functools
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import Field, model_validator

from worker.answer import Answer, AnswerPart, plain
from worker.errors import EngineModelMissing, InvalidInput
from worker.generation import enlarged
from worker.generation.call import Call
from worker.generation.enlarged import Enlarged, Size
from worker.images.input_image import InputImage
from worker.job.image_fields import ImageText
from worker.job.model_fields import ABOUT_TASK, Float, Int, Name, Switch, TaskInput, Timeout
from worker.job.output_fields import Output
from worker.job.request import check
from worker.service.parts import Worker
from worker.service.task import Job, Task
from worker.shown import shown_size
from worker.stopwatch import ABOUT_COST
from worker.tasks.finished_pictures import Finished, FinishedPictures
from worker.tasks.picture_result import DeliveryReport

# Field -> the folder of the model, and its file: there are models of other parts, too.
_FACES = {
    "gfpgan_visibility": ("GFPGAN", "*GFPGAN*.pth"),
    "codeformer_visibility": ("Codeformer", "*[cC]ode[fF]ormer*.pth"),
}
_UPSCALERS = ("upscaler_1", "upscaler_2")
_SIDES = ("upscaling_resize_w", "upscaling_resize_h")
# Clients send all sizes with any resize_mode -> those that A1111 does not read with it.
_UNREAD = {0: _SIDES, 1: ("upscaling_resize",)}
_MAX_PICTURES = 64
_MAX_PIXELS = 2**27  # of all results of a job: they are in memory at the same time

Unit = Annotated[Float, Field(ge=0, le=1)]
Side = Annotated[Int, Field(ge=1, le=enlarged.MAX_SIDE)]


class UpscaleRequest(TaskInput):
    """The input of a job that enlarges pictures: A1111's fields by their own names, and ours."""

    task: Literal["upscale"] = Field(description=ABOUT_TASK)
    image: ImageText | None = Field(None, description="The picture, if there is only one.")
    images: list[ImageText] = Field(
        default_factory=list, max_length=_MAX_PICTURES, description="The pictures."
    )
    upscaler_1: Name | None = Field(
        None, description="The upscaler; the task `upscalers` lists the names."
    )
    upscaler_2: Name | None = Field(None, description="A second one, blended with the first.")
    extras_upscaler_2_visibility: Unit = Field(
        0.0, description="How much of `upscaler_2` is in the result."
    )
    resize_mode: Literal[0, 1] | None = Field(
        None, description="0: by the factor; 1: to the size. By default the one that is given."
    )
    upscaling_resize: Annotated[Float, Field(gt=1, le=8)] | None = Field(
        None, description="The factor, above 1 and at most 8; 2 by default."
    )
    upscaling_resize_w: Side | None = Field(None, description="The width in pixels.")
    upscaling_resize_h: Side | None = Field(None, description="The height in pixels.")
    upscaling_crop: Switch = Field(
        True,
        description="Cut what is outside of the size; `false`: the result covers the size, in the"
        " picture's proportions.",
    )
    gfpgan_visibility: Unit = Field(0.0, description="How much GFPGAN restores faces.")
    codeformer_visibility: Unit = Field(0.0, description="How much CodeFormer restores faces.")
    codeformer_weight: Unit = Field(0.0, description="0: most effect of CodeFormer; 1: least.")
    upscale_first: Switch = Field(False, description="No effect: A1111's API ignores it.")
    show_extras_results: Switch = Field(True, description="No effect: it is for A1111's page.")
    timeout: Timeout = None
    output: Output = Field(
        default_factory=Output, description="Format and delivery of the pictures."
    )

    @model_validator(mode="before")
    @classmethod
    def _as_clients_write(cls, value: object) -> object:
        """Without what A1111 does not read; the pictures of its batch route as `images`."""
        if not isinstance(value, Mapping):
            return value
        job = dict(value)
        for name in _UPSCALERS:
            if job.get(name) == "None":
                del job[name]
        mode = job.get("resize_mode")
        for name in _UNREAD.get(mode, ()) if type(mode) is int else ():
            job.pop(name, None)
        listed = job.get("imageList")
        is_list = isinstance(listed, list) and all(isinstance(one, Mapping) for one in listed)
        if is_list and not job.get("images"):
            job["images"] = [one.get("data") for one in job.pop("imageList")]
        return job

    @model_validator(mode="after")
    def _is_consistent(self) -> UpscaleRequest:
        pictures, size = self.pictures, (self.upscaling_resize_w, self.upscaling_resize_h)
        conflicts = [
            (not pictures, "image is missing: send a picture in `image`, or several in `images`"),
            (self.image is not None and bool(self.images), "image and images: give one of them"),
            (
                self.by_size and None in size,
                "a size needs both upscaling_resize_w and upscaling_resize_h",
            ),
            (
                self.resize_mode is None and size != (None, None) and self.upscaling_resize,
                "upscaling_resize and upscaling_resize_w are two sizes: give one, or resize_mode",
            ),
            (
                self.upscaler_1 is None and not any(self.faces.values()),
                "upscaler_1 is missing: without it A1111 returns the picture as it is",
            ),
            (
                self.upscaler_2 is not None and self.upscaler_1 is None,
                "upscaler_2 has no effect without upscaler_1",
            ),
            self.output.too_few_or_many_urls(len(pictures)),
        ]
        problems = [text for wrong, text in conflicts if wrong]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def pictures(self) -> dict[str, str]:
        """Each picture by the name of its field."""
        if self.image is not None:
            return {"image": self.image}
        return {f"images.{number}": text for number, text in enumerate(self.images)}

    @property
    def by_size(self) -> bool:
        """Whether the job asks for a size, and not for a factor."""
        if self.resize_mode is not None:
            return self.resize_mode == 1
        return self.upscaling_resize is None and self.upscaling_resize_w is not None

    @property
    def used(self) -> list[str]:
        """The upscalers that have an effect."""
        second = self.upscaler_2 if self.extras_upscaler_2_visibility else None
        return [name for name in (self.upscaler_1, second) if name]

    @property
    def faces(self) -> dict[str, float]:
        """How much faces are restored, by A1111's fields."""
        return {name: getattr(self, name) for name in _FACES}


class PictureSize(AnswerPart):
    """The size of one picture."""

    width: int = Field(description="In pixels.")
    height: int = Field(description="In pixels.")


class UndeliveredUpscale(Answer):
    """The result before its pictures are delivered."""

    images: list[str] = Field(
        description="The pictures in the order of the job: base64 of a PNG, unless `output` asks"
        " for another format or for URLs."
    )
    sizes: list[PictureSize] = Field(description="The size of each.")
    html_info: str = Field(description="A1111's sentence about the last one.")
    timings: dict[str, float] = Field(
        description="Seconds of each phase: `validate`, `prepare` (read the pictures), `queue`"
        " (wait for the engine), `generate`, `deliver`; and their `total`." + ABOUT_COST
    )
    warnings: list[str] = Field(description="Sentences about what was changed or went wrong.")


class UpscaleResult(UndeliveredUpscale):
    """The answer of the task `upscale`."""

    delivery: DeliveryReport = Field(description="How the pictures were delivered.")


@dataclass(frozen=True)
class _Made:
    """The enlarged pictures, as delivery takes them."""

    images: list[str]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Plan:
    """How one picture is enlarged."""

    image: InputImage
    factor: float
    crop_to: Size | None


def check_input(worker: Worker, job: Job) -> UpscaleRequest:
    """The job's checked input.

    Raises:
        InvalidInput: names what is wrong.
    """
    with job.stopwatch.phase("validate"):
        wanted = check(job.input, UpscaleRequest)
        job.stopwatch.limit(wanted.timeout or worker.settings.job_timeout)
        worker.delivery.check(wanted.output)
    return wanted


async def run(worker: Worker, job: Job, wanted: UpscaleRequest) -> UpscaleResult:
    """Read the pictures, enlarge one after the other, and deliver them."""
    _check_names(worker, wanted)
    images = await worker.read_images(job, wanted.pictures)
    plans = _plans(worker, wanted, images)
    async with FinishedPictures(worker, job, wanted.output) as finished:
        made = []
        async with worker.turns.next(job.stopwatch):
            with job.stopwatch.phase("generate"):
                for plan in _reported(job, plans):
                    made.append(await _enlarged(worker, job, wanted, plan))
                    finished.add(Finished([made[-1].image], len(plans)))
        with job.stopwatch.phase("deliver"):
            early = await finished.delivered()
            result = await _described(job, wanted, made)
            pictures, output = _Made(result.images), wanted.output
            delivered = await asyncio.to_thread(
                worker.delivery.deliver,
                *(pictures, plain(result), output, job.id, early),
                stop=finished.stop,
            )
    job.stopwatch.pictures = len(made)
    delivered["timings"] = job.stopwatch.timings()
    return UpscaleResult.model_construct(**delivered)


async def _described(job: Job, wanted: UpscaleRequest, made: list[Enlarged]) -> UndeliveredUpscale:
    return UndeliveredUpscale.model_construct(
        images=[one.image for one in made],
        sizes=[PictureSize(width=one.pixels.width, height=one.pixels.height) for one in made],
        html_info=made[-1].info,
        timings=job.stopwatch.timings(),
        warnings=[*job.notes, *_warnings(wanted), *await job.stream.warnings()],
    )


# Before the engine is used ------------------------------------------------------------------------


def _check_names(worker: Worker, wanted: UpscaleRequest) -> None:
    known = set(worker.engine.catalog.enlargers) - {"None"}
    for name in _UPSCALERS:
        if upscaler := getattr(wanted, name):
            worker.engine.catalog.check(name, upscaler, known)
    for name, (folder, file) in _FACES.items():
        models = worker.settings.webui_dir / "models" / folder
        if getattr(wanted, name) and next(models.glob(file), None) is None:
            raise InvalidInput(
                f"{name} = {getattr(wanted, name):g}: this worker has no model of {folder}, and"
                " A1111 would leave the faces as they are if it cannot download one.",
                hint=f"Put the model (.pth) into models/{folder} of WEBUI_DIR, or leave it out.",
                field=name,
            )


def _plans(worker: Worker, wanted: UpscaleRequest, images: Mapping[str, InputImage]) -> list[_Plan]:
    scales = [
        worker.engine.catalog.enlargers[name]
        for name in wanted.used
        if name in worker.engine.catalog.with_models
    ]
    plans, pixels = [], 0
    for name, image in images.items():
        plan = _plan(wanted, name, image)
        if wanted.used:
            enlarged.check_size(name, image.size, plan.factor, scales)
            pixels += int(image.width * image.height * plan.factor**2)
        plans.append(plan)
    if pixels > _MAX_PIXELS:
        raise InvalidInput(
            f"the results would have {pixels / 1e6:.0f} million pixels together; at most"
            f" {_MAX_PIXELS / 1e6:.0f} million are made in one job.",
            hint="Send several jobs.",
        )
    return plans


def _plan(wanted: UpscaleRequest, name: str, image: InputImage) -> _Plan:
    size, target = image.size, _target(wanted)
    if target is None:
        return _Plan(image, wanted.upscaling_resize or 2.0, None)
    factor = enlarged.covering(size, target)
    if factor <= 1:
        raise InvalidInput(
            f"{name}: the picture has {shown_size(size)} pixels, so {shown_size(target)} does not"
            " enlarge it.",
            hint="Ask for a larger size.",
            field=name,
        )
    return _Plan(image, factor, target if wanted.upscaling_crop else None)


def _target(wanted: UpscaleRequest) -> Size | None:
    width, height = wanted.upscaling_resize_w, wanted.upscaling_resize_h
    return (width, height) if wanted.by_size and width and height else None


# With the engine ----------------------------------------------------------------------------------


def _reported(job: Job, plans: Sequence[_Plan]) -> Iterator[_Plan]:
    """Each plan; before it a report of the progress."""
    for number, plan in enumerate(plans):
        percent = round(100 * number / len(plans), 1)
        message = f"picture {number + 1} of {len(plans)}"
        job.progress.report({"phase": "generate", "percent": percent, "message": message})
        yield plan


async def _enlarged(worker: Worker, job: Job, wanted: UpscaleRequest, plan: _Plan) -> Enlarged:
    """One picture: each upscaler proven, then both blended, then cut, then its faces restored.

    A1111 would blend them itself. But then the proof could not tell whether both were used.
    """
    image = plan.image.base64()
    made = [await _proven(worker, job, plan, upscaler) for upscaler in wanted.used]
    result = made[0] if made else None
    if result and len(made) > 1:
        visibility = wanted.extras_upscaler_2_visibility
        result = await asyncio.to_thread(enlarged.blended, result, made[1], visibility)
    if result and plan.crop_to:
        result = await asyncio.to_thread(enlarged.cropped, result, plan.crop_to)
    if result and not any(wanted.faces.values()):
        return result
    image = result.image if result else image
    size = result.pixels.size if result else plan.image.size
    faces = {**wanted.faces, "codeformer_weight": wanted.codeformer_weight}
    return await _post(worker, job, {"image": image, **faces}, size)


async def _proven(worker: Worker, job: Job, plan: _Plan, upscaler: str) -> Enlarged:
    """The picture by one upscaler.

    Raises:
        EngineModelMissing: the upscaler's model was not used.
    """
    image = plan.image.base64()
    body = {"upscaler_1": upscaler, "upscaling_resize": plan.factor, "image": image}
    size = enlarged.size_by(plan.image.size, plan.factor)
    made = await _post(worker, job, body, size)
    source = Image.open(io.BytesIO(plan.image.data))
    try:
        await asyncio.to_thread(enlarged.prove, source, made.pixels, upscaler)
    except EngineModelMissing:
        # Of a picture almost without edges a model can make the same as Lanczos: another picture
        # shows whether it is there. If it was missing only then, the second attempt has it.
        await worker.engine.call(enlarged.probe(upscaler), job.stopwatch)
        made = await _post(worker, job, body, size)
    return made


async def _post(worker: Worker, job: Job, body: Mapping[str, Any], size: Size) -> Enlarged:
    read = functools.partial(enlarged.read, size=size)
    smaller = "Ask for a smaller size, or use a card with more memory."
    call = Call("extra-single-image", body, read, smaller)
    return await worker.engine.call(call, job.stopwatch)


def _warnings(wanted: UpscaleRequest) -> Iterator[str]:
    if not wanted.used and wanted.model_fields_set & {"upscaling_resize", *_SIDES}:
        yield "the pictures keep their size, because the job names no upscaler_1."
    if wanted.upscaler_2 and not wanted.extras_upscaler_2_visibility:
        yield "upscaler_2 has no effect, because extras_upscaler_2_visibility is 0."
    if any(wanted.faces.values()):
        yield "faces: not proven, A1111 leaves a picture without a face that it finds as it is."


TASK = Task(
    name="upscale",
    description="Enlarges pictures, and can restore faces in them.",
    fields=UpscaleRequest,
    read=check_input,
    run=run,
    output=UpscaleResult,
)
