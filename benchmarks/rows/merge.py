"""The row of a merge: a LoRA merged into a checkpoint, beside `cp` of the same checkpoint."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.rows import PROJECT
from benchmarks.suite.bench import Bench
from benchmarks.suite.figures import Curve, Figure, Goal, in_turns
from benchmarks.suite.lora_shapes import lora_shapes
from worker.formats import stable_diffusion

TITLE = "Merging a LoRA into a checkpoint"
ABOUT = """\
A checkpoint with SDXL's shapes in half precision (6.9 GB; SD1's, 2.1 GB, where the disk has less
than 16 GB free) and a LoRA of rank 64 for all linear layers of its transformer blocks and text
encoders, with random weights. The rival is **`cp`** of the checkpoint, then `sync` of the copy.
Both read from the page cache and end when their file is on the disk; each runs in its own process.
The merge reads the changed layers, adds the LoRA's product in single precision, rounds once, and
copies the other layers inside the kernel.
"""
ROUNDS = 3
PARTS = (0.25, 0.5)  # of a checkpoint's UNet, for the curve
LIMIT, PEAK_MB = 1.3, 100
ENOUGH = 16e9  # bytes of free disk for SDXL: the checkpoint, and one other file at a time
SMALL = 100_000  # numbers of a tensor that a quick run keeps
SCALE, BLOCK = 0.02, 1 << 24  # of the random numbers, which repeat

MERGE = """
import sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
from worker.models.merge.merge import merge
from worker.models.merge.merge_key import LoraToMerge
base, lora, target = map(Path, sys.argv[2:])
begun = time.perf_counter()
merge(base, [LoraToMerge(lora, "lora", "ab")], target, {})
seconds = time.perf_counter() - begun
status = open("/proc/self/status").read()
print(seconds, int(status.partition("VmHWM:")[2].split()[0]) / 1000)
"""

WHY_MISSED = """\
A merge computes, and `cp` does not. For SDXL and rank 64, the products of the LoRA's matrices are
374 GFLOP, for 2.9 of 3.5 billion numbers; at numpy's 57 GFLOP for a second of CPU time, measured
alone, they are 6.6 s, on two cores. For SD1, a merge used 2.2 to 2.5 s of CPU time, of which 1.0 to
1.2 s were the kernel's; `cp` used 0.6 to 0.9 s."""


@dataclass
class Files:
    """The files in one folder, and the peak memory of each merge so far in MB."""

    base: Path
    lora: Path
    peaks: list[float]

    def copy(self) -> float:
        """Seconds of `cp` until the copy is on the disk."""
        target = self.base.with_name("copy")
        self._warm()
        begun = time.perf_counter()
        subprocess.run(["cp", str(self.base), str(target)], check=True)
        subprocess.run(["sync", target], check=True)
        seconds = time.perf_counter() - begun
        target.unlink()
        return seconds

    def merge(self) -> float:
        """Seconds of the merge until its file is on the disk."""
        target = self.base.with_name("merged")
        self._warm()
        paths = map(str, (PROJECT, self.base, self.lora, target))
        command = [sys.executable, "-c", MERGE, *paths]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        target.unlink()
        seconds, peak = map(float, done.stdout.split())
        self.peaks.append(peak)
        return seconds

    def _warm(self) -> None:
        """Read the files into the page cache."""
        for path in (self.base, self.lora):
            with path.open("rb") as file:
                while file.read(BLOCK):
                    pass


def measure(bench: Bench) -> Iterator[Figure | Curve]:
    """The merge beside `cp`, and the merge's memory."""
    family = _family(bench)
    shapes, rank = _shapes(family, bench), 8 if bench.quick else 64
    lines: dict[str, list[tuple[float, float]]] = {"merge": [], "cp": [], "memory": []}
    for part in PARTS[1:] if bench.quick else PARTS:  # a quarter of a quick run's has no layers
        files = _write_files(bench.folder, _part(shapes, part), rank)
        _add(lines, files, files.merge(), files.copy())
    files = _write_files(bench.folder, shapes, rank)
    size = f"{family}, {files.base.stat().st_size / 1e9:.1f} GB"
    merges, copies = in_turns(bench.rounds(ROUNDS), files.merge, files.copy)
    yield Figure(f"merge, {size}", "s", merges, copies, "`cp`", Goal(LIMIT), WHY_MISSED)
    peaks = tuple(files.peaks)
    yield Figure(f"peak memory of the merge, {size}", "MB", peaks, goal=Goal(PEAK_MB, "value"))
    _add(lines, files, statistics.median(merges), statistics.median(copies))
    memory = {"merge": tuple(lines.pop("memory"))}
    seconds = {side: tuple(line) for side, line in lines.items()}
    yield Curve("A merge by size of the checkpoint", "GB", "s", seconds)
    yield Curve("Peak memory of a merge by size of the checkpoint", "GB", "MB", memory)


def _add(
    lines: dict[str, list[tuple[float, float]]], files: Files, merge: float, copy: float
) -> None:
    size = files.base.stat().st_size / 1e9
    values = {"merge": merge, "cp": copy, "memory": statistics.median(files.peaks)}
    for line, value in values.items():
        lines[line].append((size, value))


def _family(bench: Bench) -> str:
    free = shutil.disk_usage(bench.folder).free
    return "SD1" if bench.quick or free < ENOUGH else "SDXL"


def _shapes(family: str, bench: Bench) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint; a quick run has two blocks of the UNet only."""
    shapes = dict(stable_diffusion.checkpoint(family))
    if not bench.quick:
        return shapes
    return {
        name: shape
        for name, shape in shapes.items()
        if not name.startswith(stable_diffusion.UNET)
        or "put_blocks.1." in name
        or math.prod(shape) < SMALL
    }


def _part(shapes: Mapping[str, tuple[int, ...]], part: float) -> dict[str, tuple[int, ...]]:
    """All of the text encoders and the VAE, and this part of the UNet's tensors."""
    unet = [name for name in shapes if name.startswith(stable_diffusion.UNET)]
    left_out = {*unet[round(len(unet) * part) :]}
    return {name: shape for name, shape in shapes.items() if name not in left_out}


# Files --------------------------------------------------------------------------------------------


def _write_files(folder: Path, shapes: Mapping[str, tuple[int, ...]], rank: int) -> Files:
    base, lora = folder / "base.safetensors", folder / "lora.safetensors"
    _write(base, shapes)
    _write(lora, lora_shapes(shapes, rank))
    return Files(base, lora, [])


def _write(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write a safetensors file of random half-precision numbers, the same every time."""
    position, header = 0, {}
    for name, shape in shapes.items():
        end = position + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    drawn = np.random.default_rng(0).standard_normal(BLOCK, dtype=np.float32) * SCALE
    data = drawn.astype(np.float16).view(np.uint8).data
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        while position:
            position -= file.write(data[: min(len(data), position)])
        os.fsync(file.fileno())
