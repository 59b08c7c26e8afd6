"""What references have led to: so that a job that was seen before needs no network."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from worker.errors import ModelArchived, ModelNotFound, WorkerError
from worker.files import write_atomically
from worker.hosts.host import RemoteFile
from worker.job.reference import ModelRef

FRESH = 24 * 3600.0  # seconds that a reference which can move is trusted
METADATA_FRESH = 3600.0  # seconds that a host's word on a file is trusted before it is fetched
NEGATIVE_FRESH = 60.0  # seconds that a host's "there is no such model" is trusted

# Other refusals depend on the worker's key or region, or pass by themselves.
_LASTING: dict[str, type[WorkerError]] = {
    kind.code: kind for kind in (ModelNotFound, ModelArchived)
}


@dataclass(frozen=True)
class _Entry:
    """What is on the disk for a reference.

    Attributes:
        at: seconds since the epoch; when the host said it.
        fetched_at: the same; when the content with that sha256 was here.
        remote: the host's answer; None if the reference or the answer contains a secret.
        error: code, message and hint.
        etag: the host's mark of the version with that sha256; holds no secret.
    """

    shown: str
    at: float
    sha256: str | None = None
    fetched_at: float = 0.0
    remote: RemoteFile | None = None
    error: tuple[str, str, str] | None = None
    etag: str | None = None


_ENTRY = TypeAdapter(_Entry)


class References:
    """A folder with one small file for each reference that was ever resolved.

    Args:
        folder: is written.
        baked: another one, which is only read. The same one, if it is just being baked: what an
            earlier build was told of a reference that can move is not trusted then.
    """

    def __init__(self, folder: Path, baked: Path | None = None) -> None:
        is_baking = folder == baked
        self._folder = folder
        self._baked = None if is_baking else baked
        self._since = time.time() if is_baking else 0.0
        self._known: dict[str, _Entry] = {}

    def sha256(self, ref: ModelRef, *, stale: bool = False) -> str | None:
        """The content that the reference meant; `stale`: also if that may have changed since."""
        entry = self._entry(ref)
        if entry is None or entry.sha256 is None:
            return None
        is_old = ref.is_moving and not self._is_fresh(entry.fetched_at, FRESH)
        # What is baked holds until the next build: a baked model needs no network, ever.
        return entry.sha256 if stale or not is_old or self._is_baked(ref, entry.sha256) else None

    def remote(self, ref: ModelRef) -> RemoteFile | None:
        """What its host said not long ago.

        Raises:
            ModelNotFound, ModelArchived: it said a moment ago that there is no such file.
        """
        entry = self._entry(ref)
        if entry is None:
            return None
        if entry.error and self._is_fresh(entry.at, NEGATIVE_FRESH):
            code, message, hint = entry.error
            raise _LASTING.get(code, ModelNotFound)(message, hint=hint)
        return entry.remote if self._is_fresh(entry.at, METADATA_FRESH) else None

    def etag(self, ref: ModelRef) -> str | None:
        """The host's mark of the version that was fetched, on whatever day."""
        entry = self._entry(ref)
        if entry is None or entry.sha256 is None:
            return None
        # Entries of an older worker have it only there.
        return entry.etag or (entry.remote.etag if entry.remote else None)

    def note(self, ref: ModelRef, remote: RemoteFile, sha256: str | None = None) -> None:
        """The host's answer, and the content once it is here."""
        has_secret = ref.has_secret or remote.is_signed
        entry = self._but_old_content(ref)
        if sha256:
            entry = replace(entry, sha256=sha256, fetched_at=entry.at, etag=remote.etag)
        self._write(ref, replace(entry, remote=None if has_secret else remote))

    def note_refusal(self, ref: ModelRef, error: WorkerError) -> None:
        """The host's no, if it is one for everybody."""
        if error.code in _LASTING:
            told = (error.code, error.message, error.hint)
            self._write(ref, replace(self._but_old_content(ref), error=told))

    def _but_old_content(self, ref: ModelRef) -> _Entry:
        """A new entry; what the reference meant is kept for the day on which its host fails."""
        known, new = self._entry(ref), _Entry(ref.shown, time.time())
        if known is None:
            return new
        etag = self.etag(ref)
        return replace(new, sha256=known.sha256, fetched_at=known.fetched_at, etag=etag)

    def _entry(self, ref: ModelRef) -> _Entry | None:
        known = self._known.get(ref.key)
        if known and known.sha256 and not ref.is_moving:
            return known
        entry = self._read(self._folder, ref)
        if self._baked and (entry is None or entry.sha256 is None):
            entry = self._read(self._baked, ref) or entry
        if entry:
            self._known[ref.key] = entry
        return entry

    def _is_fresh(self, then: float, seconds: float) -> bool:
        return then >= self._since and _age(then) <= seconds

    def _is_baked(self, ref: ModelRef, sha256: str) -> bool:
        entry = self._read(self._baked, ref) if self._baked else None
        return bool(entry and entry.sha256 == sha256)

    def _read(self, folder: Path, ref: ModelRef) -> _Entry | None:
        try:
            return _ENTRY.validate_json((folder / _name(ref)).read_bytes())
        except (OSError, ValidationError):
            return None

    def _write(self, ref: ModelRef, entry: _Entry) -> None:
        """A store that cannot be written only means that the host is asked again."""
        self._known.pop(ref.key, None)
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._folder / _name(ref), _ENTRY.dump_json(entry, indent=1))


def _name(ref: ModelRef) -> str:
    return f"{ref.key}.json"


def _age(then: float) -> float:
    return abs(time.time() - then)
