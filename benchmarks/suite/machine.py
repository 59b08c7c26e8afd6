"""The machine that was measured, and how busy it was."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path

import psutil

PROJECT = Path(__file__).resolve().parents[2]
LIBRARIES = ("runpod", "pydantic", "urllib3", "Pillow", "torch", "diffusers")
QUIET_CORES = 0.1
SAMPLE_SECONDS = 2.0
SAMPLES = 10


def describe() -> dict[str, str]:
    """What the page says about the machine: processor, memory, versions, commit and date."""
    flags = _cpuinfo("flags").split()
    memory = psutil.virtual_memory().total / 2**30
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "processor": f"{_cpuinfo('model name')}, {os.cpu_count()} cores, "
        f"{'with' if 'sha_ni' in flags else 'without'} SHA instructions",
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "libraries": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES),
    }


def busy_cores(seconds: float = SAMPLE_SECONDS) -> float:
    """The number of cores that other processes use now."""
    before, began = _busy_seconds(), time.monotonic()
    time.sleep(seconds)
    return (_busy_seconds() - before) / (time.monotonic() - began)


def settled_cores(seconds: float = SAMPLE_SECONDS) -> float:
    """The same when the end of the row before is over: the first quiet sample, or the last one."""
    busy = 0.0
    for _ in range(SAMPLES):
        busy = busy_cores(seconds)
        if busy <= QUIET_CORES:
            break
    return busy


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def _cpuinfo(name: str) -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _commit() -> str:
    command = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
