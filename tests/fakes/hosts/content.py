"""The content of the fake model hosts: models, repositories, plain files, signed URLs, keys."""

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from fakes.hosts.http import Answer, Blob, Request

ROLES = ("civitai", "civitai_red", "storage", "storage_b", "huggingface", "hf_cdn", "web")
CIVITAI_ROLES = ("civitai", "civitai_red")
DATA_ROLES = ("storage", "storage_b", "hf_cdn", "web")

FILE_FIELDS = {"type": "Model", "pickleScanResult": "Success", "virusScanResult": "Success"}
FILE_FIELDS |= {"metadata": {"format": "SafeTensor", "size": "pruned", "fp": "fp16"}}
VERSION_FIELDS = {"status": "Published", "availability": "Public", "usageControl": "Download"}
VERSION_FIELDS |= dict.fromkeys(["earlyAccessEndsAt", "earlyAccessConfig", "paidAccess"])


@dataclass(eq=False)
class ModelFile:
    """One file of a CivitAI version."""

    id: int
    name: str
    blob: Blob
    version: "ModelVersion"
    require_auth: bool
    hashes: dict[str, str]

    @property
    def sha256(self) -> str:
        """The true digest, in lower case as our code has it."""
        return self.blob.sha256

    @property
    def size(self) -> int:
        return self.blob.size

    @property
    def version_id(self) -> int:
        return self.version.id

    @property
    def download_url(self) -> str:
        """Without the id of a file."""
        return self.version.download_url(self.version.origin)

    @property
    def file_url(self) -> str:
        return f"{self.download_url}?fileId={self.id}"

    def public(self, origin: str) -> dict[str, Any]:
        """The file in the metadata API."""
        return FILE_FIELDS | {
            "id": self.id,
            "sizeKB": self.size / 1024,
            "name": self.name,
            "primary": self is self.version.files[0],
            "downloadUrl": self.version.download_url(origin),
            "hashes": self.hashes,
        }


@dataclass(eq=False)
class ModelVersion:
    """One version of a CivitAI model."""

    id: int
    model_id: int
    origin: str
    kind: str = "Checkpoint"
    base_model: str = "SD 1.5"
    trained_words: tuple[str, ...] = ()
    red_only: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)
    files: list[ModelFile] = field(default_factory=list)

    def download_url(self, origin: str) -> str:
        return f"{origin}/api/download/models/{self.id}"

    def public(self, origin: str) -> dict[str, Any]:
        """The version in the metadata API."""
        shown = {
            "id": self.id,
            "modelId": self.model_id,
            "name": f"v{self.id}",
            "trainedWords": list(self.trained_words),
            "baseModel": self.base_model,
            "model": {"name": f"Model {self.model_id}", "type": self.kind, "nsfw": self.red_only},
            "files": [file.public(origin) for file in self.files],
            "downloadUrl": self.download_url(origin),
        }
        return VERSION_FIELDS | shown | self.overrides


@dataclass(eq=False)
class HfFile:
    """One file of a Hugging Face repository at one commit."""

    repo: str
    path: str
    blob: Blob
    origin: str
    revision: str
    commit: str
    lfs: bool

    @property
    def etag(self) -> str:
        return f'"{self.blob.sha256 if self.lfs else self.blob.git_sha1}"'

    @property
    def url(self) -> str:
        return f"{self.origin}/{self.repo}/resolve/{self.revision}/{quote(self.path)}"


@dataclass
class HfRepo:
    """A repository: its files by (revision or commit, path), and its access."""

    gated: bool = False
    private: bool = False
    files: dict[tuple[str, str], HfFile] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=dict)


@dataclass
class Grant:
    """One signed URL and how long it works."""

    secret: str
    blob: Blob
    etag: str
    headers: dict[str, str]
    uses: float

    def use(self) -> bool:
        """Whether it is still valid; counts the use."""
        self.uses -= 1
        return self.uses >= 0


def r2_query(disposition: str, secret: str) -> str:
    return (
        f"X-Amz-Expires=86400&response-content-disposition={disposition}"
        "&X-Amz-Algorithm=AWS4-HMAC-SHA256"
        "&X-Amz-Credential=0123456789abcdef%2F20260120%2Fus-east-1%2Fs3%2Faws4_request"
        "&X-Amz-Date=20260120T100000Z&X-Amz-SignedHeaders=host"
        f"&X-Amz-Signature={secret}"
    )


def b2_query(disposition: str, secret: str) -> str:
    return f"Authorization={secret}&b2ContentDisposition={disposition}"


SIGNED = {
    "storage": ("/model/1/fake", r2_query),
    "storage_b": ("/file/civitai-modelfiles/model/1/fake", b2_query),
    "hf_cdn": ("/xet-bridge-us/0", r2_query),
}


class World:
    """Everything that the hosts share."""

    def __init__(self) -> None:
        self.urls: dict[str, str] = {}
        self.versions: dict[int, ModelVersion] = {}
        self.repos: dict[str, HfRepo] = {}
        self.web: dict[str, Callable[[Request], Answer]] = {}
        self.grants: dict[str, Grant] = {}  # by signed URL
        self.civitai_key = secrets.token_hex(16)
        self.hf_token = f"hf_{secrets.token_hex(17)}"
        self.hf_token_without_grant = f"hf_{secrets.token_hex(17)}"

    def sign(self, role: str, blob: Blob, name: str, etag: str, uses: float) -> str:
        """A fresh signed URL for a blob on one of the storage hosts."""
        secret, disposition = secrets.token_hex(32), f'attachment; filename="{name}"'
        folder, write_query = SIGNED[role]
        query = write_query(quote(disposition, safe=""), secret)
        url = f"{self.urls[role]}{folder}.{secrets.token_hex(4)}.safetensors?{query}"
        self.grants[url] = Grant(secret, blob, etag, {"Content-Disposition": disposition}, uses)
        return url

    def storage_etag(self, role: str, blob: Blob) -> str:
        """As of a multipart upload: it is not the file's hash."""
        identity = f"{role} {blob.size} {blob.path or id(blob)}"
        return f'"{hashlib.md5(identity.encode()).hexdigest()}-{1 + blob.size // 2**26}"'
