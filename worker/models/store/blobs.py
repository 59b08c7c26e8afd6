"""Fetched models: one file per content, shared by every worker of a volume.

    <root>/blobs/<sha256>.safetensors       the file; complete and right, or not there at all
    <root>/blobs/<sha256>.json              what it is; its modification time is the last use
    <root>/Lora/<stem>.safetensors          link to the blob under a stem that nobody else has
    <root>/diffusers/<sha256>/              the same checkpoint as a diffusers folder, if baked so
    <root>/downloads/<key>.<run>.part       a download, resumable
    <root>/leases/<key>.lock                who is downloading

No lock makes this right: each run writes a file of its own, and what is published was verified
before it got its name in one step. A lease only keeps sixteen workers from fetching the same
7 GB sixteen times.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import SoftFileLease, Timeout
from pydantic import TypeAdapter, ValidationError

from worker.errors import FetchError, FetchStopped, ModelNotFound
from worker.files import discard, note_file, storage_error, write_atomically
from worker.formats.model_file import FOLDERS, ModelFile, file_sha256, version
from worker.formats.names import PICKLES, SAFETENSORS, Kind, clean_stem, marked_stem

LEASE_SECONDS = 30.0  # without a sign of life, then another worker takes over
POLL_SECONDS = 0.1
_SECOND = 1_000_000_000  # ns
USE_RESOLUTION = 60.0  # seconds; a second use within it is not noted

log = logging.getLogger("worker.models")


@dataclass(frozen=True)
class About:
    """What the metadata file of a blob holds.

    Attributes:
        stem: the clean name under which it is linked.
        mtime: of the blob when it was verified; if it differs, somebody has touched it. Whole
            seconds: layers of images and some network volumes keep no more.
        source: where it came from, for people.
        ref: the reference that can bring it again; None if that holds a secret.
        family: what its host says it was made for.
    """

    kind: Kind
    stem: str
    suffix: str
    size: int
    mtime: int
    source: str
    ref: str | None = None
    title: str = ""
    family: str | None = None
    trained_words: tuple[str, ...] = ()


_ABOUT = TypeAdapter(About)


@dataclass(frozen=True)
class Blob:
    """A fetched model that is there, whole and unchanged."""

    sha256: str
    path: Path
    about: About

    def as_file(self) -> ModelFile:
        """The same for whoever does not care where a file comes from."""
        about = self.about
        return ModelFile(
            about.kind,
            self.path,
            about.stem,
            about.size,
            self.sha256,
            about.source,
            about.trained_words,
        )


class Blobs:
    """The fetched models below one folder. Safe for threads and for processes."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()  # links are compared by what they lead to
        self._blobs = self.root / "blobs"
        self._downloads = self.root / "downloads"
        self._known: dict[str, Blob] = {}
        self._used: dict[str, float] = {}

    # Look up ---------------------------------------------------------------------------------

    def find(self, sha256: str) -> Blob | None:
        """The blob, if it is there and as it was when it was verified.

        A changed file is hashed again; one that is not what its name says is removed.
        """
        blob = self._known.get(sha256) or self._read(sha256)
        if blob is None:
            return None
        try:
            size, mtime_ns = version(blob.path)
        except ModelNotFound:
            self._known.pop(sha256, None)
            return None
        mtime = mtime_ns // _SECOND
        if (size, mtime) != (blob.about.size, blob.about.mtime):
            return self._check_again(blob, size, mtime)
        self._known[sha256] = blob
        return blob

    def all(self) -> Iterator[Blob]:
        """Every blob, by hash; whether each is unchanged is not looked at."""
        for path in sorted(self._blobs.glob("*.json")):
            blob = self._read(path.stem)
            if blob and blob.path.is_file():
                yield blob

    def leftovers(self) -> list[Path]:
        """Files that nobody finds: a removal was broken off, or the metadata are damaged."""
        files = (path for path in self._blobs.glob("*") if path.suffix != ".json")
        return sorted(path for path in files if self._read(path.stem) is None)

    def blob_of(self, path: Path) -> str | None:
        """The sha256 if that (resolved) path is a blob of this store."""
        return path.stem if path.parent == self._blobs else None

    @property
    def has_diffusers(self) -> bool:
        """Whether any checkpoint was converted into a diffusers folder."""
        return (self.root / "diffusers").is_dir()

    def diffusers(self, sha256: str) -> Path:
        """Where a checkpoint's diffusers folder is, if it was converted."""
        return self.root / "diffusers" / sha256

    def _read(self, sha256: str) -> Blob | None:
        try:
            about = _ABOUT.validate_json(self._about_file(sha256).read_bytes())
        except (OSError, ValidationError):
            return None
        if about.suffix not in {SAFETENSORS, *PICKLES} or about.stem != clean_stem(about.stem):
            return None  # nobody here has written that
        return Blob(sha256, self._blobs / f"{sha256}{about.suffix}", about)

    def _about_file(self, sha256: str) -> Path:
        return self._blobs / f"{sha256}.json"

    def _check_again(self, blob: Blob, size: int, mtime: int) -> Blob | None:
        self._known.pop(blob.sha256, None)
        try:
            is_whole = size == blob.about.size and file_sha256(blob.path) == blob.sha256
        except (ModelNotFound, OSError):  # gone, or on a bad disk
            return None
        if is_whole:
            blob = replace(blob, about=replace(blob.about, mtime=mtime))
            with suppress(OSError):  # a read-only store: hashed again by the next process
                self._write_about(blob)
            self._known[blob.sha256] = blob
            return blob
        log.warning("%s in the model store is damaged; it is removed", blob.about.stem)
        with suppress(FetchError):  # a read-only store
            self.remove(blob)
        return None

    # Use marks -------------------------------------------------------------------------------

    def mark_used(self, sha256: str) -> None:
        """Note that a job uses it now; what was used last is evicted last."""
        now = time.time()
        if now - self._used.get(sha256, 0) >= USE_RESOLUTION:
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
        """Publish a verified file; `taken` says which stems the operator's own files have.

        Raises:
            StoreFull, StoreNotWritable.
        """
        blob = self.find(sha256)
        try:
            if blob:  # two runs without a working lease
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
        mtime = partial.stat().st_mtime_ns // _SECOND
        about = replace(about, stem=self._claim(about, sha256, taken), mtime=mtime)
        blob = Blob(sha256, self._blobs / f"{sha256}{about.suffix}", about)
        # In this order: a blob is never without its metadata, nor metadata with a foreign file.
        blob.path.unlink(missing_ok=True)
        self._write_about(blob)
        partial.replace(blob.path)
        _sync_folder(self._blobs)
        note_file(partial).unlink(missing_ok=True)
        return blob

    def remove(self, blob: Blob) -> int:
        """Delete a blob and all that belongs to it; returns the bytes that were freed.

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
        with suppress(FileNotFoundError):  # another worker was faster
            size = blob.path.stat().st_size
            blob.path.rename(trash)  # from here on nobody finds half a file
            trash.unlink(missing_ok=True)
            freed = size
        self._about_file(blob.sha256).unlink(missing_ok=True)
        link = self._link(blob.about.kind, blob.about.stem, blob.about.suffix)
        if link.is_symlink() and link.readlink().stem == blob.sha256:
            link.unlink(missing_ok=True)
        return freed

    def _write_about(self, blob: Blob) -> None:
        write_atomically(self._about_file(blob.sha256), _ABOUT.dump_json(blob.about, indent=1))

    def _claim(self, about: About, sha256: str, taken: Callable[[str], bool]) -> str:
        """A stem for the blob; making a link fails for all but one, on any file system."""
        target = Path("..") / "blobs" / f"{sha256}{about.suffix}"
        for stem in (about.stem, marked_stem(about.stem, sha256[:10])):
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

    def _link(self, kind: Kind, stem: str, suffix: str) -> Path:
        return self.root / FOLDERS[kind] / f"{stem}{suffix}"

    # Downloads -------------------------------------------------------------------------------

    @contextmanager
    def lease(
        self, key: str, is_there: Callable[[], bool], stop: threading.Event
    ) -> Iterator[bool]:
        """Wait until it is this process's turn to download; false if it is there meanwhile.

        Raises:
            FetchStopped, StoreFull, StoreNotWritable.
        """
        folder = self.root / "leases"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lease = SoftFileLease(folder / f"{key}.lock", lease_duration=LEASE_SECONDS)
            lease.acquire(
                poll_interval=POLL_SECONDS, cancel_check=lambda: is_there() or stop.is_set()
            )
        except Timeout:
            if stop.is_set() and not is_there():
                raise FetchStopped("the download was stopped.") from None
            yield False
        except OSError as error:
            raise storage_error(error) from error
        else:
            try:
                yield not is_there()
            finally:
                lease.release()

    def partial(self, key: str) -> Path:
        """A partial file of this run's own: what an earlier run left for the key, or a new one.

        Only with the lease. Taking over is a rename, so of two runs only one goes on with it.
        """
        mine = self._downloads / f"{key}.{uuid.uuid4().hex[:12]}.part"
        try:
            self._downloads.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error) from error
        left = sorted(self._downloads.glob(f"{key}.*.part"), key=size_on_disk, reverse=True)
        for number, other in enumerate(left):
            if number:
                discard(other)  # two runs without a working lease; the larger one is kept
                continue
            with suppress(OSError):
                note_file(other).replace(note_file(mine))
                other.replace(mine)
        return mine

    def partials(self) -> list[Path]:
        """Downloads that are running or were given up."""
        return sorted(self._downloads.glob("*.part"))


def size_on_disk(path: Path) -> int:
    """Bytes that the file takes; a partial file has holes."""
    with suppress(OSError):
        return path.stat().st_blocks * 512
    return 0


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
