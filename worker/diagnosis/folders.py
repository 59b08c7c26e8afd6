"""The folders of a worker: whether they answer, their space, and what is in them."""

from __future__ import annotations

import os
import stat
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from worker.files import read_small

_MOST_ENTRIES = 20_000
_SECONDS = 4.0  # for the entries of one folder
_SHOWN = 12
# Parts of the store that a killed worker or a download leaves: the folder, the end of a name.
_LEFT = (("downloads", ".part"), ("leases", ".lock"))


def describe(path: Path) -> Iterator[str]:
    """The folder, most important first: on a volume that hangs, the last line shows how far."""
    yield f"{path}"
    yield f"mount: {mount_of(str(path))}"
    real = os.path.realpath(path)
    if real != str(path):
        yield f"leads to {real}; mount: {mount_of(real)}"
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError as error:
        yield f"cannot be read: {error.strerror}"
        return
    yield (
        f"{stat.filemode(found.st_mode)} of user {found.st_uid} and group {found.st_gid}; this user"
        f" may {_allowed(path)}"
    )
    space = os.statvfs(path)
    yield (
        f"space: {space.f_bavail * space.f_frsize / 1e9:.2f} GB free of"
        f" {space.f_blocks * space.f_frsize / 1e9:.2f} GB; {space.f_favail} of {space.f_files}"
        " inodes free"
    )
    if stat.S_ISDIR(found.st_mode):
        yield from _left(path)
        yield from _walk(path)


def _allowed(path: Path) -> str:
    ways = (("read", os.R_OK), ("write", os.W_OK), ("enter", os.X_OK))
    return ", ".join(word for word, way in ways if os.access(path, way)) or "do nothing with it"


def mount_of(path: str) -> str:
    """The kind of file system below a path and whether it is read-only; nothing is asked of it."""
    best, kind = "", "unknown"
    with suppress(OSError):
        text = read_small(Path("/proc/self/mountinfo")).decode(errors="replace")
        for line in text.splitlines():
            fields = line.split()
            if "-" not in fields:
                continue
            _, _, _, _, coded, mounted, *_, super_options = fields
            point = coded.encode().decode("unicode_escape")
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                options = {*mounted.split(","), *super_options.split(",")}
                access = "read-only" if "ro" in options else "writable"
                best, kind = point, f"{fields[fields.index('-') + 1]} at {point}, {access}"
    return kind


def _left(path: Path) -> Iterator[str]:
    """Leases and partial downloads of a store, the newest first."""
    for folder, suffix in _LEFT:
        try:
            with os.scandir(path / folder) as entries:
                found = [one for one in _first(entries) if one.name.endswith(suffix)]
        except OSError:
            continue
        yield f"{folder}: {len(found)} files {suffix}"
        known = [(one, one.stat(follow_symlinks=False)) for one in found]
        for one, its in sorted(known, key=lambda pair: -pair[1].st_mtime)[:_SHOWN]:
            age = time.time() - its.st_mtime
            yield f"    {one.name}: {its.st_size / 1e6:.3f} MB, written {age:.0f} s ago"


def _first(entries: Iterator[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
    for _, entry in zip(range(_MOST_ENTRIES), entries, strict=False):
        yield entry


@dataclass
class _Counts:
    files: int = 0
    size: int = 0
    links: int = 0
    dangling: int = 0
    others: int = 0
    suffixes: Counter[str] = field(default_factory=Counter)

    def shown(self) -> str:
        kinds = ", ".join(f"{count} {name}" for name, count in self.suffixes.most_common(5))
        dangling = f" ({self.dangling} lead nowhere)" if self.dangling else ""
        others = f", {self.others} that are neither" if self.others else ""
        return (
            f"{self.files} files with {self.size / 1e6:.1f} MB ({kinds or 'none'}), {self.links}"
            f" links{dangling}{others}"
        )


def _walk(path: Path) -> Iterator[str]:
    """Numbers of files, by the folder right below; stops at a number of entries and seconds."""
    counts: defaultdict[str, _Counts] = defaultdict(_Counts)
    until, entries = time.monotonic() + _SECONDS, 0
    waiting = [(str(path), ".")]
    while waiting:
        folder, top = waiting.pop()
        try:
            with os.scandir(folder) as found:
                for entry in found:
                    entries += 1
                    if entries > _MOST_ENTRIES or time.monotonic() > until:
                        waiting.clear()
                        break
                    if entry.is_dir(follow_symlinks=False):
                        below = entry.name if top == "." else top
                        waiting.append((entry.path, below))
                        counts[below].files += 0
                    else:
                        _count(counts[top], entry)
        except OSError as error:
            yield f"    {os.path.relpath(folder, path)}: {error.strerror}"
    for top, one in sorted(counts.items())[:40]:
        yield f"    {top}: {one.shown()}"
    if entries > _MOST_ENTRIES or time.monotonic() > until:
        yield f"    counting stopped after {entries} entries or {_SECONDS:g} s"


def _count(counts: _Counts, entry: os.DirEntry[str]) -> None:
    if entry.is_symlink():
        counts.links += 1
        counts.dangling += not os.path.exists(entry.path)  # noqa: PTH110
        return
    its = entry.stat(follow_symlinks=False)
    if not stat.S_ISREG(its.st_mode):  # a pipe or a socket can hang a program that opens it
        counts.others += 1
        return
    counts.files += 1
    counts.size += its.st_size
    counts.suffixes[os.path.splitext(entry.name)[1].lower()[:20] or "without suffix"] += 1  # noqa: PTH122
