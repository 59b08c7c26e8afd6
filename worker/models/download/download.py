"""Downloads one file into one partial file: in parallel, resumable, hashed on the way.

Life of a download: one connection fetches the first bytes; `inspect` gets them, so a web page
or a model that the engine cannot use is refused after its header. Then several
connections fetch parts in file order, as many as make the download faster. Each part that has
arrived is noted beside the partial file, so a run after `kill -9` fetches only what is missing. At
the end the SHA-256 must be right; otherwise an error is raised.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from pathlib import Path

from worker.errors import (
    FetchStopped,
    JobError,
    ModelFileInvalid,
    ModelHostFailed,
    StoreFull,
    WorkerError,
)
from worker.files import discard
from worker.http.backoff import Backoff
from worker.http.client import Reply
from worker.http.interrupt import Interrupt
from worker.models.download.hooks import Hooks
from worker.models.download.limits import DEFAULT, DownloadLimits
from worker.models.download.partial_file import Fetched, PartialFile
from worker.models.download.schedule import Connections, Pace, Part, Running
from worker.models.download.source import (
    Source,
    StartOver,
    TryAgain,
    filename_of,
    sends_everything,
    size_of,
    too_large,
    version_of,
    wrong_hash,
)

_MOMENT = 0.005  # seconds


def download(
    source: Source,
    partial: Path,
    sha256: str | None = None,
    hooks: Hooks | None = None,
    limits: DownloadLimits = DEFAULT,
) -> Fetched:
    """Fetch the file into `partial`, or resume what an earlier run left there.

    Args:
        source: where it comes from.
        partial: the file to fill; its progress is noted in a JSON file beside it.
        sha256: the hash that the file must have, lower-case hex.
        hooks: the callbacks of its owner.
        limits: sizes and waits.

    Raises:
        WorkerError: ModelHashMismatch, ModelHostFailed, ModelRateLimited, ModelUrlRefused,
            StoreFull, StoreNotWritable, FetchStopped, or the error of a hook or of the host's
            refusal. The partial file is kept if a later run can resume it.
    """
    failure: WorkerError
    for _ in range(2):
        try:
            with PartialFile(partial, limits) as file:
                transfer = _Transfer(source, file, hooks or Hooks(), limits, sha256 is not None)
                fetched = transfer.run()
        except StartOver as changed:
            failure, mixed = ModelHostFailed(f"{source.host}: {changed}"), True
        except (JobError, StoreFull):
            discard(partial)
            raise
        else:
            if sha256 in {None, fetched.sha256}:
                return fetched
            failure, mixed = wrong_hash(sha256, fetched.sha256), transfer.is_mixed
        discard(partial)
        if not mixed:  # the host has sent exactly these bytes, and would do so again
            break
    raise failure


class _Transfer:
    """One run of a download.

    Attributes:
        is_mixed: the bytes are of several runs or of several versions of the file.
    """

    def __init__(
        self,
        source: Source,
        file: PartialFile,
        hooks: Hooks,
        limits: DownloadLimits,
        has_hash: bool,
    ) -> None:
        self._source = source
        self._file = file
        self._hooks = hooks
        self._limits = limits
        self._has_hash = has_hash
        self.is_mixed = file.resumed > 0
        self._room_made = False
        self._room_until = 0
        self._gave_range = False
        self._to_inspect: int | None = limits.inspect_from
        self._connections: Connections | None = None  # None until the file is accepted
        self._threads: dict[int, threading.Thread] = {}
        self._interrupts: dict[int, Interrupt] = {}
        self._running: dict[Running, Reply] = {}  # hold the file's lock, also for the pace
        self._pace = Pace(limits)
        self._received = 0  # bytes, by all connections
        self._backoffs = defaultdict[int, Backoff](  # by the connection's number
            limits.backoff
        )
        self._quiet_until = 0.0  # because the host has asked for a pause
        self._filename: str | None = None
        self._failure: Exception | None = None
        self._over = threading.Event()
        self._changed = threading.Event()  # the main thread has something to do

    def run(self) -> Fetched:
        """Fetch all that is missing."""
        try:
            if self._file.resumed:
                self._make_room()
                self._inspect()
            self._supervise()
        finally:
            self._end()
        if self._failure:
            raise self._failure
        self._inspect()  # a short file whose size was unknown
        size, sha256 = self._file.finish()
        if not size:
            raise ModelFileInvalid(f"{self._source.host}: the file is empty.")
        self._hooks.report(size, size)
        return Fetched(self._file.path, size, sha256, self._filename, self._file.version.etag)

    # The main thread -------------------------------------------------------------------------

    def _supervise(self) -> None:
        while not self._is_over():
            self._start_connections()
            self._changed.wait(self._limits.tick)
            self._changed.clear()
            if self._hooks.stop.is_set():
                raise FetchStopped("the download was stopped.")
            with self._file.lock:
                fetched, size = self._file.parts.fetched(), self._file.parts.size
            if self._connections:
                self._connections.update(time.monotonic(), fetched, len(self._receiving()))
            self._break_off_slow()
            self._hooks.report(fetched, size)

    def _is_over(self) -> bool:
        with self._file.lock:
            return self._over.is_set() or self._file.parts.is_complete

    def _start_connections(self) -> None:
        for number in range(self._allowed()):
            with self._file.lock:
                if not self._file.parts.has_free:
                    return
            thread = self._threads.get(number)
            if thread is None or not thread.is_alive():
                given = number, self._interrupts.setdefault(number, Interrupt())
                # A daemon: the look-up of a host's name cannot be cut.
                thread = threading.Thread(target=self._connection, args=given, daemon=True)
                self._threads[number] = thread
                thread.start()

    def _allowed(self) -> int:
        return self._connections.allowed if self._connections else 1

    def _break_off_slow(self) -> None:
        with self._file.lock:
            slow = self._pace.too_slow(self._running, time.monotonic())
            replies = [self._running[one] for one in slow]
        for reply in replies:
            reply.shutdown()

    def _end(self) -> None:
        """Cut all connections; none of them writes to the file when this returns.

        A thread that still waits for an answer gets an error, soon after this returns.
        """
        self._over.set()
        for interrupt in self._interrupts.values():
            interrupt.cut()
        while replies := self._receiving():
            for reply in replies:
                reply.shutdown()
            time.sleep(_MOMENT)

    def _receiving(self) -> list[Reply]:
        with self._file.lock:
            return list(self._running.values())

    # The connections' threads ----------------------------------------------------------------

    def _connection(self, number: int, interrupt: Interrupt) -> None:
        """Fetch parts until there are none, or fewer connections are allowed."""
        try:
            while not self._over.is_set() and number < self._allowed():
                if self._over.wait(self._quiet_until - time.monotonic()):
                    return
                with self._file.lock:
                    part = self._file.parts.take(self._allowed())
                if part is None:
                    return
                with interrupt.covers():
                    self._attempt(part, self._backoffs[number])
        except Exception as error:  # noqa: BLE001 - also a hook's; the main thread raises it
            self._failure = self._failure or error
            self._over.set()
        finally:
            self._changed.set()

    def _attempt(self, part: Part, backoff: Backoff) -> None:
        """Fetch the part; pause if almost nothing has arrived."""
        started_at, received_before = part.position, self._received
        try:
            self._fetch(part)
        except (TryAgain, ModelHostFailed) as error:
            again = error if isinstance(error, TryAgain) else TryAgain(error)
        else:
            backoff.reset()
            return
        finally:
            with self._file.lock:
                self._file.parts.give_back(part)
            if not self._over.is_set():
                self._file.note()
        own = part.position - started_at
        if own >= self._limits.least:
            backoff.reset()
        elif not self._over.is_set():
            others = self._received - received_before - own
            others_progress = others >= self._limits.least or bool(self._receiving())
            self._weigh(again, backoff.failures, others_progress=others_progress)
            self._pause(again, backoff)

    def _pause(self, again: TryAgain, backoff: Backoff) -> None:
        """Wait before the next attempt; not if the first failure asks for a wait of 0 s."""
        pause = backoff.pause(again.after)
        if again.after == 0 and backoff.failures == 1:
            return
        if again.after is not None:
            self._quiet_until = max(self._quiet_until, time.monotonic() + pause)
        self._over.wait(pause)

    def _weigh(self, again: TryAgain, failures: int, *, others_progress: bool) -> None:
        """Use fewer connections if the host refuses some; else give up after all attempts."""
        refuses_more = others_progress and failures > 0
        if self._connections and (again.host_complains or refuses_more):
            until = self._connections.host_complained(time.monotonic())
            self._quiet_until = max(self._quiet_until, until)
        if failures + 1 >= self._limits.attempts and not others_progress:
            raise again.final

    def _fetch(self, part: Part) -> None:
        with self._source.open(part.position, part.end) as reply:
            running = Running(part, time.monotonic(), self._limits)
            with self._file.lock:
                self._running[running] = reply
            try:
                if not self._over.is_set():
                    self._accept(reply, part)
                    self._receive(reply, running)
            finally:
                with self._file.lock:
                    del self._running[running]
                    self._pace.ended(running, time.monotonic())

    def _receive(self, reply: Reply, running: Running) -> None:
        part = running.part
        while part.position < part.end and not self._over.is_set():
            block = reply.read(min(self._limits.block, part.end - part.position))
            if not block:
                self._ended(part)
                return
            self._file.write(part, block)
            running.touched = time.monotonic()
            self._received += len(block)
            self._source.progressed()
            if self._connections is None:
                self._inspect(running)
            if self._file.parts.size is None:
                self._make_room(part)
            if part.position > self._limits.largest_file:
                raise too_large(part.position, self._limits.largest_file)

    def _ended(self, part: Part) -> None:
        """The answer ends before the part does: correct only if the file's size is unknown."""
        with self._file.lock:
            if self._file.parts.size is None:
                self._file.parts.learn_size(part.position)
                return
        raise TryAgain(ModelHostFailed(f"{self._source.host} ended its answer too early."))

    def _accept(self, reply: Reply, part: Part) -> None:
        """Check that the answer fits the request, and the bytes that have already arrived."""
        size = size_of(reply, part.position, part.end)
        known = self._file.parts.size
        if known is not None and size != known:
            raise StartOver(f"the file had {known} bytes and now has {size}.")
        self._check_version(reply)
        with self._file.lock:
            if size is not None:
                self._file.parts.learn_size(size)
            if sends_everything(reply):
                self._take_everything(part)
        self._gave_range = self._gave_range or not sends_everything(reply)
        self._filename = self._filename or filename_of(reply)
        self._make_room(part)

    def _take_everything(self, part: Part) -> None:
        if part.position:
            changed = StartOver("the host sends the whole file instead of a range.")
            # If ranges have worked before, this is one faulty server.
            raise TryAgain(changed) if self._gave_range else changed
        self._file.parts.extend_to_end(part)

    def _check_version(self, reply: Reply) -> None:
        known, now = self._file.version, version_of(reply)
        self._file.version = known.filled_from(now)
        same = known.is_same(now)
        self.is_mixed = self.is_mixed or same is False
        # CivitAI moves files between storages whose ETags differ; the hash decides in the end.
        if self._has_hash:
            return
        if same is False:
            raise StartOver("the file has changed at the host.")
        # The file may have been replaced since: a model that is trained again has the same size.
        if same is None and self._file.resumed:
            raise StartOver("the host's headers do not show whether the file has changed.")

    def _make_room(self, part: Part | None = None) -> None:
        """Ask for room: once for all of the file, or step by step if its size is unknown."""
        with self._file.lock:
            size, fetched = self._file.parts.size, self._file.parts.fetched()
        if self._over.is_set():
            return
        if size is None:
            if part and part.position >= self._room_until:
                self._room_until = part.position + self._limits.room_step
                self._hooks.make_room(self._limits.room_step)
        elif not self._room_made:
            if size > self._limits.largest_file:
                raise too_large(size, self._limits.largest_file)
            self._room_made = True
            self._hooks.make_room(size - fetched)

    def _inspect(self, running: Running | None = None) -> None:
        """Pass the first bytes to `inspect`.

        More connections start when it accepts the file and the first one shows its rate.
        """
        now = time.monotonic()
        while self._to_inspect is not None:
            start = self._file.start(self._to_inspect)
            if start is None:
                return
            self._to_inspect = self._hooks.inspect(start, self._file.parts.size)
        if running and not running.shows_rate(now):
            return
        with self._file.lock:
            left = (self._file.parts.size or 0) - self._file.parts.fetched()
        rate = running.mean_rate(now) if running else None
        self._connections = Connections(time.monotonic(), left, rate, self._limits)
        self._changed.set()
