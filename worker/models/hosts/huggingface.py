"""Hugging Face: what it says about a file before it is downloaded, and what its refusals mean.

A HEAD of `/resolve/` answers with commit, size and hash in its headers. Large files redirect to
a signed URL on another host; that URL is signed for GET, so the HEAD must not follow it.
"""

from __future__ import annotations

import re
import threading
from pathlib import PurePosixPath
from urllib.parse import quote

from worker.errors import (
    ModelForbidden,
    ModelHostFailed,
    ModelLoginRequired,
    ModelNotFound,
    ModelRateLimited,
    ModelRegionBlocked,
    WorkerError,
)
from worker.http.client import NO_CANCEL, Document, SafeHttpClient
from worker.job.reference import HuggingFaceFile, ModelRef
from worker.models.hosts.host import ANY_STATUS, Refusal, RemoteFile, fitting, status

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"[0-9]{1,15}")

_SET_TOKEN = "Set HF_TOKEN on the endpoint; a token inside a URL is not used."  # noqa: S105
_CHECK_TOKEN = "Set HF_TOKEN to a valid token; a token inside a URL is not used."  # noqa: S105


# The pattern is looked for in the header X-Error-Code and the beginning of the body.
_REFUSALS = (
    Refusal(
        status(400, 599),
        r"\n<\?xml",
        ModelHostFailed,
        "Hugging Face's storage does not give the file out ({status}).",
    ),
    Refusal(
        ANY_STATUS,
        r"^gatedrepo\b",
        ModelLoginRequired,
        "the repository is gated, and no token is set.",
        f"Accept its terms on its page, and then: {_SET_TOKEN}",
        has_key=False,
    ),
    Refusal(
        ANY_STATUS,
        r"^gatedrepo\b",
        ModelForbidden,
        "the repository is gated, and the token's account has no access to it.",
        "Accept its terms on its page with the account of HF_TOKEN.",
        has_key=True,
    ),
    Refusal(
        ANY_STATUS,
        r"^reponotfound\b",
        ModelNotFound,
        "the repository does not exist, or it is private, and no token is set.",
        f"Check its name; if it is private: {_SET_TOKEN}",
        has_key=False,
    ),
    Refusal(
        ANY_STATUS,
        r"^reponotfound\b",
        ModelNotFound,
        "the repository does not exist, or it is private and the token's account may not see it.",
        "Check its name, and which account HF_TOKEN belongs to.",
        has_key=True,
    ),
    Refusal(
        ANY_STATUS,
        r"^revisionnotfound\b",
        ModelNotFound,
        "the repository has no such branch, tag or commit.",
        "Check the revision; most repositories have `main`.",
    ),
    Refusal(
        ANY_STATUS,
        r"^entrynotfound\b",
        ModelNotFound,
        "the repository has no such file.",
        "Check the path, with its folders and its upper and lower case.",
    ),
    Refusal(
        status(401),
        "",
        ModelLoginRequired,
        "Hugging Face asks for a login, and no token is set.",
        _SET_TOKEN,
        has_key=False,
    ),
    Refusal(
        status(401),
        "",
        ModelLoginRequired,
        "the token was not accepted: it is wrong or expired.",
        _CHECK_TOKEN,
        has_key=True,
    ),
    Refusal(
        status(403),
        "",
        ModelForbidden,
        "Hugging Face does not give it to this token or address.",
        "The repository may be disabled, or the token may lack the right to read it.",
    ),
    Refusal(
        status(404),
        "",
        ModelNotFound,
        "Hugging Face does not have it (404).",
        "Check repository, revision and path.",
    ),
    Refusal(status(429), "", ModelRateLimited, "Hugging Face limits this token or address (429)."),
    Refusal(
        status(451),
        "",
        ModelRegionBlocked,
        "Hugging Face may not give it out for legal reasons (451).",
    ),
    Refusal(status(500, 599), "", ModelHostFailed, "Hugging Face has failed ({status})."),
    Refusal(
        ANY_STATUS,
        "",
        ModelHostFailed,
        "the answer ({status}) is not what Hugging Face answers.",
        "Check HF_ENDPOINT: a mirror must give X-Repo-Commit.",
    ),
)


class HuggingFace:
    """The host, or a mirror of it. Thread-safe."""

    def __init__(self, http: SafeHttpClient, url: str = "https://huggingface.co") -> None:
        self._http = http
        self._url = url.rstrip("/")

    def resolve(self, ref: ModelRef, stop: threading.Event = NO_CANCEL) -> RemoteFile:
        """Ask for size, hash and commit; the download is pinned to the commit.

        Raises:
            WorkerError: one of those that `_REFUSALS` names.
        """
        if not isinstance(ref, HuggingFaceFile):
            raise TypeError(f"{ref.shown} is not Hugging Face's.")
        url = self._file_url(ref, ref.revision)
        document, _ = self._http.ask(url, method="HEAD", same_host=True, stop=stop)
        commit = document.headers.get("X-Repo-Commit", "")
        # A file in LFS or Xet redirects.
        if not 200 <= document.status < 400 or not _COMMIT.fullmatch(commit):  # noqa: PLR2004
            what = f"{ref.repo}/{ref.path} (revision {ref.revision})"
            raise self._refused(document, what, url)
        return RemoteFile(
            url=self._file_url(ref, commit),
            filename=PurePosixPath(ref.path).name,
            source=f"hf://{ref.repo}@{commit}/{ref.path}",
            size=_size(document),
            sha256=_sha256(document),
            title=f"{ref.repo}/{ref.path}",
        )

    def refusal(self, document: Document, remote: RemoteFile) -> WorkerError:
        """What the answer to a download means."""
        return self._refused(document, remote.source, remote.url)

    def _file_url(self, ref: HuggingFaceFile, revision: str) -> str:
        path = f"resolve/{quote(revision, safe='')}/{quote(ref.path)}"
        return f"{self._url}/{quote(ref.repo)}/{path}"

    def _refused(self, document: Document, what: str, url: str) -> WorkerError:
        code = document.headers.get("X-Error-Code", "")
        start = document.body[:100].decode(errors="replace").lstrip()
        has_key = self._http.has_token(url)
        row = fitting(_REFUSALS, document.status, f"{code}\n{start}", has_key=has_key)
        return row.error(what, document.status)


def _size(document: Document) -> int | None:
    is_file = document.status < 300  # noqa: PLR2004 - a redirect's own length says nothing
    size = document.headers.get("X-Linked-Size") or (
        document.headers.get("Content-Length", "") if is_file else ""
    )
    return int(size) if _NUMBER.fullmatch(size) else None


def _sha256(document: Document) -> str | None:
    """The ETag of a file in LFS or Xet is its hash; of others it is git's."""
    etag = document.headers.get("X-Linked-Etag", "").removeprefix("W/").strip('"').lower()
    return etag if _SHA256.fullmatch(etag) else None
