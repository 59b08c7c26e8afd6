"""One model file: whether it is whole, what it is, and its hash.

A damaged checkpoint poisons A1111 until it is restarted, and A1111 silently skips a damaged LoRA.
So every file is opened and checked here before the engine sees it. Two readers must accept it:
`safetensors_header`, which limits the memory and time that a hostile header can take, and then
the safetensors library, which reads files as the engine does. Both read only the header, not the
tensors.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError, safe_open

from worker.errors import ModelFileInvalid, ModelNotFound
from worker.exhaustion import is_exhaustion
from worker.files import open_regular
from worker.formats import architecture, lora_use, requirements, safetensors_header
from worker.formats.architecture import Architecture
from worker.formats.embedding_vectors import BUNDLED
from worker.formats.lora_layers import Fit, Layers, layers_of
from worker.formats.names import PICKLES, Kind
from worker.formats.safetensors_header import Header

# A1111's own folder for each kind, below its models folder; the model store uses the same.
FOLDERS: dict[Kind, str] = {
    "checkpoint": "Stable-diffusion",
    "lora": "Lora",
    "vae": "VAE",
    "embedding": "embeddings",
    "controlnet": "ControlNet",
}

_HASH_BLOCK = 1 << 20
_LISTED_BLOCK = 1 << 16
_MAX_NAME = 1_000  # characters; a LoRA with a longer one is found by the name of its file
_EXCERPT = 4096  # bytes; enough to recognise a format, and for the title of a web page


@dataclass(frozen=True)
class Conversion:
    """What a converted LoRA was made from.

    Attributes:
        sha256: of the source, lower-case hex.
        naming: whose tensor names the source has, such as `peft`.
        path: of the source.
    """

    sha256: str
    naming: str
    path: Path


@dataclass(frozen=True)
class ModelFile:
    """A model file in the store.

    Attributes:
        path: where the file is.
        stem: its name in the engine's folder without suffix; for a LoRA, the name in its tag.
        size: bytes.
        verified_sha256: lower-case hex, verified when the file was fetched; None for other files.
        source: where it was fetched from; None for a file that the operator added.
        trained_words: trigger words of a LoRA or an embedding.
        host_name: clean stem of the file's name at its host, which other files may have, too;
            empty for a file that the operator added.
        converted_from: set if the file is a conversion, made for A1111 from another file.
    """

    kind: Kind
    path: Path
    stem: str
    size: int
    verified_sha256: str | None = None
    source: str | None = None
    trained_words: tuple[str, ...] = ()
    host_name: str = ""
    converted_from: Conversion | None = None

    @property
    def filename(self) -> str:
        """The file name in the engine's folder."""
        return f"{self.stem}{self.path.suffix}"

    def check(self, *, has_vae: bool = False) -> None:
        """Check that the file is whole and that A1111 can use it as its kind.

        Args:
            has_vae: a VAE of its own replaces the one in this checkpoint.

        Raises:
            ModelFileInvalid: it is truncated, has trailing bytes, or is not of the format that
                its suffix names.
            ModelNotSupported: it is of another kind, or A1111 v1.9.3 cannot use it, or would draw
                a wrong picture with it.
        """
        if self.path.suffix in PICKLES:
            _check_pickle(self.path, *version(self.path))
            return
        _check(self.path, *version(self.path), self.stem, self.kind, has_vae, self.has_config)

    @property
    def has_config(self) -> bool:
        """Whether a `.yaml` beside the operator's checkpoint says how A1111 builds the model.

        That of a repository in the Hugging Face cache is not used: it could name any code to run.
        """
        is_own = self.kind == "checkpoint" and self.source is None
        return is_own and self.path.with_suffix(".yaml").is_file()

    def header(self) -> Header | None:
        """The safetensors header; None for a pickle. Raises ModelFileInvalid."""
        return None if self.path.suffix in PICKLES else _header(self.path, *version(self.path))

    def fit(self, checkpoint: ModelFile) -> Fit | None:
        """How this LoRA fits the checkpoint; None if one of them is a pickle.

        Raises:
            ModelMismatch, ModelNotSupported: see `lora_use.check_fit`.
        """
        if self.path.suffix in PICKLES or checkpoint.path.suffix in PICKLES:
            return None
        versions = version(self.path), version(checkpoint.path)
        return _fit(
            self.path, versions[0], self.stem, checkpoint.path, versions[1], checkpoint.stem
        )

    def architecture(self) -> Architecture:
        """Kind and family according to its header; both unknown for a pickle."""
        if self.path.suffix in PICKLES:
            return Architecture()
        return _contents(self.path, *version(self.path))[1]

    def has_bundle(self) -> bool:
        """Whether it is a LoRA with embeddings in its file; unknown, so true, for a pickle."""
        if self.kind != "lora":
            return False
        return self.path.suffix in PICKLES or _has_bundle(self.path, *version(self.path))

    def layers(self) -> Layers:
        """The layers of this checkpoint, which is no pickle. Raises ModelFileInvalid."""
        return _layers(self.path, *version(self.path))

    def vector_widths(self) -> frozenset[int]:
        """Of an embedding, the numbers in a vector, for each text encoder; empty for a pickle.

        Raises:
            ModelFileInvalid: the file cannot be read.
        """
        if self.path.suffix in PICKLES:
            return frozenset()
        return _vector_widths(self.path, *version(self.path))

    def family_fits(self) -> Mapping[str, Fit]:
        """How this LoRA, which is no pickle, fits each family. Raises ModelFileInvalid."""
        return _family_fits(self.path, *version(self.path))

    def trained_name(self) -> str | None:
        """The name that its trainer gave a LoRA; A1111 knows it, too. Raises ModelFileInvalid."""
        if self.path.suffix in PICKLES:
            return None
        return _contents(self.path, *version(self.path))[0]

    def listed_name(self) -> str:
        """The name under which ControlNet lists the file: `control_v11p_sd15_canny [d14c016b]`.

        The hash is that of A1111's first version: of 64 KiB behind the first MiB.

        Raises:
            ModelFileInvalid: the file cannot be read.
        """
        with _opened(self.path) as file:
            file.seek(_HASH_BLOCK)
            return f"{self.stem} [{sha256(file.read(_LISTED_BLOCK)).hexdigest()[:8]}]"

    def sha256(self) -> str | None:
        """Lower-case hex SHA-256, computed once per version of the file; None if it is missing."""
        try:
            return self.verified_sha256 or file_sha256(self.path)
        except (ModelNotFound, OSError):
            return None


def version(path: Path) -> tuple[int, int]:
    """Size and modification time; a file with the same two values counts as unchanged."""
    try:
        status = path.stat()
    except OSError as error:
        raise ModelNotFound(f"the file {path.name!r} cannot be read: {error.strerror}.") from error
    return status.st_size, status.st_mtime_ns


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open the file; errors inside the `with` block get its name."""
    try:
        with open_regular(path) as file:
            yield file
    except PermissionError as error:
        raise ModelFileInvalid(
            f"{path.name!r} cannot be read: {error.strerror}.",
            hint="Let the worker's user read the file: chmod a+r.",
        ) from error
    except OSError as error:
        if is_exhaustion(error):  # which says nothing about the file
            raise
        raise ModelFileInvalid(f"{path.name!r} cannot be read: {error.strerror}.") from error
    except ModelFileInvalid as error:
        raise ModelFileInvalid(f"{path.name!r} cannot be used: {error.message}") from error


def _read_header(path: Path) -> Header:
    """The header of a whole file, accepted by our own checks and by the safetensors library.

    Raises:
        ModelFileInvalid, ModelUnsafe, ModelNotSupported: it is not a whole safetensors file.
    """
    with _opened(path) as file:
        start = file.read(_HASH_BLOCK)
        needed = safetensors_header.header_length(start) or 0
        header = safetensors_header.parse_header(start + file.read(max(0, needed - len(start))))
    if header.size != path.stat().st_size:
        raise ModelFileInvalid(
            f"{path.name!r} cannot be used: it has {path.stat().st_size} bytes, but its header"
            f" requires {header.size}."
        )
    try:
        check_with_safetensors(path)
    except OSError as error:
        if is_exhaustion(error):
            raise
        raise ModelFileInvalid(f"{path.name!r} cannot be read: {error}.") from error
    return header


def check_with_safetensors(path: Path) -> None:
    """Let the safetensors library parse the file; our own checks of the header come first.

    It maps the file and reads its header: 3 to 5 ms for 2 GB with 2,048 tensors.

    Raises:
        ModelFileInvalid: the library rejects the file.
        OSError: the file cannot be opened; the file itself may be good.
    """
    try:
        with safe_open(path, framework="numpy"):
            pass
    except FileNotFoundError as error:
        # The library says so of each file that it cannot open, whatever the reason is. Our own
        # attempt tells the reason, such as too many open files.
        open_regular(path).close()
        raise OSError(errno.EIO, "it could not be opened for a moment", str(path)) from error
    except SafetensorError as error:
        raise ModelFileInvalid(
            f"{path.name!r} cannot be used: the safetensors library rejects it ({error})."
        ) from error


# Of thousands of files only small facts are kept. A header takes 1 MB for an SDXL checkpoint, and
# some 50 MB for a hostile file.
@lru_cache(maxsize=8)
def _header(path: Path, _size: int, _mtime_ns: int) -> Header:
    return _read_header(path)


@lru_cache(maxsize=4096)
def _contents(path: Path, size: int, mtime_ns: int) -> tuple[str | None, Architecture]:
    """The name given by the trainer, and what the file is."""
    header = _header(path, size, mtime_ns)
    name = header.metadata.get("ss_output_name")
    is_nameable = name is not None and len(name) <= _MAX_NAME
    return name if is_nameable else None, architecture.detect(header)


@lru_cache(maxsize=4096)
def _check(  # noqa: PLR0917 - the key of the cache
    path: Path, size: int, mtime_ns: int, name: str, kind: Kind, has_vae: bool, has_config: bool
) -> None:
    header, found = _header(path, size, mtime_ns), _contents(path, size, mtime_ns)[1]
    file = requirements.File(header, found, has_vae=has_vae, has_config=has_config)
    requirements.check(name, kind, file)


@lru_cache(maxsize=4096)
def _vector_widths(path: Path, size: int, mtime_ns: int) -> frozenset[int]:
    shapes = lora_use.shapes_of(_header(path, size, mtime_ns))
    pair = [shapes[name] for name in ("clip_l", "clip_g") if name in shapes]
    return frozenset(shape[-1] for shape in pair or shapes.values() if shape)


@lru_cache(maxsize=8)
def _layers(path: Path, size: int, mtime_ns: int) -> Layers:
    return layers_of(lora_use.shapes_of(_header(path, size, mtime_ns)))


@lru_cache(maxsize=4096)
def _has_bundle(path: Path, size: int, mtime_ns: int) -> bool:
    return any(name.startswith(f"{BUNDLED}.") for name in _header(path, size, mtime_ns).tensors)


@lru_cache(maxsize=1024)
def _family_fits(path: Path, size: int, mtime_ns: int) -> Mapping[str, Fit]:
    return lora_use.family_fits(lora_use.shapes_of(_header(path, size, mtime_ns)))


@lru_cache(maxsize=1024)
def _fit(  # noqa: PLR0917 - the key of the cache
    lora: Path,
    lora_version: tuple[int, int],
    lora_name: str,
    checkpoint: Path,
    checkpoint_version: tuple[int, int],
    checkpoint_name: str,
) -> Fit:
    layers = _layers(checkpoint, *checkpoint_version)
    family = _contents(checkpoint, *checkpoint_version)[1].family
    header = _header(lora, *lora_version)
    return lora_use.check_fit(lora_name, header, checkpoint_name, layers, family)


@lru_cache(maxsize=4096)
def _check_pickle(path: Path, _size: int, _mtime_ns: int) -> None:
    with _opened(path) as file:
        safetensors_header.check_pickle(file.read(_EXCERPT))


def file_sha256(path: Path) -> str:
    """Lower-case hex SHA-256, cached for this version of the file.

    Raises:
        ModelNotFound, OSError: the file cannot be read.
    """
    return _sha256(path, *version(path))


@lru_cache(maxsize=4096)
def _sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    digest = sha256()
    with open_regular(path) as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()
