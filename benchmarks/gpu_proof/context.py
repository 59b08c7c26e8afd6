"""What the steps of the proof share: the worker, its models, the time left, and jobs."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.gpu_proof.budget import Budget
from benchmarks.gpu_proof.memory import Memory
from benchmarks.gpu_proof.plane import Job, Plane
from benchmarks.gpu_proof.worker_process import (
    EngineStart,
    WorkerFailed,
    WorkerProcess,
    environment,
)
from benchmarks.suite.figures import Curve, Figure

SAME_PICTURE = 1.0  # mean difference, in 255ths: the GPU may choose other kernels
PROMPT = "a red circle on a blue background"
Pixels = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


class JobFailed(Exception):
    """A job of the proof ended with an error."""


class Skipped(Exception):
    """A step cannot be done here; the message has the reason."""


@dataclass
class Outcome:
    """What a step found.

    Attributes:
        details: values and texts; they cannot be wrong.
        checks: what must be true; a false one makes the proof fail.
        figures: what was measured beside a rival or a goal; a missed goal fails nothing.
        curves: what grows.
    """

    details: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, bool] = field(default_factory=dict)
    figures: Sequence[Figure] = ()
    curves: Sequence[Curve] = ()


@dataclass
class Context:
    """One engine under proof.

    Attributes:
        engine: `a1111` or `embedded`.
        folder: for models, logs and the engine's state.
        tiny: whether tiny models take the places of the real ones.
        environ: the environment of the proof itself.
        pictures: of earlier steps, by name, for later ones.
        attention: the engine's implementation of attention, as `health` reports it.
        boots: how often a worker was started.
        concurrency: JOB_CONCURRENCY of the running worker.
        first_picture: seconds from the last start to the first delivered picture.
        engine_start: how start.sh has started the last engine.
    """

    engine: str
    folder: Path
    plane: Plane
    budget: Budget
    environ: Mapping[str, str]
    tiny: bool = False
    worker: WorkerProcess | None = None
    pictures: dict[str, Pixels] = field(default_factory=dict)
    attention: str = ""
    boots: int = 0
    concurrency: int = 1
    first_picture: float | None = None
    engine_start: EngineStart | None = None
    memory: Memory | None = None

    @property
    def on_cpu(self) -> bool:
        """Whether the operator has said that the engine computes on the CPU."""
        return self.environ.get("DEVICE") == "cpu"

    @property
    def running(self) -> WorkerProcess:
        """The worker. Raises Skipped if it is not running."""
        if self.worker is None or self.worker.has_ended:
            raise Skipped("the worker is not running")
        return self.worker

    def rounds(self, usual: int) -> int:
        """How often both sides of a figure are measured: once with tiny models."""
        return 1 if self.tiny else usual

    def checkpoint(self, family: str) -> str:
        """The name of the random checkpoint in the place of SD1 or SDXL."""
        return f"{'tiny' if self.tiny else 'random'}-{family.lower()}"

    def size(self, family: str) -> int:
        """The side of the pictures by which a family's speed is measured."""
        return 64 if self.tiny else {"SD1": 512, "SDXL": 1024}[family]

    def worker_environment(self, *flags: str) -> dict[str, str]:
        """The environment of a worker; `flags` are more flags for A1111."""
        environ = environment(self.engine, self.folder, self.plane, self.environ)
        given = self.environ.get("WEBUI_ARGS", "")
        return environ | {"WEBUI_ARGS": " ".join([given, *flags]).strip()}

    def start_worker(self, environ: Mapping[str, str]) -> WorkerProcess:
        """Start a worker in this environment; the last one must have been stopped."""
        self.boots += 1
        log = self.folder / f"{self.engine}-{self.boots}.log"
        self.worker = WorkerProcess(environ, log, self.plane)
        if self.memory is not None:
            self.memory.worker = self.worker
        return self.worker

    def stop_worker(self) -> int:
        """Stop the worker; returns start.sh's exit status. Raises Skipped if there is none."""
        worker, self.worker = self.worker, None
        if self.memory is not None:
            self.memory.worker = None
        if worker is None:
            raise Skipped("the worker is not running")
        return worker.stop()

    def request(self, family: str = "SD1") -> dict[str, Any]:
        """The fields of a small picture, as the engine's API has them, without a checkpoint."""
        size = self.size(family)
        return {
            "prompt": PROMPT,
            "width": size,
            "height": size,
            "steps": 4,
            "seed": 1,
            "sampler_name": "Euler",
            "override_settings": {"randn_source": "CPU"},
        }

    def submit(self, family: str = "SD1", **fields: Any) -> Job:  # noqa: ANN401 - fields of a job
        """Queue a job; by default one small picture of the random checkpoint of this family."""
        job = self.request(family) | {"checkpoint": self.checkpoint(family)}
        return self.plane.submit(job | fields)

    def ask_engine(self, family: str = "SD1", **fields: Any) -> float:  # noqa: ANN401 - as above
        """Draw from the engine directly, with the checkpoint that it has loaded.

        Returns:
            Seconds from the request to the parsed answer.
        """
        began = time.monotonic()
        self.running.ask("txt2img", self.request(family) | fields, self.budget.left())
        return time.monotonic() - began

    def run(self, family: str = "SD1", **fields: Any) -> Job:  # noqa: ANN401 - fields of a job
        """Run a job to its end.

        Raises:
            JobFailed: it ended with an error.
            StepTooLong, OutOfTime: it did not end in time, and was cancelled.
            WorkerFailed: the worker has ended.
        """
        worker = self.running
        job = self.submit(family, **fields)
        self.finish(job, worker)
        return self.succeed(job)

    @staticmethod
    def succeed(job: Job) -> Job:
        """The job. Raises JobFailed if it ended with an error."""
        if job.error:
            raise JobFailed(job.error[:500])
        return job

    def finish(self, job: Job, worker: WorkerProcess) -> None:
        """Wait for a job's end; cancel it if that does not come in time."""
        try:
            while not self.plane.wait(job, min(1.0, self.budget.left())):
                worker.check_alive()
        except BaseException:
            self.plane.cancel(job)
            raise

    def health(self) -> dict[str, Any]:
        """The worker's answer to the task `health`, about its engine."""
        worker = self.running
        job = self.plane.submit({"task": "health"})
        self.finish(job, worker)
        if job.error:
            raise WorkerFailed(f"health failed: {job.error}")
        return dict(job.output["engine"])


def pixels(job: Job) -> Pixels:
    """The first picture of a job's result."""
    return read_picture(base64.b64decode(job.output["images"][0]))


def read_picture(png: bytes) -> Pixels:
    """A picture as (height, width, 3) integers."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"), dtype=int)


def mean_difference(one: Pixels, other: Pixels) -> float:
    """The mean difference of two pictures, in 255ths; 255 for two sizes."""
    if one.shape != other.shape:
        return 255.0
    return float(np.abs(one - other).mean())
