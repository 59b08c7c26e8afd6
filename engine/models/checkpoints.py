"""The list of checkpoints: their names as in A1111, and their hashes.

A checkpoint is a safetensors file, or a diffusers folder (one that contains model_index.json).
"""

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

HASH_DIGITS = 10
OLD_HASH_DIGITS = 8
BLOCK_BYTES = 2**20
FOLDER_MARK = "model_index.json"
WEIGHTS = "*.safetensors"
_SHA256 = re.compile(r"[0-9a-f]{64}")
NO_FILE = "NOFILE"  # what A1111 gives as the old hash of a missing file

# (path, size, modification time) of every file of the checkpoint
Identity = tuple[tuple[Path, int, int], ...]


@dataclass(frozen=True)
class Checkpoint:
    """A file or diffusers folder below models/Stable-diffusion; `name` is its path from there."""

    path: Path
    name: str
    old_hash: str
    is_folder: bool = False

    @property
    def suffix(self) -> str:
        """`.safetensors`; empty for a folder, even if its name contains a dot."""
        return "" if self.is_folder else self.path.suffix

    @property
    def stem(self) -> str:
        """The name without parent folders and suffix: `sd_model_name` in an answer."""
        return self.path.name.removesuffix(self.suffix)

    @property
    def model_name(self) -> str:
        """The name in GET /sd-models: folders become underscores."""
        return self.name.removesuffix(self.suffix).replace("/", "_")

    def title(self, sha256: str | None) -> str:
        """The displayed name; it contains the hash as soon as it is computed."""
        return f"{self.name} [{sha256[:HASH_DIGITS]}]" if sha256 else self.name

    def aliases(self, sha256: str | None) -> set[str]:
        """Every name that A1111 accepts for this checkpoint, in exactly this spelling."""
        names = {self.name, self.stem, self.model_name}
        names |= {self.old_hash, f"{self.name} [{self.old_hash}]"}
        if sha256:
            short = sha256[:HASH_DIGITS]
            names |= {sha256, short, self.title(sha256), f"{self.stem} [{short}]"}
        return names


class Checkpoints:
    """The list at the last `refresh`; files added later are not seen, the same as in A1111."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.all: list[Checkpoint] = []
        self._sha256: dict[Identity, str] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the folder and its subfolders again; sorted by name, ignoring case."""
        # the star also matches a link to a folder; rglob alone does not follow links
        folders = {mark.parent for mark in self.folder.rglob(f"*/{FOLDER_MARK}")}
        files = {path for path in self.folder.rglob(WEIGHTS) if path.is_file()}
        found = (path for path in folders | files if folders.isdisjoint(path.parents))
        self.all = list(map(self._describe, sorted(found, key=lambda path: str(path).lower())))

    def _describe(self, path: Path) -> Checkpoint:
        is_folder = path.is_dir()
        file = _unet_file(path) if is_folder else path
        name = path.relative_to(self.folder).as_posix()
        return Checkpoint(path, name, old_hash(file) if file else NO_FILE, is_folder)

    def find(self, alias: str) -> Checkpoint | None:
        """The checkpoint with exactly this name or hash; if two have it, the last one."""
        matches = (c for c in reversed(self.all) if alias in c.aliases(self.known_sha256(c)))
        return next(matches, None)

    def known_sha256(self, checkpoint: Checkpoint) -> str | None:
        """The hash, if it was computed since the files last changed."""
        try:
            return self._sha256.get(_identity(checkpoint))
        except FileNotFoundError:
            return None

    def sha256(self, checkpoint: Checkpoint) -> str:
        """The file's SHA-256; for a folder, the SHA-256 of the list of its weights' hashes.

        A folder whose name is a SHA-256 was converted from the file with that hash, and keeps it.
        Computed once per path, size and modification time. Raises FileNotFoundError.
        """
        identity = _identity(checkpoint)
        if identity not in self._sha256:
            self._sha256[identity] = self._compute(checkpoint)
        return self._sha256[identity]

    def _compute(self, checkpoint: Checkpoint) -> str:
        origin = checkpoint.path.resolve().name
        if checkpoint.is_folder and _SHA256.fullmatch(origin):
            return origin
        log.info("hashing %s", checkpoint.name)
        hashing = _folder_sha256 if checkpoint.is_folder else file_sha256
        return hashing(checkpoint.path)

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
    """The SHA-256 of the file's bytes from `start` on, as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def old_hash(path: Path) -> str:
    """A1111's first kind of hash: 8 digits, of 64 KiB at the start of the second MiB."""
    with path.open("rb") as file:
        file.seek(0x100000)
        return hashlib.sha256(file.read(0x10000)).hexdigest()[:OLD_HASH_DIGITS]


def _folder_sha256(folder: Path) -> str:
    """The SHA-256 of sorted lines, "relative/path sha256", one for each file of weights."""
    files = folder.rglob(WEIGHTS)
    lines = (f"{file.relative_to(folder).as_posix()} {file_sha256(file)}\n" for file in files)
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _unet_file(folder: Path) -> Path | None:
    """The UNet's weights, if possible in half precision; None if there are none."""
    files = sorted((folder / "unet").glob(WEIGHTS))
    return next((file for file in files if ".fp16." in file.name), files[0] if files else None)


def _identity(checkpoint: Checkpoint) -> Identity:
    """Raises FileNotFoundError."""
    checkpoint.path.stat()  # in a deleted folder, rglob finds nothing and raises nothing
    inside = sorted(checkpoint.path.rglob(WEIGHTS)) if checkpoint.is_folder else []
    stats = ((path, path.stat()) for path in inside or [checkpoint.path])
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)
