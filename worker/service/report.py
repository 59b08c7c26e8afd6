"""What a worker reports of its jobs: progress while they run, and their counts. Pure."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from worker.answer import Absent, AnswerPart, left_out

Phase = Literal["validate", "resolve", "download", "queue", "load", "generate", "upload"]


class Progress(AnswerPart):
    """A running job's newest report; RunPod's `/status` shows it as the job's `output`."""

    phase: Phase = left_out(
        "What the job does: `resolve` finds its models and reads its pictures, `load` loads the"
        " checkpoint."
    )
    percent: float | Absent = left_out("Progress of the download or of the pictures, 0 to 100.")
    eta_seconds: float | Absent = left_out(
        "Seconds until the download is done, or the pictures are."
    )
    step: int | Absent = left_out("Steps done of the picture.")
    steps: int | Absent = left_out("Steps that the picture needs.")
    message: str | Absent = left_out("The same as text, such as `step 12 of 25`.")
    input: int | Absent = left_out("With the task `batch`: the number of the input, from 1.")
    inputs: int | Absent = left_out("With the task `batch`: how many inputs it has.")
    preview: str | Absent = left_out(
        "With `output.preview`, while A1111 generates: a JPEG of at most 256 pixels as base64."
    )


class PictureChunk(AnswerPart):
    """A finished picture on `/stream`, or a piece of one."""

    type: Literal["picture"] = Field(description="Which kind of chunk it is.")
    number: int = Field(description="The picture's place in the result's `images`, from 1.")
    pictures: int = Field(description="How many pictures the job makes.")
    format: str = Field(description="`png`, `jpeg` or `webp`.")
    seed: int | Absent = left_out("The picture's seed; a grid and an enlarged picture have none.")
    url: str | Absent = left_out(
        "Where it was uploaded, with delivery `s3` or `put`. Without it the chunk has the next"
        " three."
    )
    part: int | Absent = left_out("The number of the piece, from 1.")
    parts: int | Absent = left_out("How many pieces the picture has.")
    data: str | Absent = left_out(
        "A piece of the file as base64; the pieces of a number, joined, are the file."
    )
    input: int | Absent = left_out("With the task `batch`: the number of the input, from 1.")
    inputs: int | Absent = left_out("With the task `batch`: how many inputs it has.")


class RunningJob(Progress):
    """A job that runs, with its newest report."""

    id: str = Field(description="The job's id.")


class JobCounts(AnswerPart):
    """Jobs since the worker's start; each is counted once, when it ends."""

    completed: int = Field(description="Number of jobs that returned a result.")
    failed: int = Field(description="Number of jobs that returned an error.")
    cancelled: int = Field(description="Number of jobs that were cancelled.")
    timed_out: int = Field(
        description="Number of jobs that their `policy` ended. On RunPod's queue these are"
        " `cancelled`: the worker only gets the signal to stop."
    )
    running: list[RunningJob] = Field(description="The other jobs that run now.")
    failures: dict[str, int] = Field(description="Number of failed jobs by error code.")
    tasks: dict[str, int] = Field(
        description="Number of ended jobs by task; `unknown` if the worker never got to it."
    )


class Place(AnswerPart):
    """Where the worker runs; null where RunPod has set nothing."""

    pod: str | None = Field(description="Id of this worker, `RUNPOD_POD_ID`.")
    endpoint: str | None = Field(description="Id of the endpoint, `RUNPOD_ENDPOINT_ID`.")
    data_center: str | None = Field(description="The data center, `RUNPOD_DC_ID`.")
    volume: str | None = Field(description="Id of the network volume, `RUNPOD_VOLUME_ID`.")


class Queue(AnswerPart):
    """The jobs that wait in this worker."""

    waiting: int = Field(description="Number of jobs that wait.")
    oldest_seconds: float = Field(
        description="Seconds for which the oldest of them has waited; 0 without one."
    )


class PhaseSeconds(AnswerPart):
    """A phase of jobs since the worker's start."""

    count: int = Field(description="Number of jobs that had this phase.")
    seconds: float = Field(description="Their seconds in it, together.")


class WorkerHealth(AnswerPart):
    """The worker's process."""

    version: str = Field(description="The worker's version.")
    revision: str | None = Field(description="The commit of the image; null if unknown.")
    place: Place = Field(description="Where the worker runs.")
    uptime_seconds: float = Field(description="Seconds since the worker's start.")
    gpu_seconds: float = Field(
        description="Seconds in which the engine worked for a job, since the start."
    )
    usd_per_second: float | None = Field(
        description="RunPod's price of a second of this worker, as of the table in costs.md; null"
        " if unknown."
    )
    jobs: JobCounts = Field(description="Jobs since the start.")
    queue: Queue | None = Field(
        description="Jobs that wait in this worker; null on RunPod's queue, which is RunPod's own."
    )
    phases: dict[str, PhaseSeconds] = Field(
        description="The phases of ended jobs by their names in `timings`, and their `total`."
    )
    startup: dict[str, float] = Field(
        description="Seconds of the start's parts: `engine`, `sdk`, `models`; and their `total`."
    )
