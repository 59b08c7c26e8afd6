"""Files that other people put into a models folder: listed, identified and opened with bounds.

A folder may contain anything: links in circles, pipes that nobody writes to, folders without end,
names that no JSON can hold. One such entry is left out, with a line in the log; the others stay.
"""

import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

log = logging.getLogger(__name__)

MAX_FOLDERS = 10_000
LENGTH_BYTES = 8
# a large SDXL checkpoint has a header of 0.4 MB; kohya's tag lists may add some MB
MAX_HEADER_BYTES = 16 * 2**20
_DIGITS = re.compile(r"([0-9]+)")

# (path, its target, size, modification time) of each file that is read
Identity = tuple[tuple[Path, str, int, int], ...]


class Unreadable(ValueError):
    """The file is not a whole safetensors file; the message gives the reason."""


def find(folder: Path) -> list[Path]:
    """The regular files in the folder and below, in A1111's order; links are followed.

    The order matters if two files have one name: the folder itself comes before its subfolders,
    and numbers in names are compared as numbers. A folder inside itself (by links) is not read
    again, and after 10,000 folders the rest is left out.
    """
    found: list[Path] = []
    pending: list[tuple[Path, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    for _ in range(MAX_FOLDERS):
        if not pending:
            break
        current, above = pending.pop()
        try:
            status, entries = current.stat(), [*current.iterdir()]
        except OSError as error:
            log.warning("left out the folder %r: %s", str(current)[:200], error.strerror)
            continue
        own = (status.st_dev, status.st_ino)
        if own not in above:
            named = [entry for entry in entries if _has_writable_name(entry)]
            # os.path: false for a bad link, where Path may raise an error
            found += [entry for entry in named if os.path.isfile(entry)]  # noqa: PTH113
            inside = above | {own}
            pending += [(entry, inside) for entry in named if os.path.isdir(entry)]  # noqa: PTH112
    if pending:
        log.warning("%s: left out all after the first %d folders", folder, MAX_FOLDERS)
    return sorted(found, key=order)


def order(path: Path) -> tuple[list[str | int], list[str | int]]:
    """The key that sorts files as A1111 does: by folder, then by name, ignoring case."""
    return _natural(str(path.parent)), _natural(path.name)


def _natural(text: str) -> list[str | int]:
    parts = _DIGITS.split(text)  # text and digits in turns
    return [int(part) if i % 2 else part.lower() for i, part in enumerate(parts)]


def _has_writable_name(path: Path) -> bool:
    """Whether JSON can hold the name; the bytes of a name need not be UTF-8."""
    try:
        path.name.encode()
    except UnicodeEncodeError:
        log.warning("left out %r: its name is not UTF-8", path.name)
        return False
    return True


def has_suffix(path: Path, suffix: str) -> bool:
    """Whether the name ends with this suffix, ignoring case, as in A1111."""
    return path.suffix.lower() == suffix


def identity(paths: Iterable[Path]) -> Identity:
    """What changes when one of the files is replaced. Raises FileNotFoundError, other OSErrors."""
    stats = ((path, os.path.realpath(path), path.stat()) for path in paths)
    return tuple((path, real, found.st_size, found.st_mtime_ns) for path, real, found in stats)


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """The safetensors file, opened for torch. Raises Unreadable, OSError."""
    check_header(path)
    try:
        opened = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise Unreadable(f"it is cut off, or not a safetensors file ({error})") from error
    with opened as file:
        yield file


def check_header(path: Path) -> int:
    """The length of the header in bytes. Raises Unreadable, OSError.

    A pipe or a device would wait for ever, and a header without bound costs minutes and gigabytes.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise Unreadable("it is not a regular file")
    with path.open("rb") as file:
        start = file.read(LENGTH_BYTES)
        size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(start, "little")
    if not start:
        raise Unreadable("it is empty (0 bytes)")
    if len(start) < LENGTH_BYTES or length > size - LENGTH_BYTES:
        raise Unreadable(f"it is cut off, or not a safetensors file ({size} bytes)")
    if length > MAX_HEADER_BYTES:
        raise Unreadable(f"its header has {length} bytes; at most {MAX_HEADER_BYTES} are read")
    return length
