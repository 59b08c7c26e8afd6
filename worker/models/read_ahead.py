"""Reads checkpoints into the page cache before the engine loads them, with several streams.

A network volume gives one stream only a part of its speed, and an engine reads with one stream.
Files that one stream reads fast, because they are in the page cache or on a local disk, are left
alone.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from worker import memory
from worker.files import open_regular

log = logging.getLogger(__name__)

FOUND_FAST: Final = "one stream is fast enough"


@dataclass(frozen=True)
class ReadAheadLimits:
    """When to read ahead, and how.

    Attributes:
        smallest: bytes; smaller files are left alone.
        fast: bytes a second; a file that one stream reads at this rate is left alone.
        reserve: bytes of memory that stay free beside the file.
        streams: how many threads read at once.
        chunk: bytes that a thread reads at once.
        samples: chunks that are read first, to learn how fast one stream is.
    """

    smallest: int = 256 << 20
    fast: float = 800e6
    reserve: int = 2 << 30
    streams: int = 8
    chunk: int = 8 << 20
    samples: int = 3


DEFAULT = ReadAheadLimits()


class ReadAhead:
    """Reads one file after the other, in threads of its own. Thread-safe.

    Args:
        limits: when to read, and how.
        available: returns the bytes of memory that can still be used.
        clock: returns seconds.
    """

    def __init__(
        self,
        limits: ReadAheadLimits = DEFAULT,
        available: Callable[[], int] = memory.available,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._limits = limits
        self._available = available
        self._clock = clock
        self._reading = threading.Lock()  # two files at once would share the volume's speed

    @contextmanager
    def beside(self, paths: Iterable[Path]) -> Iterator[None]:
        """Read these files, one after the other, while the body runs."""
        stop, files = threading.Event(), list(paths)

        def run() -> None:
            for path in files:
                self.read(path, stop)

        if files:
            threading.Thread(target=run, name="read-ahead", daemon=True).start()
        try:
            yield
        finally:
            stop.set()

    def read(self, path: Path, stop: threading.Event) -> str:
        """Read a file, if that pays, until it is read or `stop` is set.

        Errors end it: the engine meets and reports them.

        Returns:
            What was done, as in the log.
        """
        with self._reading:
            if stop.is_set():
                return "not needed any more"
            try:
                done = self._read(path, stop)
            except OSError as error:
                done = f"it cannot be read: {error.strerror or error}"
        level = logging.DEBUG if done == FOUND_FAST else logging.INFO
        log.log(level, "reading ahead %s: %s", path.name, done)
        return done

    def _read(self, path: Path, stop: threading.Event) -> str:
        limits = self._limits
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
        if size < limits.smallest:
            return FOUND_FAST
        if self._available() < size + limits.reserve:
            return f"left out, because {size / 1e9:.1f} GB do not fit into the free memory"
        one_stream = self._rate(path, size)
        if one_stream >= limits.fast:
            return FOUND_FAST
        if self._rate(path, size) < limits.fast:
            return "left out, because its file system keeps nothing in memory"
        began = self._clock()
        read = _InStreams(path, size, limits, stop, self._available).run()
        seconds = max(self._clock() - began, 1e-9)
        part = "" if read >= size else f" of {size / 1e9:.1f}"
        return (
            f"read {read / 1e9:.1f}{part} GB in {seconds:.1f} s with {limits.streams} streams;"
            f" one stream gets {one_stream / 1e6:.0f} MB/s"
        )

    def _rate(self, path: Path, size: int) -> float:
        """Bytes a second of one stream, from samples all over the file."""
        limits, buffer = self._limits, bytearray(self._limits.chunk)
        began, read = self._clock(), 0
        with open_regular(path) as file:
            for number in range(limits.samples):
                offset = size * (2 * number + 1) // (2 * limits.samples)
                read += os.preadv(file.fileno(), [buffer], offset)
        return read / max(self._clock() - began, 1e-9)


class _InStreams:
    """One reading of one file."""

    def __init__(
        self,
        path: Path,
        size: int,
        limits: ReadAheadLimits,
        stop: threading.Event,
        available: Callable[[], int],
    ) -> None:
        self._path = path
        self._limits = limits
        self._stop = stop
        self._available = available
        self._offsets = iter(range(0, size, limits.chunk))
        self._lock = threading.Lock()
        self._read = 0

    def run(self) -> int:
        """Read with all streams; returns the bytes that were read."""
        threads = [
            threading.Thread(target=self._stream, name="read-ahead", daemon=True)
            for _ in range(self._limits.streams)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self._read

    def _stream(self) -> None:
        """Read one chunk after the other of those that no stream has begun, in order."""
        buffer = bytearray(self._limits.chunk)
        try:
            # A file of its own: a file system may count streams by open files.
            with open_regular(self._path) as file:
                while (offset := self._next(file.fileno())) is not None:
                    read = os.preadv(file.fileno(), [buffer], offset)
                    with self._lock:
                        self._read += read
        except OSError:
            return  # the engine meets the same error and reports it

    def _next(self, file: int) -> int | None:
        """Where the next chunk begins; None at the end, and when reading on is of no use."""
        is_deleted = os.fstat(file).st_nlink == 0
        if self._stop.is_set() or is_deleted or self._available() < self._limits.reserve:
            return None
        with self._lock:
            return next(self._offsets, None)
