"""LoRAs in the names of other tools, rewritten once for A1111 and kept in the store.

Beside the blobs, `converted/<key>.json` holds the sha256 of the result for one source. The key is
made of the source's sha256 and the algorithm, so a source that is replaced is converted again.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from worker.errors import ModelFileInvalid, ModelNotFound
from worker.files import discard, read_small, storage_error, write_atomically
from worker.formats import architecture
from worker.formats.json_metadata import metadata_fault
from worker.formats.lora_names import Renaming, find_renaming
from worker.formats.model_file import (
    Conversion,
    ModelFile,
    check_with_safetensors,
    file_sha256,
    version,
)
from worker.formats.names import PICKLES, SAFETENSORS
from worker.http.client import NO_CANCEL
from worker.json_text import loads
from worker.models.store.about import About
from worker.models.store.blobs import CONVERTED, Blob, Blobs
from worker.models.store.space import SpaceBudget

if TYPE_CHECKING:  # these and the others of the two rooms load numpy, which most starts need not
    from worker.models.merge.tensor_file import TensorFile

ALGORITHM = 2  # part of the key: raise it when results change
METADATA = "worker.converted_from"  # key in the metadata of the file
_FOLDER = "converted"
_HEADER = 1 << 20  # bytes; the new names make the header a little longer

log = logging.getLogger(__name__)


class ConvertedLoras:
    """The converted LoRAs of a writable store, and those that were baked.

    Args:
        store: where new ones are written.
        baked: a read-only store.
        space: of the writable store.
        is_taken: whether the operator has a LoRA with that stem.
    """

    def __init__(
        self, store: Blobs, baked: Blobs, space: SpaceBudget, is_taken: Callable[[str], bool]
    ) -> None:
        self._store = store
        self._baked = baked
        self._space = space
        self._is_taken = is_taken

    def needs(self, file: ModelFile) -> bool:
        """Whether A1111 cannot read the LoRA as it is, so that jobs get its conversion.

        Raises:
            WorkerError: the file is damaged, or its names cannot be converted.
        """
        return _naming_of(file) is not None

    def get(self, file: ModelFile, stop: threading.Event = NO_CANCEL) -> ModelFile:
        """The LoRA as A1111 can read it: the file itself, or its conversion, which is made once.

        Raises:
            WorkerError: the file is damaged or of another kind, its names cannot be converted, the
                store is full or cannot be written, or `stop` was set.
        """
        naming = _naming_of(file)
        if naming is None:
            return file
        key = _key(file)
        found = self._known(file, naming)
        while found is None:
            with self._store.lease(_lease(key), lambda: bool(self._read(key)), stop) as is_mine:
                if is_mine:
                    self._make(file, key)
                found = self._known(file, naming)
        return found

    def _known(self, file: ModelFile, naming: str) -> ModelFile | None:
        blob = self._read(_key(file))
        if blob is None:
            return None
        self._store.mark_used(blob.sha256)
        return replace(
            blob.as_file(),
            stem=file.stem,
            source=file.source,
            trained_words=file.trained_words,
            converted_from=Conversion(_sha256(file), naming, file.path),
        )

    def _read(self, key: str) -> Blob | None:
        for store in (self._store, self._baked):
            try:
                note = loads(read_small(store.root / _FOLDER / f"{key}.json"))
            except (OSError, ValueError):
                continue
            if isinstance(note, dict) and (blob := store.find(str(note.get("sha256")))):
                return blob
        return None

    def _make(self, file: ModelFile, key: str) -> None:
        """Write, prove and publish the conversion."""
        begun = time.monotonic()
        self._space.make(_lease(key), file.size + _HEADER)
        partial = self._store.partial(_lease(key))
        try:
            partial.unlink(missing_ok=True)  # left by a killed run
            note = self._write(file, partial)
            blob = self._publish(file, partial)
        except BaseException:
            with suppress(OSError):  # the error that was raised says more
                discard(partial)
            raise
        finally:
            self._space.done(_lease(key))
        self._note(key, {"sha256": blob.sha256, **note})
        seconds = time.monotonic() - begun
        log.info("converted LoRA %r, named as by %s, in %.1f s", file.stem, note["naming"], seconds)

    def _write(self, file: ModelFile, partial: Path) -> dict[str, object]:
        """Write the conversion and prove it; returns what it was made from."""
        from worker.models.convert.lora_rewrite import rewrite, verify  # noqa: PLC0415
        from worker.models.merge.tensor_file import open_tensors  # noqa: PLC0415

        before, digest = version(file.path), _sha256(file)
        with open_tensors(file.path, file.stem) as source:
            renaming = _renaming(source)
            if renaming is None or version(file.path) != before:
                raise ModelFileInvalid(f"{file.stem!r} was replaced while it was converted.")
            note = {"converted_from": digest, "naming": renaming.naming, "algorithm": ALGORITHM}
            rewrite(source, renaming, partial, {METADATA: json.dumps(note)})
            verify(source, renaming, partial)
        try:
            check_with_safetensors(partial)
        except OSError as error:
            raise storage_error(error) from error
        if version(file.path) != before:
            raise ModelFileInvalid(f"{file.stem!r} was replaced while it was converted.")
        return note

    def _publish(self, file: ModelFile, partial: Path) -> Blob:
        about = About(
            kind="lora",
            stem=file.stem,
            suffix=SAFETENSORS,
            size=partial.stat().st_size,
            mtime=0,  # the store sets it
            source=CONVERTED,
            family=file.architecture().family,
            trained_words=file.trained_words,
        )
        return self._store.add(partial, file_sha256(partial), about, self._is_taken)

    def _note(self, key: str, note: dict[str, object]) -> None:
        folder = self._store.root / _FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / f"{key}.json", json.dumps(note, indent=1) + "\n")
        except OSError as error:
            raise storage_error(error) from error


def _naming_of(file: ModelFile) -> str | None:
    """Whose names the tensors have; None if A1111 reads them, or if the file is a pickle."""
    if file.path.suffix in PICKLES:
        return None
    file.check()
    return _naming(file.path, file.stem, *version(file.path))


@lru_cache(maxsize=4096)
def _naming(path: Path, name: str, _size: int, _mtime_ns: int) -> str | None:
    from worker.models.merge.tensor_file import open_tensors  # noqa: PLC0415

    with open_tensors(path, name) as file:
        renaming = _renaming(file)
    return renaming.naming if renaming else None


def _renaming(source: TensorFile) -> Renaming | None:
    """The new names; the same ones if only values or metadata must change.

    A1111 answers 500 to every list of LoRAs as long as a file with such metadata is in its folder.
    """
    from worker.models.convert.dora import without_alphas  # noqa: PLC0415

    header = source.header
    found = find_renaming(source.name, header, architecture.detect(header).family)
    same = Renaming("kohya", {key: key for key in header.tensors}, {})
    changed = without_alphas(source, found or same)
    if found or changed.factors or metadata_fault(header.metadata):
        return changed
    return None


def _key(file: ModelFile) -> str:
    return sha256(json.dumps([ALGORITHM, _sha256(file)]).encode()).hexdigest()


def _lease(key: str) -> str:
    return f"convert-{key[:32]}"


def _sha256(file: ModelFile) -> str:
    digest = file.sha256()
    if digest is None:
        raise ModelNotFound(f"the file {file.path.name!r} is missing.", model=file.stem)
    return digest
