"""A switch between two checkpoints, back and forth."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.gpu_proof.random_models import tensors_of, write_checkpoint, write_tiny_config
from benchmarks.sides import engine_process
from benchmarks.sides.engine_process import EngineProcess
from benchmarks.suite.bench import Bench
from benchmarks.suite.figures import Curve, Figure, Goal, in_turns

TITLE = "A switch between two checkpoints"
ABOUT = """\
A1111 v1.9.3 keeps one checkpoint in memory (`sd_checkpoints_limit` is 1), and so do all workers
around it: each job that names another checkpoint than the last one loads it from the disk. Our
worker sets the limit to what the machine's memory can hold. Measured is the switch itself, without
a picture (`POST /options` with the other checkpoint). Both limits are measured in one engine on the
CPU, in turns, with files of SD1's shapes (2.1 GB, random weights) in the page cache: from a disk
the loads take longer, the switches to a kept one do not. On a GPU a kept one is copied to it from
the machine's memory; that was not measured.

A real A1111 is measured as well if `WEBUI_DIR` and `WEBUI_PYTHON` name one. One on two CPU cores
wrote 0.0 to 0.1 s into its log for a kept checkpoint and 0.5 to 0.7 s for a load. The curve uses
tiny checkpoints, because four of SD1's size need 17 GB on the CPU; when more are in use than are
kept, each switch loads one again."""
NAMES = ("first", "second", "third", "fourth")


def measure(bench: Bench) -> Iterator[Figure | Curve]:
    """The switch in the embedded engine, in a real A1111 if there is one, and the curve."""
    folder = bench.folder / "two"
    _write(folder, 2, tiny=bench.quick)
    with engine_process.embedded(folder) as engine:
        yield _figure(bench, "the embedded engine", engine)
    if (real := _a1111(folder)) is not None:
        with real as engine:
            yield _figure(bench, "a real A1111 v1.9.3", engine)
    for path in folder.rglob("*.safetensors"):
        path.unlink()  # before the next ones need the space
    folder = bench.folder / "many"
    _write(folder, len(NAMES), tiny=True)
    with engine_process.embedded(folder) as engine:
        yield _curve(engine)


def _write(folder: Path, count: int, *, tiny: bool) -> None:
    checkpoints = folder / "models" / "Stable-diffusion"
    for seed, name in enumerate(NAMES[:count]):
        path = checkpoints / f"{name}.safetensors"
        write_checkpoint(path, tensors_of("SD1", tiny=tiny), seed)
        if tiny:
            write_tiny_config(path.with_suffix(".yaml"))


def _a1111(folder: Path) -> AbstractContextManager[EngineProcess] | None:
    webui, python = (Path(os.environ.get(name, "")) for name in ("WEBUI_DIR", "WEBUI_PYTHON"))
    if not (webui / "webui.py").is_file():
        return None
    return engine_process.a1111(webui, webui / python, folder)


def _figure(bench: Bench, where: str, engine: EngineProcess) -> Figure:
    ours, others = in_turns(
        bench.rounds(3),
        lambda: _seconds_of_a_switch(engine, limit=2, count=2),
        lambda: _seconds_of_a_switch(engine, limit=1, count=2),
    )
    return Figure(
        f"a switch between two SD1 checkpoints, {where}",
        "s",
        ours,
        others,
        "A1111's default: one in memory",
        Goal(0.3),
    )


def _seconds_of_a_switch(engine: EngineProcess, limit: int, count: int) -> float:
    """What a switch costs when `count` checkpoints are used in turn; the median of two rounds."""
    engine.post("options", {"sd_checkpoints_limit": limit})
    turn = NAMES[:count]
    for name in turn:
        engine.switch(name)
    seconds = [engine.switch(name) for name in turn * 2]
    engine.check_drawn_with(turn[-1])
    return statistics.median(seconds)


def _curve(engine: EngineProcess) -> Curve:
    lines = {
        f"{limit} kept": tuple(
            (float(count), _seconds_of_a_switch(engine, limit, count))
            for count in range(2, len(NAMES) + 1)
        )
        for limit in (1, 2, 3)
    }
    return Curve(
        "A switch by the number of checkpoints in use",
        "checkpoints in turn",
        "seconds a switch",
        lines,
    )
