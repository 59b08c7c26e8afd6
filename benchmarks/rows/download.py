"""Downloads of one file: throttled per connection, and as fast as the machine can."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.sides import file_hosts
from benchmarks.sides.file_hosts import MIB, Host, Sample
from benchmarks.suite.bench import Bench
from benchmarks.suite.figures import Curve, Figure, Goal, in_turns

TITLE = "Downloads"
ABOUT = """\
Ours is all that the worker does with a model: it downloads, computes the SHA-256 on the way,
inspects the header, syncs the file to the disk and renames it. Each run is a fresh process. Ours is
timed without its imports and without reading the trusted certificates, which a worker does once.
aria2c is timed with its start (0.02 s), because a worker starts it for each file. Every file is
compared with the host's.

* **Throttled:** the host sends 20 MiB/s over each connection, as object stores limit them (Linux
  paces each socket), and begins each answer after 80 ms. The rival is
  `aria2c -x16 -s16 -k1M`, as many workers call it, *without* a hash; it opens at most 16
  connections to a host. "The limit" is 16 connections without any delay.
* **Unthrottled:** nginx with sendfile on the same machine. The rival is the same aria2c followed by
  the faster of `sha256sum` and `openssl dgst -sha256`.
"""
RATE = 20 * MIB  # bytes per second of a throttled connection
FIRST_BYTE = 0.08  # seconds
CONNECTIONS = 16  # of aria2c, which refuses more
SIZES = (150, 256, 1024, 7168)  # MiB: a LoRA, SD1's pruned halves, SD1 in half, SDXL
LARGEST_IN_MEMORY = 1024  # MiB
UNTHROTTLED = 1024  # MiB
ROUNDS = 3
MEMORY = 100e6  # bytes
RIVAL, RIVAL_HASHES = "aria2c -x16 without a hash", "aria2c -x16, then a hash"
HASHES = (["sha256sum"], ["openssl", "dgst", "-r", "-sha256"])
WHY_MISSED = (
    "The processor is the limit: host, transfer and SHA-256 share the cores of one machine. On two"
    " cores with SHA instructions, our process used 3.6 s of CPU for 1 GiB over HTTP and 4.3 s over"
    " TLS, of which the hash is 0.7 s; aria2c used 1.5 and 2.0 s. Python's threads hand over the"
    " interpreter lock for each TLS record of 16 KiB (127,000 context switches for 1 GiB). Without"
    " SHA instructions the hash alone takes 2.7 s."
)


@dataclass
class Side:
    """Both sides of one file at one host.

    Attributes:
        peaks: of our process, bytes, one for each run.
    """

    sample: Sample
    host: Host
    target: Path
    peaks: list[float] = field(default_factory=list)

    def ours(self) -> float:
        """Seconds of the worker's download."""
        program = Path(file_hosts.__file__).with_name("model_fetch.py")
        command = [sys.executable, str(program), self.host.url, str(self.target)]
        report = json.loads(self._run([*command, self.sample.sha256]))
        self._finish()
        self.peaks.append(report["peak"])
        return float(report["seconds"])

    def aria2c(self) -> float:
        """Seconds of aria2c without a hash."""
        began = time.monotonic()
        self._run(self._aria2c())
        seconds = time.monotonic() - began
        self._finish()
        return seconds

    def aria2c_and_hash(self) -> float:
        """Seconds of aria2c and of the faster hash program after it."""
        began = time.monotonic()
        self._run(self._aria2c())
        seconds = time.monotonic() - began
        hashing = []
        for program in HASHES:
            began = time.monotonic()
            found = self._run([*program, str(self.target)])
            hashing.append(time.monotonic() - began)
            if not found.startswith(self.sample.sha256):
                raise RuntimeError(f"{program[0]} printed {found[:80]!r}.")
        self._finish()
        return seconds + min(hashing)

    def _aria2c(self) -> list[str]:
        # -s16 splits the file at once, -k1M splits what is left again later.
        options = "--no-conf --quiet --allow-overwrite=true --auto-file-renaming=false"
        options += f" --file-allocation=none -x{CONNECTIONS} -s{CONNECTIONS} -k1M"
        certificate = [f"--ca-certificate={self.host.ca_file}"] if self.host.ca_file else []
        place = ["-d", str(self.target.parent), "-o", self.target.name]
        return ["aria2c", *options.split(), *certificate, *place, self.host.url]

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            command, env=self.host.environment(), stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout

    def _finish(self) -> None:
        self.sample.check(self.target)
        self.target.unlink()


def measure(bench: Bench) -> Iterator[Figure | Curve]:
    """Measure all sizes, over HTTP and TLS."""
    _require("aria2c", "nginx", "openssl", "sha256sum")
    points: dict[str, list[tuple[float, float]]] = {}
    peaks: list[float] = []
    for size in (8, 16) if bench.quick else SIZES:
        for figure in _throttled(bench, size, peaks):
            yield figure
            scheme = figure.name.rpartition(" ")[2]
            both = ("ours", figure.our_value), ("aria2c -x16", figure.other_value or 0)
            for name, seconds in both:
                points.setdefault(f"{name}, {scheme}", []).append((size, seconds))
        limit = size * MIB / (CONNECTIONS * RATE)
        points.setdefault("the limit", []).append((size, limit))
    lines = {side: tuple(found) for side, found in points.items()}
    yield Curve("Download, 20 MiB/s a connection", "MiB", "seconds", lines, log_x=True)
    yield from _unthrottled(bench, 32 if bench.quick else UNTHROTTLED, peaks)
    yield Figure(
        "download: peak memory of the process",
        "MB",
        tuple(peak / 1e6 for peak in peaks),
        goal=Goal(MEMORY / 1e6, "value"),
    )


def _throttled(bench: Bench, size: int, peaks: list[float]) -> Iterator[Figure]:
    """One size. The largest one is written to the disk and measured once."""
    with bench.in_memory() as folder:
        sample = Sample.make(folder, size * MIB)
        is_large = size > LARGEST_IN_MEMORY
        target = (bench.folder if is_large else folder) / "model.safetensors"
        for tls in (False, True):
            with file_hosts.paced(sample, RATE, FIRST_BYTE, tls=tls) as host:
                side = Side(sample, host, target)
                rounds = bench.rounds(1 if is_large else ROUNDS)
                ours, others = in_turns(rounds, side.ours, side.aria2c)
                peaks += side.peaks
                name = f"download of {size} MiB, 20 MiB/s a connection, {_scheme(tls)}"
                yield Figure(name, "s", ours, others, RIVAL, Goal(1.0), WHY_MISSED)


def _unthrottled(bench: Bench, size: int, peaks: list[float]) -> Iterator[Figure]:
    with bench.in_memory() as folder:
        sample = Sample.make(folder, size * MIB)
        for tls in (False, True):
            with file_hosts.unlimited(sample, tls=tls) as host:
                side = Side(sample, host, folder / "target")
                ours, others = in_turns(bench.rounds(ROUNDS), side.ours, side.aria2c_and_hash)
                peaks += side.peaks
                name = f"download of {size} MiB, unthrottled, {_scheme(tls)}"
                yield Figure(name, "s", ours, others, RIVAL_HASHES, Goal(0.7), WHY_MISSED)


def _scheme(tls: bool) -> str:
    return "TLS" if tls else "HTTP"


def _require(*tools: str) -> None:
    if missing := [tool for tool in tools if not shutil.which(tool)]:
        raise RuntimeError(f"missing programs: {', '.join(missing)}")
