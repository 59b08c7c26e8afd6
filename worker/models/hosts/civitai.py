"""CivitAI: where its files are, and what its refusals mean.

A download URL without `fileId` gives different bytes to different keys, because CivitAI scores a
version's files by its account's preferences. So `worker.models.hosts.civitai_api` chooses the file.
"""

from __future__ import annotations

import re
import threading

from worker.errors import (
    ModelArchived,
    ModelEarlyAccess,
    ModelForbidden,
    ModelHostFailed,
    ModelLoginRequired,
    ModelNotFound,
    ModelRateLimited,
    ModelRegionBlocked,
    WorkerError,
)
from worker.http.client import NO_CANCEL, Document, SafeHttpClient
from worker.job.reference import CivitAIModel, ModelRef, Sha256
from worker.models.hosts.civitai_api import (
    CivitAIRef,
    as_object,
    as_text,
    as_time,
    remote_file,
    until,
)
from worker.models.hosts.host import ANY_STATUS, Refusal, RemoteFile, fitting, status

_LONG_WORD = re.compile(r"\S{32,}")  # in a host's text it may be a key or a signed URL
_NOT_FOUND_HINT = (
    "Check the number: it may be deleted, unpublished, or hidden from this host, region or key."
)


CIVITAI = "https://civitai.com"
CIVITAI_RED = "https://civitai.red"  # the same site; shows also what the first hides


_REFUSALS = (
    Refusal(
        status(400, 599),
        r"<\?xml|(expired|bad)_auth_token",  # Cloudflare R2; Backblaze
        ModelHostFailed,
        "CivitAI's storage does not give the file out ({status}).",
    ),
    Refusal(
        status(400, 599),
        "just a moment",
        ModelHostFailed,
        "Cloudflare takes this worker for a robot ({status}).",
        "Wait some minutes; a worker with another address may pass.",
    ),
    Refusal(
        status(401),
        "disabled downloads",
        ModelForbidden,
        "its creator has disabled downloads.",
        "Use another version or another model.",
    ),
    Refusal(
        status(401),
        "",
        ModelLoginRequired,
        "CivitAI gives it only to a known key, and none is set.",
        "Set CIVITAI_API_KEY on the endpoint; a token inside a URL is not used.",
        has_key=False,
    ),
    Refusal(
        status(401),
        "",
        ModelLoginRequired,
        "the key was not accepted: it is wrong or expired, or its account may not see this.",
        "Set CIVITAI_API_KEY to a valid key; a token inside a URL is not used.",
        has_key=True,
    ),
    Refusal(status(403), "early access", ModelEarlyAccess, "it is in early access {until}."),
    Refusal(status(403), "", ModelForbidden, "CivitAI does not give it to this key or address."),
    Refusal(status(404), "", ModelNotFound, "CivitAI does not have it (404).", _NOT_FOUND_HINT),
    Refusal(status(410), "", ModelArchived, "it is archived, its files are not given out."),
    Refusal(status(429), "", ModelRateLimited, "CivitAI limits this key or address (429)."),
    Refusal(
        status(451),
        "",
        ModelRegionBlocked,
        "CivitAI does not serve the region of this worker (451).",
    ),
    Refusal(status(500, 599), "", ModelHostFailed, "CivitAI has failed ({status})."),
    Refusal(
        status(200, 299),
        "",
        ModelHostFailed,
        "CivitAI sent a web page or an answer without meaning ({status}).",
        "Send the job again later; if it stays so, check CIVITAI_API_KEY and CIVITAI_URL.",
    ),
    Refusal(
        ANY_STATUS, "", ModelHostFailed, "CivitAI answered {status}, which has no known meaning."
    ),
)


class CivitAI:
    """The host. Thread-safe.

    Args:
        http: the way to it.
        fronts: asked in turn until one does not say 404: one knows models that another hides.
    """

    def __init__(self, http: SafeHttpClient, *fronts: str) -> None:
        self._http = http
        self._fronts = fronts or (CIVITAI, CIVITAI_RED)

    def resolve(self, ref: ModelRef, stop: threading.Event = NO_CANCEL) -> RemoteFile:
        """Ask for the metadata and choose the file; see `remote_file`."""
        if not isinstance(ref, CivitAIRef):
            raise TypeError(f"{ref.shown} is not CivitAI's.")
        for front in self._fronts:
            document, _ = self._http.ask(f"{front}/api/v1/{_path(ref)}", stop=stop)
            if document.status != 404:  # noqa: PLR2004 - HTTP
                break
        has_key = self._http.has_token(front)
        if document.status == 404 and isinstance(ref, Sha256):  # noqa: PLR2004
            raise ModelNotFound(
                f"{_named(ref)} is neither in the model store nor known to CivitAI.",
                hint="Check the hash, or name the model by its page's URL.",
            )
        if document.status != 200 or not isinstance(document.json(), dict):  # noqa: PLR2004
            raise refused(document, _named(ref), has_key=has_key)
        return remote_file(ref, document.json(), front, has_key=has_key)

    def refusal(self, document: Document, remote: RemoteFile) -> WorkerError:
        """What the answer to a download means."""
        name = f"{remote.source} ({remote.title!r})" if remote.title else remote.source
        return refused(document, name, has_key=self._http.has_token(remote.url))


def refused(document: Document, what: str, *, has_key: bool) -> WorkerError:
    """The error that an answer means, if it is not what was asked for."""
    row = fitting(
        _REFUSALS, document.status, document.body.decode(errors="replace"), has_key=has_key
    )
    answer = as_object(document.json())
    own = _quoted(answer.get("message")) or _quoted(answer.get("error"))
    return row.error(what, document.status, own, until=until(as_time(answer.get("deadline"))))


def _quoted(value: object) -> str:
    text = as_text(_LONG_WORD.sub("...", value)) if isinstance(value, str) else ""
    return f" It says: {text!r}." if text else ""


def _path(ref: CivitAIRef) -> str:
    if isinstance(ref, Sha256):
        return f"model-versions/by-hash/{ref.digest}"
    if isinstance(ref, CivitAIModel):
        return f"models/{ref.model_id}"
    return f"model-versions/{ref.version_id}"


def _named(ref: CivitAIRef) -> str:
    if isinstance(ref, Sha256):
        return f"the file with SHA-256 {ref.digest}"
    if isinstance(ref, CivitAIModel):
        return f"CivitAI model {ref.model_id}"
    return f"CivitAI model version {ref.version_id}"
