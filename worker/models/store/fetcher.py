"""The life of a fetch: a reference becomes a verified blob in the store, once.

resolve     ask the host which file the reference means, or use its stored answer
lease       one process downloads the file, the others wait for it
make room   evict the least recently used models, if the budget or the disk is too small
download    inspect the first bytes, compute the hash while the data arrive
publish     under its sha256, with one rename
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath

from worker.errors import FetchError, ModelFileInvalid, ModelNotSupported, ModelUnsafe, WorkerError
from worker.files import discard, storage_error
from worker.formats import architecture, control_models, requirements, safetensors_header
from worker.formats.architecture import Architecture
from worker.formats.model_file import check_with_safetensors
from worker.formats.names import PICKLES, SAFETENSORS, Kind, stem_of
from worker.hosts.host import RemoteFile
from worker.hosts.registry import Hosts
from worker.http.client import SafeHttpClient
from worker.http.document import strong
from worker.job.reference import ModelRef, Wanted
from worker.models.download.download import download
from worker.models.download.hooks import Hooks
from worker.models.download.limits import DEFAULT, DownloadLimits
from worker.models.download.partial_file import Fetched
from worker.models.download.source import Source
from worker.models.store.about import About
from worker.models.store.blobs import Blob, Blobs
from worker.models.store.progress import DownloadProgress
from worker.models.store.references import References
from worker.models.store.space import SpaceBudget

_FOREIGN = {".gguf", ".zip", ".onnx", ".msgpack", ".h5", ".mlmodel", ".json", ".yaml", ".txt"}

AT_ONCE = 4  # files that are fetched in parallel, each over several connections
_POLL = 0.1  # seconds between two checks whether the job was cancelled

log = logging.getLogger(__name__)


class Fetcher:
    """Fetches models into one store. Thread-safe.

    Args:
        http: the client for all requests.
        hosts: the hosts that resolve references.
        blobs: the store.
        space: the store's budget.
        find: sha256 -> the blob, in this store or in another one.
        references: the stored answers of hosts.
        pickles: whether files that can run code may be fetched.
        report_for: name of a model -> the report of its download's progress.
        is_taken: whether the operator has a file of that kind and stem.
        limits: of each download.

    Attributes:
        bytes_fetched: bytes of the files that were fetched since the start.
    """

    def __init__(
        self,
        http: SafeHttpClient,
        hosts: Hosts,
        blobs: Blobs,
        space: SpaceBudget,
        *,
        find: Callable[[str], Blob | None],
        references: References,
        pickles: bool,
        report_for: Callable[[str], DownloadProgress],
        is_taken: Callable[[Kind, str], bool],
        limits: DownloadLimits = DEFAULT,
    ) -> None:
        self._http = http
        self._hosts = hosts
        self._blobs = blobs
        self._space = space
        self._find = find
        self._pickles = pickles
        self._report_for = report_for
        self._is_taken = is_taken
        self._limits = limits
        self.references = references
        self.bytes_fetched = 0
        self._counting = threading.Lock()

    def fetch_all(
        self, missing: Iterable[Wanted], stop: threading.Event, found: Iterable[str] = ()
    ) -> dict[Wanted, Blob]:
        """Fetch in parallel; the first error stops the others, and partial files are kept.

        Args:
            missing: what is fetched.
            stop: ends the downloads.
            found: SHA-256 of the job's other models. They and those that are ready count as used
                until the last one is here, however long it takes, so that no worker evicts them.

        Raises:
            WorkerError: one of them can be neither found nor downloaded.
        """
        halt, used = threading.Event(), set(found)
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetch") as pool:
            futures = {
                # the context has the job's id for the log and its listener for the progress
                one: pool.submit(copy_context().run, self._fetch_or_keep, one, halt)
                for one in dict.fromkeys(missing)
            }
            running = set(futures.values())
            try:
                while running:
                    done, running = wait(running, timeout=_POLL, return_when=FIRST_COMPLETED)
                    failed = next((error for one in done if (error := one.exception())), None)
                    if failed:
                        raise failed
                    used |= {one.result().sha256 for one in done}
                    for sha256 in used:
                        self._blobs.mark_used(sha256)
                    if stop.is_set():
                        halt.set()
            finally:  # also on Ctrl-C
                halt.set()
        return {one: future.result() for one, future in futures.items()}

    def _fetch_or_keep(self, wanted: Wanted, halt: threading.Event) -> Blob:
        """The blob; if its host fails, the blob that the reference resolved to last time."""
        try:
            return self.fetch(wanted, halt)
        except FetchError as error:
            earlier = self.references.sha256(wanted.ref, stale=True)
            blob = self._find(earlier) if earlier and not halt.is_set() else None
            if blob is None:
                raise
            self._blobs.mark_used(blob.sha256)
            log.warning("%s The file that was fetched earlier is used.", error)
            return blob

    def fetch(self, wanted: Wanted, stop: threading.Event) -> Blob:
        """The blob for a reference: found by its hash, or downloaded.

        Raises:
            WorkerError: it can be neither found nor downloaded.
        """
        remote = self.resolve(wanted.ref, stop)
        self._check_announced(wanted, remote)
        sha256 = wanted.sha256 or remote.sha256

        def find() -> Blob | None:
            known = sha256 or self.references.sha256(wanted.ref)
            return self._find(known) if known else None

        key = sha256 or wanted.ref.key
        blob = find()
        while blob is None:
            with self._blobs.lease(key, lambda: find() is not None, stop) as is_mine:
                blob = self._download(wanted, remote, sha256, key, stop) if is_mine else find()
        self._note(wanted, remote, blob)
        return blob

    def _note(self, wanted: Wanted, remote: RemoteFile, blob: Blob) -> None:
        is_hosts_own = wanted.sha256 in {None, remote.sha256}
        if is_hosts_own and self.references.sha256(wanted.ref) != blob.sha256:
            self.references.note(wanted.ref, remote, blob.sha256)

    def resolve(self, ref: ModelRef, stop: threading.Event) -> RemoteFile:
        """The host's answer about the file; the host is asked at most once an hour."""
        remote = self.references.remote(ref)
        if remote is None:
            try:
                remote = self._hosts.of(ref).resolve(ref, partial(self._http.ask, stop=stop))
            except WorkerError as error:
                self.references.note_refusal(ref, error)
                raise
            etag = None if remote.sha256 else self.references.etag(ref)
            same = etag is not None and self._http.etag(remote.url) == etag
            sha256 = self.references.sha256(ref, stale=True) if same else None
            self.references.note(ref, replace(remote, etag=etag if same else None), sha256)
        return remote

    # Checks ----------------------------------------------------------------------------------

    def _check_announced(self, wanted: Wanted, remote: RemoteFile) -> None:
        """Reject what the host's answer alone shows to be unusable, before a byte is fetched."""
        suffix = PurePosixPath(remote.filename).suffix.lower()
        if suffix in PICKLES and not self._pickles:
            raise ModelUnsafe(
                f"{remote.filename!r} is a pickle: loading it can run any code.",
                hint="Use the model's .safetensors file; ALLOW_PICKLES=true permits pickles.",
            )
        if suffix in _FOREIGN:
            raise ModelNotSupported(
                f"{remote.filename!r}: A1111 v1.9.3 cannot load {suffix} files as models."
            )
        if wanted.kind and remote.role:
            announced = Architecture(role=remote.role)
            architecture.check_usable(remote.name, wanted.kind, announced)

    # Download --------------------------------------------------------------------------------

    def _download(
        self,
        wanted: Wanted,
        remote: RemoteFile,
        sha256: str | None,
        key: str,
        stop: threading.Event,
    ) -> Blob | None:
        """The blob; None if another worker has taken over the download."""
        host = self._hosts.of(wanted.ref)
        source = Source(self._http, remote.url, lambda refused: host.refusal(refused, remote))
        inspection = _Inspection(wanted, remote)
        log.info("fetching %s from %s", remote.name, remote.source)
        begun = time.monotonic()
        with closing(self._report_for(remote.name)) as report:
            hooks = Hooks(
                inspect=inspection,
                make_room=lambda size: self._space.make(key, size),
                report=self._reporting_to(report, key),
                stop=stop,
            )
            try:
                fetched = download(source, self._blobs.partial(key), sha256, hooks, self._limits)
            except WorkerError as error:
                self.references.note_refusal(wanted.ref, error)
                raise
            finally:
                self._space.done(key)
        if not fetched.path.exists():  # this process was paused for longer than its lease
            return None
        blob = self._publish(wanted, remote, fetched, inspection)
        # Stored before the lease ends: waiting workers find a file by it if the host names no hash.
        self._note(wanted, replace(remote, etag=strong(fetched.etag)), blob)
        self._count(remote.name, fetched.size, time.monotonic() - begun)
        return blob

    def _count(self, name: str, size: int, seconds: float) -> None:
        with self._counting:
            self.bytes_fetched += size
        rate = size / 1e6 / max(seconds, 0.001)
        log.info("fetched %s: %.1f MB at %.0f MB/s", name, size / 1e6, rate)

    def _reporting_to(
        self, report: DownloadProgress, key: str
    ) -> Callable[[int, int | None], None]:
        def on_progress(fetched: int, size: int | None) -> None:
            report(fetched, size)
            if size is not None:
                self._space.left(key, size - fetched)

        return on_progress

    def _publish(
        self, wanted: Wanted, remote: RemoteFile, fetched: Fetched, inspection: _Inspection
    ) -> Blob:
        try:
            inspection.check_whole(fetched)
        except ModelFileInvalid:
            discard(fetched.path)
            raise
        found = inspection.found
        kind = wanted.kind or remote.role or control_models.kind_of(found.role)
        about = About(
            kind=kind,
            stem=stem_of(wanted.filename or fetched.filename or remote.filename),
            suffix=inspection.suffix,
            size=fetched.size,
            mtime=0,  # the store sets it
            source=remote.source,
            ref=None if wanted.ref.has_secret else str(wanted.ref),
            title=remote.title,
            family=found.family or remote.family,
            trained_words=remote.trained_words,
            name=stem_of(fetched.filename or remote.filename),
        )
        return self._blobs.add(
            fetched.path, fetched.sha256, about, lambda stem: self._is_taken(kind, stem)
        )


class _Inspection:
    """Checks a file by its first bytes; `download` calls it, see its `Hooks`.

    Attributes:
        suffix: of the file, if it is a pickle; otherwise `.safetensors`.
        found: what the file is; unknown for a pickle.
    """

    def __init__(self, wanted: Wanted, remote: RemoteFile) -> None:
        self._wanted = wanted
        self._name = remote.name
        self._size: int | None = None  # bytes that the file's header requires
        suffix = PurePosixPath(remote.filename).suffix.lower()
        self.suffix = suffix if suffix in PICKLES else SAFETENSORS
        self.found = Architecture()

    def __call__(self, start: bytes, size: int | None) -> int | None:
        """Reject a file that is not a usable model; a number asks for more first bytes."""
        if self.suffix in PICKLES:
            safetensors_header.check_pickle(start)
            return None
        needed = safetensors_header.header_length(start)
        if needed and len(start) < min(needed, size or needed):
            return needed
        header = safetensors_header.parse_header(start)
        self._size = header.size
        if size is not None:
            self.check_size(size)
        self.found = architecture.detect(header)
        kind = self._wanted.kind or control_models.kind_of(self.found.role)
        # Whether the job names a VAE is not known here; it is checked with the whole job.
        file = requirements.File(header, self.found, has_vae=True)
        requirements.check(self._name, kind, file)
        return None

    def check_size(self, size: int) -> None:
        """Reject a truncated file and one with trailing bytes."""
        if self._size not in {None, size}:
            raise ModelFileInvalid(
                f"{self._name}: the host has {size} bytes, but the file's header requires"
                f" {self._size}."
            )

    def check_whole(self, fetched: Fetched) -> None:
        """Check the downloaded file before it is published."""
        self.check_size(fetched.size)
        if self.suffix != SAFETENSORS:
            return
        try:
            check_with_safetensors(fetched.path)
        except OSError as error:  # such as too many open files: the download is kept
            raise storage_error(error) from error
