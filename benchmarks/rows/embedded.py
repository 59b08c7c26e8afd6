"""The embedded engine compared with diffusers' pipeline in a script: time, memory, idle CPU."""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from benchmarks.sides import drawing
from benchmarks.sides.drawing import Side
from benchmarks.suite.bench import Bench
from benchmarks.suite.figures import Curve, Figure, Goal, in_turns

OURS, OTHER = "the embedded engine", "diffusers' pipeline in a script"
TITLE = "The embedded engine on the CPU"
ABOUT = f"""\
The rival is a script with diffusers' `StableDiffusionPipeline.from_single_file`, as diffusers'
documentation shows it, from the same environment: no server, no queue, no progress. It reads the
configuration of the model from a local folder, because it would download it otherwise. Both load
the demo model and draw with "Euler a", {drawing.STEPS} steps and CFG {drawing.CFG:g}. Each side has
its own defaults for the number of threads and for how they wait.

The engine's seconds are those of its client, with HTTP, PNG and base64; the script's include its
PNG. The boot is the time from the start of the process to its first picture of 256 x 256. The
engine draws the pictures of a batch one by one, so that a seed gives the same picture in each
batch. The two sides' pictures differ in some bits: the engine passes unrounded times to the model
and encodes prompts as A1111 does. All figures are of the CPU.
"""
ROUNDS, BOOTS, IDLE_SECONDS = 9, 3, 3.0
SIZES, BATCHES = (128, 256, 384, 512), (1, 2, 4)
USUAL, WITH_GOAL = 256, (64, 256, 512)
WHY_WARM = (
    "While OpenMP's threads wait for each other, the script's spin for milliseconds, and the"
    " engine's for some 50 microseconds (`GOMP_SPINCOUNT=1000`): a busy program beside them would"
    " slow it down otherwise. Measured with 1,000, 3,000, 10,000 and 100,000: 0.92, 0.65, 0.73 and"
    " 0.62 s for 256 x 256 alone, and 1.5, 2.7, 3.6 and 11 s beside a busy program."
)
WHY_ONE_BY_ONE = (
    "The script draws the four together: on small pictures, one larger operation keeps the cores"
    " busier than four small ones. But the same seed then gives slightly different pixels in each"
    " batch."
)
WHY_BOOT = (
    "The engine also imports its HTTP server, hashes the checkpoint, checks that it is complete,"
    " and derives its configuration from its tensors; the script is given a finished one."
)


def measure(bench: Bench) -> Iterator[Figure | Curve]:
    """Boots; then warm pictures by size and by number; then memory, idle CPU and a busy machine."""
    configuration = bench.folder / "configuration"
    drawing.write_configuration(configuration)
    sides: tuple[Callable[[], AbstractContextManager[Side]], ...] = (
        functools.partial(drawing.engine, bench.folder / "engine"),
        functools.partial(drawing.pipeline, configuration),
    )
    boots = [functools.partial(_boot, side) for side in sides]
    earlier = in_turns(0 if bench.quick else BOOTS - 1, boots[0], boots[1])
    with ExitStack() as stack:
        ours, other = (stack.enter_context(side()) for side in sides)
        seconds = (*earlier[0], ours.boot), (*earlier[1], other.boot)
        yield Figure("boot to the first picture", "s", *seconds, OTHER, Goal(1.05), WHY_BOOT)
        yield from _sizes(bench, ours, other)
        yield from _batches(bench, ours, other)
        memory = (ours.peak(),), (other.peak(),)
        yield Figure("peak memory after all pictures above", "MB", *memory, OTHER)
        before = ours.cpu_seconds()
        time.sleep(0.5 if bench.quick else IDLE_SECONDS)
        used = (ours.cpu_seconds() - before) * 1000
        yield Figure(f"CPU of the idle engine in {IDLE_SECONDS:g} s", "ms", (used,))
        if bench.quick:  # the script's picture takes many times longer then
            return
        with _busy_process():
            found = _warm(1, ours, other, USUAL, 1)
        yield Figure(f"1 picture of {USUAL} x {USUAL} beside a busy process", "s", *found, OTHER)


def _boot(side: Callable[[], AbstractContextManager[Side]]) -> float:
    with side() as running:
        return running.boot


def _sizes(bench: Bench, ours: Side, other: Side) -> Iterator[Figure | Curve]:
    lines: dict[str, list[tuple[float, float]]] = {OURS: [], OTHER: []}
    for size in (64,) if bench.quick else SIZES:
        rounds = bench.rounds(ROUNDS if size == USUAL else 3)
        found = _warm(rounds, ours, other, size, 1)
        _add(lines, size, found)
        if size in WITH_GOAL:
            name = f"1 warm picture of {size} x {size}"
            yield Figure(name, "s", *found, OTHER, Goal(1.0), WHY_WARM)
    yield Curve("A warm picture by its size", "pixels of a side", "s", _points(lines))


def _batches(bench: Bench, ours: Side, other: Side) -> Iterator[Figure | Curve]:
    size = 64 if bench.quick else USUAL
    lines: dict[str, list[tuple[float, float]]] = {OURS: [], OTHER: []}
    for pictures in BATCHES:
        found = _warm(bench.rounds(3), ours, other, size, pictures)
        _add(lines, pictures, found)
        if pictures == BATCHES[-1]:
            name = f"{pictures} warm pictures of {size} x {size} in a job"
            yield Figure(name, "s", *found, OTHER, Goal(1.0), WHY_ONE_BY_ONE)
    yield Curve(f"Warm pictures of {size} x {size}", "pictures of a job", "s", _points(lines))


def _warm(
    rounds: int, ours: Side, other: Side, size: int, pictures: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    timed = [functools.partial(side.seconds, size, pictures) for side in (ours, other)]
    return in_turns(rounds, timed[0], timed[1])


def _add(
    lines: dict[str, list[tuple[float, float]]],
    x: float,
    found: tuple[tuple[float, ...], tuple[float, ...]],
) -> None:
    for name, seconds in zip((OURS, OTHER), found, strict=True):
        lines[name].append((x, statistics.median(seconds)))


def _points(
    lines: dict[str, list[tuple[float, float]]],
) -> dict[str, tuple[tuple[float, float], ...]]:
    return {name: tuple(points) for name, points in lines.items()}


@contextmanager
def _busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()
