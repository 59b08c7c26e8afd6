"""The checkpoint files: what there is, by which names A1111 knows each, and their hashes."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

HASH_DIGITS = 10
OLD_HASH_DIGITS = 8
BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Checkpoint:
    """A file below models/Stable-diffusion; `name` is its path relative to that folder."""

    path: Path
    name: str
    old_hash: str

    @property
    def stem(self) -> str:
        """The file's name without folder and suffix: `sd_model_name` in an answer."""
        return self.path.stem

    @property
    def model_name(self) -> str:
        """The name in GET /sd-models: folders become underscores."""
        return self.name.removesuffix(self.path.suffix).replace("/", "_")

    def title(self, sha256: str | None) -> str:
        """The name shown; it gains the hash once that is known."""
        return f"{self.name} [{sha256[:HASH_DIGITS]}]" if sha256 else self.name

    def aliases(self, sha256: str | None) -> set[str]:
        """Every name A1111 accepts for this file, in exactly this spelling."""
        names = {self.name, self.stem, self.model_name}
        names |= {self.old_hash, f"{self.name} [{self.old_hash}]"}
        if sha256:
            short = sha256[:HASH_DIGITS]
            names |= {sha256, short, self.title(sha256), f"{self.stem} [{short}]"}
        return names


class Checkpoints:
    """The list as of the last `refresh`: a file added later is not seen, as in A1111."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.all: list[Checkpoint] = []
        self._sha256: dict[tuple[Path, int, int], str] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the folder again; subfolders too, sorted by name without regard to case."""
        paths = sorted(self.folder.rglob("*.safetensors"), key=lambda path: str(path).lower())
        self.all = [self._describe(path) for path in paths if path.is_file()]

    def _describe(self, path: Path) -> Checkpoint:
        return Checkpoint(path, path.relative_to(self.folder).as_posix(), old_hash(path))

    def find(self, alias: str) -> Checkpoint | None:
        """The checkpoint of exactly this name or hash; of two with the same name the last."""
        matches = (c for c in reversed(self.all) if alias in c.aliases(self.known_sha256(c)))
        return next(matches, None)

    def known_sha256(self, checkpoint: Checkpoint) -> str | None:
        """The hash if this very content was hashed before."""
        try:
            return self._sha256.get(_identity(checkpoint.path))
        except FileNotFoundError:
            return None

    def sha256(self, checkpoint: Checkpoint) -> str:
        """The file's SHA-256, computed once per path, size and time. Raises FileNotFoundError."""
        identity = _identity(checkpoint.path)
        if identity not in self._sha256:
            log.info("hashing %s", checkpoint.name)
            self._sha256[identity] = file_sha256(checkpoint.path)
        return self._sha256[identity]

    def describe(self) -> list[dict[str, Any]]:
        """The answer of GET /sd-models."""
        return [self._entry(checkpoint, self.known_sha256(checkpoint)) for checkpoint in self.all]

    def _entry(self, checkpoint: Checkpoint, sha256: str | None) -> dict[str, Any]:
        return {
            "title": checkpoint.title(sha256),
            "model_name": checkpoint.model_name,
            "hash": sha256 and sha256[:HASH_DIGITS],
            "sha256": sha256,
            "filename": str(checkpoint.path),
            "config": None,
        }


def file_sha256(path: Path, start: int = 0) -> str:
    """SHA-256 of the file's bytes from `start` on, as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def old_hash(path: Path) -> str:
    """A1111's first checkpoint hash: 8 digits over 64 KiB from the second MiB on."""
    with path.open("rb") as file:
        file.seek(0x100000)
        return hashlib.sha256(file.read(0x10000)).hexdigest()[:OLD_HASH_DIGITS]


def _identity(path: Path) -> tuple[Path, int, int]:
    stat = path.stat()
    return path, stat.st_size, stat.st_mtime_ns
