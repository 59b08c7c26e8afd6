"""Reads the text with which a job names a model, in any of its forms, into one reference.

    64 hex digits, sha256:<64 hex digits>        Sha256
    the forms of each host in `worker.hosts`     CivitAIVersion, HuggingFaceFile, WebFile, ...
    a file name or stem, or a path of these      StoreName

A path of three or more parts that ends with a suffix can be a file of Hugging Face and a file in
the model store: `Wanted.local` is what it means in the store, which comes first. URLs of a known
site may lack the scheme. A text that has none of the forms is refused, not guessed at.
`str(ref)` is the canonical form, and `parse_reference(str(ref)) == ref`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

from worker.errors import InvalidInput
from worker.formats.names import Kind
from worker.hosts.civitai_api import CivitAIModel, CivitAIVersion
from worker.hosts.huggingface import HuggingFaceFile
from worker.hosts.ref import ModelRef, Sha256, clean, is_path, refused, site_of, site_url
from worker.hosts.registry import HOSTS
from worker.hosts.web import WebFile

__all__ = [
    "CivitAIModel",
    "CivitAIVersion",
    "HuggingFaceFile",
    "ModelRef",
    "Sha256",
    "StoreName",
    "Wanted",
    "WebFile",
    "parse_reference",
    "reference_from_fields",
]

_HINT = (
    "Give a file name in the model store, or its path there,"
    f" {', '.join(host.forms for host in HOSTS)}, or sha256:<64 hex digits>."
)
_SITES = {domain: host for host in HOSTS for domain in host.domains}
_AIR_SOURCES = {host.air_source: host for host in HOSTS if host.air_source}
_MAX_NAME, _MAX_PATH = 255, 1024
_OF_URLS = re.compile(r"(?i)[:?#@%]|\A[^/]+\.[a-z]{2,63}/")  # also a host name: `civitai.work/`

_SHA256 = re.compile(r"(?ai)(?:sha256:|(?=[0-9a-f]{64}\Z))(.*)")
_AIR = re.compile(r"(?ai)(?:urn:)?(air:)?(?:[\w/-]+:)*([\w-]+):([^:]*)")
_TITLE_HASH = re.compile(r"(?i)(?<!\s)(?:\s+\[[0-9a-f]{8,64}\])+\Z")


@dataclass(frozen=True)
class StoreName(ModelRef):
    """A file in the model store, by its name or its stem, without a title's ` [hash]`.

    The name may have the folders below the kind's own: `SDXL/own.safetensors`.
    """

    name: str
    needs_host = False

    def __post_init__(self) -> None:
        if not _is_local(self.name):
            raise refused(
                self.name,
                "is neither a known form of reference nor a file name of up to"
                f" {_MAX_NAME} characters",
            )
        if _without_title_hash(self.name.strip()) != self.name or _read(self.name):
            raise refused(self.name, "is not a file name but another form; write its suffix")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Wanted:
    """A model that a job or an operator names.

    Attributes:
        kind: the kind that it must be; None for any.
        sha256: the hash that the caller requires; used instead of the host's.
        filename: the name to store it under; None for the host's name.
        local: a path in the model store that the text can mean, too, and which comes first.
    """

    ref: ModelRef
    kind: Kind | None = None
    sha256: str | None = None
    filename: str | None = None
    local: str | None = None


def parse_reference(text: str) -> ModelRef:
    """Read any form of reference.

    Raises:
        InvalidInput: the text has none of the forms, or a malformed one.
    """
    with _hint():
        text = clean(text)
        return _read(text) or _read_title(text) or _store_name(text)


def local_path(text: str) -> str | None:
    """What a text that is also a reference to a host means in the model store, if it can.

    >>> local_path("SDXL/photo/fourth.safetensors [0123456789]"), local_path("hf://a/b/c.ckpt")
    ('SDXL/photo/fourth.safetensors', None)
    """
    path = _without_title_hash(text.strip())
    return path if "/" in path and _is_local(path) else None


def _is_local(name: str) -> bool:
    """Whether it is a file name, or a path that nobody could take for part of a URL."""
    parts = name.split("/")
    if not is_path(name) or any(len(part) > _MAX_NAME for part in parts):
        return False
    return len(parts) == 1 or (len(name) <= _MAX_PATH and not _OF_URLS.search(name))


@lru_cache(maxsize=1024)
def reference_from_fields(
    *,
    url: str | None,
    version_id: int | None,
    air: str | None,
    sha256: str | None,
    filename: str | None,
    name: str | None,
) -> ModelRef:
    """Read a job's object form: a source comes first, then the hash, then the names.

    Raises:
        InvalidInput: two sources, none of the six fields, or one that cannot be read.
    """
    if sum(source is not None for source in (url, version_id, air)) > 1:
        raise InvalidInput("the model has two sources.", hint="Give one of url, version_id, air.")
    with _hint():
        if version_id is not None:
            return CivitAIVersion(version_id)
        if url is not None:
            return _source(url, "a URL", _read)
        if air is not None:
            return _source(air, "an AIR", _read_air)
        if sha256 is not None:
            return _read_sha256(clean(sha256)) or Sha256(sha256)
        if filename is not None:
            return _store_name(clean(filename))
    return _by_name(name)


def _by_name(name: str | None) -> ModelRef:
    if name is None:
        raise InvalidInput(
            "the model is not named.",
            hint="Give one of url, version_id, air, sha256, filename, name.",
        )
    return parse_reference(name)


@contextmanager
def _hint() -> Iterator[None]:
    """Add the forms of references to the errors of this block."""
    try:
        yield
    except InvalidInput as error:
        error.hint = error.hint or _HINT
        raise


def _source(text: str, form: str, read: Callable[[str], ModelRef | None]) -> ModelRef:
    text = clean(text)
    ref = read(text)
    if ref is None:
        raise refused(text, f"is not {form}")
    return ref


def _read(text: str) -> ModelRef | None:
    """The reference if the text has a form of its own; None if it can only be a name."""
    return _read_sha256(text) or _read_air(text) or _read_site(text) or _read_by_hosts(text)


def _read_sha256(text: str) -> Sha256 | None:
    match = _SHA256.fullmatch(text)
    return Sha256(match[1].lower()) if match else None


def _read_air(text: str) -> ModelRef | None:
    match = _AIR.fullmatch(text)
    source = match[2].lower() if match else ""
    host = _AIR_SOURCES.get(source)
    # With `air:` it is an AIR whatever its source is, without it only with a known source.
    if match is None or not (match[1] or host):
        return None
    ref = host.read_air(match[3]) if host else None
    if ref is None:
        raise refused(text, f"is an AIR of {source[:20]} that names no known model")
    return ref


def _read_site(text: str) -> ModelRef | None:
    domain, url = site_of(text) or ("", "")
    host = _SITES.get(domain)
    if host is None:
        return None
    ref = host.read_url(site_url(text, url))
    if ref is None:
        raise refused(text, f"is a URL of {domain} that names no model")
    return ref


def _read_by_hosts(text: str) -> ModelRef | None:
    found = (host.read_text(text) for host in HOSTS)
    return next(filter(None, found), None)


def _read_title(text: str) -> ModelRef | None:
    """A title with folders and a hash, `SDXL/photo/fourth.safetensors [0123456789]`."""
    title = _without_title_hash(text)
    return _read_by_hosts(title) if title != text and local_path(title) else None


def _store_name(text: str) -> StoreName:
    """A1111 on Windows writes a title's folders with backslashes; a leading slash is no folder."""
    return StoreName(_without_title_hash(text).replace("\\", "/"))


def _without_title_hash(text: str) -> str:
    return _TITLE_HASH.sub("", text)
