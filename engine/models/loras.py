"""The list of LoRA files: their names in tags, and their hashes."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from engine.models.checkpoints import file_sha256
from engine.prompt.syntax import LoraTag

HASH_DIGITS = 12
LENGTH_BYTES = 8


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
        with self.path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(LENGTH_BYTES), "little")
        return file_sha256(self.path, LENGTH_BYTES + header_bytes)[:HASH_DIGITS]


@dataclass(frozen=True)
class LoraUse:
    """A LoRA to apply, with its weights in the text encoder and in the UNet."""

    lora: Lora
    te: float
    unet: float


class Loras:
    """The list at the last `refresh`; a tag with an unknown name refreshes it (as in A1111)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.all: list[Lora] = []
        self.refresh()

    def refresh(self) -> None:
        """Read the folder and its subfolders again."""
        paths = sorted(self.folder.rglob("*.safetensors"), key=lambda path: str(path).lower())
        self.all = [Lora(path, _read_metadata(path)) for path in paths if path.is_file()]

    def find(self, name: str) -> Lora | None:
        """The LoRA with this stem (if there are two, the last), or the only one with this alias."""
        stems = [lora for lora in self.all if lora.name == name]
        aliases = [lora for lora in self.all if lora.alias == name]
        if stems:
            return stems[-1]
        return aliases[0] if len(aliases) == 1 else None

    def resolve(self, tags: Iterable[LoraTag]) -> list[LoraUse]:
        """The LoRAs in the tags; an unknown name is silently ignored, the same as in A1111.

        A name that is written n times is applied n times with its last weights, as in A1111.
        """
        tags = list(tags)
        if any(self.find(tag.name) is None for tag in tags):
            self.refresh()
        last = {tag.name: tag for tag in tags}
        uses: dict[Path, LoraUse] = {}
        for tag in (last[tag.name] for tag in tags):
            if lora := self.find(tag.name):
                before = uses.get(lora.path, LoraUse(lora, 0, 0))
                uses[lora.path] = LoraUse(lora, before.te + tag.te, before.unet + tag.unet)
        return list(uses.values())


def _read_metadata(path: Path) -> dict[str, Any]:
    """The header's metadata; kohya writes some values as JSON, which A1111 decodes."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError):
        return {}
    return {key: _decode(value) for key, value in metadata.items()}


def _decode(value: str) -> object:
    if not value.startswith("{"):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value
