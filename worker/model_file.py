"""One model file: is it whole, and what does its header say.

A damaged checkpoint poisons A1111 until it is restarted, and a damaged LoRA is skipped in
silence, so a file is opened here before the engine may see it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from worker.errors import ModelFileInvalid, ModelNotFound

Kind = Literal["checkpoint", "lora", "vae"]

# A1111's own folder for each kind, below its models folder; the model store uses the same.
FOLDERS: dict[Kind, str] = {"checkpoint": "Stable-diffusion", "lora": "Lora", "vae": "VAE"}

_HASH_BLOCK = 1 << 20


@dataclass(frozen=True)
class ModelFile:
    """A model file that was found.

    Attributes:
        path: where the file is.
        stem: its name in the engine's folder without `.safetensors`; a LoRA's tag.
        size: bytes.
    """

    kind: Kind
    path: Path
    stem: str
    size: int

    @property
    def filename(self) -> str:
        """Its name in the engine's folder."""
        return f"{self.stem}.safetensors"

    def header(self) -> dict[str, str]:
        """Check that the file is whole; return its metadata.

        Raises:
            ModelFileInvalid: it is cut off, padded, or something else than safetensors.
        """
        return _header(self.path, *_version(self.path))

    def sha256(self) -> str | None:
        """Lower-case hex SHA-256, read once per version of the file; None if it is gone."""
        try:
            return _sha256(self.path, *_version(self.path))
        except (ModelNotFound, OSError):
            return None


def _version(path: Path) -> tuple[int, int]:
    """Size and modification time: a file that keeps both is taken for unchanged."""
    try:
        status = path.stat()
    except OSError as error:
        raise ModelNotFound(f"the file {path.name!r} cannot be read: {error.strerror}.") from error
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4096)
def _header(path: Path, _size: int, _mtime_ns: int) -> dict[str, str]:
    try:
        # Opening checks the header's JSON, that the tensors lie end to end and that they fill
        # the file exactly; no tensor is read.
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ModelFileInvalid(f"{path.name!r} cannot be used: {error}.") from error


@lru_cache(maxsize=4096)
def _sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()
