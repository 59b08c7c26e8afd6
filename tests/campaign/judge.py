"""What must hold: for each job, after each step, and at the end of a worker."""

import re
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from campaign.catalogue import Fault
from campaign.jobs import Job, brief
from campaign.pictures import Calm, read_answer, streamed
from campaign.world import Worker, World
from worker import errors

CODES = {
    one.code
    for one in vars(errors).values()
    if isinstance(one, type) and issubclass(one, errors.WorkerError) and hasattr(one, "code")
}
# A job can fail with a code that begins so only if it uses one of these.
NEEDS = {
    "MODEL_": {"models", "engine"},
    "MODEL_HOST": {"models"},
    "STORE_": {"models"},
    "IMAGE_": {"image"},
    "DELIVERY_": {"s3", "put"},
    "ENGINE_": {"engine"},
    "OUT_OF": {"engine"},
    "WRONG_": {"engine"},
    "LORA_": {"engine"},
}
REASON = re.compile(
    r"this worker is to be replaced|no further restart|is not restarted|received: stopping"
    r"|Start\.sh has ended|start\.sh has ended|event loop has been silent"
)
TEMPORARY = re.compile(r"\.new$|\.tmp$|\.incomplete$|\.lock$|^\.trash-|\.part$")
SLACK = {"fd": 12, "task": 12}  # a pool's threads, and connections that are kept
POSTED_AGAIN = ("plane: result", "delivered twice", "frozen", "stopped", "descriptors", "memory")
WARM, SERVED = 25, 60  # jobs: a process is compared with itself


class Violation(AssertionError):
    """Something that must never happen."""


@dataclass
class Sent:
    """A job that was sent, and the faults of its time."""

    id: str
    job: Job
    began: float
    is_ended_by_us: bool = False
    ended: float = 0.0


@dataclass
class Struck:
    """A fault that was made."""

    fault: Fault
    made: float
    healed: float | None = None


@dataclass
class Judge:
    """Compares what came with what may come; raises Violation."""

    world: World
    calm: Calm
    counts: Counter[str] = field(default_factory=Counter)
    _baselines: dict[tuple[int, str], int] = field(default_factory=dict)

    # Jobs ----------------------------------------------------------------------------------------

    def job(self, sent: Sent, struck: list[Struck]) -> None:
        """Check the end of a job."""
        shown = self.world.plane.status(sent.id)
        status = shown["status"]
        self.counts[f"{sent.job.kind} {status}"] += 1
        self._ended_once(sent, struck)
        if status in {"CANCELLED", "TIMED_OUT"}:
            self._must(sent.is_ended_by_us, sent, shown, f"{status}, and nobody asked for it")
        elif status == "FAILED":
            self._failed(sent, shown, shown["error"], shown.get("output") or {}, sent.job, struck)
        else:
            self._must(status == "COMPLETED", sent, shown, "it has no end")
            self._must(not sent.job.code, sent, shown, f"expected {sent.job.code}")
            self._completed(sent, shown, sent.job, shown["output"], struck)

    def _must(self, holds: object, sent: Sent, shown: Any, what: str) -> None:
        if not holds:
            got = str(brief(shown))[:3000]
            raise Violation(f"job {sent.id} {brief(sent.job.input)}: {what}; got {got}")

    def _ended_once(self, sent: Sent, struck: list[Struck]) -> None:
        """One result was taken; several posts only where RunPod made the worker post again."""
        done = [one for one in self.world.plane.events("done") if one["id"] == sent.id]
        in_time = [one for one in done if not one["late"]]
        self._must(len(in_time) <= 1 + self._retries(sent), sent, done, "it ended twice")
        if len(done) > 1:
            allowed = any(word in one.fault.name for one in struck for word in POSTED_AGAIN)
            self._must(allowed or self._retries(sent), sent, done, "its result was posted again")

    def _retries(self, sent: Sent) -> int:
        return sum(one["id"] == sent.id for one in self.world.plane.events("lost"))

    def _failed(
        self, sent: Sent, shown: Any, error: str, output: Any, job: Job, struck: list[Struck]
    ) -> None:
        code, colon, _ = error.partition(": ")
        self._must(colon and code in CODES, sent, shown, "the error has no code of the catalogue")
        self.counts[f"code {code}"] += 1
        if code == job.code:
            return
        if code == "BATCH_FAILED":
            self._parts(sent, shown, output, struck)
            return
        explained = code == "JOB_TIMEOUT" and job.has_timeout
        needs = [uses for begin, uses in NEEDS.items() if code.startswith(begin)]
        if not needs or needs[-1] & job.uses:
            explained = explained or any(
                code in one.fault.codes for one in self._of_time(sent, struck)
            )
        self._must(explained, sent, shown, f"no fault of its time explains {code}")

    def _of_time(self, sent: Sent, struck: list[Struck]) -> list[Struck]:
        """The faults that were made before the job ended."""
        return [one for one in struck if one.made <= (sent.ended or time.monotonic())]

    def _completed(
        self, sent: Sent, shown: Any, job: Job, output: dict[str, Any], struck: list[Struck]
    ) -> None:
        if job.parts:
            self._parts(sent, shown, output, struck)
        elif job.drawing is not None:
            right = self.calm.right(job)
            drawn = read_answer(self.world, sent.id, output)
            self._must(drawn in right, sent, shown, f"a wrong picture: {drawn}, not {right}")
            self.counts["pictures"] += len(drawn)
            for number, picture in streamed(self.world, sent.id).items():
                right_one = {one[number - 1] for one in right}
                self._must(picture in right_one, sent, picture, "a wrong picture on /stream")
        elif job.kind == "interrogate":
            self._must("picture of" in output["caption"], sent, shown, "a wrong caption")
        elif job.kind == "health":
            self._must({"worker", "engine", "models"} <= output.keys(), sent, shown, "no health")

    def _parts(self, sent: Sent, shown: Any, output: Any, struck: list[Struck]) -> None:
        results = output["results"]
        self._must(len(results) == len(sent.job.parts), sent, shown, "results are missing")
        for part, result in zip(sent.job.parts, results, strict=True):
            if "error" in result:
                self._failed(sent, shown, result["error"], result, part, struck)
            else:
                self._must(not part.code, sent, shown, f"an input should fail with {part.code}")
                self._completed(sent, shown, part, result, struck)

    # Workers -------------------------------------------------------------------------------------

    def ended_worker(self, worker: Worker, struck: list[Struck]) -> None:
        """A worker has ended: with a status that the faults explain, a reason, and no orphans."""
        status = worker.process.returncode
        allowed = {0} if worker.is_stopping else set()
        allowed = allowed.union(*(one.fault.ends for one in struck))
        several = any("four workers" in one.fault.name for one in struck)
        if status not in allowed and not (several and status == -9):
            raise Violation(f"{worker.name} ended with status {status}, not {sorted(allowed)}")
        killed = any(one.fault.loses for one in struck)
        is_read = worker.pipe and not worker.pipe.is_closed
        if not (killed or worker.is_stopping) and is_read and not REASON.search(worker.log()):
            raise Violation(f"{worker.name} ended with status {status} and states no reason")
        self.no_orphans(worker)

    def no_orphans(self, worker: Worker) -> None:
        """None of its processes lives, and no temporary file is left."""
        with suppress(TimeoutError):
            self.world.wait_until(lambda: not worker.processes(), "the end", 60)
        if left := worker.processes():
            raise Violation(f"{worker.name} has ended, its processes have not: {left}")

    def idle(self, worker: Worker) -> None:
        """Nothing is left of the jobs: no temporary file, lease or growing number of anything."""
        with suppress(TimeoutError):
            self.world.wait_until(lambda: not self._leftovers(worker), "a clean store", 40)
        if left := self._leftovers(worker):
            raise Violation(f"files are left while nothing runs: {left}")
        self._flat(worker)

    def _leftovers(self, worker: Worker) -> list[str]:
        found = [path for path in (worker.webui.parent / "tmp").rglob("*") if path.is_file()]
        found += worker.run_dir.glob(".engine.new")
        store = [path for path in self.world.fetched.rglob("*") if TEMPORARY.search(path.name)]
        # A part of a download is kept for the next one, and belongs to no job.
        found += [path for path in store if path.parent.name != "downloads"]
        return [str(path.relative_to(self.world.folder)) for path in found]

    def _flat(self, worker: Worker) -> None:
        """Descriptors and threads of a process are those of its warm beginning."""
        for program in ("handler.py", "engine"):
            pid = worker.pid_of(program)
            for what, slack in SLACK.items():
                with suppress(OSError):
                    number = len(list(Path(f"/proc/{pid}/{what}").iterdir()))
                    self._compare(worker, program, (pid or 0, what), number, slack)

    def _compare(
        self, worker: Worker, program: str, key: tuple[int, str], number: int, slack: int
    ) -> None:
        first = self._baselines.get(key)
        if first is None and worker.jobs_done >= WARM:
            self._baselines[key] = number
        elif first is not None and worker.jobs_done >= SERVED and number > first + slack:
            names = Counter(_shown(path) for path in Path(f"/proc/{key[0]}/{key[1]}").iterdir())
            raise Violation(f"{program} grows: {first} {key[1]}, now {number}: {names}")


def _shown(path: Path) -> str:
    with suppress(OSError):
        return re.sub(r"\d+", "N", str(path.readlink()))
    with suppress(OSError):
        return (path / "comm").read_text().strip()
    return "?"
