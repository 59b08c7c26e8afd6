"""References to CivitAI's models, and the file that the answer of its metadata API means. Pure.

Creators write much of the metadata, and any field may be missing, null or of another type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, urlencode

from worker.errors import (
    ModelArchived,
    ModelEarlyAccess,
    ModelForbidden,
    ModelHostFailed,
    ModelNotFound,
    ModelNotSupported,
    ModelUnsafe,
)
from worker.formats.names import Kind
from worker.hosts.host import RemoteFile
from worker.hosts.ref import ModelRef, Sha256, check_id, refused

# References --------------------------------------------------------------------------------------

FILTERS = frozenset({"type", "format", "size", "fp", "quantType"})
_FILTER = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,39}")  # `Text Encoder`, `fp8_mixed`


@dataclass(frozen=True)
class CivitAIVersion(ModelRef):
    """A version of a model on CivitAI, and possibly which of its files.

    Attributes:
        filters: type, format, size, fp and quantType from the caller's URL: pairs of name and
            value, sorted.
    """

    version_id: int
    file_id: int | None = None
    filters: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        check_id(self.version_id)
        check_id(1 if self.file_id is None else self.file_id)
        known = all(key in FILTERS and _FILTER.fullmatch(value) for key, value in self.filters)
        if not known or list(self.filters) != sorted(dict(self.filters).items()):
            raise refused(str(self.version_id), "has a filter twice, or one that CivitAI lacks")

    def __str__(self) -> str:
        file_id = [] if self.file_id is None else [("fileId", str(self.file_id))]
        query = urlencode(sorted([*self.filters, *file_id]), quote_via=quote)
        url = f"https://civitai.com/api/download/models/{self.version_id}"
        return f"{url}?{query}" if query else url


@dataclass(frozen=True)
class CivitAIModel(ModelRef):
    """A model on CivitAI: its default version, which is the one published last."""

    model_id: int
    is_moving = True

    def __post_init__(self) -> None:
        check_id(self.model_id)

    def __str__(self) -> str:
        return f"https://civitai.com/models/{self.model_id}"


CivitAIRef = CivitAIVersion | CivitAIModel | Sha256

# The file -----------------------------------------------------------------------------------------

_ROLES: dict[str, Kind] = {
    **dict.fromkeys(("lora", "locon", "dora", "lycoris"), "lora"),
    "checkpoint": "checkpoint",
    "vae": "vae",
    "textualinversion": "embedding",
    "controlnet": "controlnet",
}
_WEIGHTS = frozenset({"model", "pruned model"})
_MORE_TYPES: dict[Kind, set[str]] = {"vae": {"vae"}, "embedding": {"negative"}}
_SAFE, _PICKLE = _FORMATS = ("safetensor", "pickletensor")  # that A1111 loads, the better one first
_FORMAT_OF_SUFFIX = {
    ".safetensors": _SAFE,
    ".gguf": "gguf",
    **dict.fromkeys((".ckpt", ".pt", ".pth", ".bin"), _PICKLE),
}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LISTED = 10  # files that a message names


def remote_file(ref: CivitAIRef, answer: object, front: str, *, has_key: bool) -> RemoteFile:
    """The file that an answer of the metadata API means.

    `size` is only a hint: some of CivitAI's sizes are wrong.

    Raises:
        WorkerError: CivitAI does not offer it, it is unsafe, or A1111 cannot load it.
    """
    version = _Version.read(as_object(answer), is_model=isinstance(ref, CivitAIModel))
    _check_offered(version, has_key=has_key)
    role = _ROLES.get(version.model_type.lower())
    if role is None:
        raise ModelNotSupported(
            f"{version} is of type {version.model_type!r}.",
            hint="Name a checkpoint, a LoRA, a VAE, an embedding or a ControlNet.",
        )
    file = _chosen(version, ref, role)
    _check_scans(version, file)
    return RemoteFile(
        url=f"{front}/api/download/models/{version.id}?fileId={file.id}",
        filename=file.name,
        source=f"civitai:{version.model_id}@{version.id}+{file.id}",
        size=file.size,
        sha256=file.sha256,
        role="vae" if file.type == "vae" else role,
        title=version.title,
        family=version.family,
        trained_words=version.words,
    )


# The metadata -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    """One of a version's files; `traits` are its type, format, size and fp in lower case."""

    id: int
    name: str
    traits: Mapping[str, str]
    size: int | None
    sha256: str | None
    is_primary: bool
    scans: Mapping[str, str]

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> _File:
        name = as_text(fields.get("name"), 400)
        traits = {"type": fields.get("type"), **as_object(fields.get("metadata"))}
        traits = {key: as_text(value).lower() for key, value in traits.items() if as_text(value)}
        declared = traits.setdefault("format", "other")
        if declared in {"other", _SAFE}:  # a pickle may have been declared safe
            suffix = PurePosixPath(name).suffix.lower()
            traits["format"] = _FORMAT_OF_SUFFIX.get(suffix, declared)
        digest = as_text(as_object(fields.get("hashes")).get("SHA256")).lower()
        return cls(
            id=_id(fields, "id"),
            name=name or "model.safetensors",
            traits=traits,
            size=_bytes(fields.get("sizeKB")),
            sha256=digest if _SHA256.fullmatch(digest) else None,
            is_primary=fields.get("primary") is True,
            scans={scan: as_text(fields.get(f"{scan}ScanResult")) for scan in ("virus", "pickle")},
        )

    @property
    def type(self) -> str:
        return self.traits.get("type", "")

    @property
    def format(self) -> str:
        return self.traits["format"]

    def __str__(self) -> str:
        size = f", {self.size / 1e6:.0f} MB" if self.size else ""
        return f"{self.id} {self.name!r} ({self.type or 'no type'}, {self.format}{size})"


@dataclass(frozen=True)
class _Version:
    """A model version with the fields of its model."""

    id: int
    model_id: int
    title: str
    model_type: str
    mode: str
    usage: str
    family: str | None
    words: tuple[str, ...]
    early_access: str | None
    files: tuple[_File, ...]

    @classmethod
    def read(cls, answer: Mapping[str, Any], *, is_model: bool) -> _Version:
        """From the answer for a version; or for a model, then its newest version with files."""
        model = answer if is_model else as_object(answer.get("model"))
        fields = _newest(model) if is_model else answer
        names = [as_text(model.get("name")), as_text(fields.get("name"))]
        model_type = as_text(model.get("type"))
        if not model_type:
            raise ModelHostFailed("CivitAI's answer does not contain the type of the model.")
        return cls(
            id=_id(fields, "id"),
            model_id=_id(model, "id") if is_model else _id(fields, "modelId"),
            title=" \N{EN DASH} ".join(filter(None, names)),
            model_type=model_type,
            mode=as_text(model.get("mode")).lower(),
            usage=as_text(fields.get("usageControl")).lower(),
            family=as_text(fields.get("baseModel")) or None,
            words=_words(fields.get("trainedWords")),
            early_access=_early_access(fields),
            files=tuple(_File.read(file) for file in _objects(fields.get("files"))),
        )

    def __str__(self) -> str:
        return f"CivitAI model version {self.id} ({self.title!r})"


def _newest(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """The version that the model's page shows."""
    what = f"CivitAI model {_id(model, 'id')} ({as_text(model.get('name'))!r})"
    if not isinstance(model.get("modelVersions"), list):
        raise ModelHostFailed(f"{what}: CivitAI's answer has no list of versions.")
    _check_mode(what, as_text(model.get("mode")).lower())
    for version in _objects(model["modelVersions"]):
        is_published = as_text(version.get("status")).lower() in {"", "published"}
        if is_published and _objects(version.get("files")):
            return version
    raise ModelArchived(f"{what} has no published version with files.")


def _early_access(version: Mapping[str, Any]) -> str | None:
    """How long early access lasts; None if it is over."""
    paid = as_object(version.get("paidAccess"))
    ends = map(as_time, (version.get("earlyAccessEndsAt"), paid.get("endsAt")))
    end = max(filter(None, ends), default=None)
    is_sold = as_text(version.get("availability")).lower() == "earlyaccess"
    if paid.get("permanent") is True or (is_sold and end is None):
        return until(None)
    return until(end) if end and end > datetime.now(timezone.utc) else None


def until(end: datetime | None) -> str:
    """The end of early access in words; None stands for paid access that does not end."""
    return f"until {end:%Y-%m-%d %H:%M} UTC" if end else "without an end, for buyers only"


def as_time(value: object) -> datetime | None:
    """An ISO date; None for anything else."""
    try:
        # Python 3.10 does not read the Z.
        time = datetime.fromisoformat(as_text(value).replace("Z", "+00:00"))
        return time.astimezone(timezone.utc) if time.tzinfo else time.replace(tzinfo=timezone.utc)
    except (ValueError, OverflowError):
        return None


def as_object(value: object) -> dict[str, Any]:
    """A JSON object; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def _objects(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _words(value: object) -> tuple[str, ...]:
    words = [as_text(word, 4000) for word in value] if isinstance(value, list) else []
    return tuple(dict.fromkeys(filter(None, words)))  # each once


def as_text(value: object, limit: int = 200) -> str:
    """Text on one line, shortened, printable characters only; "" for anything else."""
    words = value.split() if isinstance(value, str) else []
    return "".join(filter(str.isprintable, " ".join(words)))[:limit].strip()


def _bytes(kib: object) -> int | None:
    return round(kib * 1024) if isinstance(kib, int | float) and 0 < kib < 1 << 40 else None


def _id(fields: Mapping[str, Any], key: str) -> int:
    value = fields.get(key)
    if type(value) is not int or value < 1:
        raise ModelHostFailed(f"CivitAI's answer has no number as `{key}`.")
    return value


def _check_mode(what: str, mode: str) -> None:
    if mode == "archived":
        raise ModelArchived(f"{what} is archived.")
    if mode == "takendown":
        raise ModelNotFound(f"{what} was taken down.", hint="Use another model.")


def _check_offered(version: _Version, *, has_key: bool) -> None:
    """Refuse files that CivitAI would refuse; only it knows which keys have bought early access."""
    _check_mode(str(version), version.mode)
    if version.usage not in {"", "download"}:
        raise ModelForbidden(
            f"{version}: its creator has disabled downloads (usage control {version.usage!r}).",
            hint="Use another version or another model.",
        )
    if version.early_access and not has_key:
        raise ModelEarlyAccess(
            f"{version} is in early access {version.early_access}, and no key is set.",
            hint="Set CIVITAI_API_KEY of an account that has bought it, or name an older version.",
        )
    if not version.files:
        raise ModelArchived(f"{version} no longer has files.")


def _chosen(version: _Version, ref: CivitAIRef, role: Kind) -> _File:
    """The requested file, or else the best one that A1111 can load."""
    asked = _asked_for(version.files, ref)
    if not asked:
        raise ModelNotFound(
            f"{version} has no {_wish(ref)}.", hint=f"It has: {_listed(version.files)}."
        )
    types = _WEIGHTS | _MORE_TYPES.get(role, set()) | ({"vae"} if _is_explicit(ref) else set())
    usable = [file for file in asked if file.type in types and file.format in _FORMATS]
    if not usable:
        raise ModelNotSupported(
            f"{version} has no file that A1111 v1.9.3 can load: {_listed(asked)}.",
            hint="Use a version that has a .safetensors file.",
        )
    return min(usable, key=_preference)


def _asked_for(files: Sequence[_File], ref: CivitAIRef) -> list[_File]:
    if isinstance(ref, Sha256):
        return [file for file in files if file.sha256 == ref.digest]
    if isinstance(ref, CivitAIModel):
        return list(files)
    if ref.file_id is not None:
        return [file for file in files if file.id == ref.file_id]
    exact = [file for file in files if _agrees(file, ref.filters)]
    # Old files lack some of the traits: a missing one does not exclude a file.
    return exact or [file for file in files if _agrees(file, ref.filters, silent=True)]


def _agrees(file: _File, filters: Sequence[tuple[str, str]], *, silent: bool = False) -> bool:
    return all(
        file.traits.get(name, value.lower() if silent else None) == value.lower()
        for name, value in filters
    )


def _is_explicit(ref: CivitAIRef) -> bool:
    """Whether it means one file: only then may it be a checkpoint's own VAE."""
    if isinstance(ref, CivitAIVersion):
        return ref.file_id is not None or "type" in dict(ref.filters)
    return isinstance(ref, Sha256)


def _wish(ref: CivitAIRef) -> str:
    if isinstance(ref, CivitAIVersion) and ref.file_id is not None:
        return f"file {ref.file_id}"
    if isinstance(ref, CivitAIVersion):
        return "file with " + ", ".join(f"{name}={value}" for name, value in ref.filters)
    return "public file with this SHA-256"


def _preference(file: _File) -> tuple[object, ...]:
    """CivitAI's own order, but the same for every account; the smallest is the best."""
    return (
        _FORMATS.index(file.format),
        not file.is_primary,
        file.type not in _WEIGHTS,
        file.traits.get("size") != "pruned",
        file.traits.get("fp") != "fp16",
        file.id,
    )


def _check_scans(version: _Version, file: _File) -> None:
    """A pickle can run any code, so it must have passed; safetensors must not have failed."""
    for scan, result in file.scans.items():
        if result.lower() == "danger":
            raise ModelUnsafe(f"{version}: CivitAI's {scan} scan reports {file} as dangerous.")
        if file.format != _SAFE and result.lower() != "success":
            raise ModelUnsafe(
                f"{version}: the pickle {file} has not passed CivitAI's {scan} scan"
                f" ({result or 'no result'})."
            )


def _listed(files: Sequence[_File]) -> str:
    more = f" and {len(files) - _LISTED} more" if len(files) > _LISTED else ""
    return "; ".join(map(str, files[:_LISTED])) + more
