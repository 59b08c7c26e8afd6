"""The settings of the model store, and whether RunPod's volume can be written: that is tried."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import TypeVar

from pydantic import Field

from worker.config.http_settings import HttpSettings
from worker.errors import ConfigError
from worker.files import is_folder

# RunPod mounts a network volume here, and the cached model of an endpoint below it.
VOLUME = Path("/runpod-volume")
HUB_CACHE = VOLUME / "huggingface-cache" / "hub"

_PROJECT = Path(__file__).resolve().parents[2]

_FULL = {errno.ENOSPC, errno.EDQUOT}

_Settings = TypeVar("_Settings", bound="StoreSettings")


def is_on_volume(folder: Path) -> bool:
    """Whether the folder lies on RunPod's volume, whatever links lead there."""
    return folder.is_relative_to(VOLUME) or _real(folder).is_relative_to(_real(VOLUME))


def why_not_writable(folder: Path) -> str | None:
    """Why no file can be made in the folder; None if one can.

    Permissions do not show a mount that is read-only, so a temporary file is made and removed. If
    the folder does not exist, it is tried in the next one above that does. A full disk counts as
    writable: models can be removed from it.
    """
    real = _real(folder)
    existing = next(path for path in (real, *real.parents) if is_folder(path))
    if existing != real and not existing.is_relative_to(_real(VOLUME)):
        return f"{existing / real.parts[len(existing.parts)]} does not exist"
    if existing != real and os.path.lexists(real):
        return "it is no folder"
    try:
        with tempfile.TemporaryFile(dir=existing, prefix=".write-test-"):
            return None
    except OSError as error:
        return None if error.errno in _FULL else error.strerror


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # `resolve` raises an error for a loop of links


def _on_container_disk() -> Path:
    """The image's /models, or ./models."""
    return Path("/models") if is_folder(Path("/models")) else _PROJECT / "models"


def _default_models_dir() -> Path:
    return VOLUME / "models" if is_folder(VOLUME) else _on_container_disk()


class StoreSettings(HttpSettings):
    """A part of `worker.config.settings.Settings`."""

    models_dir: Path = Field(
        default_factory=_default_models_dir,
        description="Folder of the model store. Default: `/runpod-volume/models` if that volume"
        " can be written, else `/models` if it exists, else `./models`. A folder on that volume"
        " which cannot be written is only searched, and the default without a volume is used.",
    )
    baked_models_dir: Path = Field(
        Path("/app/models"),
        description="Folder of the read-only models in the image, in the same layout.",
    )
    read_only_models_dir: Path | None = Field(
        None,
        description="Set by start.sh: the folder of `MODELS_DIR` on a volume that cannot be"
        " written; it is only searched.",
    )
    hub_cache_dir: Path | None = Field(
        HUB_CACHE,
        description="Folder of a Hugging Face cache, whose files are used where they are. See"
        " [cached-models.md](cached-models.md).",
    )
    models_budget_gb: float | None = Field(
        None,
        ge=0,
        description="GB (10^9 bytes) that downloaded models may occupy; not set: all of the disk"
        " but 2 GiB. The least recently used ones are removed first.",
    )
    allow_pickles: bool = Field(
        False,
        description="Whether `.ckpt` and `.pt` files are allowed. Loading one can run any code.",
    )

    @property
    def stores(self) -> list[Path]:
        """The folders of model files, in search order."""
        read_only = self.read_only_models_dir
        return [self.models_dir, *([read_only] if read_only else []), self.baked_models_dir]

    def operators_folder(self, name: str) -> Path:
        """The folder of that name, such as `annotators`, which the operator has filled.

        It is that in MODELS_DIR; on a volume that cannot be written, if it exists there.
        """
        on_volume = self.read_only_models_dir and self.read_only_models_dir / name
        return on_volume if on_volume and is_folder(on_volume) else self.models_dir / name

    def with_writable_store(self: _Settings) -> _Settings:
        """The settings with a store on the container's disk if that on the volume is read-only.

        RunPod's volume can also be missing, or have nothing but a cached model.
        """
        folder = self.models_dir
        if not is_on_volume(folder) or why_not_writable(folder) is None:
            return self
        instead = {"models_dir": _on_container_disk(), "read_only_models_dir": folder}
        return self.model_copy(update=instead)

    def to_bake(self: _Settings) -> _Settings:
        """The settings for baking: the baked models' folder is the store.

        The image that is built has no volume and no Hugging Face cache.

        Raises:
            ConfigError: a volume would hide that folder.
        """
        folder = self.baked_models_dir.resolve()
        volumes = {self.models_dir.resolve(), VOLUME}
        if any(folder.is_relative_to(volume) for volume in volumes):
            raise ConfigError(
                f"BAKED_MODELS_DIR={str(folder)!r}: a volume mounted at {self.models_dir} or"
                f" {VOLUME} would hide what is baked there; set it to another folder."
            )
        nothing = dict.fromkeys(("models_budget_gb", "read_only_models_dir", "hub_cache_dir"))
        return self.model_copy(update={**nothing, "models_dir": folder})
