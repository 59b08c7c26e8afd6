"""The progress of the running job, for GET /progress, and the requests to stop it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


def _timestamp() -> str:
    return time.strftime("%Y%m%d%H%M%S")


@dataclass
class Progress:
    """A1111's `state`. The job's thread writes it, any thread may read it or ask to stop."""

    job: str = ""
    job_count: int = 0
    job_no: int = 0
    sampling_step: int = 0
    sampling_steps: int = 0
    skipped: bool = False
    interrupted: bool = False
    job_timestamp: str = field(default_factory=_timestamp)
    started: float = 0.0
    closing: bool = False

    @property
    def stopping(self) -> bool:
        """Whether no further picture may be started."""
        return self.interrupted or self.closing

    def stops(self) -> bool:
        """Whether the picture that is being made ends where it is."""
        return self.skipped or self.stopping

    def begin_picture(self, number: int) -> None:
        """Picture `number` of the job (from 0) begins; an earlier skip does not apply to it."""
        self.job_no, self.sampling_step, self.skipped = number, 0, False

    @contextmanager
    def running(self, job: str, count: int) -> Iterator[None]:
        """Mark a job of `count` pictures as running; a stop requested before it is forgotten."""
        self.skipped = self.interrupted = False
        self.job_timestamp, self.started = _timestamp(), time.monotonic()
        self.job, self.job_count = job, count
        try:
            yield
        finally:
            self.job, self.job_count = "", 0
            self.job_no = self.sampling_step = self.sampling_steps = 0

    def step(self, done: int, steps: int) -> bool:
        """Record that `done` of a picture's `steps` are finished; return true to stop here."""
        self.sampling_step, self.sampling_steps = done, steps
        return self.stops()

    def interrupt(self) -> None:
        """Ask the running job, if there is one, to end at its next step."""
        self.interrupted = True

    def skip(self) -> None:
        """Ask the running job to end its current picture at the next step."""
        self.skipped = True

    def close(self) -> None:
        """End the running job and all later ones at their next step; safe in a signal handler."""
        self.closing = True

    def describe(self) -> dict[str, Any]:
        """The answer of GET /progress; the engine has no previews."""
        fraction = self._fraction()
        elapsed = time.monotonic() - self.started
        return {
            "progress": fraction,
            "eta_relative": elapsed / fraction - elapsed if fraction else 0.0,
            "state": self._state(),
            "current_image": None,
            "textinfo": None,
        }

    def _fraction(self) -> float:
        """0 when idle; a running job begins at 0.01, the same as in A1111."""
        if not self.job_count:
            return 0.0
        step = self.sampling_step / self.sampling_steps if self.sampling_steps else 0.0
        return min(0.01 + (self.job_no + step) / self.job_count, 1.0)

    def _state(self) -> dict[str, Any]:
        return {
            "skipped": self.skipped,
            "interrupted": self.interrupted,
            "stopping_generation": False,
            "job": self.job,
            "job_count": self.job_count,
            "job_timestamp": self.job_timestamp,
            "job_no": self.job_no,
            "sampling_step": self.sampling_step,
            "sampling_steps": self.sampling_steps,
        }
