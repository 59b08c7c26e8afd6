"""The embedded engine compared with diffusers' pipeline used directly: time and memory.

    python benchmarks/engine.py [--checkpoint FILE] [--rounds 5] [--threads N]

Both load the same file and draw the same requests, each in its own process. They take turns, so
that a busy machine slows both. The engine's time is measured by its client and includes HTTP, PNG
and base64.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import requests

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

from fakes.a1111.process import free_port  # noqa: E402

CHECKPOINT = PROJECT / "demo" / "Stable-diffusion" / "demo-shapes.safetensors"
PROMPT = "a red circle on a blue background"
STEPS, CFG, SMALL, LARGE = 20, 7.0, 256, 512
BOOT_SECONDS = 600
POLL_SECONDS = 0.02


class Side(Protocol):
    """One of the two, and its process."""

    pid: int

    def draw(self, size: int, seed: int) -> float:
        """The seconds that a square picture took."""


@dataclass
class Figures:
    """The results of one side: seconds, and megabytes of peak memory after each part."""

    picture: float
    small: list[float]
    large: float
    peaks: list[int]


def main() -> None:
    """Print a line for each measure: the engine, the pipeline, and their ratio."""
    options = _arguments()
    if options.direct:
        _serve_directly(options.checkpoint, options.threads)
        return
    if not options.checkpoint.is_file():
        sys.exit(f"{options.checkpoint} is not there; name one with --checkpoint")
    print(f"{options.checkpoint.name}, {STEPS} steps, Euler a, {options.threads} threads")
    with (
        _engine(options.checkpoint, options.threads) as (engine, answer, first),
        _pipeline(options.checkpoint, options.threads) as (direct, direct_first),
    ):
        ours, theirs = _compare(engine, first, direct, direct_first, options.rounds)
    print(f"boot to the first answer of GET /sd-models: {answer:.2f} s")
    _show("boot to the first picture, s", ours.picture, theirs.picture)
    name = f"{SMALL}x{SMALL}, warm, median of {options.rounds}, s"
    _show(name, statistics.median(ours.small), statistics.median(theirs.small))
    _show(f"{LARGE}x{LARGE}, once, s", ours.large, theirs.large)
    parts = ("the first picture", f"{SMALL}x{SMALL}", f"{LARGE}x{LARGE}")
    for part, *peaks in zip(parts, ours.peaks, theirs.peaks, strict=True):
        _show(f"peak after {part}, MB", *peaks)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch's")
    parser.add_argument("--direct", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _show(name: str, ours: float, theirs: float) -> None:
    print(f"{name}: engine {ours:.2f}, pipeline {theirs:.2f}, ratio {ours / theirs:.2f}")


def _compare(
    engine: Side, engine_first: float, direct: Side, direct_first: float, rounds: int
) -> tuple[Figures, Figures]:
    sides = (engine, direct)
    found = [
        Figures(first, [], 0.0, [_peak(side.pid)])
        for side, first in zip(sides, (engine_first, direct_first), strict=True)
    ]
    for seed in range(rounds):
        for side, figures in zip(sides, found, strict=True):
            figures.small.append(side.draw(SMALL, seed))
    for side, figures in zip(sides, found, strict=True):
        figures.peaks.append(_peak(side.pid))
        figures.large = side.draw(LARGE, rounds)
        figures.peaks.append(_peak(side.pid))
    return found[0], found[1]


def _peak(pid: int) -> int:
    """The process's largest resident memory so far, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 // 1_000_000


# The engine --------------------------------------------------------------------------------------


@dataclass
class _Engine:
    pid: int
    url: str

    def draw(self, size: int, seed: int) -> float:
        request = {
            "prompt": PROMPT,
            "seed": seed,
            "steps": STEPS,
            "cfg_scale": CFG,
            "width": size,
            "height": size,
            "sampler_name": "Euler a",
        }
        start = time.perf_counter()
        answer = requests.post(f"{self.url}/txt2img", json=request, timeout=BOOT_SECONDS)
        answer.raise_for_status()
        base64.b64decode(answer.json()["images"][0])
        return time.perf_counter() - start


@contextmanager
def _engine(checkpoint: Path, threads: int) -> Iterator[tuple[_Engine, float, float]]:
    """The engine, and the seconds from its start to its first answer and to its first picture."""
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models" / "Stable-diffusion"
        models.mkdir(parents=True)
        (models / checkpoint.name).symlink_to(checkpoint.resolve())
        port = free_port()
        command = [sys.executable, "-m", "engine", "--data-dir", folder, "--port", str(port)]
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--threads", str(threads)], cwd=PROJECT, stdout=subprocess.DEVNULL
        )
        try:
            engine = _Engine(process.pid, f"http://127.0.0.1:{port}/sdapi/v1")
            _wait(f"{engine.url}/sd-models", process)
            answer = time.perf_counter() - start
            engine.draw(SMALL, 0)
            yield engine, answer, time.perf_counter() - start
        finally:
            process.kill()
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + BOOT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            requests.get(url, timeout=BOOT_SECONDS).raise_for_status()
        except requests.ConnectionError:
            time.sleep(POLL_SECONDS)
        else:
            return
    sys.exit("the engine did not start")


# The pipeline ------------------------------------------------------------------------------------


@dataclass
class _Pipeline:
    pid: int
    process: subprocess.Popen[str]

    def draw(self, size: int, seed: int) -> float:
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("no pipes")
        self.process.stdin.write(json.dumps({"size": size, "seed": seed}) + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


@contextmanager
def _pipeline(checkpoint: Path, threads: int) -> Iterator[tuple[_Pipeline, float]]:
    """The pipeline, and the seconds from its start to its first picture."""
    command = [sys.executable, __file__, "--direct", "--checkpoint", str(checkpoint)]
    start = time.perf_counter()
    with subprocess.Popen(
        [*command, "--threads", str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        pipeline = _Pipeline(process.pid, process)
        pipeline.draw(SMALL, 0)
        yield pipeline, time.perf_counter() - start


def _serve_directly(checkpoint: Path, threads: int) -> None:
    """Read a request a line and print its seconds; the picture is not sent."""
    import diffusers
    import torch

    from engine.models.loading import read_pipeline  # a file without a configuration needs ours

    torch.set_num_threads(threads)
    pipe = read_pipeline(checkpoint)
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="linspace"
    )
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        picture = pipe(
            PROMPT,
            width=request["size"],
            height=request["size"],
            num_inference_steps=STEPS,
            guidance_scale=CFG,
            generator=torch.Generator().manual_seed(request["seed"]),
        ).images[0]
        picture.save(io.BytesIO(), format="PNG")
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
