"""The files of a network volume in the layout of the model store (`worker.models.store`).

An upload never shows a worker a part of a model, or a wrong one: first the file comes, then what
the references mean, and at last the metadata, without which the file does not count. What other
workers have put there stays.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from worker.errors import ModelFileInvalid, VolumeFailed
from worker.files import read_small, storage_error
from worker.formats.model_file import FOLDERS
from worker.formats.names import Kind
from worker.job.reference import ModelRef
from worker.models.store import references
from worker.models.store.about import ABOUT, UNKNOWN_TIME, About
from worker.models.store.blobs import Blob
from worker.models.store.store import FETCHED
from worker.models.volume.digests import Digests
from worker.models.volume.limits import DEFAULT, SendLimits
from worker.models.volume.upload import Report, is_there, send
from worker.models.volume.volume import Volume

_MARK = 10  # digits of the hash with which the local store may have marked the stem

log = logging.getLogger(__name__)


class VolumeFiles:
    """Where each file lies on the volume, and whether it is there.

    Args:
        volume: the network volume.
        prefix: the folder that is MODELS_DIR for the workers, such as "models".
        limits: of each upload.
    """

    def __init__(self, volume: Volume, prefix: str, limits: SendLimits = DEFAULT) -> None:
        self._volume = volume
        self._prefix = prefix
        self._limits = limits

    def check(self) -> None:
        """Check the volume and the key. Raises VolumeFailed."""
        self._volume.check()

    # Fetched models --------------------------------------------------------------------------

    def blob_key(self, sha256: str, suffix: str) -> str:
        """The path of a fetched model on the volume."""
        return f"{self._prefix}/{FETCHED}/blobs/{sha256}{suffix}"

    def has_blob(self, sha256: str, size: int | None = None) -> bool:
        """Whether a worker finds the model there; with this size, if that is known."""
        content = self._volume.read(self._metadata_key(sha256))
        try:
            about = ABOUT.validate_json(content or b"")
        except ValidationError:
            return False
        stored = self._volume.head(self.blob_key(sha256, about.suffix))
        return bool(stored and stored.size == about.size and size in {None, about.size})

    def send_blob(self, blob: Blob, notes: Mapping[ModelRef, bytes], report: Report) -> int:
        """Send a model and what its references mean; returns the bytes that were sent.

        Raises:
            ModelFileInvalid: the local file is damaged; nothing was sent.
            VolumeFailed, StoreFull: the volume does not have it.
        """
        is_there_already = self.has_blob(blob.sha256, blob.about.size)
        sent = 0 if is_there_already else self._send_content(blob, report)
        sent += sum(self._send_note(ref, note) for ref, note in notes.items())
        if not is_there_already:
            metadata = ABOUT.dump_json(_as_sent(blob), indent=1)
            self._volume.put(self._metadata_key(blob.sha256), metadata)
            sent += len(metadata)
        return sent

    def _send_content(self, blob: Blob, report: Report) -> int:
        digests = self._digests(blob.path)
        if digests.sha256 != blob.sha256:
            raise ModelFileInvalid(
                f"{blob.about.stem} is damaged in the local store; it was not sent.",
                hint=f"Run `python model_manager.py verify {blob.about.stem}`, and push again.",
            )
        key = self.blob_key(blob.sha256, blob.about.suffix)
        if is_there(self._volume.head(key), digests):
            return 0  # an earlier run was stopped before it sent the metadata
        # With metadata, a worker would take a file that is still growing for a damaged one.
        self._volume.delete(self._metadata_key(blob.sha256))
        return send(self._volume, key, blob.path, digests, report, at_once=self._limits.at_once)

    def _send_note(self, ref: ModelRef, note: bytes) -> int:
        key = f"{self._prefix}/{FETCHED}/references/{references.file_name(ref)}"
        if not references.is_news(ref, note, self._volume.read(key)):
            return 0
        self._volume.put(key, note)
        return len(note)

    def _metadata_key(self, sha256: str) -> str:
        return f"{self._prefix}/{FETCHED}/blobs/{sha256}.json"

    # The operator's files --------------------------------------------------------------------

    def own_key(self, kind: Kind, name: str) -> str:
        """The path of a file of the operator on the volume."""
        return f"{self._prefix}/{FOLDERS[kind]}/{name}"

    def has_own(self, key: str, path: Path) -> bool:
        """Whether the operator's file is on the volume.

        Raises:
            VolumeFailed: another file has its name there.
        """
        stored = self._volume.head(key)
        if stored is None:
            return False
        digests = self._digests(path)
        if not is_there(stored, digests):
            raise VolumeFailed(
                f"the volume has another file {key}; it stays as it is.",
                hint="Give your file another name, or remove that one: docs/network-volume.md.",
            )
        if not digests.proved_by(stored.etag):
            log.warning("%s is on the volume already; only the size could be compared", key)
        return True

    def send_own(self, key: str, path: Path, report: Report) -> int:
        """Send a file of the operator, and the `.yaml` beside it; returns the bytes sent.

        Raises:
            VolumeFailed, StoreFull, StoreNotWritable.
        """
        sent, config = 0, path.with_suffix(".yaml")
        if config.is_file():
            sent += self._send_config(key.removesuffix(path.suffix) + ".yaml", config)
        if self.has_own(key, path):
            return sent
        digests = self._digests(path)
        return sent + send(self._volume, key, path, digests, report, at_once=self._limits.at_once)

    def _send_config(self, key: str, config: Path) -> int:
        if self.has_own(key, config):
            return 0
        content = read_small(config)
        self._volume.put(key, content)
        return len(content)

    def _digests(self, path: Path) -> Digests:
        try:
            size = path.stat().st_size
            log.info("reading %s to compare it (%.1f MB)", path.name, size / 1e6)
            return Digests.of_file(path, self._limits.part_size(size))
        except OSError as error:
            raise storage_error(error) from error


def _as_sent(blob: Blob) -> About:
    """The metadata for the volume: without the local time, under the name that the host gives."""
    stem = blob.about.stem.removesuffix(f"-{blob.sha256[:_MARK]}")
    return replace(blob.about, stem=stem, mtime=UNKNOWN_TIME)
