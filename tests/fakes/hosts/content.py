"""What the fake model hosts know: models, repositories, plain files, signed URLs and keys."""

import hashlib
import secrets
import time
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import quote

from fakes.hosts.http import Answer, Blob

ROLES = ("civitai", "civitai_red", "storage", "storage_b", "huggingface", "hf_cdn", "web")
CIVITAI_ROLES = ("civitai", "civitai_red")
DATA_ROLES = ("storage", "storage_b", "hf_cdn", "web")
SIGNED_SECONDS = 86400
HASHED_FULLY = 2**26  # larger files get SHA256 and AutoV2 only
MAIN_TYPES = {"Model", "Pruned Model", "UNet", "Diffusion Model"}
PREFERRED = {"format": "SafeTensor", "size": "pruned", "fp": "fp16"}
WEIGHT = {"format": 100, "size": 10, "fp": 1}
ECOSYSTEMS = (("SDXL", "sdxl"), ("Pony", "sdxl"), ("Illustrious", "sdxl"), ("NoobAI", "sdxl"))
ECOSYSTEMS += (("SD 1", "sd1"), ("SD 2", "sd2"), ("SD 3", "sd3"), ("Flux.1", "flux1"))
AIR_TYPES = {"TextualInversion": "embedding", "LoCon": "lycoris", "Hypernetwork": "hypernet"}

FILE_FIELDS = {
    "pickleScanResult": "Success",
    "pickleScanMessage": "No Pickle imports",
    "virusScanResult": "Success",
    "virusScanMessage": None,
    "scannedAt": "2026-01-20T10:05:11.000Z",
}
VERSION_FIELDS = {
    "nsfwLevel": 1,
    "createdAt": "2026-01-20T09:00:00.000Z",
    "updatedAt": "2026-01-20T10:00:00.000Z",
    "status": "Published",
    "publishedAt": "2026-01-20T10:00:00.000Z",
    "baseModelType": "Standard",
    "earlyAccessEndsAt": None,
    "earlyAccessConfig": None,
    "paidAccess": None,
    "description": None,
    "availability": "Public",
    "usageControl": "Download",
    "stats": {"downloadCount": 1, "thumbsUpCount": 0},
    "images": [],
}


def ecosystem(base_model: str) -> str:
    named = (name for start, name in ECOSYSTEMS if base_model.startswith(start))
    return next(named, "multi")


@dataclass(eq=False)
class ModelFile:
    """One file of a CivitAI version."""

    id: int
    name: str
    blob: Blob
    version: "ModelVersion"
    require_auth: bool = True
    overrides: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def sha256(self) -> str:
        """The true digest, in lower case as our code has it."""
        return self.blob.digest(hashlib.sha256())

    @property
    def size(self) -> int:
        return self.blob.size

    @property
    def version_id(self) -> int:
        return self.version.id

    @property
    def model_id(self) -> int:
        return self.version.model_id

    @property
    def page_url(self) -> str:
        return f"{self.version.origin}/models/{self.model_id}/fake?modelVersionId={self.version_id}"

    @property
    def api_url(self) -> str:
        return f"{self.version.origin}/api/v1/model-versions/{self.version_id}"

    @property
    def download_url(self) -> str:
        """Without a file's id: the host chooses one."""
        return f"{self.version.origin}/api/download/models/{self.version_id}"

    @property
    def file_url(self) -> str:
        return f"{self.download_url}?fileId={self.id}"

    @property
    def air(self) -> str:
        return self.version.air

    @property
    def file_air(self) -> str:
        return f"{self.version.air}+{self.id}"

    @property
    def type(self) -> str:
        return str(self.overrides.get("type", "Model"))

    @property
    def metadata(self) -> dict[str, Any]:
        return self.overrides.get("metadata", PREFERRED)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """As CivitAI shows them: upper-case hex."""
        found = {"AutoV2": self.sha256[:10], "SHA256": self.sha256}
        if self.size <= HASHED_FULLY:
            data = bytes(self.blob.read(0, self.size))
            found["AutoV1"] = hashlib.sha256(data[2**20 : 2**20 + 2**16]).hexdigest()[:8]
            found["CRC32"] = f"{zlib.crc32(data):08x}"
            header = int.from_bytes(data[:8], "little")
            found["AutoV3"] = hashlib.sha256(data[8 + header :]).hexdigest()[:12]
        return {name: value.upper() for name, value in found.items()}

    def score(self, wanted: dict[str, str]) -> int:
        """CivitAI's points for a download that names no file."""
        points = 1000 + 1000 * (self.type in MAIN_TYPES)
        if not wanted and self.overrides.get("primary"):
            points += 10_000
        for key, preferred in (PREFERRED | wanted).items():
            if key in WEIGHT and key in self.metadata:
                sign = 1 if self.metadata[key] == preferred else -1
                points += sign * WEIGHT[key]
        return points

    def contradicts(self, wanted: dict[str, str]) -> bool:
        shown = {"type": self.type, **self.metadata}
        return any(shown.get(key) not in (None, value) for key, value in wanted.items())

    def public(self, origin: str) -> dict[str, Any]:
        """The file in the metadata API."""
        is_primary = self is self.version.choose({})
        url = f"{origin}/api/download/models/{self.version_id}"
        if not is_primary:
            fields = {"type": self.type, **self.metadata}
            url += "?" + "&".join(f"{key}={quote(str(one))}" for key, one in fields.items())
        shown = {
            "id": self.id,
            "sizeKB": self.size / 1024,
            "name": self.name,
            "type": self.type,
            "metadata": self.metadata,
            "primary": is_primary,
            "downloadUrl": url,
        }
        if "hashes" not in self.overrides:  # a big file is hashed only when somebody asks
            shown["hashes"] = self.hashes
        return FILE_FIELDS | shown | self.overrides


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

    @property
    def air(self) -> str:
        kind = AIR_TYPES.get(self.kind, self.kind.lower())
        source = f"civitai:{self.model_id}@{self.id}"
        return f"urn:air:{ecosystem(self.base_model)}:{kind}:{source}"

    def choose(self, wanted: dict[str, str]) -> ModelFile:
        return max(self.files, key=lambda file: file.score(wanted))

    def public(self, origin: str) -> dict[str, Any]:
        """The version in the metadata API."""
        shown = {
            "id": self.id,
            "modelId": self.model_id,
            "name": f"v{self.id}",
            "trainedWords": list(self.trained_words),
            "baseModel": self.base_model,
            "air": self.air,
            "model": {"name": f"Model {self.model_id}", "type": self.kind}
            | {"nsfw": self.red_only, "poi": False},
            "files": [file.public(origin) for file in self.files],
            "downloadUrl": f"{origin}/api/download/models/{self.id}",
        }
        return VERSION_FIELDS | shown | self.overrides

    def mini(self, file: ModelFile, origin: str, *, by_id: bool) -> dict[str, Any]:
        """The light answer for one file."""
        version, shown = self.public(origin), file.public(origin)
        url = f"{origin}/api/download/models/{self.id}"
        return {
            "air": file.file_air if by_id else self.air,
            "versionName": version["name"],
            "modelName": version["model"]["name"],
            "baseModel": version["baseModel"],
            "availability": version["availability"],
            "publishedAt": version["publishedAt"],
            "size": shown["sizeKB"],
            "fileType": shown["type"],
            "fileName": shown["name"],
            "hashes": shown["hashes"],
            "downloadUrls": [f"{url}?fileId={file.id}" if by_id else url],
            "format": shown["metadata"].get("format"),
            "canGenerate": False,
            "requireAuth": file.require_auth,
            "checkPermission": False,
        }


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

    @cached_property
    def sha256(self) -> str:
        return self.blob.digest(hashlib.sha256())

    @property
    def size(self) -> int:
        return self.blob.size

    @cached_property
    def git_sha1(self) -> str:
        return self.blob.digest(hashlib.sha1(b"blob %d\0" % self.size))

    @property
    def etag(self) -> str:
        return f'"{self.sha256 if self.lfs else self.git_sha1}"'

    @property
    def url(self) -> str:
        return f"{self.origin}/{self.repo}/resolve/{self.revision}/{quote(self.path)}"

    @property
    def page_url(self) -> str:
        return self.url.replace("/resolve/", "/blob/")


@dataclass
class HfRepo:
    """A repository: its files by (revision or commit, path), and who may see it."""

    gated: bool = False
    private: bool = False
    files: dict[tuple[str, str], HfFile] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=dict)

    def has_revision(self, revision: str) -> bool:
        return revision in self.commits or revision in self.commits.values()


@dataclass
class WebFile:
    """A plain file, or a redirect, of the plain host."""

    blob: Blob
    etag: str
    ranges: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    redirect: Answer | None = None


@dataclass
class Grant:
    """One signed URL and how long it works."""

    role: str
    target: str
    blob: Blob
    etag: str
    headers: dict[str, str]
    expires_at: float
    uses: int | None = None

    def use(self) -> bool:
        """Is it still good for this request?"""
        if time.monotonic() >= self.expires_at or self.uses == 0:
            return False
        if self.uses:
            self.uses -= 1
        return True


def r2_query(name: str, seconds: float, secret: str) -> str:
    disposition = quote(f'attachment; filename="{name}"', safe="")
    return (
        f"X-Amz-Expires={int(seconds)}&response-content-disposition={disposition}"
        "&X-Amz-Algorithm=AWS4-HMAC-SHA256"
        "&X-Amz-Credential=0123456789abcdef%2F20260120%2Fus-east-1%2Fs3%2Faws4_request"
        "&X-Amz-Date=20260120T100000Z&X-Amz-SignedHeaders=host"
        f"&X-Amz-Signature={secret}"
    )


def b2_query(name: str, _seconds: float, secret: str) -> str:
    disposition = quote(f'attachment; filename="{name}"', safe="")
    return f"Authorization={secret}&b2ContentDisposition={disposition}"


SECRET_NAMES = ("X-Amz-Signature", "Authorization")
SIGNED = {
    "storage": ("/model/1/fake", r2_query),
    "storage_b": ("/file/civitai-modelfiles/model/1/fake", b2_query),
    "hf_cdn": ("/xet-bridge-us/0", r2_query),
}


class World:
    """Everything the hosts share."""

    def __init__(self) -> None:
        self.urls: dict[str, str] = {}
        self.versions: dict[int, ModelVersion] = {}
        self.repos: dict[str, HfRepo] = {}
        self.web: dict[str, WebFile] = {}
        self.grants: dict[str, Grant] = {}
        self.civitai_key = secrets.token_hex(16)
        self.hf_token = f"hf_{secrets.token_hex(17)}"
        self.hf_token_without_grant = f"hf_{secrets.token_hex(17)}"

    def sign(
        self, role: str, blob: Blob, name: str, *, etag: str, seconds: float, uses: int | None
    ) -> str:
        """A fresh signed URL for a blob on one of the storage hosts."""
        secret = secrets.token_hex(32)
        folder, write_query = SIGNED[role]
        suffix = secrets.token_hex(4)
        target = f"{folder}.{suffix}.safetensors?{write_query(name, seconds, secret)}"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        expires_at = time.monotonic() + seconds
        self.grants[secret] = Grant(role, target, blob, etag, headers, expires_at, uses)
        return self.urls[role] + target

    def storage_etag(self, role: str, blob: Blob) -> str:
        """As a multipart upload has it: nothing of it is the file's hash."""
        identity = f"{role} {blob.size} {blob.path or id(blob)}"
        return f'"{hashlib.md5(identity.encode()).hexdigest()}-{1 + blob.size // 2**26}"'
