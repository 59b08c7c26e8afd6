"""Any other web server: its URL is all that is known about the file. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from worker.errors import (
    ModelFileInvalid,
    ModelForbidden,
    ModelHostFailed,
    ModelNotFound,
    ModelRateLimited,
    WorkerError,
)
from worker.hosts.host import ANY_STATUS, Ask, Host, Refusal, RemoteFile, fitting, status
from worker.hosts.ref import ModelRef, check_length, refused, split_url
from worker.http.document import Document

if TYPE_CHECKING:
    from worker.config.settings import Settings

_SCHEME = re.compile(r"(?ai)([a-z][a-z0-9+.-]*)://")


@dataclass(frozen=True)
class WebFile(ModelRef):
    """An http(s) URL without userinfo and fragment; its query may be a signature, so a secret.

    Whether plain http is allowed is decided where the operator's trusted hosts are known.
    """

    url: str
    is_moving = True

    def __post_init__(self) -> None:
        check_length(self.url)
        if split_url(self.url)[0] != self.url:
            raise refused(self.url, "is not the plain URL of a file")

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"WebFile({self.shown!r})"

    @property
    def has_secret(self) -> bool:
        """Whether the URL has a query: only its host knows which queries are signatures."""
        return "?" in self.url

    @property
    def shown(self) -> str:
        """Scheme, host and path."""
        return self.url.partition("?")[0]


_REFUSALS = (
    Refusal(status(401, 403), "", ModelForbidden, "the host answered {status}."),
    Refusal(status(407), "", ModelForbidden, "the host answered {status}."),
    Refusal(status(451), "", ModelForbidden, "the host answered {status}."),
    Refusal(status(404), "", ModelNotFound, "the host answered {status}.", "Check the URL."),
    Refusal(status(410), "", ModelNotFound, "the host answered {status}.", "Check the URL."),
    Refusal(status(429), "", ModelRateLimited, "the host limits this address (429)."),
    # Not even the first byte exists.
    Refusal(status(416), "", ModelFileInvalid, "the file is empty."),
    Refusal(ANY_STATUS, "", ModelHostFailed, "the host answered {status}."),
)


class AnyHost(Host):
    """Takes every http(s) URL that the hosts before it do not know."""

    forms = "another https URL"
    references = (WebFile,)

    @classmethod
    def from_settings(cls, _settings: Settings) -> AnyHost:
        """No setting applies to it."""
        return cls()

    @classmethod
    def read_text(cls, text: str) -> WebFile | None:
        """Any http(s) URL; other schemes are refused."""
        scheme = _SCHEME.match(text)
        if scheme is None:
            return None
        if scheme[1].lower() not in {"http", "https"}:
            raise refused(text, f"is a {scheme[1][:20]}:// URL; only https is supported")
        return WebFile(split_url(text)[0])

    def resolve(self, ref: ModelRef, _ask: Ask) -> RemoteFile:
        """The file at a `WebFile`; the host is not asked."""
        url = str(ref)
        name = PurePosixPath(unquote(urlsplit(url).path)).name
        return RemoteFile(url, name or "model.safetensors", ref.shown)

    def refusal(self, document: Document, remote: RemoteFile) -> WorkerError:
        """By status alone: the body can be anything."""
        return fitting(_REFUSALS, document.status, "").error(remote.source, document.status)
