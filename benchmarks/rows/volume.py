"""A checkpoint's first load from a slow network volume."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from safetensors.torch import load_file

from benchmarks.gpu_proof.random_models import tensors_of, write_checkpoint
from benchmarks.sides import slow_volume
from benchmarks.suite.bench import Bench
from benchmarks.suite.figures import Curve, Figure, Goal, in_turns
from worker.models.read_ahead import ReadAhead, ReadAheadLimits

TITLE = "A checkpoint's first load from a slow volume"
ABOUT = """\
A1111 loads a checkpoint with `safetensors.torch.load_file`: one stream, as do all workers around
it. A network volume gives one stream a part of its speed, so the worker reads the file into the
page cache with eight streams as soon as it knows the job's checkpoint. Here the volume is a folder
behind FUSE (the real kernel, page cache and all) that gives each opened file 200 MB/s. The loader
is A1111's own call, and each tensor is copied as into a model. Both begin at the same moment; in
the second figure the job waits for 2 s before it has its turn, as with `JOB_CONCURRENCY=2`. Files
of SD1's shapes, 2.1 GB. What the volume gives in total is limited by FUSE's speed on this machine.
Without `/dev/fuse` and fuse3 the row is empty."""
ALONE, AHEAD = "A1111's load alone", "with reading ahead"
RATE = 200e6  # bytes a second of one stream
SECONDS_IN_THE_QUEUE = 2.0
PARTS = (0.25, 0.5, 1.0)  # of a checkpoint's tensors


def measure(bench: Bench) -> Iterator[Figure | Curve]:
    """The load alone and beside the reading ahead, at once and after a wait."""
    if slow_volume.why_impossible():
        return
    mount = bench.folder / "volume"
    with bench.in_memory() as source:
        for part in PARTS:
            _write(source / _name(part), part, tiny=bench.quick)
        with slow_volume.mounted(source, mount, RATE):
            yield from _figures(bench, mount)


def _figures(bench: Bench, mount: Path) -> Iterator[Figure | Curve]:
    # The tiny files of a quick run would be left alone.
    limits = ReadAheadLimits(smallest=0, chunk=1 << 20) if bench.quick else ReadAheadLimits()
    ahead, whole = ReadAhead(limits), mount / _name(1.0)
    for text, wait in (("", 0.0), (", after 2 s in the queue", SECONDS_IN_THE_QUEUE)):
        ours, others = in_turns(
            bench.rounds(3),
            partial(_ours, ahead, whole, wait),
            lambda: _seconds(whole, nullcontext()),
        )
        name = f"first load of 2.1 GB at 200 MB/s a stream{text}"
        yield Figure(name, "s", ours, others, ALONE, Goal(0.6))
    points: dict[str, list[tuple[float, float]]] = {ALONE: [], AHEAD: []}
    for part in PARTS:
        path = mount / _name(part)
        size = path.stat().st_size / 1e9
        points[ALONE].append((size, _seconds(path, nullcontext())))
        points[AHEAD].append((size, _ours(ahead, path, 0.0)))
    lines = {side: tuple(line) for side, line in points.items()}
    yield Curve("First load from a slow volume", "GB", "seconds", lines)


def _name(part: float) -> str:
    return f"{part:g}.safetensors"


def _write(path: Path, part: float, *, tiny: bool) -> None:
    tensors = tensors_of("SD1", tiny=tiny)
    names = list(tensors)[: round(len(tensors) * part)]
    write_checkpoint(path, {name: tensors[name] for name in names}, seed=1)


def _ours(ahead: ReadAhead, path: Path, wait: float) -> float:
    return _seconds(path, ahead.beside([path]), wait)


def _seconds(path: Path, beside: AbstractContextManager[None], wait: float = 0.0) -> float:
    """The time of a load whose file is not in the page cache, `wait` seconds after `beside`."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with beside:
        time.sleep(wait)
        began = time.perf_counter()
        for tensor in load_file(path).values():
            tensor.clone()
        return time.perf_counter() - began
