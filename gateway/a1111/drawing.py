"""The routes of A1111's API that run a job: txt2img, img2img, extras, interrogate."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from gateway.a1111 import checkpoints
from gateway.a1111.answers import JobFailed, images_of, output_of, with_warnings
from gateway.a1111.client import client_of
from gateway.a1111.options import Remembered
from gateway.a1111.running import Drawn, Running
from gateway.bucket import fetched, is_in_bucket
from gateway.call import states
from gateway.catalog.catalog import Catalog
from gateway.http.body import json_object
from gateway.jobs import BadRequest, Jobs, JobState
from worker.http.client import SafeHttpClient
from worker.images.input_image import InputImage
from worker.images.png_info import describe
from worker.images.reader import ImageReader
from worker.job.image_fields import is_url
from worker.translation.a1111_body import to_job

logger = logging.getLogger(__name__)

Json = dict[str, Any]


class Drawing:
    """Runs the job of a request and answers as A1111.

    Args:
        jobs: the back.
        catalog: its lists.
        remembered: the options of each client.
        running: the jobs that run now, which `progress` and `interrupt` read.
        http: fetches pictures from the endpoint's bucket.
    """

    def __init__(
        self,
        jobs: Jobs,
        catalog: Catalog,
        remembered: Remembered,
        running: Running,
        http: SafeHttpClient,
    ) -> None:
        self._jobs = jobs
        self._catalog = catalog
        self._remembered = remembered
        self._running = running
        self._http = http
        self._images = ImageReader(http)

    async def txt2img(self, request: Request) -> Json:
        """POST /sdapi/v1/txt2img."""
        return await self._draw(request, "txt2img")

    async def img2img(self, request: Request) -> Json:
        """POST /sdapi/v1/img2img."""
        return await self._draw(request, "img2img")

    async def extra_single_image(self, request: Request) -> Json:
        """POST /sdapi/v1/extra-single-image."""
        body = await json_object(request)
        if _changes_nothing(body):
            picture = await self._read(body.get("image"))
            return {"html_info": "", "image": picture.base64()}
        output = await self._run(request, "extra-single-image", body)
        images = await self._pictures(output)
        if len(images) != 1:
            raise JobFailed(502, "NO_PICTURES", f"The answer has {len(images)} pictures, not one.")
        return {"html_info": str(output.get("html_info", "")), "image": images[0]}

    async def extra_batch_images(self, request: Request) -> Json:
        """POST /sdapi/v1/extra-batch-images."""
        output = await self._run(request, "extra-batch-images", await json_object(request))
        images = await self._pictures(output)
        return {"html_info": str(output.get("html_info", "")), "images": images}

    async def interrogate(self, request: Request) -> Json:
        """POST /sdapi/v1/interrogate."""
        output = await self._run(request, "interrogate", await json_object(request))
        return {"caption": str(output.get("caption", ""))}

    async def png_info(self, request: Request) -> Json:
        """POST /sdapi/v1/png-info: read here, because a picture's file is all that it needs."""
        picture = await self._read((await json_object(request)).get("image"))
        found = await asyncio.to_thread(describe, picture)
        items = dict(found.items)
        return {"info": found.info, "items": items, "parameters": dict(found.parameters)}

    async def _read(self, image: object) -> InputImage:
        """A picture that the request brings; a URL is refused, because it would be fetched here."""
        if not isinstance(image, str) or not image.strip() or is_url(image):
            raise BadRequest("image is missing: send the picture as base64 or as a data: URL.")
        stop = threading.Event()
        return (await asyncio.to_thread(self._images.read_all, {"image": image}, stop))["image"]

    # One job -------------------------------------------------------------------------------------

    async def _draw(self, request: Request, task: str) -> Json:
        body = await json_object(request)
        warnings: list[str] = []
        output = await self._run(request, task, body, warnings)
        images = await self._pictures(output)
        said = output.get("warnings")
        warnings += [str(one) for one in said] if isinstance(said, list) else []
        return {
            "images": images,
            "parameters": output.get("parameters", {}),
            "info": with_warnings(output.get("info"), warnings),
        }

    async def _run(
        self, request: Request, task: str, body: Json, notes: list[str] | None = None
    ) -> Mapping[str, Any]:
        """The answer of the job that means the same as the body; adds to `notes`."""
        client, lists = client_of(request), await self._catalog.lists(may_start=False)
        options = self._remembered.of(client)
        body = checkpoints.with_titles(body, lists)
        job, said = to_job(task, body, options, checkpoints.titles(lists))
        for note in said:
            logger.info("%s of %s: %s", task, client.program, note)
        if notes is not None:
            notes += said
            _ask_for_previews(job)
        output = output_of(await self._finished(request, task, job))
        self._catalog.learn(output)
        return output

    async def _finished(self, request: Request, task: str, job: Json) -> JobState:
        """The job's last state. An interrupt cancels it like a hang-up, even while it is queued."""
        drawn = self._running.begin(client_of(request), task)
        work = asyncio.ensure_future(self._followed(request, job, drawn))
        stop = asyncio.ensure_future(drawn.stopped.wait())
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            return await work if work.done() else JobState("", "CANCELLED")
        finally:
            stop.cancel()
            work.cancel()
            await asyncio.wait({work})
            if not work.cancelled():
                work.exception()  # or asyncio logs that it was never retrieved
            self._running.end(drawn)

    async def _followed(self, request: Request, job: Json, drawn: Drawn) -> JobState:
        async for state in states(request, self._jobs, job):
            drawn.state = state
        return drawn.state

    async def _pictures(self, output: Mapping[str, Any]) -> list[str]:
        """The pictures as base64; those in a bucket are fetched."""
        images = images_of(output)
        pictures = iter(await fetched(self._http, list(filter(is_in_bucket, images))))
        return [next(pictures) if is_in_bucket(one) else one for one in images]


def _changes_nothing(body: Json) -> bool:
    """Whether A1111 returns the picture as it is, which the task `upscale` refuses.

    It is what some clients send by default: a size, but no upscaler and no restored faces.
    """
    asked = [body.get(name) for name in ("gfpgan_visibility", "codeformer_visibility")]
    return body.get("upscaler_1") in (None, "", "None") and not any(asked)


def _ask_for_previews(job: Json) -> None:
    """Ask for previews: A1111 makes one a second from the latents, which costs milliseconds."""
    output = job.setdefault("output", {})
    if isinstance(output, dict):
        output.setdefault("preview", True)
