"""Our transport compared with the plain RunPod SDK: gaps between jobs, lost results, the end.

    .venv/bin/python benchmarks/runpod_transport.py     # six minutes; --only gap|faults|end

Both are the real SDK in a fresh process, with a handler that does nothing, and the tests' control
plane on loopback. docs/internals/runpod-sdk.md explains the figures.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

from fakes.runpod_plane import RunPodPlane  # noqa: E402
from fakes.sdk_worker import SdkWorker, running_sdk_worker  # noqa: E402
from slow_line import SlowLine  # noqa: E402

# What can happen to the post of a result, for RunPodPlane.fault.
FAULTS: list[dict[str, object]] = [
    {"drop": True, "times": 3},
    {"status": 429, "times": 3},
    {"status": 502, "times": 3},
    {"status": 400},
    {"status": 413},
]

WAIT = 120.0
LINE = 0.02  # seconds for a byte to RunPod, one way
HOLD = 20.0  # seconds for which RunPod holds an idle poll here


def main() -> None:
    """Run the parts and print a line for each figure."""
    options = _arguments()
    parts = {"gap": _gaps, "faults": _faults, "end": _ends}
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts.items():
            if options.only in {None, name}:
                part(Path(folder) / name, options)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["gap", "faults", "end"])
    parser.add_argument("--jobs", type=int, default=2000, help="for the gap between jobs")
    parser.add_argument("--plain-jobs", type=int, default=50, help="the same, for the plain SDK")
    parser.add_argument("--faulty-jobs", type=int, default=500)
    parser.add_argument("--tries", type=int, default=50, help="SIGTERMs")
    return parser.parse_args()


# The gap ----------------------------------------------------------------------------------------


def _gaps(folder: Path, options: argparse.Namespace) -> None:
    ours, first, last = _gap(folder / "ours", options.jobs)
    plain, *_ = _gap(folder / "plain", options.plain_jobs, PLAIN="1")
    print(f"gap between jobs, ms: ours ({options.jobs} jobs), plain ({options.plain_jobs}), ratio")
    for name, share in (("p50", 0.5), ("p95", 0.95), ("longest", 1.0)):
        mine, theirs = _share(ours, share), _share(plain, share)
        print(f"  {name}: {mine:.1f}, {theirs:.1f}, {mine / theirs:.4f}")
    growth = 100 * (last - first) / first
    print(
        f"  our memory after a tenth of the jobs {first:.1f} MB, at the end {last:.1f} MB:"
        f" {growth:+.1f} %"
    )


def _gap(folder: Path, jobs: int, **how: str) -> tuple[list[float], float, float]:
    """Milliseconds from one job's end to the next job's start; megabytes early and at the end."""
    with RunPodPlane(hold=HOLD) as plane, running_sdk_worker(folder, plane, **how) as worker:
        ids = [plane.submit({"echo": number}) for number in range(jobs)]
        plane.wait(ids[jobs // 10], WAIT)
        first = _resident(worker.process.pid)
        for job in ids:
            _check(plane.wait(job, WAIT)["status"] == "COMPLETED", worker)
        last = _resident(worker.process.pid)
        times = worker.times()
        _check(len(times) == jobs, worker)
    return [1000 * (after[1] - before[2]) for before, after in pairwise(times)], first, last


def _check(good: bool, worker: SdkWorker) -> None:
    if not good:
        sys.exit(f"the measurement failed; the worker's log:\n{worker.log()}")


def _share(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def _resident(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024 / 1e6


# The faults -------------------------------------------------------------------------------------


def _faults(folder: Path, options: argparse.Namespace) -> None:
    for name, how in (("ours", {}), ("plain", {"PLAIN": "1"})):
        jobs = options.faulty_jobs if name == "ours" else 5 * len(FAULTS)
        with (
            RunPodPlane(hold=HOLD) as plane,
            running_sdk_worker(folder / name, plane, CONCURRENCY="8", **how),
        ):
            ended = _faulty_jobs(plane, jobs)
        counts = ", ".join(f"{status} {ended.count(status)}" for status in sorted(set(ended)))
        print(f"posts that fail, {name}, {jobs} jobs: {counts}")


def _faulty_jobs(plane: RunPodPlane, jobs: int) -> list[str]:
    """The status of each job for its caller; a result that is lost becomes TIMED_OUT."""
    chance = random.Random(1)  # noqa: S311
    for number in range(jobs):
        plane.fault("job-done", job=str(number), **chance.choice(FAULTS))
    ids = [
        plane.submit({"echo": number}, id=str(number), policy={"executionTimeout": 60_000})
        for number in range(jobs)
    ]
    return [plane.wait(job, 10 * WAIT)["status"] for job in ids]


# The end ----------------------------------------------------------------------------------------


def _ends(folder: Path, options: argparse.Namespace) -> None:
    """Submit a job within 0.1 s before or after SIGTERM, with 20 ms to RunPod."""
    idle = [_end(folder / f"idle-{number}", None)[0] for number in range(5)]
    chance = random.Random(1)  # noqa: S311
    leads = [chance.uniform(-0.1, 0.1) for _ in range(options.tries)]
    ours = [_end(folder / f"ours-{number}", lead) for number, lead in enumerate(leads)]
    plain = [_end(folder / f"plain-{n}", lead, PLAIN="1") for n, lead in enumerate((-0.05, -0.1))]
    plain_idle, _ = _end(folder / "plain-idle", None, PLAIN="1")
    longest = max(seconds for seconds, _ in ours)
    print(
        f"SIGTERM while idle, s: ours {statistics.median(idle):.2f} (longest {max(idle):.2f}),"
        f" plain {plain_idle:.2f}, ratio {statistics.median(idle) / plain_idle:.3f}"
    )
    for name, tries in (("ours", ours), ("plain", plain)):
        ends = [status for _, status in tries]
        counts = ", ".join(f"{ends.count(status)} {status}" for status in sorted(set(ends)))
        print(f"a job around SIGTERM, {name}, {len(tries)} tries: {counts}")
    print(f"  longest end of ours {longest:.2f} s")


def _end(folder: Path, lead: float | None, **how: str) -> tuple[float, str]:
    """Seconds from SIGTERM to the end, and the status of a job submitted `lead` s before it.

    A job that is still IN_PROGRESS after its worker's end is lost.
    """
    with (
        RunPodPlane(hold=HOLD) as plane,
        SlowLine(plane.port, LINE) as line,
        running_sdk_worker(folder, plane, port=line.port, **how) as worker,
    ):
        time.sleep(0.2)
        job = ""
        if lead is not None and lead >= 0:
            job = plane.submit({})
            time.sleep(lead)
        sent = time.monotonic()
        worker.process.send_signal(signal.SIGTERM)
        if lead is not None and lead < 0:
            time.sleep(-lead)
            job = plane.submit({})
        _check(worker.process.wait(2 * HOLD + 60) == 0, worker)
        return time.monotonic() - sent, plane.status(job)["status"] if job else ""


if __name__ == "__main__":
    main()
