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
    """Jobs since the worker's start."""

    completed: int = Field(description="Number of jobs that returned a result.")
    failed: int = Field(description="Number of jobs that returned an error.")
    cancelled: int = Field(description="Number of jobs that were cancelled.")
    running: list[RunningJob] = Field(description="The other jobs that run now.")
    failures: dict[str, int] = Field(description="Number of failed jobs by error code.")


class WorkerHealth(AnswerPart):
    """The worker's process."""

    uptime_seconds: float = Field(description="Seconds since the worker's start.")
    jobs: JobCounts = Field(description="Jobs since the start.")
    startup: dict[str, float] = Field(
        description="Seconds of the start's parts: `engine`, `sdk`, `models`; and their `total`."
    )
