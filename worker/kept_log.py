"""The last lines of a log, in a file of a fixed size.

What a container writes to its log may be gone when somebody asks for it, and handler.py --diagnose
cannot read it. So the handler's lines and the engine's output are kept in RUN_DIR as well. The
file's space is reserved when it is made: later lines also fit when the disk is full, and what a
killed process has written is there.

As a program it stands behind the engine: it copies its input to its output and keeps the end of it.

    engine 2>&1 | python -I worker/kept_log.py RUN_DIR/log.engine
"""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
from contextlib import suppress

# Files in RUN_DIR; start.sh writes into that of the engine and into its own.
HANDLER, ENGINE, START_SH = "log.handler", "log.engine", "log.start"
HEALTH = "health.json"  # of the handler: its numbers when the last job had ended

SIZE = 256 << 10  # bytes of lines
_HEAD = 16  # bytes; where the next line will stand, as decimal digits and a line end
_CHUNK = 64 << 10


class KeptLog:
    """A file with the last `SIZE` bytes that were written; the newest overwrite the oldest.

    Raises:
        OSError: the file cannot be made, its space is not there, or it is no regular file.
    """

    def __init__(self, path: str | os.PathLike[str], size: int = SIZE) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._file = os.open(path, flags, 0o600)
        self._size = size
        try:
            self._reserve()
        except OSError:
            os.close(self._file)
            raise

    def _reserve(self) -> None:
        """Keep an earlier process's lines; else fill the whole file with zeros."""
        found = os.fstat(self._file)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("it is no regular file")
        self._next = 0
        if found.st_size == _HEAD + self._size:
            self._next = _position(os.pread(self._file, _HEAD, 0), self._size)
            return
        os.ftruncate(self._file, 0)
        zeros = bytes(_HEAD + self._size)
        if os.pwrite(self._file, zeros, 0) < len(zeros):
            os.ftruncate(self._file, 0)
            raise OSError("the disk is full")

    def write(self, text: bytes) -> None:
        """Add lines; a failure of the disk loses them, and never the caller's own work."""
        text = text[-self._size :]
        first, rest = text[: self._size - self._next], text[self._size - self._next :]
        with suppress(OSError):
            os.pwrite(self._file, first, _HEAD + self._next)
            self._next += len(first)
            if rest or self._next == self._size:
                os.pwrite(self._file, rest, _HEAD)
                self._next = len(rest)
            os.pwrite(self._file, f"{self._next:0{_HEAD - 1}d}\n".encode(), 0)


def read(path: str | os.PathLike[str], size: int = SIZE) -> bytes:
    """The whole lines that a `KeptLog` has kept, in order.

    Raises:
        OSError: the file is missing, cannot be read, or is no regular file.
    """
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError("it is no regular file")
        content = os.pread(file, _HEAD + size, 0)
    finally:
        os.close(file)
    position, lines = _position(content[:_HEAD], size), content[_HEAD:]
    older = lines[position:].strip(b"\0")
    if older:  # its first line has lost its beginning
        older = older.partition(b"\n")[2]
    return older + lines[:position]


def _position(head: bytes, size: int) -> int:
    """Where the next line will stand; 0 if the file has something else there."""
    digits = head.strip()
    return int(digits) if digits.isdigit() and int(digits) < size else 0


def _copy(kept: KeptLog | None) -> None:
    """Copy standard input to standard output until it ends, also when nobody reads the output."""
    output: int | None = 1
    while chunk := os.read(0, _CHUNK):
        if kept:
            kept.write(chunk)
        while chunk and output is not None:
            try:
                chunk = chunk[os.write(output, chunk) :]
            except BlockingIOError:  # another program has made the log's pipe non-blocking
                select.select([], [output], [])
            except OSError:  # a closed pipe: the engine must be able to write on
                output = None


def main() -> None:
    """Stand behind the engine; it ends with the engine's last process, and not by a signal."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    kept = None
    with suppress(OSError):
        kept = KeptLog(sys.argv[1])
    _copy(kept)


if __name__ == "__main__":
    main()
