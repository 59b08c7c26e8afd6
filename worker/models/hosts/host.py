"""What a host says about a model file before it is downloaded, and hosts in general."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from worker.errors import (
    ModelFileInvalid,
    ModelForbidden,
    ModelHostFailed,
    ModelNotFound,
    ModelRateLimited,
    WorkerError,
)
from worker.formats.names import Kind
from worker.http.client import NO_CANCEL, Document
from worker.job.reference import ModelRef


@dataclass(frozen=True)
class RemoteFile:
    """A file at a host.

    Attributes:
        url: where a download starts; holds no secret, and may redirect to a signed URL.
        filename: what the host calls it; its creator's text, not to be trusted as a path.
        source: the file for people: a URL or an AIR, without secrets.
        size: bytes, where the host says so exactly.
        sha256: lower-case hex, where the host knows it.
        role: what the host says the file is.
        family: what it says it was made for, in its own words (`SDXL 1.0`).
        trained_words: the words that make a LoRA or an embedding act.
        etag: the host's mark of the version that was fetched; strong ones only.
    """

    url: str
    filename: str
    source: str
    size: int | None = None
    sha256: str | None = None
    role: Kind | None = None
    title: str = ""
    family: str | None = None
    trained_words: tuple[str, ...] = ()
    etag: str | None = None

    @property
    def name(self) -> str:
        """What people call it."""
        return self.title or self.filename


class ModelHost(Protocol):
    """One kind of host: CivitAI, Hugging Face, or any other."""

    def resolve(self, ref: ModelRef, stop: threading.Event = NO_CANCEL) -> RemoteFile:
        """Ask the host which file the reference means; raises a WorkerError that says why not."""

    def refusal(self, document: Document, remote: RemoteFile) -> WorkerError:
        """What the host's answer to the download's first request means, if it is not the file."""


class Refusal(NamedTuple):
    """A line of a host's table: what an answer means that is not what was asked for.

    Attributes:
        status: the answers that it is about.
        sign: a pattern, somewhere in what the host says, in lower case; "" is any.
        says: `{status}` and what else the host fills in.
        has_key: whether requests carried a token; None: either.
    """

    status: range
    sign: str
    kind: type[WorkerError]
    says: str
    hint: str | None = None
    has_key: bool | None = None

    def error(self, what: str, status: int, said: str = "", **known: str) -> WorkerError:
        """The error about `what`, with the host's own words at its end."""
        says = self.says.format(status=status, **known)
        return self.kind(f"{what}: {says}{said}", hint=self.hint, status=status)


def status(first: int, last: int | None = None) -> range:
    """One status, or all up to `last`."""
    return range(first, (last or first) + 1)


ANY_STATUS = status(0, 999)


def fitting(
    table: Iterable[Refusal], answered: int, said: str, *, has_key: bool = False
) -> Refusal:
    """The first line that fits; a table's last one fits everything."""
    return next(
        row
        for row in table
        if answered in row.status
        and re.search(row.sign, said.lower())
        and row.has_key in {None, has_key}
    )


_REFUSALS = (
    Refusal(status(401, 403), "", ModelForbidden, "the host answered {status}."),
    Refusal(status(407), "", ModelForbidden, "the host answered {status}."),
    Refusal(status(451), "", ModelForbidden, "the host answered {status}."),
    Refusal(status(404), "", ModelNotFound, "the host answered {status}.", "Check the URL."),
    Refusal(status(410), "", ModelNotFound, "the host answered {status}.", "Check the URL."),
    Refusal(status(429), "", ModelRateLimited, "the host limits this address (429)."),
    # Not even the first byte can be had.
    Refusal(status(416), "", ModelFileInvalid, "the file is empty."),
    Refusal(ANY_STATUS, "", ModelHostFailed, "the host answered {status}."),
)


class AnyHost:
    """A web server that is known for nothing: the URL is all there is."""

    def resolve(self, ref: ModelRef, _stop: threading.Event = NO_CANCEL) -> RemoteFile:
        """The file at a `WebFile`; the host is not asked."""
        url = str(ref)
        name = PurePosixPath(unquote(urlsplit(url).path)).name
        return RemoteFile(url, name or "model.safetensors", ref.shown)

    def refusal(self, document: Document, remote: RemoteFile) -> WorkerError:
        """By status alone: the body is anything."""
        return fitting(_REFUSALS, document.status, "").error(remote.source, document.status)
