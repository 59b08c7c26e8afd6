"""Fetches the pictures whose URLs a job brings."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from queue import Empty, SimpleQueue

from worker.errors import (
    FetchStopped,
    ImageHostFailed,
    ImageUrlRefused,
    InvalidInput,
    ModelHostFailed,
    ModelUrlRefused,
    WorkerError,
)
from worker.http.backoff import Backoff, retry_after
from worker.http.client import BUSY, Reply, SafeHttpClient
from worker.http.interrupt import Interrupt
from worker.http.urls import shown
from worker.images.field_errors import about
from worker.images.limits import ImageLimits, check_file, check_files

_OK, _SERVER_ERRORS = 200, 500
_BLOCK = 1 << 18  # bytes
_TICK = 0.05  # seconds


def fetch_all(
    http: SafeHttpClient, urls: Mapping[str, str], limits: ImageLimits, stop: threading.Event
) -> dict[str, bytes]:
    """Fetch the files of a job's URLs: field -> URL becomes field -> file.

    Raises:
        ImageUrlRefused: a URL is not allowed, or its host refuses it.
        ImageHostFailed: a host failed, or all together took too long.
        InvalidInput: a file is too large.
        FetchStopped: `stop` was set.
    """
    fields: dict[str, str] = {}
    for field, url in urls.items():
        fields.setdefault(url, field)
    transfer = _Transfer(http, fields, limits)
    try:
        files = transfer.run(stop)
    finally:
        transfer.end()
    return {field: files[url] for field, url in urls.items()}


class _Transfer:
    """Fetches each URL once, some of them at the same time.

    Args:
        fields: URL -> field that is named in errors.
    """

    def __init__(self, http: SafeHttpClient, fields: dict[str, str], limits: ImageLimits) -> None:
        self._http = http
        self._fields = fields
        self._limits = limits
        self._waiting: SimpleQueue[str] = SimpleQueue()
        self._done: SimpleQueue[tuple[str, bytes | Exception]] = SimpleQueue()
        self._over = threading.Event()
        threads = min(limits.fetch_threads, len(fields))
        self._interrupts = [Interrupt() for _ in range(threads)]

    def run(self, stop: threading.Event) -> dict[str, bytes]:
        """Fetch all; the first failure ends it."""
        deadline = time.monotonic() + self._limits.fetch_seconds
        for url in self._fields:
            self._waiting.put(url)
        for interrupt in self._interrupts:
            # A daemon: the look-up of a host's name cannot be cut.
            threading.Thread(
                target=self._work, args=[interrupt], name="picture-fetch", daemon=True
            ).start()
        files: dict[str, bytes] = {}
        while missing := [url for url in self._fields if url not in files]:
            try:
                url, result = self._done.get(timeout=_TICK)
            except Empty:
                self._check_time(missing[0], deadline, stop)
                continue
            if isinstance(result, WorkerError):
                raise about(self._fields[url], result)
            if isinstance(result, Exception):
                raise result
            files[url] = result
            check_files(self._fields[url], files.values(), self._limits)
        return files

    def end(self) -> None:
        """Cut what still runs; its threads end."""
        self._over.set()
        for interrupt in self._interrupts:
            interrupt.cut()

    def _check_time(self, url: str, deadline: float, stop: threading.Event) -> None:
        if stop.is_set():
            raise FetchStopped("the job was stopped while its pictures were fetched.", hint="")
        if time.monotonic() > deadline:
            seconds = self._limits.fetch_seconds
            raise ImageHostFailed(
                f"{self._fields[url]}: {shown(url)} was not complete after {seconds:.0f} seconds."
            )

    # The threads ---------------------------------------------------------------------------------

    def _work(self, interrupt: Interrupt) -> None:
        while not self._over.is_set():
            try:
                url = self._waiting.get_nowait()
            except Empty:
                return
            try:
                result: bytes | Exception = self._fetch(url, interrupt)
            except Exception as error:  # noqa: BLE001 - `run` raises it
                result = error
            self._done.put((url, result))

    def _fetch(self, url: str, interrupt: Interrupt) -> bytes:
        limits = self._limits
        backoff = Backoff(limits.first_pause, longest_wait=limits.longest_pause)
        failure: ImageHostFailed
        for attempt in range(1, limits.attempts + 1):
            asked_for = None
            try:
                with interrupt.covers(), self._http.open(url) as reply:
                    if reply.status not in BUSY and reply.status < _SERVER_ERRORS:
                        return self._body(url, reply)
                failure = ImageHostFailed(f"{shown(url)} answered {reply.status}.")
                asked_for = retry_after(reply.headers)
            except ModelUrlRefused as error:
                raise ImageUrlRefused(error.message) from None
            except ModelHostFailed as error:
                failure = ImageHostFailed(f"{shown(url)}: {error.message}")
            if attempt < limits.attempts and self._over.wait(backoff.pause(asked_for)):
                break
        raise failure

    def _body(self, url: str, reply: Reply) -> bytes:
        if reply.status != _OK:
            raise ImageUrlRefused(f"{shown(url)} answered {reply.status}.", status=reply.status)
        announced = reply.headers.get("Content-Length", "")
        if announced.isascii() and announced.isdigit():
            check_file(int(announced[:20]), self._limits)
        data = bytearray()
        while block := reply.read(_BLOCK):
            data += block
            check_file(len(data), self._limits)
        if not data:
            raise InvalidInput(f"{shown(url)} sent an empty file.")
        return bytes(data)
