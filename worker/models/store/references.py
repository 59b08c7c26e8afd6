"""Which file each reference means, so that a job with known references needs no network."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from worker.errors import ModelArchived, ModelNotFound, WorkerError
from worker.files import read_small, write_atomically
from worker.hosts.host import RemoteFile
from worker.job.reference import ModelRef

# Other refusals depend on the worker's key or region, or end by themselves.
_LASTING: dict[str, type[WorkerError]] = {
    kind.code: kind for kind in (ModelNotFound, ModelArchived)
}

_SLOT = 2  # hex digits, see `_slot`


@dataclass(frozen=True)
class Freshness:
    """Seconds for which an answer is trusted.

    Attributes:
        content: the sha256 of a reference whose meaning can change.
        metadata: a host's answer about a file, before the file is fetched.
        refusal: a host's answer that there is no such model.
    """

    content: float = 24 * 3600.0
    metadata: float = 3600.0
    refusal: float = 60.0


@dataclass(frozen=True)
class _Entry:
    """What is stored for a reference.

    Attributes:
        at: time of the host's answer, in seconds since the epoch.
        fetched_at: time when the content with that sha256 was fetched, likewise.
        remote: the host's answer; None if the reference or the answer contains a secret.
        error: code, message and hint.
        etag: the host's ETag of the content with that sha256; it contains no secret.
        key: of the reference; empty in entries of older workers.
    """

    shown: str
    at: float
    sha256: str | None = None
    fetched_at: float = 0.0
    remote: RemoteFile | None = None
    error: tuple[str, str, str] | None = None
    etag: str | None = None
    key: str = ""


_ENTRY = TypeAdapter(_Entry)


class References:
    """A folder with one small file for each reference whose content was ever fetched.

    Jobs can name any number of references whose content is never fetched. What is known about
    those is in 256 files, the slots: a new entry replaces the older one in its slot, whose host is
    then asked again.

    Args:
        folder: the folder to read and write.
        baked: a second folder, which is only read. While an image is baked, it is the same as
            `folder`; then nothing that an earlier build stored about a reference whose meaning
            can change is trusted.
        freshness: how long answers are trusted.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        folder: Path,
        baked: Path | None = None,
        freshness: Freshness = Freshness(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        is_baking = folder == baked
        self._freshness = freshness
        self._clock = clock
        self._folder = folder
        self._baked = None if is_baking else baked
        self._since = clock() if is_baking else 0.0
        self._known: dict[str, _Entry] = {}

    def sha256(self, ref: ModelRef, *, stale: bool = False) -> str | None:
        """The sha256 that the reference resolved to; with `stale` also if that may be outdated."""
        entry = self._entry(ref)
        if entry is None or entry.sha256 is None:
            return None
        is_old = ref.is_moving and not self._is_fresh(entry.fetched_at, self._freshness.content)
        # A baked answer is trusted until the next build: a baked model never needs a network.
        return entry.sha256 if stale or not is_old or self._is_baked(ref, entry.sha256) else None

    def remote(self, ref: ModelRef) -> RemoteFile | None:
        """The host's answer, if it is recent.

        Raises:
            ModelNotFound, ModelArchived: the host answered recently that there is no such file.
        """
        entry = self._entry(ref)
        if entry is None:
            return None
        if entry.error and self._is_fresh(entry.at, self._freshness.refusal):
            code, message, hint = entry.error
            raise _LASTING.get(code, ModelNotFound)(message, hint=hint)
        return entry.remote if self._is_fresh(entry.at, self._freshness.metadata) else None

    def exported(self, ref: ModelRef) -> bytes | None:
        """The entry as a file, for another store; None if the reference's content is not known."""
        entry = self._entry(ref)
        if entry is None or entry.sha256 is None:
            return None
        return _ENTRY.dump_json(replace(entry, error=None), indent=1)

    def etag(self, ref: ModelRef) -> str | None:
        """The host's ETag of the content that was fetched, however long ago."""
        entry = self._entry(ref)
        if entry is None or entry.sha256 is None:
            return None
        # An older worker stored it only there.
        return entry.etag or (entry.remote.etag if entry.remote else None)

    def note(self, ref: ModelRef, remote: RemoteFile, sha256: str | None = None) -> None:
        """Store the host's answer, and the content once it has been fetched."""
        has_secret = ref.has_secret or remote.is_signed
        entry = self._entry_with_old_content(ref)
        if sha256:
            entry = replace(entry, sha256=sha256, fetched_at=entry.at, etag=remote.etag)
        self._write(ref, replace(entry, remote=None if has_secret else remote))

    def note_refusal(self, ref: ModelRef, error: WorkerError) -> None:
        """Store the host's refusal, if every worker would get it."""
        if error.code in _LASTING:
            refusal = (error.code, error.message, error.hint)
            self._write(ref, replace(self._entry_with_old_content(ref), error=refusal))

    def _entry_with_old_content(self, ref: ModelRef) -> _Entry:
        """A new entry that keeps the known content, for use when the host fails."""
        known, new = self._entry(ref), _Entry(ref.shown, self._clock(), key=ref.key)
        if known is None:
            return new
        etag = self.etag(ref)
        return replace(new, sha256=known.sha256, fetched_at=known.fetched_at, etag=etag)

    def _entry(self, ref: ModelRef) -> _Entry | None:
        if known := self._known.get(ref.key):
            return known
        entry = self._read(self._folder, ref)
        if self._baked and (entry is None or entry.sha256 is None):
            entry = self._read(self._baked, ref) or entry
        if entry and entry.sha256 and not ref.is_moving:
            self._known[ref.key] = entry
        return entry

    def _is_fresh(self, then: float, seconds: float) -> bool:
        # abs: after the clock was set back, nothing from the future is trusted
        return then >= self._since and abs(self._clock() - then) <= seconds

    def _is_baked(self, ref: ModelRef, sha256: str) -> bool:
        entry = self._read(self._baked, ref) if self._baked else None
        return bool(entry and entry.sha256 == sha256)

    def _read(self, folder: Path, ref: ModelRef) -> _Entry | None:
        entry = _read(folder / file_name(ref))
        if entry and entry.sha256:
            return entry
        in_slot = _read(folder / _slot(ref))
        # `entry` has no content then: only older workers wrote such a file for one reference.
        return in_slot if in_slot and in_slot.key == ref.key else entry

    def _write(self, ref: ModelRef, entry: _Entry) -> None:
        """Errors are ignored: without the entry, the host is asked again."""
        self._known.pop(ref.key, None)
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            own, slot = self._folder / file_name(ref), self._folder / _slot(ref)
            write_atomically(own if entry.sha256 else slot, _ENTRY.dump_json(entry, indent=1))
            if entry.sha256:
                slot.unlink(missing_ok=True)  # it has what was known before


def _read(path: Path) -> _Entry | None:
    try:
        return _ENTRY.validate_json(read_small(path))
    except (OSError, ValidationError):
        return None


def _slot(ref: ModelRef) -> str:
    """The name of the file for what is known about it without its content."""
    return f"{ref.key[:_SLOT]}.json"


def file_name(ref: ModelRef) -> str:
    """The name of the reference's file."""
    return f"{ref.key}.json"


def is_news(ref: ModelRef, ours: bytes, theirs: bytes | None) -> bool:
    """Whether our entry should replace that of another store: it is newer, or the only valid one.

    Of a reference whose meaning cannot change, an entry with the same content is as good.
    """
    try:
        new, old = _ENTRY.validate_json(ours), _ENTRY.validate_json(theirs or b"")
    except ValidationError:
        return True
    is_same = old.sha256 == new.sha256
    return new.fetched_at > old.fetched_at and (ref.is_moving or not is_same)
