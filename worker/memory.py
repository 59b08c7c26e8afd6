"""How much memory this worker may still use: the machine's, or less in a container."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from worker.files import read_small

# Names of cgroup version 2 and 1: the folder, the limit, the usage, and the files in its memory.
_V2 = ("sys/fs/cgroup", "memory.max", "memory.current", ("active_file", "inactive_file"))
_V1 = (
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)


def available(system: Path = Path("/")) -> int:
    """Bytes that programs can still use without swapping; memory that only caches files is free.

    Args:
        system: where `proc` and `sys` are.
    """
    return max(0, min([_of_machine(system), *_of_groups(system)]))


def _of_machine(system: Path) -> int:
    fields = _fields(system / "proc/meminfo")
    return fields.get("MemAvailable:", 0) * 1024


def _of_groups(system: Path) -> Iterator[int]:
    """What the limit of each group leaves that this process belongs to."""
    for line in _text(system / "proc/self/cgroup").splitlines():
        _, controllers, name = (*line.split(":", 2), "", "")[:3]
        if controllers not in {"", "memory"}:
            continue
        root, limit, usage, cached = _V1 if controllers else _V2
        folder = system / root / name.lstrip("/")
        for group in (folder, *folder.parents):
            if not group.is_relative_to(system / root):
                break
            with suppress(ValueError):  # "max": no limit; empty: no such file
                files = _fields(group / "memory.stat")
                used = int(_text(group / usage)) - sum(files.get(name, 0) for name in cached)
                yield int(_text(group / limit)) - used


def _fields(path: Path) -> dict[str, int]:
    lines = (line.split() for line in _text(path).splitlines())
    return {name: int(number) for name, number, *_ in lines if number.isdigit()}


def _text(path: Path) -> str:
    with suppress(OSError):
        return read_small(path).decode(errors="replace")
    return ""
