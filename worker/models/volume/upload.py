"""Sends one file to a network volume; a run that was killed is continued by the next one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from worker.errors import ModelFileInvalid, VolumeFailed
from worker.files import open_regular
from worker.models.volume.answers import GONE
from worker.models.volume.digests import Digests, md5_of
from worker.models.volume.volume import Stored, Volume

Report = Callable[[int, int | None], None]  # bytes that are there, bytes of the file


def send(
    volume: Volume,
    key: str,
    path: Path,
    digests: Digests,
    report: Report,
    *,
    at_once: int,
) -> int:
    """Send a file and compare what has arrived; returns the bytes that were sent.

    Parts that an earlier run has sent are compared by size and MD5, and not sent again.

    Args:
        volume: where to.
        key: the path on the volume.
        path: the local file.
        digests: its hashes, with the part size of this upload.
        report: gets the progress.
        at_once: parts that are sent in parallel.

    Raises:
        VolumeFailed, StoreFull: the volume does not have the file.
        ModelFileInvalid: the local file was changed meanwhile.
    """
    if digests.size <= digests.part:
        volume.put(key, _read(path, digests, 1))
        report(digests.size, digests.size)
        sent = digests.size
    else:
        sent = _send_parts(_Upload(volume, key, path, digests, report), at_once)
    _compare(volume, key, digests)
    return sent


def is_there(stored: Stored | None, digests: Digests) -> bool:
    """Whether the file on the volume can be the local one."""
    return bool(stored and stored.size == digests.size and digests.could_be(stored.etag))


def _compare(volume: Volume, key: str, digests: Digests) -> None:
    stored = volume.head(key)
    if is_there(stored, digests):
        return
    if stored:
        volume.delete(key)
    raise VolumeFailed(
        f"the volume has stored {key} with another content"
        f" ({stored.size if stored else 0} bytes, not {digests.size}); it was removed there.",
        hint="Push again.",
    )


def _send_parts(upload: _Upload, at_once: int) -> int:
    try:
        return upload.run(at_once)
    except VolumeFailed as error:
        if error.details.get("s3") != GONE:
            raise
        return upload.sent  # another run has completed it; what it has sent is compared


class _Upload:
    """One file that is sent in parts, several at once.

    Attributes:
        sent: bytes so far.
    """

    def __init__(
        self, volume: Volume, key: str, path: Path, digests: Digests, report: Report
    ) -> None:
        self._volume = volume
        self._key = key
        self._path = path
        self._digests = digests
        self._report = report
        self._counting = threading.Lock()
        self._done = self.sent = 0
        found = volume.unfinished(key)
        self._there = found[1] if found else {}
        self._id = found[0] if found else volume.begin(key)

    def run(self, at_once: int) -> int:
        """Send the parts that are missing, and put them together; returns the bytes sent."""
        numbers = range(1, len(self._digests.parts) + 1)
        with ThreadPoolExecutor(at_once, thread_name_prefix="push") as pool:
            try:
                etags = list(pool.map(self._part, numbers))
            except KeyboardInterrupt:
                self._volume.stop.set()  # ends the pauses between attempts
                raise
        self._volume.complete(self._key, self._id, etags, self._digests.size)
        return self.sent

    def _part(self, number: int) -> str:
        """Send a part if it is missing; returns its ETag."""
        digest, size = self._digests.parts[number - 1], self._digests.size_of(number)
        there = self._there.get(number)
        if there and (there.size, there.etag) == (size, digest.hex()):
            self._count(size, 0)
            return f'"{there.etag}"'
        data = _read(self._path, self._digests, number)
        etag = self._volume.send_part(self._key, self._id, number, data)
        self._count(size, size)
        return etag

    def _count(self, done: int, sent: int) -> None:
        with self._counting:
            self._done += done
            self.sent += sent
            self._report(self._done, self._digests.size)


def _read(path: Path, digests: Digests, number: int) -> bytes:
    """The bytes of a part.

    Raises:
        ModelFileInvalid: they have changed since the file was hashed.
    """
    with open_regular(path) as file:
        file.seek((number - 1) * digests.part)
        data = file.read(digests.part)
    if digests.parts and md5_of(data) != digests.parts[number - 1]:
        raise ModelFileInvalid(f"{path.name!r} was changed while it was sent.", hint="Push again.")
    return data
