"""Our download against aria2c, curl and requests; see README.md beside this file.

Ours does all that the worker does with a model: SHA-256, inspection, fsync. The contenders take
turns, each run in a fresh process, so a slow period of the machine affects all of them. The exit
status is 1 if a contender failed or its file is wrong; missed goals do not change it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from contenders import ARIA2C, ARIA2C_THEN, CONTENDERS, CURL, HASH, OURS, TRANSFER, Failed, Run, run
from hosts import MIB, Sample, make_sample, throttled, unthrottled

TOOLS = ("aria2c", "curl", "nginx", "openssl", "sha256sum", "bash")
SIZES = {"throttled": 1024, "unthrottled": 2048}  # MiB
QUICK_SIZE = 256
MEMORY = 100e6  # bytes

Runs = dict[str, list[Run]]


@dataclass(frozen=True)
class Goal:
    """A figure, and its limit."""

    what: str
    figure: float
    most: float


@dataclass(frozen=True)
class Case:
    """One host."""

    kind: str  # "throttled" or "unthrottled"
    tls: bool

    def __str__(self) -> str:
        return f"{self.kind}, {'TLS' if self.tls else 'HTTP'}"


def main() -> int:
    """Measure, print the figures, and compare them with the goals."""
    options = _options()
    sys.stdout.reconfigure(line_buffering=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # removes the files in memory
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        print("missing: " + ", ".join(missing), file=sys.stderr)
        return 2
    if options.pin:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    _print_machine()
    failures = 0
    goals: list[Goal] = []
    for kind in options.only or SIZES:
        size = options.size or (QUICK_SIZE if options.quick else SIZES[kind])
        with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder:
            sample = make_sample(Path(folder) / "model.safetensors", size * MIB)
            for tls in (False, True):
                case = Case(kind, tls)
                runs, failed = _rounds(case, sample, options.rounds)
                _print_table(case, sample, runs)
                failures += failed
                goals += [] if failed else _judge(case, runs, pinned=options.pin)
    _print_goals(goals)
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Our download against others.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, metavar="MIB", help="of the file")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SIZE} MiB")
    parser.add_argument("--only", action="append", choices=SIZES)
    parser.add_argument("--pin", action="store_true", help="everything on one core")
    parser.add_argument("--folder", default="/dev/shm", help="to write to; default: no disk")  # noqa: S108
    return parser.parse_args()


def _print_machine() -> None:
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    cores = len(os.sched_getaffinity(0))
    print(f"{time.strftime('%F %T')}, {cores} cores for all of it and the servers, load {load}")


def _rounds(case: Case, sample: Sample, rounds: int) -> tuple[Runs, int]:
    """Run all contenders in turn, several times; returns costs and the number of failed runs."""
    runs: Runs = defaultdict(list)
    failed = 0
    target = sample.path.parent / "target" / "model.safetensors"
    target.parent.mkdir(exist_ok=True)
    with (throttled if case.kind == "throttled" else unthrottled)(sample, tls=case.tls) as host:
        for number in range(rounds):
            for contender in CONTENDERS:
                most = contender.throttled_rounds
                if case.kind == "throttled" and most is not None and number >= most:
                    continue
                try:
                    for name, one in run(contender, host, sample, target):
                        runs[name].append(one)
                except Failed as failure:
                    print(f"FAILED: {contender.name}, {case}: {failure}")
                    failed += 1
    return runs, failed


def _print_table(case: Case, sample: Sample, runs: Runs) -> None:
    print(f"\n{case}, {sample.size / MIB:.0f} MiB")
    print(
        f"{'':<34}{'seconds':>8} {'min-max':>13}{'MB/s':>7}{'CPU s':>7}{'MB':>6}{'runs':>6}"
        f"{'others':>8}"
    )
    for name, several in runs.items():
        seconds = [one.seconds for one in several]
        spread = f"{min(seconds):.2f}-{max(seconds):.2f}"
        cpu = statistics.median(one.cpu for one in several)
        peak = max(one.peak for one in several) / 1e6
        others = statistics.median(one.others for one in several)
        print(
            f"{name:<34}{_median(several):>8.2f} {spread:>13}"
            f"{sample.size / 1e6 / _median(several):>7.0f}{cpu:>7.2f}{peak:>6.0f}{len(several):>6}"
            f"{others:>8.2f}"
        )


def _median(several: list[Run]) -> float:
    return statistics.median(one.seconds for one in several)


def _judge(case: Case, runs: Runs, *, pinned: bool) -> list[Goal]:
    ours = _median(runs[OURS])
    limit = _limit(runs, pinned=pinned)
    memory = Goal(f"{case}: peak MB", max(one.peak for one in runs[OURS]) / 1e6, MEMORY / 1e6)
    if case.kind == "throttled":
        return [
            Goal(f"{case}: ours / aria2c without hash", ours / _median(runs[ARIA2C]), 1.0),
            memory,
        ]
    rival = min(_median(runs[name]) for name in ARIA2C_THEN)
    return [
        Goal(f"{case}: ours / aria2c and the faster hash after it", ours / rival, 0.9),
        Goal(f"{case}: ours / limit", ours / limit, 1.1),
        memory,
    ]


def _limit(runs: Runs, *, pinned: bool) -> float:
    """The fewest seconds that transfer and hash can take on this machine.

    On one core they cannot overlap. On several cores they can; the limit is then all the work,
    including the server's, spread evenly over the cores.
    """
    alone, hashing = (runs[TRANSFER], runs[CURL]), _median(runs[HASH])
    transfer = min(map(_median, alone))
    work = min(statistics.median(one.cpu + one.server_cpu for one in several) for several in alone)
    spread = (work + hashing) / len(os.sched_getaffinity(0))
    limit = transfer + hashing if pinned else max(transfer, hashing, spread)
    print(
        f"limit {limit:.2f} s: transfer alone {transfer:.2f}, SHA-256 alone {hashing:.2f}, all CPU"
        f" work spread over the cores {spread:.2f}; ours / limit {_median(runs[OURS]) / limit:.2f}"
    )
    return limit


def _print_goals(goals: list[Goal]) -> None:
    print(f"\nload at the end {os.getloadavg()[0]:.2f}\n")
    for goal in goals:
        met = "met" if goal.figure <= goal.most else "MISSED"
        print(f"{goal.what:<62}{goal.figure:>7.2f}  at most {goal.most:>5.1f}  {met}")


if __name__ == "__main__":
    sys.exit(main())
