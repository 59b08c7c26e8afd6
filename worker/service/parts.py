"""The parts of a worker that its tasks use."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from worker.config.settings import Settings
from worker.delivery.delivery import Delivery
from worker.formats.model_file import ModelFile
from worker.formats.names import Kind
from worker.images.input_image import InputImage
from worker.images.reader import ImageReader
from worker.job.models import Models
from worker.job.request import PictureRequest
from worker.job.template_file import Templates
from worker.models.read_ahead import ReadAhead
from worker.models.wildcard_files import WildcardFiles
from worker.service.counters import Counters
from worker.service.task import Job, Tasks
from worker.service.threads import Threads
from worker.service.waiting import BatchTurn, Turns
from worker.webui.engine import Engine


class JobModels(Protocol):
    """What tasks use of the model manager; `model_manager.ModelManager` describes each method."""

    def prepare_models_for_request(
        self, request: PictureRequest, stop: threading.Event = ...
    ) -> tuple[Models, bool]:
        """Find, fetch, check and link the job's models."""

    def mark_used(self, models: Models) -> None:
        """Let no other worker evict the job's models for some minutes more."""

    def release(self, models: Models, *, was_loaded: bool = True) -> None:
        """Unpin the models of a job that has ended."""

    def stored(self, request: PictureRequest) -> set[Path]:
        """The files of the job's models that need no download."""

    def list_files(self, kind: Kind) -> dict[str, ModelFile]:
        """The model files of this kind that a job can name."""

    def take_replaced(self) -> set[Kind]:
        """Kinds of which a file was replaced under its name."""

    def arrange_vaes(self, models: Models) -> bool:
        """Show the engine the job's VAE; returns whether its folders changed."""

    def arrange_embeddings(self, models: Models) -> bool:
        """Show the engine the job's embeddings; returns whether they changed."""

    def get_cache_stats(self) -> dict[str, dict[str, int]]:
        """Number and size of the files of each kind."""

    def health(self) -> dict[str, Any]:
        """The numbers for the task `health`."""

    def template_state(self, request: PictureRequest) -> dict[str, bool]:
        """Whether a template's models are in the image."""


class Startup:
    """The seconds of the start: reported by `health`, and once in the first result."""

    def __init__(self) -> None:
        self.seconds: Mapping[str, float] = {}
        self._is_reported = False

    def once(self) -> dict[str, float] | None:
        """The seconds, only at the first call: its caller waited for the start."""
        if self._is_reported:
            return None
        self._is_reported = True
        return dict(self.seconds)


@dataclass(frozen=True)
class Worker:
    """One engine and one model store. Jobs run side by side, but only one of them generates.

    Attributes:
        images: reads the pictures that jobs bring.
        tasks: the table of tasks, for tasks that run or describe others.
        wildcards: resolves the prompts of jobs that ask for it.
        counters: jobs by how they ended.
        turns: gives the engine to one job after the other.
        read_ahead: reads the checkpoints of waiting jobs into the page cache.
        preparing: open while a job's models are found or fetched; a batch limits how many are.
    """

    settings: Settings
    engine: Engine
    models: JobModels
    templates: Templates
    delivery: Delivery
    images: ImageReader
    tasks: Tasks[Worker]
    wildcards: WildcardFiles
    counters: Counters = field(default_factory=Counters)
    turns: Turns | BatchTurn = field(default_factory=Turns)
    read_ahead: ReadAhead = field(default_factory=ReadAhead)
    preparing: AbstractAsyncContextManager[object] = field(default_factory=nullcontext)
    startup: Startup = field(default_factory=Startup)
    threads: Threads = field(default_factory=Threads)

    async def read_images(self, job: Job, images: Mapping[str, str]) -> dict[str, InputImage]:
        """Fetch, check and decode the pictures of a job, as `prepare` in its timings.

        Args:
            job: has the deadline.
            images: name of the field -> base64, data URI or URL.

        Raises:
            InvalidInput, ImageUrlRefused, ImageHostFailed: name the field.
            JobTimeout: the pictures were not there in time.
        """
        with job.stopwatch.phase("prepare"):
            async with self.preparing:
                return await self.decoded(job, images)

    async def decoded(self, job: Job, images: Mapping[str, str]) -> dict[str, InputImage]:
        """As `read_images`, without a phase: for a job that prepares models at the same time."""
        read = functools.partial(self.images.read_all, images)
        found = await self.threads.run_or_stop(job.stopwatch, read)
        if found is None:
            raise job.stopwatch.expired("the job's pictures were not read")
        return found
