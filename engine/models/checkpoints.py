"""The list of checkpoints: their names as in A1111, and their hashes.

A checkpoint is a safetensors file, or a diffusers folder (one that contains model_index.json).
"""

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.models import files
from engine.models.files import Identity

log = logging.getLogger(__name__)

HASH_DIGITS = 10
OLD_HASH_DIGITS = 8
BLOCK_BYTES = 2**20
FOLDER_MARK = "model_index.json"
SUFFIX = ".safetensors"
WEIGHTS = "*" + SUFFIX
NOT_LISTED = ".vae" + SUFFIX  # A1111 takes a VAE beside a checkpoint for none, by its name
_SHA256 = re.compile(r"[0-9a-f]{64}")
BLOBS = "blobs"  # folder of files that are named by their SHA-256
NO_FILE = "NOFILE"  # what A1111 gives as the old hash of a missing file


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
        """Read the folder and its subfolders again; the first one is the default."""
        found = files.find(self.folder)
        marks = (path.parent for path in found if path.name == FOLDER_MARK)
        folders = {folder for folder in marks if folder != self.folder}
        whole = [path for path in found if files.has_suffix(path, SUFFIX)]
        paths = [*folders, *(path for path in whole if folders.isdisjoint(path.parents))]
        listed = (path for path in paths if path in folders or not path.name.endswith(NOT_LISTED))
        described = map(self._describe, sorted(listed, key=files.order))
        self.all = [checkpoint for checkpoint in described if checkpoint]

    def _describe(self, path: Path) -> Checkpoint | None:
        """None, with a line in the log, for a file that cannot be read."""
        is_folder = path.is_dir()
        file = _unet_file(path) if is_folder else path
        name = path.relative_to(self.folder).as_posix()
        try:
            old = old_hash(file) if file else NO_FILE
        except OSError as error:
            log.warning("left out checkpoint %r: %s", name, error.strerror)
            return None
        return Checkpoint(path, name, old, is_folder)

    def find(self, alias: str) -> Checkpoint | None:
        """The checkpoint with exactly this name or hash; if two have it, the last one."""
        matches = (c for c in reversed(self.all) if alias in c.aliases(self.known_sha256(c)))
        return next(matches, None)

    def known_sha256(self, checkpoint: Checkpoint) -> str | None:
        """The hash, if it was computed since the files last changed."""
        try:
            return self._sha256.get(identity(checkpoint))
        except OSError:
            return None

    def sha256(self, checkpoint: Checkpoint) -> str:
        """The file's SHA-256; for a folder, the SHA-256 of the list of its weights' hashes.

        A folder whose name is a SHA-256 was converted from the file with that hash, and keeps it.
        So does a file that is a blob of the model store or of a Hugging Face cache: its name is
        its verified hash. Computed once per path, size and modification time. Raises OSError,
        FileNotFoundError if the file is missing.
        """
        now = identity(checkpoint)
        if now not in self._sha256:
            self._sha256[now] = self._compute(checkpoint)
        return self._sha256[now]

    def _compute(self, checkpoint: Checkpoint) -> str:
        origin = checkpoint.path.resolve()
        name = origin.name if checkpoint.is_folder else origin.name.removesuffix(SUFFIX)
        is_named_by_hash = checkpoint.is_folder or origin.parent.name == BLOBS
        if is_named_by_hash and _SHA256.fullmatch(name):
            return name
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


def _weights(folder: Path) -> list[Path]:
    return [path for path in files.find(folder) if files.has_suffix(path, SUFFIX)]


def _folder_sha256(folder: Path) -> str:
    """The SHA-256 of sorted lines, "relative/path sha256", one for each file of weights."""
    lines = (
        f"{file.relative_to(folder).as_posix()} {file_sha256(file)}\n" for file in _weights(folder)
    )
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _unet_file(folder: Path) -> Path | None:
    """The UNet's weights, if possible in half precision; None if there are none."""
    found = [path for path in sorted((folder / "unet").glob(WEIGHTS)) if path.is_file()]
    return next((file for file in found if ".fp16." in file.name), found[0] if found else None)


def identity(checkpoint: Checkpoint) -> Identity:
    """What changes when a file of the checkpoint is replaced. Raises FileNotFoundError, OSError."""
    checkpoint.path.stat()  # in a deleted folder, nothing is found and nothing is raised
    inside = files.find(checkpoint.path) if checkpoint.is_folder else []
    return files.identity(inside or [checkpoint.path])
