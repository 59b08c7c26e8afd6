"""Merged checkpoints in the store, found by the checkpoint and LoRAs they were made from."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from worker.errors import ModelNotFound
from worker.files import read_small, storage_error, write_atomically
from worker.formats.model_file import ModelFile, check_with_safetensors, file_sha256
from worker.formats.names import SAFETENSORS, marked_stem
from worker.job.model_fields import LoraReference
from worker.job.models import Models, lora_tag
from worker.json_text import loads
from worker.models.merge.merge_key import ALGORITHM, LoraToMerge, merge_key
from worker.models.store.about import About
from worker.models.store.blobs import Blob, Blobs

SOURCE = "merged"
METADATA = "worker.merged"  # key in the metadata of the file
_DIGITS = 10  # digits of the key in the file name
_LONGEST = 120  # characters of the rest of the file name

log = logging.getLogger(__name__)


class MergedCheckpoints:
    """The merged checkpoints of one or several stores.

    Beside the blobs, `merged/<key>.json` holds the sha256 of the result for the inputs that the
    key stands for. So an edited template never uses a checkpoint that was merged before the edit.
    """

    def __init__(self, *stores: Blobs) -> None:
        self._stores = stores

    def find(self, models: Models) -> ModelFile | None:
        """The checkpoint that contains all of the LoRAs with these weights."""
        if not any((store.root / "merged").is_dir() for store in self._stores):
            return None  # do not read an operator's 7 GB for a hash
        key = self.key(models)
        blob = next((found for store in self._stores if (found := _read(store, key))), None)
        return blob.as_file() if blob else None

    def key(self, models: Models) -> str:
        """64 hex digits that stand for the checkpoint, the LoRAs and their weights."""
        base, loras = _parts(models)
        return merge_key(_sha256(base), loras)

    def make(self, models: Models, store: Blobs) -> tuple[Blob, dict[str, tuple[str, ...]]]:
        """Merge, and publish the result in a store.

        Returns:
            The new checkpoint, and for each LoRA the names of the layers that the checkpoint
            does not have.

        Raises:
            WorkerError: see `merge`; or the store is full or cannot be written.
        """
        base, loras = _parts(models)
        key = self.key(models)
        inputs = _inputs(base, loras)
        partial = store.partial(f"merge-{key[:32]}")
        partial.unlink(missing_ok=True)  # left by a killed run
        from worker.models.merge.merge import merge  # noqa: PLC0415 - numpy, not for lookups

        done = merge(base.path, loras, partial, {METADATA: json.dumps(inputs)})
        try:
            check_with_safetensors(partial)
        except OSError as error:
            raise storage_error(error) from error
        names = "".join(f"+{lora.name}" for lora in loras)
        about = About(
            kind="checkpoint",
            stem=marked_stem(f"{base.stem}{names}"[:_LONGEST], key[:_DIGITS]),
            suffix=SAFETENSORS,
            size=partial.stat().st_size,
            mtime=0,  # the store sets it
            source=SOURCE,
            family=base.architecture().family,
        )
        blob = store.add(partial, file_sha256(partial), about, lambda _stem: False)
        _write(store, key, {"sha256": blob.sha256, **inputs, "unmatched": dict(done.unmatched)})
        return blob, dict(done.unmatched)


def _parts(models: Models) -> tuple[ModelFile, list[LoraToMerge]]:
    if models.checkpoint is None:
        raise ModelNotFound("the template has LoRAs to merge, but no checkpoint.")
    return models.checkpoint, [_lora_to_merge(file, ref) for file, ref in models.loras]


def _lora_to_merge(file: ModelFile, reference: LoraReference) -> LoraToMerge:
    tag = lora_tag(file, reference)
    unet = tag.te if tag.unet is None else tag.unet
    return LoraToMerge(file.path, file.stem, _sha256(file), tag.te, unet)


def _sha256(file: ModelFile) -> str:
    if file.converted_from:  # the same deltas, and the same merge for every engine
        return file.converted_from.sha256
    return file.verified_sha256 or file_sha256(file.path)


def _inputs(base: ModelFile, loras: Sequence[LoraToMerge]) -> dict[str, object]:
    return {
        "checkpoint": {"name": base.stem, "sha256": _sha256(base)},
        "loras": [
            {"name": one.name, "sha256": one.sha256, "te": one.te, "unet": one.unet}
            for one in loras
        ],
        "algorithm": ALGORITHM,
    }


def _file(store: Blobs, key: str) -> Path:
    return store.root / "merged" / f"{key}.json"


def _read(store: Blobs, key: str) -> Blob | None:
    try:
        note = loads(read_small(_file(store, key)))
    except (OSError, ValueError):
        return None
    return store.find(str(note.get("sha256"))) if isinstance(note, dict) else None


def _write(store: Blobs, key: str, note: dict[str, object]) -> None:
    file = _file(store, key)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(note, indent=1) + "\n")
    except OSError as error:
        raise storage_error(error) from error
