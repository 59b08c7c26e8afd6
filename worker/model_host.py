"""What a host says about a model file before it is downloaded, and hosts in general."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol
from urllib.parse import unquote, urlsplit

from worker.architecture import Kind
from worker.errors import (
    ModelFileInvalid,
    ModelForbidden,
    ModelHostFailed,
    ModelNotFound,
    WorkerError,
)
from worker.internet import NEVER, Document
from worker.model_ref import ModelRef


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


class ModelHost(Protocol):
    """One kind of host: CivitAI, Hugging Face, or any other."""

    def resolve(self, ref: ModelRef, stop: threading.Event = NEVER) -> RemoteFile:
        """Ask the host which file the reference means; raises a WorkerError that says why not."""

    def refusal(self, document: Document, remote: RemoteFile) -> WorkerError:
        """What the host's answer to the download's first request means, if it is not the file."""


class AnyHost:
    """A web server that is known for nothing: the URL is all there is."""

    def resolve(self, ref: ModelRef, _stop: threading.Event = NEVER) -> RemoteFile:
        """The file at a `WebFile`; the host is not asked."""
        url = str(ref)
        name = PurePosixPath(unquote(urlsplit(url).path)).name
        return RemoteFile(url, name or "model.safetensors", ref.shown)

    def refusal(self, document: Document, remote: RemoteFile) -> WorkerError:
        """By status alone: the body is anything."""
        said = f"{remote.source}: the host answered {document.status}."
        if document.status in {401, 402, 403, 407, 451}:
            return ModelForbidden(said, status=document.status)
        if document.status in {404, 410}:
            return ModelNotFound(said, hint="Check the URL.", status=document.status)
        if document.status == 416:  # noqa: PLR2004 - not even the first byte can be had
            return ModelFileInvalid(f"{remote.source}: the file is empty.")
        return ModelHostFailed(said, status=document.status)
