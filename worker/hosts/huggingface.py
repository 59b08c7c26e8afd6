"""Hugging Face: how its files are referred to, where they are, and what its refusals mean. Pure.

    huggingface.co/<org>/<repo>/(resolve|blob|raw)/<revision>/<path>  HuggingFaceFile
    [hf://]<org>/<repo>[@<revision>]/<path>                           HuggingFaceFile
    [urn:air:...:]huggingface:<org>/<repo>[@<revision>]/<path>        HuggingFaceFile

A HEAD of `/resolve/` answers with commit, size and hash in its headers. Large files redirect to
a signed URL on another host; that URL is signed for GET, so the HEAD must not follow it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from worker.errors import (
    ModelForbidden,
    ModelHostFailed,
    ModelLoginRequired,
    ModelNotFound,
    ModelRateLimited,
    ModelRegionBlocked,
    WorkerError,
)
from worker.hosts.host import ANY_STATUS, Ask, Host, Refusal, RemoteFile, fitting, status
from worker.hosts.ref import ModelRef, SiteUrl, check_length, is_path, refused
from worker.http.document import Document

if TYPE_CHECKING:
    from worker.config.settings import Settings

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"[0-9]{1,15}")

# Of the revisions with a slash only these two are written unescaped; others need %2F.
_REVISION = r"(refs/(?:pr|convert)/[^/@]+|[^/@]+)"
_PATH = re.compile(rf"/((?:datasets/|spaces/)?[^/]+/[^/]+)/(?:resolve|blob|raw)/{_REVISION}/(.+)")
# Without hf://, only a path with a suffix is a file, and the first part must not be a host name.
_FILE = re.compile(
    r"(?i)(?:hf://(?:models/)?|(?=[^/.]+/.*\.(?:safetensors|ckpt|pt|pth|bin|gguf)\Z))"
    rf"([^/@]+/[^/@]+)(?:@{_REVISION})?/(.+)"
)
_AIR = re.compile(rf"\A([^/@]+/[^/@]+)(/[^@]+)@{_REVISION}\Z")
_REPO = re.compile(r"(?a)(?!(?:datasets|spaces|models|api)/)\w[\w.-]{0,95}/\w[\w.-]{0,95}")


@dataclass(frozen=True)
class HuggingFaceFile(ModelRef):
    """A file of a model repository: `org/name`, `folder/file.safetensors`, and the revision."""

    repo: str
    path: str
    revision: str = "main"

    def __post_init__(self) -> None:
        if not _REPO.fullmatch(self.repo):
            raise refused(self.repo, "is not a model repository of Hugging Face")
        # A branch named `refs` could not be distinguished from `refs/pr/1`.
        if not is_path(self.path) or not is_path(self.revision) or self.revision == "refs":
            raise refused(f"{self.repo}@{self.revision}/{self.path}", "is not the path of a file")
        check_length(str(self))

    def __str__(self) -> str:
        file = f"{quote(self.revision, safe='')}/{quote(self.path)}"
        return f"https://huggingface.co/{self.repo}/resolve/{file}"

    @property
    def is_moving(self) -> bool:
        """Branches and tags move, commits do not."""
        return not _COMMIT.fullmatch(self.revision)


_SET_TOKEN = "Set HF_TOKEN on the endpoint; a token inside a URL is not used."  # noqa: S105
_CHECK_TOKEN = "Set HF_TOKEN to a valid token; a token inside a URL is not used."  # noqa: S105

# The pattern is searched for in the header X-Error-Code and the beginning of the body.
_REFUSALS = (
    Refusal(
        status(400, 599),
        r"\n<\?xml",
        ModelHostFailed,
        "Hugging Face's storage refuses the file ({status}).",
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
        "Hugging Face requires a login, and no token is set.",
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
        "Hugging Face refuses it to this token or address.",
        "The repository may be disabled, or the token may lack the right to read it.",
    ),
    Refusal(
        status(404),
        "",
        ModelNotFound,
        "Hugging Face does not have it (404).",
        "Check repository, revision and path.",
    ),
    Refusal(
        status(429),
        "",
        ModelRateLimited,
        "Hugging Face limits the requests of this token or address (429).",
    ),
    Refusal(
        status(451),
        "",
        ModelRegionBlocked,
        "Hugging Face blocks it for legal reasons (451).",
    ),
    Refusal(status(500, 599), "", ModelHostFailed, "Hugging Face has failed ({status})."),
    Refusal(
        ANY_STATUS,
        "",
        ModelHostFailed,
        "the answer ({status}) does not come from Hugging Face.",
        "Check HF_ENDPOINT: a mirror must send X-Repo-Commit.",
    ),
)


class HuggingFace(Host):
    """The site, or the operator's mirror of it."""

    forms = "a Hugging Face file (its URL, or org/repo/file.safetensors)"
    references = (HuggingFaceFile,)
    domains = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
    air_source = "huggingface"

    def __init__(self, url: str = "https://huggingface.co", token: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._has_token = token is not None
        self.tokens = {self._url: token} if token else {}

    @classmethod
    def from_settings(cls, settings: Settings) -> HuggingFace:
        """HF_ENDPOINT and HF_TOKEN."""
        token = settings.hf_token
        return cls(settings.hf_endpoint, token.get_secret_value() if token else None)

    @classmethod
    def read_url(cls, url: SiteUrl) -> ModelRef | None:
        """Only a URL with `resolve`, `blob` or `raw` is that of a file."""
        match = _PATH.fullmatch(url.path)
        return HuggingFaceFile(match[1], unquote(match[3]), unquote(match[2])) if match else None

    @classmethod
    def read_air(cls, rest: str) -> ModelRef | None:
        """Both `repo@revision/path` and `repo/path@revision` are in use."""
        return cls.read_text(_AIR.sub(r"\1@\3\2", rest))

    @classmethod
    def read_text(cls, text: str) -> ModelRef | None:
        """`hf://org/repo/file`, or `org/repo/file.safetensors`."""
        match = _FILE.fullmatch(text)
        return HuggingFaceFile(match[1], match[3], unquote(match[2] or "main")) if match else None

    def resolve(self, ref: ModelRef, ask: Ask) -> RemoteFile:
        """Ask for size, hash and commit; the download is pinned to the commit.

        Raises:
            WorkerError: one of those in `_REFUSALS`.
        """
        if not isinstance(ref, HuggingFaceFile):
            raise TypeError(f"{ref.shown} is not a reference to Hugging Face.")
        document = ask(self._file_url(ref, ref.revision), method="HEAD", same_host=True)
        commit = document.headers.get("X-Repo-Commit", "")
        # A file in LFS or Xet redirects.
        if not 200 <= document.status < 400 or not _COMMIT.fullmatch(commit):  # noqa: PLR2004
            raise self._refused(document, f"{ref.repo}/{ref.path} (revision {ref.revision})")
        return RemoteFile(
            url=self._file_url(ref, commit),
            filename=PurePosixPath(ref.path).name,
            source=f"hf://{ref.repo}@{commit}/{ref.path}",
            size=_size(document),
            sha256=_sha256(document),
            title=f"{ref.repo}/{ref.path}",
        )

    def refusal(self, document: Document, remote: RemoteFile) -> WorkerError:
        """The error that the answer to a download means."""
        return self._refused(document, remote.source)

    def _file_url(self, ref: HuggingFaceFile, revision: str) -> str:
        path = f"resolve/{quote(revision, safe='')}/{quote(ref.path)}"
        return f"{self._url}/{quote(ref.repo)}/{path}"

    def _refused(self, document: Document, what: str) -> WorkerError:
        code = document.headers.get("X-Error-Code", "")
        start = document.body[:100].decode(errors="replace").lstrip()
        row = fitting(_REFUSALS, document.status, f"{code}\n{start}", has_key=self._has_token)
        return row.error(what, document.status)


def _size(document: Document) -> int | None:
    is_file = document.status < 300  # noqa: PLR2004 - a redirect's own length is not the file's
    size = document.headers.get("X-Linked-Size") or (
        document.headers.get("Content-Length", "") if is_file else ""
    )
    return int(size) if _NUMBER.fullmatch(size) else None


def _sha256(document: Document) -> str | None:
    """The ETag of a file in LFS or Xet is its SHA-256; that of other files is git's hash."""
    etag = document.headers.get("X-Linked-Etag", "").removeprefix("W/").strip('"').lower()
    return etag if _SHA256.fullmatch(etag) else None
