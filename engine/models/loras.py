"""The list of LoRA files: their names in tags, and their hashes."""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.errors import Unsupported
from engine.models import files
from engine.models.checkpoints import SUFFIX, file_sha256
from engine.prompt.syntax import LoraTag

log = logging.getLogger(__name__)

HASH_DIGITS = 12
MOST = 100  # LoRAs in a prompt: each takes time before the first step


@dataclass(frozen=True)
class Lora:
    """A file below models/Lora with its safetensors metadata ({} if it cannot be read)."""

    path: Path
    metadata: dict[str, Any]

    @property
    def name(self) -> str:
        """The file's stem, used in tags."""
        return self.path.stem

    @property
    def alias(self) -> str:
        """The name it was trained under, which tags may use too."""
        return str(self.metadata.get("ss_output_name") or self.name)

    def describe(self) -> dict[str, Any]:
        """The entry of GET /loras."""
        entry = {"name": self.name, "alias": self.alias, "path": str(self.path)}
        return entry | {"metadata": self.metadata}

    def hash(self) -> str:
        """AutoV3: the first 12 digits of the SHA-256 of the bytes after the safetensors header."""
        start = files.LENGTH_BYTES + files.check_header(self.path)
        return file_sha256(self.path, start)[:HASH_DIGITS]

    def read(self, start: str = "") -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The tensors and the metadata that the file has now, which may be newer than the list.

        Of the tensors only those whose names begin with `start`. They are copies: the file may be
        overwritten while they are used. Raises `files.Unreadable`, OSError.
        """
        with files.open_tensors(self.path) as file:
            names = [key for key in file.keys() if key.startswith(start)]  # noqa: SIM118
            state = {key: file.get_tensor(key).clone() for key in names}
            return state, _decode_all(file.metadata() or {})


@dataclass(frozen=True)
class LoraUse:
    """A LoRA to apply, with its weights in the text encoder and in the UNet.

    Of a higher rank, only `dyn` ranks are used. `mentioned` is its name in the tag.
    """

    lora: Lora
    te: float
    unet: float
    dyn: int | None = None
    mentioned: str = ""


class Loras:
    """The list at the last `refresh`; a tag with an unknown name refreshes it (as in A1111)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.all: list[Lora] = []
        self.refresh()

    def refresh(self) -> None:
        """Read the folder and its subfolders again."""
        paths = (path for path in files.find(self.folder) if files.has_suffix(path, SUFFIX))
        self.all = [Lora(path, _read_metadata(path)) for path in paths]

    def find(self, name: str) -> Lora | None:
        """The LoRA with this stem (if there are two, the last), or the only one with this alias."""
        stems = [lora for lora in self.all if lora.name == name]
        aliases = [lora for lora in self.all if lora.alias == name]
        if stems:
            return stems[-1]
        return aliases[0] if len(aliases) == 1 else None

    def resolve(self, tags: Iterable[LoraTag]) -> list[LoraUse]:
        """The LoRAs in the tags; an unknown name is silently ignored, the same as in A1111.

        A name that is written n times is applied n times with its last weights, as in A1111. Raises
        Unsupported for too many.
        """
        tags = list(tags)
        if len(tags) > MOST:
            raise Unsupported(f"a prompt with {len(tags)} LoRAs ({MOST} at most)")
        if any(self.find(tag.name) is None for tag in tags):
            self.refresh()
        last = {tag.name: tag for tag in tags}
        found = [(self.find(tag.name), last[tag.name]) for tag in tags]
        return [LoraUse(lora, t.te, t.unet, t.dyn, t.name) for lora, t in found if lora]


def _read_metadata(path: Path) -> dict[str, Any]:
    """The header's metadata; {} for a file that cannot be read: a job that names it fails."""
    try:
        with files.open_tensors(path) as file:
            return _decode_all(file.metadata() or {})
    except (files.Unreadable, OSError) as error:
        log.warning("LoRA %r cannot be used: %s", path.name, error)
        return {}


def _decode_all(metadata: Mapping[str, str]) -> dict[str, Any]:
    return {key: _decode(value) for key, value in metadata.items()}


def _decode(value: str) -> object:
    """A1111 decodes JSON objects, which kohya writes; any other text stays as it is.

    So does what the answer could not hold: NaN, Infinity (kohya wrote them into `ss_bucket_info`),
    halves of surrogate pairs, endless nesting. A1111 then answers 500 for the whole list.
    """
    if not value.startswith("{"):
        return value
    try:
        decoded = json.loads(value)
        json.dumps(decoded, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):  # also for half a surrogate pair
        return value
    return decoded
