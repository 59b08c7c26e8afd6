"""What every host of models has, and what it reports about a file before the download. Pure.

To add a host, write one module with its reference classes and a subclass of `Host`, and list the
class in `worker.hosts.registry`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from worker.errors import WorkerError
from worker.formats.names import Kind
from worker.hosts.ref import ModelRef, SiteUrl
from worker.http.document import Document

if TYPE_CHECKING:
    from worker.config.settings import Settings


@dataclass(frozen=True)
class RemoteFile:
    """A file at a host.

    Attributes:
        url: where a download starts; it may redirect to a signed URL.
        filename: the host's name for it; text of its creator, not to be trusted as a path.
        source: the file for people: a URL or an AIR, without secrets.
        size: bytes, where the host gives the exact number.
        sha256: lower-case hex, where the host knows it.
        role: what kind of model the file is, by the host's metadata.
        family: the base model it was made for, in the host's words (`SDXL 1.0`).
        trained_words: the words that trigger a LoRA or an embedding.
        etag: the host's mark of the version that was fetched; strong ones only.
        is_signed: whether `url` is a secret that expires: it is never stored or logged.
    """

    url: str = field(repr=False)
    filename: str
    source: str
    size: int | None = None
    sha256: str | None = None
    role: Kind | None = None
    title: str = ""
    family: str | None = None
    trained_words: tuple[str, ...] = ()
    etag: str | None = None
    is_signed: bool = False

    @property
    def name(self) -> str:
        """Its name for people."""
        return self.title or self.filename


class Ask(Protocol):
    """Sends a request to a host; `SafeHttpClient.ask` is one implementation."""

    def __call__(self, url: str, *, method: str = "GET", same_host: bool = False) -> Document:
        """Send a request and return the small answer.

        With `same_host`, a redirect to another host is returned as the answer.
        """


class Host(ABC):
    """One site, or one kind of site, that models are fetched from. Thread-safe.

    Attributes:
        forms: how its references are written, for the hint of an error.
        references: the classes of references that it resolves.
        domains: its web sites, in lower case; `read_url` gets the URLs there.
        air_source: the source in an AIR that `read_air` gets the rest of.
        tokens: URL on an origin (scheme, host, port) -> bearer token for that origin.
    """

    forms: ClassVar[str]
    references: ClassVar[tuple[type[ModelRef], ...]]
    domains: ClassVar[frozenset[str]] = frozenset()
    air_source: ClassVar[str | None] = None
    tokens: Mapping[str, str] = {}

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: Settings) -> Host:
        """The host as this worker's operator has configured it."""

    @classmethod
    def read_url(cls, _url: SiteUrl) -> ModelRef | None:
        """Read a URL on one of the domains; None if it names no model."""
        return None

    @classmethod
    def read_air(cls, _rest: str) -> ModelRef | None:
        """Read the part of an AIR after its source; None if it names no model."""
        return None

    @classmethod
    def read_text(cls, _text: str) -> ModelRef | None:
        """Read any other form of a reference; None if the text has no such form."""
        return None

    @abstractmethod
    def resolve(self, ref: ModelRef, ask: Ask) -> RemoteFile:
        """Ask the host which file the reference means.

        Raises:
            WorkerError: the host does not offer the file, or did not answer.
        """

    @abstractmethod
    def refusal(self, document: Document, remote: RemoteFile) -> WorkerError:
        """The error for a download that the host answered with something else than the file."""


class Refusal(NamedTuple):
    """A row of a host's table: the error for an answer.

    Attributes:
        status: the statuses that the row is for.
        sign: a pattern to find in the answer's text, in lower case; "" matches any text.
        message: with `{status}` and other fields that the host fills in.
        has_key: whether the request carried a token; None: either.
    """

    status: range
    sign: str
    kind: type[WorkerError]
    message: str
    hint: str | None = None
    has_key: bool | None = None

    def error(self, what: str, status: int, quoted: str = "", **known: str) -> WorkerError:
        """The error about `what`, with a quotation of the host's own text at its end."""
        message = self.message.format(status=status, **known)
        return self.kind(f"{what}: {message}{quoted}", hint=self.hint, status=status)


def status(first: int, last: int | None = None) -> range:
    """One status, or all up to `last`."""
    return range(first, (last or first) + 1)


ANY_STATUS = status(0, 999)


def fitting(
    table: Iterable[Refusal], answered: int, text: str, *, has_key: bool = False
) -> Refusal:
    """The first row that matches; a table's last row matches everything."""
    return next(
        row
        for row in table
        if answered in row.status
        and re.search(row.sign, text.lower())
        and row.has_key in {None, has_key}
    )
