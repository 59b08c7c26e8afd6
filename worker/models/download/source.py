"""A file at a host, requested in ranges; signed URLs that expire are renewed on the way."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime

from worker.errors import ModelHashMismatch, ModelHostFailed, ModelUrlRefused, WorkerError
from worker.http.backoff import retry_after
from worker.http.client import BUSY, Reply, SafeHttpClient
from worker.http.document import Document, strong
from worker.http.urls import origin

RENEWALS = 5  # of the signed URL in a row, without a byte in between

_UNSETTLED = 60.0  # seconds

_NUMBER = r"([0-9]{1,18})"
_LENGTH = re.compile(_NUMBER)
_CONTENT_RANGE = re.compile(rf"bytes {_NUMBER}-{_NUMBER}/{_NUMBER}")
_OK, _PARTIAL, _NOT_FOUND, _NO_SUCH_RANGE, _TOO_MANY, _UNAVAILABLE = 200, 206, 404, 416, 429, 503


class TryAgain(Exception):
    """The attempt failed; another may succeed. Handled by `download`, never shown to a caller.

    Attributes:
        final: the error to raise when no attempt is left.
        after: seconds that the host asks to wait; None without such a request.
        host_complains: whether the host wants fewer requests.
    """

    def __init__(
        self, final: Exception, *, after: float | None = None, host_complains: bool = False
    ) -> None:
        super().__init__(str(final))
        self.final = final
        self.after = after
        self.host_complains = host_complains


class StartOver(Exception):
    """The bytes on the disk are not of the file that the host sends now; see `TryAgain`."""


@dataclass(frozen=True)
class FileVersion:
    """The headers by which a host distinguishes versions of a file; it may send none.

    Attributes:
        etag: weak ones too.
        modified: Last-Modified, as the host writes it.
    """

    etag: str | None = None
    modified: str | None = None

    def is_same(self, other: FileVersion) -> bool | None:
        """Whether both are one version of the file; None if the headers do not show it.

        Equal weak ETags prove nothing: they promise the same meaning, not the same bytes.
        Different ones prove a change.
        """
        if self.etag and other.etag:
            if self.etag != other.etag:
                return False
            if strong(self.etag):
                return True
        if self.modified and other.modified:
            return self.modified == other.modified
        return None

    def filled_from(self, other: FileVersion) -> FileVersion:
        """This version, with missing headers taken from the other one."""
        return FileVersion(self.etag or other.etag, self.modified or other.modified)


class Source:
    """Opens ranges of one file. Thread-safe.

    The URL is followed once; the signed URL that it leads to serves all ranges until the storage
    refuses it: 400, 401, 403 and 404 all mean there that it has expired.
    """

    def __init__(
        self, http: SafeHttpClient, url: str, refusal: Callable[[Document], WorkerError]
    ) -> None:
        self._http = http
        self._url = url
        self._refusal = refusal
        self._direct: str | None = None
        self._following = threading.Lock()
        self._renewals = 0
        self._was_missing = False
        self.host = origin(url)

    def open(self, start: int, end: int) -> Reply:
        """Request bytes `start` to `end` (exclusive); the answer is 200 or 206.

        Raises:
            TryAgain: another attempt may succeed.
            StartOver: the file ends before `start`.
            WorkerError: the host refuses, and would refuse again.
        """
        headers = {"Range": f"bytes={start}-{end - 1}"}
        with self._following:  # one connection follows the redirects, all use the result
            direct = self._direct
            if direct is None:
                reply = self._send(self._url, headers)
                return self._checked(reply, None, start)
        return self._checked(self._send(direct, headers), direct, start)

    def progressed(self) -> None:
        """Bytes have arrived: the URL works."""
        self._renewals = 0
        self._was_missing = False

    def _send(self, url: str, headers: dict[str, str]) -> Reply:
        try:
            return self._http.open(url, headers=headers)
        except ModelHostFailed as error:
            raise TryAgain(error) from error

    def _checked(self, reply: Reply, direct: str | None, start: int) -> Reply:
        if reply.status in {_OK, _PARTIAL}:
            if direct is None:  # otherwise another connection may have renewed it
                self._direct = reply.url
            return reply
        with reply:
            document = reply.document()
        if document.status in BUSY:
            raise self._busy(document)
        if document.status == _NO_SUCH_RANGE and start:
            raise StartOver(f"the file now ends before byte {start}.")
        if origin(reply.url) != self.host and self._may_renew(direct):
            failed = ModelHostFailed(
                f"the storage refused a signed URL of {self.host} ({document.status})."
            )
            raise TryAgain(failed, after=0)
        # CivitAI answers 404 also when it could not reach its storage for a moment.
        if document.status == _NOT_FOUND and not self._was_missing:
            self._was_missing = True
            raise TryAgain(self._refusal(document))
        raise self._refusal(document)

    def _busy(self, document: Document) -> TryAgain:
        return TryAgain(
            self._refusal(document),
            after=retry_after(document.headers),
            host_complains=document.status in {_TOO_MANY, _UNAVAILABLE},
        )

    def _may_renew(self, direct: str | None) -> bool:
        """Forget the signed URL; false if renewing it has not helped several times."""
        if direct is None or direct == self._direct:  # otherwise another connection has done it
            self._direct = None
            self._renewals += 1
        return self._renewals <= RENEWALS


def size_of(reply: Reply, start: int, end: int) -> int | None:
    """Bytes of the whole file, from an answer to a request for `start` to `end` (exclusive).

    None if the answer does not contain it, which is allowed only when it is the whole file.

    Raises:
        TryAgain: the answer is not the requested range.
    """
    if reply.status == _OK:
        length = reply.headers.get("Content-Length", "")
        return int(length) if _LENGTH.fullmatch(length) else None
    content_range = reply.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(content_range.strip())
    if match:
        first, last, total = map(int, match.groups())
        if first == start and last == min(end, total) - 1:
            return total
    raise TryAgain(
        ModelHostFailed(
            f"bytes {start}-{end - 1} were requested, and the host sent {content_range[:60]!r}."
        )
    )


def version_of(reply: Reply) -> FileVersion:
    """The version of the file that the answer is from.

    A Last-Modified within the last minute is ignored (RFC 9110, 8.8.2.2): the file may change
    again in the same second, and some hosts send the current time.
    """
    modified = reply.headers.get("Last-Modified")
    is_settled = modified and _seconds(modified) < time.time() - _UNSETTLED
    return FileVersion(reply.headers.get("ETag"), modified if is_settled else None)


def _seconds(date: str) -> float:
    """Seconds since the epoch; infinite if it is not a date."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return math.inf


def sends_everything(reply: Reply) -> bool:
    """Whether the host ignores ranges and sends the file from its first byte."""
    return reply.status == _OK


def filename_of(reply: Reply) -> str | None:
    """The name in Content-Disposition (RFC 6266 and 2231); not to be trusted as a path."""
    message = Message()
    message["Content-Disposition"] = reply.headers.get("Content-Disposition", "")
    try:
        return message.get_filename()
    except (ValueError, LookupError, TypeError):  # an unknown encoding, ...
        return None


def too_large(size: int, largest: int) -> ModelUrlRefused:
    """The error for a file over the limit."""
    return ModelUrlRefused(
        f"the file has {size / 1e9:.1f} GB, more than the {largest / 1e9:.1f} GB allowed.",
        hint="Name a smaller file: no model that A1111 v1.9.3 loads is that large.",
        size=size,
    )


def wrong_hash(expected: str | None, actual: str) -> ModelHashMismatch:
    """The error for a file whose content is another one."""
    message = f"the downloaded file has sha256 {actual}, but {expected} is expected."
    return ModelHashMismatch(message, expected=expected, actual=actual)
