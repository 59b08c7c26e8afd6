"""The machine: versions, limits and GPUs."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from worker import VERSION
from worker.diagnosis.place import PROJECT, Place
from worker.files import read_small

_ENGINE_PACKAGES = (
    *("torch", "torchvision", "xformers", "diffusers", "transformers", "safetensors", "numpy"),
    *("gradio", "fastapi", "pydantic", "open_clip_torch", "onnxruntime", "ultralytics"),
)
_NVIDIA_SECONDS = 15.0
_EXTENSIONS = 40  # that are listed


def _first_line(path: Path) -> str:
    with suppress(OSError):
        return read_small(path).decode(errors="replace").partition("\n")[0]
    return ""


# Versions -----------------------------------------------------------------------------------------


def versions(place: Place) -> Iterator[str]:
    """The worker, its libraries, the system; the engine has its own Python."""
    build = place.environ.get("REVISION") or _commit(PROJECT) or "unknown"
    yield f"worker {VERSION}, commit {build}"
    yield f"Python {sys.version.split()[0]} at {sys.executable}"
    yield f"{platform.platform()}, {_os_name()}, {' '.join(platform.libc_ver())}"
    yield f"bash {shutil.which('bash') or 'not found'}; nvidia-smi {shutil.which('nvidia-smi')}"
    for line in (PROJECT / "requirements.txt", PROJECT / "requirements-bridge.txt"):
        yield from _required(line)
    yield ""
    yield from _engine_versions(place)


def _os_name() -> str:
    with suppress(OSError):
        text = read_small(Path("/etc/os-release")).decode(errors="replace")
        found = re.search(r'^PRETTY_NAME="?([^"\n]{1,80})', text, re.MULTILINE)
        return found[1] if found else "unknown"
    return "unknown"


def _required(file: Path) -> Iterator[str]:
    """The packages that a file pins, with a mark for another version; the images lack the file."""
    try:
        lines = read_small(file).decode().splitlines()
    except OSError:
        if file.name == "requirements.txt":
            names = ("runpod", "pydantic", "urllib3", "requests", "aiohttp", "boto3", "pillow")
            yield from (f"{name} {_installed(name)}" for name in names)
        return
    for line in lines:
        if pinned := re.match(r"([A-Za-z0-9_.\[\]-]+)==([^\s;#]+)", line):
            found = _installed(pinned[1].partition("[")[0])
            yield f"{pinned[1]} {found}{'' if found == pinned[2] else f', not {pinned[2]}'}"


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "is not installed"


def _commit(folder: Path) -> str:
    """The commit of a git checkout, without git; empty if it is none."""
    with suppress(OSError):
        found = folder / ".git"
        if found.is_file():
            found = folder / read_small(found).decode().partition("gitdir: ")[2].strip()
        head = _first_line(found / "HEAD")
        name = head.partition("ref: ")[2]
        common = (
            found / _first_line(found / "commondir") if (found / "commondir").exists() else found
        )
        return _first_line(common / name)[:40] if name else head[:40]
    return ""


def _engine_versions(place: Place) -> Iterator[str]:
    if place.engine == "external":
        yield "engine: external, another program's"
        return
    folder = Path(place.folders.get("WEBUI_DIR", ""))
    python = Path(sys.executable)
    if place.engine == "a1111":
        python = folder / place.settings.get("WEBUI_PYTHON", "venv/bin/python")
        yield f"A1111: {_a1111_version(folder)}"
        yield f"its extensions: {', '.join(_extensions(folder)) or 'none'}"
    yield f"the engine's Python: {python}"
    versions = dict(_packages(python))
    yield from (f"{name} {versions[name]}" for name in _ENGINE_PACKAGES if name in versions)
    if built := _first_line(python.parents[1] / "torch_build.json"):
        yield f"torch_build.json: {built[:500]}"


def _a1111_version(folder: Path) -> str:
    commit = _commit(folder)
    changes = _first_line(folder / "CHANGELOG.md")
    return f"{changes[:40] or 'no CHANGELOG.md'}, commit {commit or 'unknown (no .git)'}"


def _extensions(folder: Path) -> list[str]:
    with suppress(OSError):
        return sorted(one.name for one in (folder / "extensions").iterdir())[:_EXTENSIONS]
    return []


def _packages(python: Path) -> Iterator[tuple[str, str]]:
    """The packages of another Python, from the names of their folders; nothing is imported."""
    for pattern in ("lib/python3*/site-packages", "lib64/python3*/site-packages"):
        for packages in sorted(python.parents[1].glob(pattern))[:2]:
            for found in packages.glob("*.dist-info"):
                name, _, version = found.name.removesuffix(".dist-info").partition("-")
                yield name.lower(), version


# Limits -------------------------------------------------------------------------------------------

_GROUP_FILES = (
    *("memory.max", "memory.high", "memory.current", "memory.peak", "memory.swap.max"),
    *("memory.events", "cpu.max", "cpu.stat", "pids.max", "pids.current", "memory.pressure"),
)
_V1_FILES = (
    *("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.oom_control"),
    *("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us", "pids/pids.max", "pids/pids.current"),
)
_MEMORY = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree", "Shmem", "Committed_AS")


def limits() -> Iterator[str]:
    """What this container may use, and what it uses."""
    from worker import cores, memory  # noqa: PLC0415

    user = f"user {os.getuid()}, group {os.getgid()}"
    yield f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}; {user}"
    yield f"cores that may be used: {cores.usable()} of {os.cpu_count()}"
    yield f"memory that may still be used: {memory.available() / 1e9:.2f} GB"
    load = _first_line(Path("/proc/loadavg"))
    yield f"load: {load}; seconds since the machine's boot: {_first_line(Path('/proc/uptime'))}"
    with suppress(OSError):
        for line in read_small(Path("/proc/meminfo")).decode().splitlines():
            if line.partition(":")[0] in _MEMORY:
                yield " ".join(line.split())
    yield from _groups()
    with suppress(OSError):
        for line in read_small(Path("/proc/self/limits")).decode().splitlines():
            if line.startswith(
                ("Max open", "Max proc", "Max address", "Max file size", "Max core")
            ):
                yield " ".join(line.split())


def _groups() -> Iterator[str]:
    root = Path("/sys/fs/cgroup")
    own = _first_line(Path("/proc/self/cgroup")).rpartition(":")[2].lstrip("/")
    yield f"cgroup: /{own}"
    folders = {root, root / own}
    for file in (*(one / name for one in sorted(folders) for name in _GROUP_FILES), *_v1(root)):
        with suppress(OSError):
            text = read_small(file).decode(errors="replace")
            yield f"{file.relative_to(root)}: {'; '.join(text.split(chr(10))).strip('; ')[:400]}"


def _v1(root: Path) -> Iterator[Path]:
    return (root / name for name in _V1_FILES)


# GPUs ---------------------------------------------------------------------------------------------


def gpus() -> Iterator[str]:
    """What nvidia-smi answers."""
    from worker.config import nvidia_smi  # noqa: PLC0415

    devices = sorted(one.name for one in Path("/dev").glob("nvidia*"))
    yield f"devices: {', '.join(devices) or 'none'}"
    answer = nvidia_smi.ask(_NVIDIA_SECONDS)
    if answer is None:
        yield "nvidia-smi is not installed"
        return
    yield f"nvidia-smi ended with status {answer.status}; {answer.remarks or 'no remarks'}"
    for gpu in answer.gpus:
        yield (
            f"{gpu.name}: compute capability {gpu.capability}, driver {gpu.driver}, CUDA"
            f" {gpu.cuda or 'unknown'}, {gpu.free} of {gpu.total} MiB free, MIG {gpu.is_mig}"
        )
        yield from (line for line in (gpu.broken, *gpu.worries) if line)


def start_checks(place: Place) -> Iterator[str]:
    """The findings of the start: each names what to change."""
    from worker.config import preflight  # noqa: PLC0415
    from worker.config.settings import Settings  # noqa: PLC0415

    settings = Settings.from_environ(dict(place.environ) | {"SUPERVISOR_PID": "1"})
    yield preflight.introduction(settings)
    preflight.check_webui(settings)
    found, compute = preflight.examine(settings, place.environ)
    yield f"computes on: {compute.device or 'unknown'} {compute.gpu}, {compute.attention}"
    for one in found:
        yield f"{'error' if one.fatal else 'warning'}: {one.sentence}"
    yield "A port that is taken is right while the worker runs." if found else "nothing was found"
