"""The file that a download fills, and the note beside it that lists what has arrived."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from worker.errors import WorkerError
from worker.files import discard, note_file, read_small, storage_error, write_atomically
from worker.models.download.limits import DEFAULT, DownloadLimits
from worker.models.download.schedule import Part, Parts
from worker.models.download.source import FileVersion


@dataclass
class _Note:
    """The content of the note, JSON."""

    size: int | None = None
    etag: str | None = None
    modified: str | None = None
    done: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Fetched:
    """A whole file.

    Attributes:
        filename: from the host's Content-Disposition; not to be trusted as a path.
        etag: of the version that was fetched.
    """

    path: Path
    size: int
    sha256: str
    filename: str | None
    etag: str | None


class PartialFile:
    """An open partial file: its parts, its bytes on the disk and their hash. Thread-safe.

    A context manager. Two threads work while it is open: one hashes what has arrived out of
    order, one writes the system's buffers to the disk.

    Attributes:
        parts: what has arrived and what is missing; hold `lock` to use it.
        version: the file's at the host, as far as it is known.
        resumed: bytes that an earlier run has fetched.
    """

    def __init__(self, path: Path, limits: DownloadLimits = DEFAULT) -> None:
        self.path = path
        self.lock = threading.Lock()
        self._limits = limits
        note = _read_note(path)
        self.parts = Parts(note.size, note.done, limits)
        self.version = FileVersion(note.etag, note.modified)
        self.resumed = self.parts.fetched()
        self._noting = threading.Lock()
        self._closed = threading.Event()
        self._broken: OSError | None = None
        self._is_closed = False

    def __enter__(self) -> PartialFile:
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise storage_error(error) from error
        self._helpers: list[threading.Thread] = []
        try:
            self._hash = FollowingHash(self._descriptor)
            for run in (self._follow, self._sync):
                helper = threading.Thread(target=run)
                helper.start()
                self._helpers.append(helper)
        except BaseException:  # no memory or no thread: a thread that has begun would wait for ever
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._closed.set()
        for helper in self._helpers:
            helper.join()
        # The connection that could not write its data has reported why.
        with suppress(WorkerError):
            self.note()
        with self._noting:  # a connection that was cut may be about to write a note
            self._is_closed = True
            os.close(self._descriptor)
        if self.parts.size is None or not self.parts.fetched():
            discard(self.path)  # nothing that a later run could resume

    def write(self, part: Part, block: bytes) -> None:
        """Add the next bytes of a part."""
        self._hash.offer(part.position, block)
        rest = memoryview(block)
        try:
            if self._broken:
                raise self._broken
            while rest:
                count = os.pwrite(self._descriptor, rest, part.position + len(block) - len(rest))
                rest = rest[count:]
        except OSError as error:
            raise storage_error(error) from error
        with self.lock:
            part.position += len(block)

    def start(self, length: int) -> bytes | None:
        """The file's first `length` bytes, or all of a shorter file; None if some are missing."""
        with self.lock:
            size, contiguous = self.parts.size, self.parts.contiguous
        wanted = length if size is None else min(length, size)
        return os.pread(self._descriptor, wanted, 0) if contiguous >= wanted else None

    def note(self) -> None:
        """Write the note: the next run resumes from it."""
        with self._noting:
            with self.lock:
                if self.parts.size is None or self._is_closed:
                    return
                version, done = self.version, self.parts.done()
                note = _Note(self.parts.size, version.etag, version.modified, done)
            try:
                write_atomically(note_file(self.path), json.dumps(vars(note)))
            except OSError as error:
                raise storage_error(error) from error

    def finish(self) -> tuple[int, str]:
        """Size and SHA-256 of the whole file; it is on the disk when this returns."""
        size = self.parts.size or 0
        try:
            if self._broken:
                raise self._broken
            self._hash.follow(size)
            os.ftruncate(self._descriptor, size)
            os.fsync(self._descriptor)
        except OSError as error:
            raise storage_error(error) from error
        return size, self._hash.hexdigest()

    def _follow(self) -> None:
        while not self._closed.wait(self._limits.follow_every):
            with self.lock:
                contiguous = self.parts.contiguous
            try:
                self._hash.follow(contiguous)
            except OSError as error:
                self._broken = error
                return

    def _sync(self) -> None:
        while not self._closed.wait(self._limits.sync_every):
            try:
                os.fdatasync(self._descriptor)
            except OSError as error:  # Linux reports it once: a later `fsync` would succeed
                self._broken = error
                return


def _read_note(path: Path) -> _Note:
    """The note of an earlier run; empty if the note is malformed or does not fit the file."""
    try:
        length = path.stat().st_size
        content = json.loads(read_small(note_file(path)))
        size, marks = int(content["size"]), (content["etag"], content.get("modified"))
        done = [(int(start), int(end)) for start, end in content["done"]]
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return _Note()
    is_valid = size > 0 and all(0 <= start < end <= min(size, length) for start, end in done)
    etag, modified = (mark if isinstance(mark, str) else None for mark in marks)
    return _Note(size, etag, modified, done) if is_valid else _Note()


_READ_BACK = 1 << 20  # bytes


class FollowingHash:
    """The digest of the file's first `position` bytes.

    A block that arrives in order is hashed while it is still in the CPU's cache; what arrived
    out of order is read back once the bytes before it are there. No second pass over the file.
    """

    def __init__(self, descriptor: int, read_back: int = _READ_BACK) -> None:
        self._descriptor = descriptor
        self._digest = hashlib.sha256()
        self._lock = threading.Lock()
        self._buffer = bytearray(read_back)
        self.position = 0

    def offer(self, start: int, block: bytes) -> None:
        """Hash the block if it is the next one."""
        if start == self.position:  # otherwise do not even wait for the lock
            with self._lock:
                if start == self.position:
                    self._digest.update(block)
                    self.position += len(block)

    def follow(self, end: int) -> None:
        """Hash what the file holds up to `end`; every byte before it must be written."""
        view = memoryview(self._buffer)
        while self.position < end:
            with self._lock:
                wanted = min(len(view), end - self.position)
                if wanted <= 0:  # `offer` has hashed it already
                    return
                count = os.preadv(self._descriptor, [view[:wanted]], self.position)
                if not count:
                    raise OSError(f"the file ends at byte {self.position}, before {end}")
                self._digest.update(view[:count])
                self.position += count

    def hexdigest(self) -> str:
        """Lower-case hex of what has been hashed."""
        return self._digest.hexdigest()
