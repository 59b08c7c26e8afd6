"""Links in the engine's folders, and which version of each file the engine has seen."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from worker.files import exists

_REMEMBERED = 100_000  # targets, some 300 bytes each

_Version = tuple[int, int, int]  # inode, size in bytes, modification time in ns


def target_of(path: Path) -> Path:
    """The target of a link, even if it is missing; a loop of links is its own target."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # before Python 3.13 a loop of links is a RuntimeError
        return path.absolute()


class Targets:
    """Where paths lead, remembered. Thread-safe.

    To resolve a path costs a system call for each folder in it. If the path leads to the file that
    its earlier target is, the target is still right: two calls.
    """

    def __init__(self) -> None:
        self._known: dict[str, Path] = {}

    def of(self, path: Path) -> tuple[Path, os.stat_result]:
        """The file that the path leads to, and its status.

        Raises:
            OSError, RuntimeError: it leads to no file, or it is a loop of links.
        """
        name = str(path)
        status = os.stat(name)  # noqa: PTH116 - a Path costs more than the call
        if (known := self._known.get(name)) and _is_same(known, status):
            return known, status
        target = path.resolve(strict=True)
        if len(self._known) >= _REMEMBERED:
            self._known = {}
        self._known[name] = target
        return target, target.stat()


def _is_same(path: Path, status: os.stat_result) -> bool:
    """Whether the path is this file itself; false if it has become a link to it."""
    try:
        return os.path.samestat(os.lstat(str(path)), status)
    except OSError:
        return False


def points(link: Path, target: Path) -> bool:
    """Whether it is our link to the target. One system call: it runs for each file of each job."""
    try:
        return os.readlink(link) == str(target)  # noqa: PTH115 - a Path costs more than the call
    except OSError:
        return False


def point(link: Path, target: Path) -> bool:
    """Make the link point to the target; returns whether anything changed."""
    if points(link, target) or (link.is_symlink() and target_of(link) == target):
        return False
    link.parent.mkdir(parents=True, exist_ok=True)
    # Replaced in one step: the engine sees the old file or the new one, never a gap.
    temporary = link.with_name(f".{uuid.uuid4().hex}.link")
    temporary.symlink_to(target)
    with suppress(FileNotFoundError):  # two threads link the same model
        temporary.replace(link)
    return True


def point_to_folder(link: Path, target: Path, suffix: str) -> bool:
    """The same for a folder; a link to a file of that suffix under the same name is removed."""
    beside = link.with_name(f"{link.name}{suffix}")
    if beside.is_symlink():
        beside.unlink(missing_ok=True)
    return point(link, target)


def arrange(folder: Path, wanted: Mapping[str, Path], is_ours: Callable[[Path], bool]) -> set[str]:
    """Let the folder have exactly these links of ours; returns the names that changed.

    Args:
        folder: its other files and links are the operator's, and stay.
        wanted: file name -> target.
        is_ours: whether a link was made by a worker.
    """
    changed: set[str] = set()
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink() and entry.name not in wanted and is_ours(Path(entry.path)):
                Path(entry.path).unlink(missing_ok=True)
                changed.add(entry.name)
    for name, target in wanted.items():
        link = folder / name
        if (not os.path.lexists(link) or is_ours(link)) and point(link, target):
            changed.add(name)
    return changed


def remove_dangling(folder: Path) -> list[Path]:
    """Remove the links whose targets are missing; returns their paths."""
    dangling = [path for path in folder.glob("*") if path.is_symlink() and not exists(path)]
    for path in dangling:
        path.unlink(missing_ok=True)
    return dangling


class Shown:
    """The version of each file that the engine saw when it last read its folders.

    A fetched model that was evicted and fetched again has the same link and the same name, but the
    engine may have listed its folder in between. And the operator may replace a file of his own
    under its name, also by an older one.

    Args:
        clock: seconds since the epoch. The engine lists its folders after this is made, so it has
            seen every file that is older.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._since = clock()
        self._versions: dict[Path, _Version] = {}

    def is_current(self, path: Path) -> bool:
        """Whether the engine has seen this version of the file."""
        try:
            before, now = self._before_and_now(path)
        except OSError:
            return False
        return before == now

    def note(self, path: Path, *, is_changed: bool = False) -> tuple[bool, bool]:
        """Note that the engine will read this file or link before the next picture.

        Args:
            path: in the engine's folder.
            is_changed: whether the link was made or changed just now.

        Returns:
            Whether the engine has not seen this version, and whether it has seen another one.
        """
        try:
            before, now = self._before_and_now(path)
        except OSError:  # gone again
            self._versions.pop(path, None)
            return is_changed, False
        self._versions[path] = now
        is_other = before != now
        return is_changed or is_other, is_other and before is not None and not is_changed

    def _before_and_now(self, path: Path) -> tuple[_Version | None, _Version]:
        status = path.stat()
        now = status.st_ino, status.st_size, status.st_mtime_ns
        is_old = status.st_ctime < self._since
        return self._versions.get(path, now if is_old else None), now
