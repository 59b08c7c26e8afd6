"""The machine and the code that the report is about."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from worker.config.settings import PROJECT

CARD = ("index", "name", "compute_cap", "driver_version", "memory.total", "memory.free")
MORE = ("pstate", "temperature.gpu", "power.limit", "clocks.max.sm", "pcie.link.gen.max")
SECONDS = 30.0


def describe(image: str, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Card, driver, processor, memory, disk, and the image or commit."""
    cards = _nvidia_smi(environ, CARD)
    commit = _run(environ, "git", "-C", str(PROJECT), "rev-parse", "HEAD")
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "GPU": cards or "nvidia-smi finds none",
        "GPU now": _nvidia_smi(environ, MORE) if cards else None,
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "RAM, GB": round(pages * page / 1e9, 1),
        "image": image or None,
        "commit": environ.get("REVISION") or commit,
        "worker's Python": platform.python_version(),
    }


def _nvidia_smi(environ: Mapping[str, str], fields: Sequence[str]) -> list[dict[str, str]]:
    """These values of each GPU; empty without nvidia-smi, or if it knows one of them not."""
    query = f"--query-gpu={','.join(fields)}"
    text = _run(environ, "nvidia-smi", query, "--format=csv,noheader")
    lines = [[part.strip() for part in line.split(",")] for line in (text or "").splitlines()]
    return [dict(zip(fields, line, strict=True)) for line in lines if len(line) == len(fields)]


def _run(environ: Mapping[str, str], *command: str) -> str | None:
    """What a program prints; None if it is not there or fails."""
    program = shutil.which(command[0], path=environ.get("PATH"))
    if not program:
        return None
    line = [program, *command[1:]]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
