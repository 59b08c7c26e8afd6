"""How busy the engine is when every job brings a new LoRA."""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Iterator
from contextlib import ExitStack

from fakes.hosts.model_hosts import ModelHosts
from fakes.model_files import safetensors
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import HANDLER, WorkerProcess, running_worker

from benchmarks.suite.bench import Bench
from benchmarks.suite.figures import Curve, Figure, Goal, in_turns

TITLE = "How busy the engine is when every job brings a new LoRA"
ABOUT = """\
The rivals that download on demand do it inside the job, while the engine waits, as this worker
does with `JOB_CONCURRENCY=1`: this is the other side here. With 2, the next job's LoRA is
downloaded while the engine computes.

All jobs wait in the queue at the beginning. The engine is the tests' A1111; it computes a picture
in 2 s and encodes it in 0.15 s. The download of a LoRA takes as long as the picture. The share is
the time in which the engine computes, from the first job's beginning to the last one's end.
Between two jobs it must also read its LoRA folder again.
"""
STEPS, ENCODING = 20, 0.15
SECONDS = 2.0
JOBS, ROUNDS = 8, 2
NUMBERS = itertools.count(1000)  # of the LoRAs: each is new


def measure(bench: Bench) -> Iterator[Figure | Curve]:
    """The share of the time in which the engine computes."""
    seconds, jobs = (0.5, 3) if bench.quick else (SECONDS, JOBS)
    with ExitStack() as stack:
        enter = stack.enter_context
        hosts = enter(ModelHosts())
        hosts.throttle(None, ttfb=seconds)
        sides = []
        for concurrency in "21":
            folder, plane = bench.folder / concurrency, enter(RunPodPlane())
            settings = {"JOB_CONCURRENCY": concurrency}
            worker = running_worker(folder, plane, handler=HANDLER, hosts=hosts, **settings)
            sides.append(functools.partial(_share, enter(worker), hosts, jobs, seconds))
        found = in_turns(bench.rounds(ROUNDS), *sides)
    goal = Goal(97.0, of="value", at_least=True)
    name = f"engine busy, {jobs} jobs with a new LoRA each"
    yield Figure(name, "%", *found, "downloads inside the job", goal)


def _share(worker: WorkerProcess, hosts: ModelHosts, jobs: int, seconds: float) -> float:
    """Percent of the time in which the engine computes."""
    worker.no_faults()
    worker.fault("slow_steps", seconds=seconds / STEPS, times=-1)
    worker.fault("slow_encoding", seconds=ENCODING, times=-1)
    before, queued = len(worker.requests()), []
    for number in itertools.islice(NUMBERS, jobs):
        data, name = safetensors(number=number), f"lora{number}.safetensors"
        model = hosts.add_model(version_id=number, data=data, name=name, kind="LORA")
        job = {"prompt": "a fox", "steps": STEPS, "width": 64, "height": 64, "seed": number}
        queued.append(worker.plane.submit(job | {"loras": [model.download_url]}))
    fetching = []
    for one in queued:
        done = worker.plane.wait(one, 20 * seconds * jobs)
        if done["status"] != "COMPLETED":
            raise SystemExit(f"a job failed: {done}")
        fetching.append(done["output"]["timings"]["prepare"])
    rows = worker.requests()[before:]
    if len(rows) != jobs or statistics.median(fetching) < seconds:
        raise SystemExit("a job was sent again, or its LoRA was there already")
    computing = sum(row["ended"] - row["began"] for row in rows)
    return 100 * computing / (max(row["ended"] for row in rows) - min(row["began"] for row in rows))
