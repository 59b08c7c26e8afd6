"""Files on the disk: atomic writes, and the error for a failed one."""

from __future__ import annotations

import errno
import glob
import os
import stat
import uuid
from pathlib import Path
from typing import BinaryIO

from worker.errors import MachineExhausted, StoreFull, StoreNotWritable, WorkerError
from worker.exhaustion import is_exhaustion


def storage_error(error: OSError) -> WorkerError:
    """The error for a failed write to the model store."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StoreFull(f"the disk of the model store is full ({error.strerror}).")
    if is_exhaustion(error):  # which says nothing about the store
        reason = error.strerror or error
        return MachineExhausted(f"the machine is exhausted: {reason} (in the model store).")
    return StoreNotWritable(f"the model store cannot be written: {error.strerror or error}.")


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; other kinds of files could block for ever.

    Raises:
        OSError: it cannot be opened, or it is a FIFO, a socket, a device or a folder.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)  # `fdopen` of a folder would fail and leave it open
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_small(path: Path, limit: int = 1 << 20) -> bytes:
    """The content of a small regular file.

    Raises:
        OSError: as `open_regular`, or the file has more than `limit` bytes.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, "unexpectedly large", str(path))
    return content


def is_folder(path: Path) -> bool:
    """Whether it is a folder that this user can see. `Path.is_dir` can raise an error instead."""
    return os.path.isdir(path)  # noqa: PTH112


def is_file(path: Path) -> bool:
    """Whether it is a file that this user can see. `Path.is_file` can raise an error instead."""
    return os.path.isfile(path)  # noqa: PTH113


def is_regular(path: Path) -> bool:
    """Whether it is a regular file itself, and no link: then opening it cannot block."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def exists(path: Path) -> bool:
    """Whether this user can reach what the path leads to; `Path.exists` can raise an error."""
    return os.path.exists(path)  # noqa: PTH110


def note_file(path: Path) -> Path:
    """The path of the file that records a partial download's progress, beside it."""
    return path.with_suffix(".json")


def discard(path: Path) -> None:
    """Remove a partial download and the record of its progress."""
    note = note_file(path)
    for file in (path, note, *unfinished_writes(note)):
        file.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a small file; a reader sees the old content or the new one, never a part.

    Two processes may write at once: each writes its own hidden temporary file in the same folder,
    and the last one wins. A killed process leaves its temporary file: see `unfinished_writes`.

    Raises:
        OSError: the folder is missing or cannot be written; the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def unfinished_writes(path: Path) -> list[Path]:
    """The temporary files of `write_atomically` that killed processes left."""
    return list(path.parent.glob(f".{glob.escape(path.name)}.*.new"))
