"""Fetched models: one file per content, shared by every worker of a volume.

    <root>/blobs/<sha256>.safetensors       the file, complete and verified
    <root>/blobs/<sha256>.json              metadata; its modification time is the last use
    <root>/Lora/<stem>.safetensors          link to the blob under a unique stem
    <root>/diffusers/<sha256>/              the same checkpoint as a diffusers folder, if baked so
    <root>/downloads/<key>.<run>.part       a resumable download
    <root>/leases/<key>.lock                the lease of the worker that downloads

Correctness does not depend on a lock: each run writes its own partial file, which is verified and
then published with one rename. A lease only saves work: without it, sixteen workers could
fetch the same 7 GB sixteen times.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from worker.errors import FetchError, ModelNotFound
from worker.exhaustion import is_exhaustion
from worker.files import (
    discard,
    is_file,
    is_regular,
    note_file,
    read_small,
    storage_error,
    write_atomically,
)
from worker.formats.model_file import FOLDERS, ModelFile, file_sha256, version
from worker.formats.names import PICKLES, SAFETENSORS, Kind, clean_stem, marked_stem
from worker.models.store.about import ABOUT, UNKNOWN_TIME, About
from worker.models.store.leases import Leases
from worker.models.store.listing import Listing

CONVERTED = "converted"  # source of a LoRA that was rewritten for A1111
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MARK = 10  # digits of the hash that distinguish two files of one name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreTiming:
    """Times in seconds.

    Attributes:
        lease: a download that shows no sign of life for this long is taken over.
        poll: between two checks of a waiting worker.
        use_resolution: a second use within this time is not recorded.
    """

    lease: float = 30.0
    poll: float = 0.1
    use_resolution: float = 60.0


@dataclass(frozen=True)
class Blob:
    """A fetched model that is present, whole and unchanged."""

    sha256: str
    path: Path
    about: About

    def as_file(self) -> ModelFile:
        """The blob as a model file; leaves out how it was fetched."""
        about = self.about
        name = about.name or about.stem.removesuffix(f"-{self.sha256[:_MARK]}")
        return ModelFile(
            about.kind,
            self.path,
            about.stem,
            about.size,
            self.sha256,
            about.source,
            about.trained_words,
            name,
        )


class Blobs:
    """The fetched models below one folder. Safe for threads and for processes.

    Args:
        root: the folder.
        timing: of leases and use marks.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        root: Path,
        timing: StoreTiming = StoreTiming(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._timing = timing
        self._clock = clock
        self.root = root.resolve()  # links are compared by their targets
        self._blobs = self.root / "blobs"
        self._downloads = self.root / "downloads"
        self._leases = Leases(self.root / "leases", timing.lease, timing.poll)
        self._known: dict[str, Blob] = {}
        self._used: dict[str, float] = {}
        self._metadata = Listing(self._blobs, suffixes=(".json",))
        self._linked = 0  # the generation of it whose files have links

    # Look up ---------------------------------------------------------------------------------

    def find(self, sha256: str) -> Blob | None:
        """The blob, if it is present and unchanged since it was verified.

        A file whose size or time differs is hashed again, and removed if its hash is wrong.
        """
        blob = self._known.get(sha256) or self._read(sha256)
        if blob is None:
            return None
        try:
            size, mtime_ns = version(blob.path)
        except ModelNotFound:
            self._known.pop(sha256, None)
            return None
        if (size, UNKNOWN_TIME) == (blob.about.size, blob.about.mtime):
            return self._verified_at(blob, mtime_ns)
        if not blob.about.is_unchanged(size, mtime_ns):
            return self._check_again(blob, size, mtime_ns)
        self._known[sha256] = blob
        return blob

    def starting(self, digits: str) -> Iterator[Blob]:
        """The blobs whose SHA-256 begins with these hex digits, in any case."""
        for path in self._blobs.glob(f"{digits.lower()}*.json"):
            if blob := self.find(path.stem):
                yield blob

    def all(self) -> Iterator[Blob]:
        """Every blob, sorted by hash; without a check for changes."""
        for path in sorted(self._blobs.glob("*.json")):
            blob = self._read(path.stem)
            if blob and is_file(blob.path):
                yield blob

    def leftovers(self) -> list[Path]:
        """Files without valid metadata: a removal was interrupted, or the metadata are damaged."""
        files = (path for path in self._blobs.glob("*") if path.suffix != ".json")
        return sorted(path for path in files if self._read(path.stem) is None)

    def blob_of(self, path: Path) -> str | None:
        """The sha256 if the (resolved) path is a blob of this store."""
        return path.stem if path.parent == self._blobs else None

    @property
    def has_diffusers(self) -> bool:
        """Whether any checkpoint was converted into a diffusers folder."""
        return (self.root / "diffusers").is_dir()

    def diffusers(self, sha256: str) -> Path:
        """The path of a checkpoint's diffusers folder, which exists if it was converted."""
        return self.root / "diffusers" / sha256

    def _read(self, sha256: str) -> Blob | None:
        if not _SHA256.fullmatch(sha256):  # a note on the volume may name anything
            return None
        try:
            about = ABOUT.validate_json(read_small(self._about_file(sha256)))
        except (OSError, ValidationError) as error:
            if is_exhaustion(error):  # the metadata may be good: do not remove the blob for that
                raise
            return None
        if about.suffix not in {SAFETENSORS, *PICKLES} or about.stem != clean_stem(about.stem):
            return None  # not written by a worker
        if about.name and about.name != clean_stem(about.name):
            return None
        return Blob(sha256, self._blobs / f"{sha256}{about.suffix}", about)

    def _about_file(self, sha256: str) -> Path:
        return self._blobs / f"{sha256}.json"

    def _check_again(self, blob: Blob, size: int, mtime_ns: int) -> Blob | None:
        self._known.pop(blob.sha256, None)
        try:
            is_whole = size == blob.about.size and file_sha256(blob.path) == blob.sha256
        except (ModelNotFound, OSError) as error:  # gone, or on a bad disk
            if is_exhaustion(error):
                raise
            return None
        if is_whole:
            return self._verified_at(blob, mtime_ns)
        log.warning("%s in the model store is damaged; it will be removed", blob.about.stem)
        with suppress(FetchError):  # a read-only store
            self.remove(blob)
        return None

    def _verified_at(self, blob: Blob, mtime_ns: int) -> Blob:
        blob = replace(blob, about=blob.about.with_mtime(mtime_ns))
        with suppress(OSError):  # a read-only store: the next process looks again
            self._write_about(blob)
        self._known[blob.sha256] = blob
        return blob

    # Use marks -------------------------------------------------------------------------------

    def mark_used(self, sha256: str) -> None:
        """Record that a job uses it now; the least recently used model is evicted first."""
        now = self._clock()
        if now - self._used.get(sha256, 0) >= self._timing.use_resolution:
            self._used[sha256] = now
            with suppress(OSError):  # a read-only store evicts nothing
                os.utime(self._about_file(sha256), (now, now))

    def last_used(self, blob: Blob) -> float:
        """Seconds since the epoch."""
        with suppress(OSError):
            return self._about_file(blob.sha256).stat().st_mtime
        return 0.0

    # Add and remove --------------------------------------------------------------------------

    def add(self, partial: Path, sha256: str, about: About, taken: Callable[[str], bool]) -> Blob:
        """Publish a verified file; `taken` is true for the stems of the operator's own files.

        Raises:
            StoreFull, StoreNotWritable.
        """
        blob = self.find(sha256)
        try:
            if blob:  # two workers downloaded it, because no lease worked
                discard(partial)
            else:
                blob = self._publish(partial, sha256, about, taken)
        except OSError as error:
            raise storage_error(error) from error
        self._known[sha256] = blob
        self.mark_used(sha256)
        return blob

    def _publish(
        self, partial: Path, sha256: str, about: About, taken: Callable[[str], bool]
    ) -> Blob:
        self._blobs.mkdir(parents=True, exist_ok=True)
        about = about.with_mtime(partial.stat().st_mtime_ns)
        about = replace(about, stem=self._claim(about, sha256, taken))
        blob = Blob(sha256, self._blobs / f"{sha256}{about.suffix}", about)
        # In this order there is never a blob without metadata, nor metadata with a foreign file.
        blob.path.unlink(missing_ok=True)
        self._write_about(blob)
        partial.replace(blob.path)
        _sync_folder(self._blobs)
        note_file(partial).unlink(missing_ok=True)
        return blob

    def remove(self, blob: Blob) -> int:
        """Delete a blob, its metadata and its link; returns the freed bytes.

        Raises:
            StoreNotWritable.
        """
        self._known.pop(blob.sha256, None)
        try:
            return self._remove(blob)
        except OSError as error:
            raise storage_error(error) from error

    def _remove(self, blob: Blob) -> int:
        trash = self._blobs / f".trash-{uuid.uuid4().hex}"
        freed = 0
        with suppress(FileNotFoundError):  # another worker has removed it
            size = blob.path.stat().st_size
            blob.path.rename(trash)  # from now on no lookup finds it
            trash.unlink(missing_ok=True)
            freed = size
        self._about_file(blob.sha256).unlink(missing_ok=True)
        link = self._link(blob.about.kind, blob.about.stem, blob.about.suffix)
        if link.is_symlink() and link.readlink().stem == blob.sha256:
            link.unlink(missing_ok=True)
        return freed

    def _write_about(self, blob: Blob) -> None:
        write_atomically(self._about_file(blob.sha256), ABOUT.dump_json(blob.about, indent=1))

    def _claim(self, about: About, sha256: str, taken: Callable[[str], bool]) -> str:
        """A stem for the blob: on any file system, only one worker can create the link."""
        target = Path("..") / "blobs" / f"{sha256}{about.suffix}"
        for stem in (about.stem, marked_stem(about.stem, sha256[:_MARK])):
            link = self._link(about.kind, stem, about.suffix)
            link.parent.mkdir(parents=True, exist_ok=True)
            if taken(stem):
                continue
            with suppress(FileExistsError):
                link.symlink_to(target)
                return stem
            if link.is_symlink() and link.readlink() == target:
                return stem
        return sha256

    def add_links(self, taken: Callable[[Kind, str], bool]) -> None:
        """Link the blobs that `push` has sent, because S3 knows no links; a stem can change.

        If nothing has come since the last call, this costs one `stat`.
        """
        generation = self._metadata.current_generation()
        if generation != self._linked:
            self._linked = generation
            for path in self._metadata.files():
                # A read-only store: found by its reference only. Or another worker removes it now.
                with suppress(OSError):
                    blob = self._read(path.stem)
                    if blob and is_file(blob.path) and not self._is_linked(blob):
                        self._add_link(blob, taken)

    def _is_linked(self, blob: Blob) -> bool:
        link = self._link(blob.about.kind, blob.about.stem, blob.about.suffix)
        has_none = blob.about.stem == blob.sha256  # see `_claim`
        return has_none or (link.is_symlink() and link.readlink().stem == blob.sha256)

    def _add_link(self, blob: Blob, taken: Callable[[Kind, str], bool]) -> None:
        kind = blob.about.kind
        stem = self._claim(blob.about, blob.sha256, lambda stem: taken(kind, stem))
        self._known.pop(blob.sha256, None)
        if stem != blob.about.stem:
            self._write_about(replace(blob, about=replace(blob.about, stem=stem)))

    def _link(self, kind: Kind, stem: str, suffix: str) -> Path:
        return self.root / FOLDERS[kind] / f"{stem}{suffix}"

    # Downloads -------------------------------------------------------------------------------

    def lease(
        self, key: str, is_there: Callable[[], bool], stop: threading.Event
    ) -> AbstractContextManager[bool]:
        """The lease for a download, see `Leases.hold`."""
        return self._leases.hold(key, is_there, stop)

    def partial(self, key: str) -> Path:
        """A partial file for this run alone: one that an earlier run left, or a new path.

        Call it only with the lease. A file is taken over with a rename, so of two runs only one
        continues it.
        """
        mine = self._downloads / f"{key}.{uuid.uuid4().hex[:12]}.part"
        try:
            self._downloads.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error) from error
        left = sorted(self._downloads.glob(f"{key}.*.part"), key=size_on_disk, reverse=True)
        for number, other in enumerate(left):
            if number or not (is_regular(other) and _has_sound_note(other)):
                discard(other)  # two runs, because no lease worked; the larger file is kept
                continue
            try:
                note_file(other).replace(note_file(mine))
                other.replace(mine)
            except OSError:  # without a note nobody can continue it
                discard(other)
        return mine

    def partials(self) -> list[Path]:
        """Downloads that are running or were abandoned."""
        return sorted(self._downloads.glob("*.part"))


def _has_sound_note(partial: Path) -> bool:
    """Whether the note beside a download is missing, or can be opened without blocking."""
    note = note_file(partial)
    return not os.path.lexists(note) or is_regular(note)


def size_on_disk(path: Path) -> int:
    """Bytes that the file uses on the disk; a partial file is sparse."""
    with suppress(OSError):
        return path.stat().st_blocks * 512
    return 0


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk only once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
