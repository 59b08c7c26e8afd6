"""CivitAI: how its models are referred to, where its files are, and what its refusals mean. Pure.

    digits                                                            CivitAIVersion
    civitai.com/models/<model>[/<slug>][?modelVersionId=<version>]    CivitAIModel, CivitAIVersion
    civitai.com/model-versions/<version>                              CivitAIVersion
    civitai.com/api/download/models/<version>[?<filters>]             CivitAIVersion
    civitai.com/api/v1/models/<model>                                 CivitAIModel
    civitai.com/api/v1/model-versions/[mini/]<version>                CivitAIVersion
    civitai.com/api/v1/model-versions/by-hash/<64 hex digits>         Sha256
    [urn:air:...:]civitai:<model>[@<version>[+<file>]][.<format>]     CivitAIModel, CivitAIVersion

A download URL without `fileId` gives different bytes to different keys, because CivitAI scores a
version's files by its account's preferences. So `worker.hosts.civitai_api` chooses the file.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

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
from worker.hosts.civitai_api import (
    FILTERS,
    CivitAIModel,
    CivitAIRef,
    CivitAIVersion,
    as_object,
    as_text,
    as_time,
    remote_file,
    until,
)
from worker.hosts.host import ANY_STATUS, Ask, Host, Refusal, RemoteFile, fitting, status
from worker.hosts.ref import ModelRef, Sha256, SiteUrl
from worker.http.document import Document

if TYPE_CHECKING:
    from worker.config.settings import Settings

CIVITAI = "https://civitai.com"
CIVITAI_RED = "https://civitai.red"  # the same site, with the models that the first one hides

_PATH = re.compile(
    r"(?:/models/(?P<page>[0-9]+)(?:/[^/]*)?|/api/v1/models/(?P<model>[0-9]+)"
    r"|(?:/api/v1/model-versions/mini|(?:/api/v1)?/model-versions|/api/download/models)"
    r"/(?P<version>[0-9]+)|/api/v1/model-versions/by-hash/(?P<sha256>[0-9a-fA-F]{64}))/?"
)
_ID_NAMES = {"page": ("modelVersionId",), "version": ("fileId", "modelFileId")}
_AIR = re.compile(r"(?ai)([0-9]+)(?:@([0-9]+)(?:\+([0-9]+))?)?(?:\.[a-z][\w-]*)?")
_LONG_WORD = re.compile(r"\S{32,}")  # in a host's text it may be a key or a signed URL
_NOT_FOUND_HINT = (
    "Check the number: it may be deleted, unpublished, or hidden from this host, region or key."
)

_REFUSALS = (
    Refusal(
        status(400, 599),
        r"<\?xml|(expired|bad)_auth_token",  # Cloudflare R2; Backblaze
        ModelHostFailed,
        "CivitAI's storage refuses the file ({status}).",
    ),
    Refusal(
        status(400, 599),
        "just a moment",
        ModelHostFailed,
        "Cloudflare blocks this worker as a robot ({status}).",
        "Wait some minutes; a worker with another IP address may be let through.",
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
        "CivitAI requires an API key for this download, and none is set.",
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
    Refusal(status(403), "", ModelForbidden, "CivitAI refuses it to this key or address."),
    Refusal(status(404), "", ModelNotFound, "CivitAI does not have it (404).", _NOT_FOUND_HINT),
    Refusal(
        status(410), "", ModelArchived, "it is archived; its files can no longer be downloaded."
    ),
    Refusal(
        status(429),
        "",
        ModelRateLimited,
        "CivitAI limits the requests of this key or address (429).",
    ),
    Refusal(
        status(451),
        "",
        ModelRegionBlocked,
        "CivitAI does not serve this worker's region (451).",
    ),
    Refusal(status(500, 599), "", ModelHostFailed, "CivitAI has failed ({status})."),
    Refusal(
        status(200, 299),
        "",
        ModelHostFailed,
        "CivitAI sent a web page or another unusable answer ({status}).",
        "Send the job again later; if the error stays, check CIVITAI_API_KEY and CIVITAI_URL.",
    ),
    Refusal(
        ANY_STATUS, "", ModelHostFailed, "CivitAI answered with the unexpected status {status}."
    ),
)


class CivitAI(Host):
    """The site, or the operator's mirror of it.

    Args:
        fronts: the site's base URLs (civitai.com, civitai.red). They are asked in turn until one
            does not answer 404, because civitai.red has models that civitai.com hides.
        key: the API key, valid for all fronts.
    """

    forms = (
        "a CivitAI version id, AIR (civitai:<model>@<version>) or URL (/models/<id>,"
        " /model-versions/<id>, /api/download/models/<id>)"
    )
    references = (CivitAIVersion, CivitAIModel, Sha256)
    domains = frozenset(
        [f"{www}civitai.{end}" for www in ("", "www.") for end in ("com", "red", "green")]
        + ["api.civitai.com"]
    )
    air_source = "civitai"

    def __init__(self, *fronts: str, key: str | None = None) -> None:
        self._fronts = fronts or (CIVITAI, CIVITAI_RED)
        self._has_key = key is not None
        self.tokens = dict.fromkeys(self._fronts, key) if key else {}

    @classmethod
    def from_settings(cls, settings: Settings) -> CivitAI:
        """Both base URLs of CivitAI accept the same key; a mirror has only one base URL."""
        key, url = settings.civitai_api_key, settings.civitai_url
        fronts = [url, CIVITAI_RED] if url == CIVITAI else [url]
        return cls(*fronts, key=key.get_secret_value() if key else None)

    @classmethod
    def read_url(cls, url: SiteUrl) -> ModelRef | None:
        """Pages, downloads and the API; other parts of the query are dropped, as is a `token`."""
        match = _PATH.fullmatch(url.path)
        if match is None or match.lastgroup is None:
            return None
        kind, value = match.lastgroup, match[match.lastgroup]
        if kind == "sha256":
            return Sha256(value.lower())
        ids = [number for name, number in url.query if name in _ID_NAMES.get(kind, ())]
        if len(ids) > 1 or not all(re.fullmatch("[0-9]+", number) for number in ids):
            raise url.refused("has in its query an id that is not a number, or two ids")
        if kind == "version":
            filters = tuple(sorted(pair for pair in url.query if pair[0] in FILTERS))
            return CivitAIVersion(int(value), int(ids[0]) if ids else None, filters)
        return CivitAIVersion(int(ids[0])) if ids else CivitAIModel(int(value))

    @classmethod
    def read_air(cls, rest: str) -> ModelRef | None:
        """`<model>[@<version>[+<file>]][.<format>]`."""
        match = _AIR.fullmatch(rest)
        if match is None:
            return None
        if match[2] is None:
            return CivitAIModel(int(match[1]))
        return CivitAIVersion(int(match[2]), int(match[3]) if match[3] else None)

    @classmethod
    def read_text(cls, text: str) -> ModelRef | None:
        """A bare number is the id of a version."""
        return CivitAIVersion(int(text)) if re.fullmatch("[0-9]+", text) else None

    def resolve(self, ref: ModelRef, ask: Ask) -> RemoteFile:
        """Ask for the metadata and choose the file; see `remote_file`."""
        if not isinstance(ref, CivitAIRef):
            raise TypeError(f"{ref.shown} is not a reference to CivitAI.")
        for front in self._fronts:
            document = ask(f"{front}/api/v1/{_path(ref)}")
            if document.status != 404:  # noqa: PLR2004 - HTTP
                break
        if document.status == 404 and isinstance(ref, Sha256):  # noqa: PLR2004
            raise ModelNotFound(
                f"{_named(ref)} is neither in the model store nor known to CivitAI.",
                hint="Check the hash, or name the model by its page's URL.",
            )
        if document.status != 200 or not isinstance(document.json(), dict):  # noqa: PLR2004
            raise self._refused(document, _named(ref))
        return remote_file(ref, document.json(), front, has_key=self._has_key)

    def refusal(self, document: Document, remote: RemoteFile) -> WorkerError:
        """The error that the answer to a download means."""
        name = f"{remote.source} ({remote.title!r})" if remote.title else remote.source
        return self._refused(document, name)

    def _refused(self, document: Document, what: str) -> WorkerError:
        text = document.body.decode(errors="replace")
        row = fitting(_REFUSALS, document.status, text, has_key=self._has_key)
        answer = as_object(document.json())
        quoted = _quoted(answer.get("message")) or _quoted(answer.get("error"))
        return row.error(
            what, document.status, quoted, until=until(as_time(answer.get("deadline")))
        )


def _quoted(value: object) -> str:
    text = as_text(_LONG_WORD.sub("...", value)) if isinstance(value, str) else ""
    return f" CivitAI's message: {text!r}." if text else ""


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
