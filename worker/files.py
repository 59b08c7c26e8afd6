"""Files on the disk: written whole or not at all, and what a failed write means."""

from __future__ import annotations

import errno
import glob
import uuid
from pathlib import Path

from worker.errors import StoreFull, StoreNotWritable, WorkerError


def storage_error(error: OSError) -> WorkerError:
    """The error for a store that cannot be written."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StoreFull(f"the disk of the model store is full ({error.strerror}).")
    return StoreNotWritable(f"the model store cannot be written: {error.strerror or error}.")


def note_file(path: Path) -> Path:
    """Where the progress of a partial file is noted."""
    return path.with_suffix(".json")


def discard(path: Path) -> None:
    """Remove a partial file and its note."""
    note = note_file(path)
    for file in (path, note, *unfinished_writes(note)):
        file.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a small file so that a reader sees the old content or the new one, never a part.

    Two processes may write at once: each has a temporary file of its own, hidden and in the same
    folder, and the last one wins. A killed process leaves its own: see `unfinished_writes`.

    Raises:
        OSError: the folder is missing, or it cannot be written; the temporary file is gone.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def unfinished_writes(path: Path) -> list[Path]:
    """Temporary files of `write_atomically` that killed processes have left."""
    return list(path.parent.glob(f".{glob.escape(path.name)}.*.new"))
