"""Sixteen workers that need the same new file at the same moment."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from fakes.fetching import Fetching
from fakes.hosts.model_hosts import ModelHosts
from fakes.model_files import LORA, safetensors

from benchmarks.sides.file_hosts import MIB
from benchmarks.suite.bench import Bench
from benchmarks.suite.figures import Curve, Figure, Goal

TITLE = "Sixteen workers, one new file"
ABOUT = """\
Sixteen worker processes share one model folder, as on a network volume, and get a job for the same
model that is not there yet. One of them downloads it, the others wait for it. The rival is one
worker alone with an empty folder. The time ends when the last worker has checked the file. The
tests' fake of CivitAI sends 5 MiB/s over each connection, after 80 ms, so that the processor is not
the limit.
The second figure is the bytes that the storage sent, divided by the size of the file: 1 is exactly
one download.
"""
WHY = (
    "Each of the fifteen that wait uses 0.14 s of CPU time: it looks ten times a second whether the"
    " file is there, and checks it in the end. Here they share two cores with the download."
)
WORKERS = 16
RATE = 5 * MIB
SIZE, QUICK_SIZE = 512, 8  # MiB
ROUNDS = 3
CURVE = (4, 8)  # workers, between one and all of them


def measure(bench: Bench) -> Iterator[Figure | Curve]:
    """Measure one worker and all of them, in turns, each time with an empty folder."""
    ours: list[float] = []
    others: list[float] = []
    downloads: list[float] = []
    with bench.in_memory() as folder, ModelHosts() as hosts:
        size = (QUICK_SIZE if bench.quick else SIZE) * MIB
        data = safetensors(LORA, size=size)
        model = hosts.add_model(version_id=1, data=data, kind="LORA")
        hosts.throttle(RATE)
        for number in range(bench.rounds(ROUNDS)):
            for count in (1, WORKERS) if number % 2 else (WORKERS, 1):
                hosts.forget_requests()
                seconds = _seconds(hosts, folder / f"{number}-{count}", model.file_url, count)
                hosts.settle()
                (ours if count == WORKERS else others).append(seconds)
                if count == WORKERS:
                    downloads.append(hosts.bytes_sent("storage") / len(data))
        between = [
            (count, _seconds(hosts, folder / f"curve-{count}", model.file_url, count))
            for count in CURVE
        ]
    name = f"{WORKERS} workers need the same new file of {size // MIB} MiB"
    yield Figure(name, "s", tuple(ours), tuple(others), "one worker", Goal(1.1), WHY)
    yield Figure(
        f"{WORKERS} workers, one new file: downloads", "", tuple(downloads), goal=Goal(1, "value")
    )
    ends = (1, statistics.median(others)), (WORKERS, statistics.median(ours))
    lines = {"one download for all": (ends[0], *between, ends[1])}
    yield Curve("One new file by number of workers", "workers", "s", lines)


def _seconds(hosts: ModelHosts, folder: Path, url: str, count: int) -> float:
    """From the moment at which all begin until the last one has the file."""
    with Fetching(hosts, folder, url, count) as workers:
        began = time.monotonic()
        workers.go()
        found = workers.results()
        seconds = time.monotonic() - began
    paths = {file["path"] for file in found}
    if len(found) != count or len(paths) != 1:
        raise RuntimeError(f"{count} workers found {found}")
    os.truncate(paths.pop(), 0)  # memory for the next round
    return seconds
