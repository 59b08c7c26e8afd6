"""Which model a job means: text in many forms, read into one of six values.

    64 hex digits, sha256:<64 hex digits>                             Sha256
    digits                                                            CivitAIVersion
    civitai.com/models/<model>[/<slug>][?modelVersionId=<version>]    CivitAIModel, CivitAIVersion
    civitai.com/model-versions/<version>                              CivitAIVersion
    civitai.com/api/download/models/<version>[?<filters>]             CivitAIVersion
    civitai.com/api/v1/models/<model>                                 CivitAIModel
    civitai.com/api/v1/model-versions/[mini/]<version>                CivitAIVersion
    civitai.com/api/v1/model-versions/by-hash/<64 hex digits>         Sha256
    [urn:air:...:]civitai:<model>[@<version>[+<file>]][.<format>]     CivitAIModel, CivitAIVersion
    huggingface.co/<org>/<repo>/(resolve|blob|raw)/<revision>/<path>  HuggingFaceFile
    [hf://]<org>/<repo>[@<revision>]/<path>                           HuggingFaceFile
    [urn:air:...:]huggingface:<org>/<repo>[@<revision>]/<path>        HuggingFaceFile
    http(s)://<any other host>/...                                    WebFile
    a file name or stem                                               StoreName

CivitAI's and Hugging Face's URLs may lack the scheme. What is none of these is refused, not
guessed. `str(ref)` is the canonical form, and `parse_reference(str(ref)) == ref`. A URL's query and
userinfo may be secrets: no message, no `repr` and no `shown` has them.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode

from worker.errors import InvalidInput
from worker.formats.names import Kind

_FORMS = (
    "Give a file name in the model store, a CivitAI version id, AIR (civitai:<model>@<version>) or "
    "URL (/models/<id>, /model-versions/<id>, /api/download/models/<id>), a Hugging Face file (its "
    "URL, or org/repo/file.safetensors), another https URL, or sha256:<64 hex digits>."
)
_MAX_TEXT, _MAX_NAME, _MAX_SHOWN = 4096, 255, 80
_MAX_ID, _MAX_PORT = 2**63 - 1, 65_535
_FILTERS = frozenset({"type", "format", "size", "fp", "quantType"})

# Also what forges a line of a log, turns its direction, or is half a character.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffd]")
_FILTER = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,39}")  # `Text Encoder`, `fp8_mixed`
_SHA256 = re.compile(r"(?ai)(?:sha256:|(?=[0-9a-f]{64}\Z))(.*)")
_SCHEME = re.compile(r"(?ai)([a-z][a-z0-9+.-]*)://")
_URL = re.compile(r"(?ai)(https?://)([^/?#]*)([^?#]*)((?:\?[^#]+)?)\??(?:#.*)?")
_NETLOC = re.compile(r"(?:[a-z0-9_][a-z0-9._-]*|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_SITE = re.compile(
    r"(?ai)(?:https?://)?(?P<host>(?P<civitai>(?:www\.)?civitai\.(?:com|red|green)|api\.civitai\.com)"
    r"|(?:www\.)?huggingface\.co|hf\.co)\.?(?::(?:80|443))?(?=[/?#]|\Z)"
)
_CIVITAI_PATH = re.compile(
    r"(?:/models/(?P<page>[0-9]+)(?:/[^/]*)?|/api/v1/models/(?P<model>[0-9]+)"
    r"|(?:/api/v1/model-versions/mini|(?:/api/v1)?/model-versions|/api/download/models)"
    r"/(?P<version>[0-9]+)|/api/v1/model-versions/by-hash/(?P<sha256>[0-9a-fA-F]{64}))/?"
)
_AIR = re.compile(r"(?ai)(?:urn:)?(air:)?(?:[\w/-]+:)*([\w-]+):([^:]*)")
_CIVITAI_AIR = re.compile(r"(?ai)([0-9]+)(?:@([0-9]+)(?:\+([0-9]+))?)?(?:\.[a-z][\w-]*)?")
# Of the revisions with a slash only these two are written so; others need %2F.
_REVISION = r"(refs/(?:pr|convert)/[^/@]+|[^/@]+)"
_HF_PATH = re.compile(
    rf"/((?:datasets/|spaces/)?[^/]+/[^/]+)/(?:resolve|blob|raw)/{_REVISION}/(.+)"
)
# Without hf:// only what has a suffix is a file, and no host is before it.
_HF_FILE = re.compile(
    r"(?i)(?:hf://(?:models/)?|(?=[^/.]+/.*\.(?:safetensors|ckpt|pt|pth|bin|gguf)\Z))"
    rf"([^/@]+/[^/@]+)(?:@{_REVISION})?/(.+)"
)
_HF_AIR = re.compile(rf"\A([^/@]+/[^/@]+)(/[^@]+)@{_REVISION}\Z")
_REPO = re.compile(r"(?a)(?!(?:datasets|spaces|models|api)/)\w[\w.-]{0,95}/\w[\w.-]{0,95}")
_REPO_AT = re.compile(r"(?a)(?:hf://)?[\w.-]+/[\w.-]+@")
_TITLE_HASH = re.compile(r"(?i)(?<!\s)(?:\s+\[[0-9a-f]{8,64}\])+\Z")


class _Ref:
    """What all six have; `str` of each is its canonical form."""

    @property
    def is_moving(self) -> bool:
        """Whether the same reference can mean another file tomorrow."""
        return False

    @property
    def shown(self) -> str:
        """For people and logs: the canonical form without anything secret."""
        return str(self)

    @property
    def key(self) -> str:
        """SHA-256 of the canonical form: a file name for caches."""
        return hashlib.sha256(str(self).encode()).hexdigest()


@dataclass(frozen=True)
class CivitAIVersion(_Ref):
    """A version of a model on CivitAI, and maybe which of its files.

    Attributes:
        filters: what the caller's URL had of type, format, size, fp and quantType: pairs of name
            and value, sorted.
    """

    version_id: int
    file_id: int | None = None
    filters: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        _check_id(self.version_id)
        _check_id(1 if self.file_id is None else self.file_id)
        known = all(key in _FILTERS and _FILTER.fullmatch(value) for key, value in self.filters)
        if not known or list(self.filters) != sorted(dict(self.filters).items()):
            raise _refused(str(self.version_id), "has a filter twice, or one CivitAI has not")

    def __str__(self) -> str:
        file_id = [] if self.file_id is None else [("fileId", str(self.file_id))]
        query = urlencode(sorted([*self.filters, *file_id]), quote_via=quote)
        url = f"https://civitai.com/api/download/models/{self.version_id}"
        return f"{url}?{query}" if query else url


@dataclass(frozen=True)
class CivitAIModel(_Ref):
    """A model on CivitAI: its default version, which is the one published last."""

    model_id: int
    is_moving = True

    def __post_init__(self) -> None:
        _check_id(self.model_id)

    def __str__(self) -> str:
        return f"https://civitai.com/models/{self.model_id}"


@dataclass(frozen=True)
class HuggingFaceFile(_Ref):
    """A file of a model repository: `org/name`, `folder/file.safetensors`, and the revision."""

    repo: str
    path: str
    revision: str = "main"

    def __post_init__(self) -> None:
        if not _REPO.fullmatch(self.repo):
            raise _refused(self.repo, "is not a model repository of Hugging Face")
        # A branch `refs` could not be told from `refs/pr/1`.
        if not _is_path(self.path) or not _is_path(self.revision) or self.revision == "refs":
            raise _refused(f"{self.repo}@{self.revision}/{self.path}", "is not the path of a file")
        _check_length(str(self))

    def __str__(self) -> str:
        file = f"{quote(self.revision, safe='')}/{quote(self.path)}"
        return f"https://huggingface.co/{self.repo}/resolve/{file}"

    @property
    def is_moving(self) -> bool:
        """Branches and tags move, commits do not."""
        return not re.fullmatch("[0-9a-f]{40}", self.revision)


@dataclass(frozen=True)
class WebFile(_Ref):
    """Any other http(s) URL: no userinfo, no fragment; the query may be a signature, so a secret.

    That only https is allowed is enforced where the operator's trusted hosts are known.
    """

    url: str
    is_moving = True

    def __post_init__(self) -> None:
        _check_length(self.url)
        if _split(self.url)[0] != self.url or _SITE.match(self.url):
            raise _refused(self.url, "is not the plain URL of a file on another host")

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"WebFile({self.shown!r})"

    @property
    def shown(self) -> str:
        """Scheme, host and path."""
        return self.url.partition("?")[0]


@dataclass(frozen=True)
class Sha256(_Ref):
    """The file with this SHA-256, wherever it is: 64 lower-case hex digits."""

    digest: str

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.digest):
            raise _refused(self.digest, "is not a SHA-256 of 64 hex digits")

    def __str__(self) -> str:
        return f"sha256:{self.digest}"


@dataclass(frozen=True)
class StoreName(_Ref):
    """A file in the model store, by its name or its stem, without a title's ` [hash]`."""

    name: str

    def __post_init__(self) -> None:
        if "/" in self.name or not _is_path(self.name) or len(self.name) > _MAX_NAME:
            raise _refused(self.name, f"is no form we know and no file name up to {_MAX_NAME} long")
        if _TITLE_HASH.sub("", self.name.strip()) != self.name or _read(self.name):
            raise _refused(self.name, "is not a file name but another form; write its suffix")

    def __str__(self) -> str:
        return self.name


ModelRef = CivitAIVersion | CivitAIModel | HuggingFaceFile | WebFile | Sha256 | StoreName


@dataclass(frozen=True)
class Wanted:
    """A model that a job or an operator names.

    Attributes:
        kind: what it must be; None to take what it turns out to be.
        sha256: what the caller says its content must be; wins over the host's word.
        filename: the name it should get; None for the host's.
    """

    ref: ModelRef
    kind: Kind | None = None
    sha256: str | None = None
    filename: str | None = None


def parse_reference(text: str) -> ModelRef:
    """Read any of the forms at the top of this module.

    Raises:
        InvalidInput: the text is none of them, or only nearly one.
    """
    text = _clean(text)
    return _read(text) or _store_name(text)


def reference_from_fields(
    *,
    url: str | None,
    version_id: int | None,
    air: str | None,
    sha256: str | None,
    filename: str | None,
    name: str | None,
) -> ModelRef:
    """Read a job's object form: a source counts most, then the hash, then what it is called.

    Raises:
        InvalidInput: two sources, none of the six, or one that cannot be read.
    """
    if sum(source is not None for source in (url, version_id, air)) > 1:
        raise InvalidInput("the model has two sources.", hint="Give one of url, version_id, air.")
    if version_id is not None:
        return CivitAIVersion(version_id)
    if url is not None or air is not None:
        return _source(url, air)
    if sha256 is not None:
        return _sha256(_clean(sha256)) or Sha256(sha256)
    if filename is not None:
        return _store_name(_clean(filename))
    if name is None:
        raise InvalidInput(
            "the model is not named.",
            hint="Give one of url, version_id, air, sha256, filename, name.",
        )
    return parse_reference(name)


def _source(url: str | None, air: str | None) -> ModelRef:
    text = _clean(air if url is None else url)
    ref = _air(text) if url is None else _read(text)
    if ref is None:
        raise _refused(text, f"is no {'AIR' if url is None else 'URL'}")
    return ref


def _clean(text: object) -> str:
    if not isinstance(text, str):
        raise InvalidInput(f"the model is not text but {type(text).__name__}.", hint=_FORMS)
    _check_length(text)
    text = text.strip()
    if not text or _CONTROL.search(text):
        raise _refused(text, "is empty, or has a control character or half a character")
    return text


def _read(text: str) -> ModelRef | None:
    """What has a form of its own; None: only a name is left."""
    return _sha256(text) or _version(text) or _air(text) or _hf_file(text) or _url(text)


def _sha256(text: str) -> Sha256 | None:
    match = _SHA256.fullmatch(text)
    return Sha256(match[1].lower()) if match else None


def _version(text: str) -> CivitAIVersion | None:
    return CivitAIVersion(int(text)) if re.fullmatch("[0-9]+", text) else None


def _url(text: str) -> ModelRef | None:
    site, scheme = _SITE.match(text), _SCHEME.match(text)
    if site:
        # Browsers show it without the scheme.
        _, path, query = _split(f"https://{text[site.start('host') :]}")
        return _civitai(path, query, text) if site["civitai"] else _hugging_face(path, text)
    if scheme and scheme[1].lower() not in {"http", "https"}:
        raise _refused(text, f"is not understood as a {scheme[1][:20]}:// URL")
    return WebFile(_split(text)[0]) if scheme else None


def _split(url: str) -> tuple[str, str, str]:
    """The URL without fragment, its host in lower case; its path; its query."""
    match = _URL.fullmatch(url)
    if match is None or re.search(r"\s", url) or _CONTROL.search(url):
        raise _refused(url, "is not a URL, or has a blank in it (write %20)")
    if "@" in match[2]:
        raise _refused(url, "is a URL with a user or password")
    netloc = _NETLOC.fullmatch(match[2].lower())
    if netloc is None or not 1 <= int(netloc[1] or 443) <= _MAX_PORT:
        raise _refused(url, "is a URL without a valid host and port")
    return match[1].lower() + netloc[0] + match[3] + match[4], match[3], match[4][1:]


def _civitai(path: str, query: str, text: str) -> ModelRef:
    match = _CIVITAI_PATH.fullmatch(path)
    if match is None or match.lastgroup is None:
        raise _refused(text, "is a URL of CivitAI that names no model")
    kind, value = match.lastgroup, match[match.lastgroup]
    if kind == "sha256":
        return Sha256(value.lower())
    # What else the query says is dropped; `token` is a secret.
    said = parse_qsl(query)
    names = {"page": ("modelVersionId",), "version": ("fileId", "modelFileId")}.get(kind, ())
    ids = [number for name, number in said if name in names]
    if len(ids) > 1 or not all(re.fullmatch("[0-9]+", number) for number in ids):
        raise _refused(text, "has an id in its query that is not a number, or two")
    if kind == "version":
        filters = tuple(sorted(pair for pair in said if pair[0] in _FILTERS))
        return CivitAIVersion(int(value), int(ids[0]) if ids else None, filters)
    return CivitAIVersion(int(ids[0])) if ids else CivitAIModel(int(value))


def _air(text: str) -> ModelRef | None:
    match = _AIR.fullmatch(text)
    source = match[2].lower() if match else ""
    read = {"civitai": _civitai_air, "huggingface": _hf_air}.get(source)
    # With `air:` it is an AIR of whatever source, without it only of those that we know.
    if match is None or not (match[1] or read):
        return None
    ref = read(match[3]) if read else None
    if ref is None:
        raise _refused(text, f"is an AIR of {source[:20]}, which names no model we know")
    return ref


def _civitai_air(rest: str) -> ModelRef | None:
    match = _CIVITAI_AIR.fullmatch(rest)
    if match is None:
        return None
    if match[2] is None:
        return CivitAIModel(int(match[1]))
    return CivitAIVersion(int(match[2]), int(match[3]) if match[3] else None)


def _hf_air(rest: str) -> ModelRef | None:
    # Both `repo@revision/path` and `repo/path@revision` are in use.
    return _hf_file(_HF_AIR.sub(r"\1@\3\2", rest))


def _hugging_face(path: str, text: str) -> HuggingFaceFile:
    if match := _HF_PATH.fullmatch(path):
        return HuggingFaceFile(match[1], unquote(match[3]), unquote(match[2]))
    raise _refused(text, "is a URL of Hugging Face that names no file")


def _hf_file(text: str) -> HuggingFaceFile | None:
    match = _HF_FILE.fullmatch(text)
    return HuggingFaceFile(match[1], match[3], unquote(match[2] or "main")) if match else None


def _store_name(text: str) -> StoreName:
    return StoreName(_TITLE_HASH.sub("", text))


def _check_id(number: int) -> None:
    # True is an int, but no id.
    if type(number) is not int or not 1 <= number <= _MAX_ID:
        raise _refused(str(number), f"is not an id from 1 to {_MAX_ID}")


def _check_length(text: str) -> None:
    if len(text) > _MAX_TEXT:
        raise _refused(text, f"is longer than {_MAX_TEXT} characters")


def _is_path(text: str) -> bool:
    is_plain = "\\" not in text and not _CONTROL.search(text)
    return is_plain and not {"", ".", ".."} & set(text.split("/"))


def _refused(text: str, why: str) -> InvalidInput:
    return InvalidInput(f"the model {_given(text)} {why}.", hint=_FORMS)


def _given(text: str) -> str:
    """As a message may show it: short, without a URL's query and userinfo, which are secrets."""
    head, *tail = re.split("[?#]", text, maxsplit=1)
    if "@" in text and "/" in text and not _REPO_AT.match(text):
        # An @ behind the ? can be the end of a password that has a ?, or part of a signature.
        head = "..." if "@" in "".join(tail) else "..." + head.rpartition("@")[2]
    return repr(head if len(head) <= _MAX_SHOWN else f"{head[: _MAX_SHOWN - 3]}...")
