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
downloaded while the engine computes. That is not enough here: the download takes as long as the
picture (2 s), and the next one starts only when a job has delivered its pictures. A job has its
place for 2 s of download, 2 s of computing, 0.15 s of encoding, and the worker's own time. Two of
them keep the engine busy for 4 s in each 4.15 s at best: 96 %. With 3, the next download runs
during the encoding and the delivery, too, so the figure with a goal is the one with 3.

All jobs wait in the queue at the beginning. The engine is the tests' A1111; it computes a picture
in 2 s and encodes it in 0.15 s. The download of a LoRA takes as long as the picture. The share is
the time in which the engine computes, from the first job's beginning to the last one's end.
Between two jobs it must also read its model folders again.
"""
STEPS, ENCODING = 20, 0.15
SECONDS = 2.0
JOBS, ROUNDS = 8, 2
NUMBERS = itertools.count(1000)  # of the LoRAs: each is new


def measure(bench: Bench) -> Iterator[Figure | Curve]:
    """The share of the time in which the engine computes, by JOB_CONCURRENCY."""
    seconds, jobs = (0.5, 3) if bench.quick else (SECONDS, JOBS)
    with ExitStack() as stack:
        enter = stack.enter_context
        hosts = enter(ModelHosts())
        hosts.throttle(None, ttfb=seconds)
        sides = {}
        for concurrency in (3, 2, 1):
            folder, plane = bench.folder / str(concurrency), enter(RunPodPlane())
            settings = {"JOB_CONCURRENCY": str(concurrency)}
            worker = running_worker(folder, plane, handler=HANDLER, hosts=hosts, **settings)
            sides[concurrency] = functools.partial(_share, enter(worker), hosts, jobs, seconds)
        found = in_turns(bench.rounds(ROUNDS), sides[3], sides[1])
        two = sides[2]()
    goal = Goal(97.0, of="value", at_least=True)
    name = f"engine busy, {jobs} jobs with a new LoRA each, JOB_CONCURRENCY="
    yield Figure(f"{name}3", "%", *found, "downloads inside the job", goal)
    yield Figure(f"{name}2", "%", (two,), found[1][:1], "downloads inside the job")
    points = ((1, statistics.median(found[1])), (2, two), (3, statistics.median(found[0])))
    lines = {"a new LoRA for each job": tuple((x, round(y, 1)) for x, y in points)}
    yield Curve("Busy share of the engine by JOB_CONCURRENCY", "JOB_CONCURRENCY", "percent", lines)


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
    spans = [(float(row["began"]), float(row["ended"])) for row in rows]
    computing = sum(end - begin for begin, end in spans)
    return 100 * computing / (max(end for _, end in spans) - min(begin for begin, _ in spans))
