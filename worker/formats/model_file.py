"""One model file: is it whole, what is it, what is its hash.

A damaged checkpoint poisons A1111 until it is restarted, and a damaged LoRA is skipped in
silence, so a file is opened here before the engine may see it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from worker.errors import ModelFileInvalid, ModelNotFound
from worker.formats import architecture, safetensors_header
from worker.formats.architecture import Architecture
from worker.formats.names import PICKLES, Kind
from worker.formats.safetensors_header import Header

# A1111's own folder for each kind, below its models folder; the model store uses the same.
FOLDERS: dict[Kind, str] = {
    "checkpoint": "Stable-diffusion",
    "lora": "Lora",
    "vae": "VAE",
    "embedding": "embeddings",
}

_HASH_BLOCK = 1 << 20
_EXCERPT = 4096  # bytes that tell what a file is; also a web page's title


@dataclass(frozen=True)
class ModelFile:
    """A model file that was found.

    Attributes:
        path: where the file is.
        stem: its name in the engine's folder without suffix; a LoRA's tag.
        size: bytes.
        known_sha256: lower-case hex, where it was verified when the file was fetched.
        source: where it was fetched from; None for a file that the operator put there.
        trained_words: words that make a LoRA or an embedding act.
    """

    kind: Kind
    path: Path
    stem: str
    size: int
    known_sha256: str | None = None
    source: str | None = None
    trained_words: tuple[str, ...] = ()

    @property
    def filename(self) -> str:
        """Its name in the engine's folder."""
        return f"{self.stem}{self.path.suffix}"

    def check(self) -> None:
        """Make sure that the file is whole and of use in its place.

        Raises:
            ModelFileInvalid: it is cut off, padded, or something else than its suffix says.
            ModelNotSupported: it is of another kind, or no model that A1111 v1.9.3 can load.
        """
        if self.path.suffix in PICKLES:
            _check_pickle(self.path, *version(self.path))
        architecture.check_usable(self.stem, self.kind, self.architecture())

    def architecture(self) -> Architecture:
        """Kind and family as its header tells them; a pickle tells nothing."""
        if self.path.suffix in PICKLES:
            return Architecture()
        return _contents(self.path, *version(self.path))[1]

    def metadata(self) -> dict[str, str]:
        """The header's free text, such as `ss_output_name`; raises ModelFileInvalid."""
        if self.path.suffix in PICKLES:
            return {}
        return _contents(self.path, *version(self.path))[0]

    def sha256(self) -> str | None:
        """Lower-case hex SHA-256, read once per version of the file; None if it is gone."""
        try:
            return self.known_sha256 or file_sha256(self.path)
        except (ModelNotFound, OSError):
            return None


def version(path: Path) -> tuple[int, int]:
    """Size and modification time: a file that keeps both is taken for unchanged."""
    try:
        status = path.stat()
    except OSError as error:
        raise ModelNotFound(f"the file {path.name!r} cannot be read: {error.strerror}.") from error
    return status.st_size, status.st_mtime_ns


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file, for a look at its start; what is wrong with it is told with its name."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise ModelFileInvalid(f"{path.name!r} cannot be read: {error.strerror}.") from error
    except ModelFileInvalid as error:
        raise ModelFileInvalid(f"{path.name!r} cannot be used: {error.message}") from error


def _read_header(path: Path) -> Header:
    """The checked header of a file; its end must be where the header says.

    Raises:
        ModelFileInvalid, ModelUnsafe, ModelNotSupported: it is no whole safetensors file.
    """
    with _opened(path) as file:
        start = file.read(_HASH_BLOCK)
        needed = safetensors_header.header_length(start) or 0
        header = safetensors_header.parse_header(start + file.read(max(0, needed - len(start))))
    if header.size != path.stat().st_size:
        raise ModelFileInvalid(
            f"{path.name!r} cannot be used: it has {path.stat().st_size} bytes, its header says"
            f" {header.size}."
        )
    return header


@lru_cache(maxsize=4096)
def _contents(path: Path, _size: int, _mtime_ns: int) -> tuple[dict[str, str], Architecture]:
    header = _read_header(path)
    return dict(header.metadata), architecture.detect(header)


@lru_cache(maxsize=4096)
def _check_pickle(path: Path, _size: int, _mtime_ns: int) -> None:
    with _opened(path) as file:
        safetensors_header.check_pickle(file.read(_EXCERPT))


def file_sha256(path: Path) -> str:
    """Lower-case hex SHA-256, remembered for this version of the file.

    Raises:
        ModelNotFound, OSError: the file cannot be read.
    """
    return _sha256(path, *version(path))


@lru_cache(maxsize=4096)
def _sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()
