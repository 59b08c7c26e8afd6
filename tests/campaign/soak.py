"""`make soak`: mixed jobs for hours on one worker, with few faults, and what grows meanwhile.

    make soak MINUTES=120

Checkpoints are switched, LoRAs come and go, and the budget of the store is too small for all
models, so that each of them is evicted and fetched again. The samples are written as JSON, and with
DOCS=1 as plots into docs/images and as a table into docs/soak.md.
"""

import argparse
import itertools
import json
import os
import random
import signal
import stat
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.suite.figures import Curve
from benchmarks.suite.page import described
from benchmarks.suite.plots import draw
from campaign.catalogue import Fault, catalogue
from campaign.jobs import Draw
from campaign.judge import Judge, Sent, Struck
from campaign.pictures import Calm
from campaign.scenery import Model
from campaign.summary import PROJECT, fill_in, row, say
from campaign.world import Worker, World

BUDGET_GB = {"fake": 0.002, "embedded": 0.04}  # less than all downloaded models, more than two sets
PHASE_SECONDS = 100.0  # then the jobs name another downloaded checkpoint, and another LoRA
IN_USE_SECONDS = 65.0  # a worker does not mark a model again that it has used within a minute
SAMPLE_SECONDS = 15.0
FAULT_EVERY = 40  # jobs
MILD = (
    "engine: killed",
    "engine: stopped and continued",
    "plane: result answered 502",
    "plane: job-take dropped",
    "plane: jobs cancelled",
    "hosts: connection cut",
    "hosts: answers 503",
    "delivery: S3 answers 503",
    "files: model replaced under its name",
)
POINTS = 60  # of a plot
PROGRAMS = {"handler": "handler.py", "engine": "engine"}


@dataclass
class Samples:
    """What was measured, each list with one value for each sample."""

    minutes: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)  # minutes in which a job was on its way
    jobs: list[int] = field(default_factory=list)
    store_mb: list[float] = field(default_factory=list)
    memory_mb: dict[str, list[float]] = field(default_factory=dict)
    descriptors: dict[str, list[float]] = field(default_factory=dict)
    threads: dict[str, list[float]] = field(default_factory=dict)

    def take(self, world: World, began: float, jobs: int, busy: float) -> None:
        """Measure now; `busy` are the seconds from each job's begin to its end, together."""
        self.busy.append(round(busy / 60, 3))
        self.minutes.append(round((time.monotonic() - began) / 60, 2))
        self.jobs.append(jobs)
        self.store_mb.append(round(sum(map(_size, world.fetched.rglob("*"))) / 1e6, 2))
        for name, program in PROGRAMS.items():
            pid = world.main.pid_of(program)
            self.memory_mb.setdefault(name, []).append(_resident_mb(pid))
            self.descriptors.setdefault(name, []).append(_entries(pid, "fd"))
            self.threads.setdefault(name, []).append(_entries(pid, "task"))

    def per_minute(self) -> list[float]:
        """Jobs in a minute of the worker's time, since the sample before."""
        pairs = zip(self.busy, self.jobs, strict=False)  # the last sample may be broken off
        points = [(0.0, 0), *pairs]
        steps = itertools.pairwise(points)
        return [(b[1] - a[1]) / max(b[0] - a[0], 0.001) for a, b in steps]


def _size(path: Path) -> int:
    """Bytes of a file; 0 of anything else, and of a model that is evicted just now."""
    with suppress(OSError):
        found = path.lstat()
        return found.st_size if stat.S_ISREG(found.st_mode) else 0
    return 0


def _resident_mb(pid: int | None) -> float:
    """Memory of a process; nan while there is none."""
    with suppress(OSError, ValueError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)
    return float("nan")


def _entries(pid: int | None, what: str) -> float:
    with suppress(OSError):
        return float(len(list(Path(f"/proc/{pid}/{what}").iterdir())))
    return float("nan")


class Soak:
    """Runs it."""

    def __init__(self, folder: Path, engine: str, seed: int, say: Callable[[str], None]) -> None:
        self._folder, self.engine, self.seed, self._say = folder, engine, seed, say
        self.samples = Samples()
        self.faults: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []
        self.restarts = 0
        self._busy = 0.0

    def run(self, minutes: float) -> None:
        """Send jobs one after the other until the time is over."""
        with ExitStack() as stack:
            world = stack.enter_context(World(self._folder / "world", self.engine))
            calm = stack.enter_context(Calm(self._folder / "calm", world))
            drawing = Draw(world.scenery, world.s3.endpoint, world.put.url)
            judge = Judge(world, calm)
            worker = self._start(world)
            try:
                self._send_jobs(world, judge, drawing, minutes)
                self._judge(lambda: judge.idle(worker))
            finally:
                self.counts = judge.counts
                self._read_log(worker)

    def _send_jobs(self, world: World, judge: Judge, drawing: Draw, minutes: float) -> None:
        """One after the other, and samples meanwhile."""
        models = world.scenery.checkpoints, world.scenery.loras
        rng = random.Random(self.seed)
        began = last = time.monotonic()
        jobs = 0
        while time.monotonic() - began < minutes * 60:
            _choose(world, models, int((time.monotonic() - began) / PHASE_SECONDS))
            self._job(world, judge, drawing, rng, jobs)
            jobs += 1
            if time.monotonic() - last >= SAMPLE_SECONDS:
                last = time.monotonic()
                self.samples.take(world, began, jobs, self._busy)
                self._say(f"{self.samples.minutes[-1]} min, {jobs} jobs")
        self.samples.take(world, began, jobs, self._busy)

    def _start(self, world: World) -> Worker:
        budget = str(BUDGET_GB[self.engine])
        more = {"MODELS_BUDGET_GB": budget, "MAX_ENGINE_RESTARTS": "1000"}
        worker = world.start(quick=False, leads=True, **more)
        world.wait_until_taking(worker)
        return worker

    def _job(self, world: World, judge: Judge, drawing: Draw, rng: random.Random, n: int) -> None:
        """One job, sometimes with a fault while it runs."""
        world.forget_seen()
        _age(world)
        struck, heal = [], None
        job = drawing.job(rng)
        sent = Sent(world.plane.submit(job.input, **job.request), job, time.monotonic())
        if n % FAULT_EVERY == FAULT_EVERY - 1:
            fault = rng.choice(_mild(world))
            struck.append(Struck(fault, time.monotonic()))
            self.faults[fault.name] += 1
            heal = fault.inject(world, rng)
            time.sleep(rng.uniform(*fault.hold))
        if heal:
            heal()
        end = {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}
        world.wait_until(lambda: world.plane.status(sent.id)["status"] in end, f"job {sent.id}")
        sent.ended, sent.is_ended_by_us = time.monotonic(), bool(struck)
        self._busy += sent.ended - sent.began
        self._judge(lambda: judge.job(sent, struck))
        world.plane.forget()
        world.hosts.forget_requests()

    def _judge(self, check: Callable[[], object]) -> None:
        """Note a violation and go on: what happens in the hours after it is worth knowing, too."""
        try:
            check()
        except AssertionError as problem:
            self.violations.append(str(problem))
            self._say(f"VIOLATION: {problem}")

    def _read_log(self, worker: Worker) -> None:
        starts = (f"engine {name} started" for name in ("embedded", "a1111"))
        self.restarts = sum(worker.log().count(line) for line in starts) - 1


def _mild(world: World) -> list[Fault]:
    return [one for one in catalogue() if one.name in MILD and one.fits(world, short=False)]


def _age(world: World) -> None:
    """Let what was not used for a minute look unused for an hour: the worker waits 15 minutes."""
    now = time.time()
    for path in world.fetched.glob("blobs/*.json"):
        with suppress(OSError):
            if path.stat().st_mtime < now - IN_USE_SECONDS:
                os.utime(path, (now - 3600, now - 3600))


def _choose(world: World, models: tuple[list[Model], list[Model]], phase: int) -> None:
    """Let the jobs draw with the own models, and with one downloaded model of each kind."""
    narrowed = []
    for kind in models:
        hosted = [one for one in kind if one.host]
        chosen = hosted[phase % len(hosted)]
        narrowed.append([one for one in kind if not one.host or one is chosen])
    world.scenery.checkpoints, world.scenery.loras = narrowed


# The results -------------------------------------------------------------------------------------


def curves(samples: Samples) -> dict[str, Curve]:
    """File name -> plot."""
    x = "minutes"

    def lines(of: dict[str, list[float]]) -> dict[str, tuple[tuple[float, float], ...]]:
        return {name: _thinned(samples.minutes, values) for name, values in of.items()}

    rate, store = {"jobs": samples.per_minute()}, {"downloaded models": samples.store_mb}
    return {
        "soak-throughput": Curve("Throughput", x, "jobs in a busy minute", lines(rate)),
        "soak-memory": Curve("Memory of the processes", x, "resident MB", lines(samples.memory_mb)),
        "soak-descriptors": Curve("Descriptors", x, "open", lines(samples.descriptors)),
        "soak-threads": Curve("Threads", x, "threads", lines(samples.threads)),
        "soak-store": Curve("Store under its budget", x, "MB", lines(store)),
    }


def _thinned(minutes: list[float], values: list[float]) -> tuple[tuple[float, float], ...]:
    """At most POINTS points: the median of each stretch."""
    size = -(-len(values) // POINTS)
    stretches = [slice(at, at + size) for at in range(0, len(values), size)]
    return tuple(
        (statistics.median(minutes[one]), statistics.median(values[one])) for one in stretches
    )


def table(facts: dict[str, Any]) -> str:
    """The first and the last tenth of the run, side by side."""
    samples = Samples(**facts["samples"])
    tenth = max(1, len(samples.minutes) // 10)
    rows = {"jobs in a busy minute": samples.per_minute(), "store, MB": samples.store_mb}
    for title, of in (
        ("resident MB", samples.memory_mb),
        ("descriptors", samples.descriptors),
        ("threads", samples.threads),
    ):
        rows |= {f"{name}: {title}": values for name, values in of.items()}
    lines = [row("median of", "first tenth", "last tenth"), row("---", "---", "---")]
    for name, values in rows.items():
        ends = (values[:tenth], values[-tenth:])
        lines.append(row(name, *(f"{statistics.median(one):.4g}" for one in ends)))
    told = (
        f"Engine {facts['engine']}, seed {facts['seed']}: {facts['jobs']} jobs in"
        f" {samples.minutes[-1]:.0f} minutes on {os.cpu_count()} cores,"
        f" {sum(facts['faults'].values())} faults, {facts['restarts']} restarts of the engine,"
        f" {len(facts['violations'])} wrong or missing answers.\n"
    )
    return "\n".join([told, *lines]) + "\n"


def main() -> int:
    """The command line of `make soak`."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--engine", choices=["fake", "embedded"], default="embedded")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("soak-report"))
    parser.add_argument("--folder", help="for the workers' files; in memory is fast")
    parser.add_argument("--docs", action="store_true", help="write docs/soak.md and its plots")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # its workers and mounts go, too
    with tempfile.TemporaryDirectory(prefix="soak-", dir=given.folder) as folder:
        soak, docs = Soak(Path(folder), given.engine, given.seed, say), False
        try:
            soak.run(given.minutes)
            docs = given.docs
        finally:  # the hours before a failure are worth knowing, too, but not a page
            if soak.samples.jobs:
                write(soak, given.out, docs=docs)
    return int(bool(soak.violations))


def write(soak: Soak, out: Path, *, docs: bool) -> None:
    """Write the samples, and the plots, with `docs` into the page."""
    facts: dict[str, Any] = {"engine": soak.engine, "seed": soak.seed, "faults": soak.faults}
    facts |= {"jobs": soak.samples.jobs[-1], "restarts": soak.restarts, "ends": soak.counts}
    facts |= {"violations": soak.violations, "samples": vars(soak.samples)}
    out.mkdir(parents=True, exist_ok=True)
    (out / "soak.json").write_text(json.dumps(facts, indent=1) + "\n")
    folder = PROJECT / "docs/images" if docs else out
    plots = curves(soak.samples)
    for name, curve in plots.items():
        (folder / f"{name}.svg").write_text(draw(curve))
    if docs:
        shown = (f"![{described(one)}](images/{name}.svg)\n" for name, one in plots.items())
        fill_in(PROJECT / "docs/soak.md", "\n".join([table(facts), *shown]))


if __name__ == "__main__":
    sys.exit(main())
