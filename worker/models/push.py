"""Push: sends models to a RunPod network volume from the operator's machine, without a Pod.

    fetch      each model once into the local store, verified
    check      as for a job that names it
    compare    with what the volume has; what is there is not sent again
    send       in parts; the next run continues a killed one

A worker on that volume finds the files as if it had fetched them (`worker.models.volume.files`),
and adds the links, which S3 does not know. Merged checkpoints and converted LoRAs are not sent: the
worker makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from worker.errors import InvalidInput, ModelNotFound, WorkerError
from worker.files import is_file
from worker.formats import control_models
from worker.formats.model_file import FOLDERS, ModelFile
from worker.formats.names import PICKLES, SAFETENSORS, Kind, stem_of
from worker.http.client import NO_CANCEL
from worker.job import compatibility
from worker.job.models import Models, assign_files
from worker.job.reference import ModelRef, Wanted, parse_reference
from worker.job.request import PictureRequest
from worker.job.template import Template
from worker.models.finder import Finder, all_wanted
from worker.models.store.fetcher import Fetcher
from worker.models.store.progress import DownloadProgress, report_for
from worker.models.store.store import Store
from worker.models.volume.files import VolumeFiles

Row = dict[str, Any]


class Manager(Protocol):
    """What pushing needs of `model_manager.ModelManager`."""

    store: Store
    finder: Finder
    fetcher: Fetcher

    def ensure(self, wanted: Sequence[Wanted]) -> list[ModelFile]:
        """Find or fetch."""


@dataclass
class Push:
    """One run.

    Attributes:
        manager: its store has the local files.
        volume: where to.
        models_dir: the local store's folder.
        engine: the engine of the workers, for which templates are checked.
        pickles: whether files that can run code may be sent.
        dry_run: only list what would be fetched and sent.
    """

    manager: Manager
    volume: VolumeFiles
    models_dir: Path
    engine: str
    pickles: bool = False
    dry_run: bool = False
    _files: dict[ModelFile, list[ModelRef]] = field(default_factory=dict)
    _rows: list[Row] = field(default_factory=list)

    def run(
        self, texts: Iterable[str], kind: Kind | None, templates: Mapping[str, Template]
    ) -> list[Row]:
        """Push what the texts and the templates name; returns a row for each file or failure.

        Args:
            texts: references, names in the local store, or paths of the operator's files.
            kind: of the files that the texts name; None: as their contents say.
            templates: by their names.

        Raises:
            VolumeFailed: the volume or the key is wrong; nothing was fetched.
        """
        self.volume.check()
        for text in texts:
            self._attempt({"ref": text}, partial(self._add_text, text, kind))
        for name, template in templates.items():
            self._attempt({"template": name}, partial(self._add_template, template))
        for file, refs in self._files.items():
            self._attempt({"name": file.filename}, partial(self._send, file, refs))
        return self._rows

    def _attempt(self, what: Row, do: Callable[[], None]) -> None:
        try:
            do()
        except WorkerError as error:
            # A reference can contain a secret, so the text is not part of the message.
            name = what.get("name") or what.get("template")
            message = f"{name}: {error}" if name else str(error)
            self._rows.append({**what, "code": error.code, "error": message})

    # What is named ---------------------------------------------------------------------------

    def _add_text(self, text: str, kind: Kind | None) -> None:
        path = Path(text)
        if path.suffix in {SAFETENSORS, *PICKLES} and is_file(path):
            self._add(self._own_file(path.resolve(), kind))
            return
        wanted = Wanted(parse_reference(text), kind)
        if not self._add_remote(wanted):
            (file,) = self.manager.ensure([wanted])
            file.check()
            self._add(file, wanted.ref)

    def _add_template(self, template: Template) -> None:
        request = template.request()
        wanted = all_wanted(request)
        missing = [one for one in wanted.values() if self._add_remote(one)]
        if missing:  # only in a dry run: the template is checked when all of its files are here
            return
        found = self.manager.ensure(list(wanted.values()))
        models = self._models(request, dict(zip(wanted, found, strict=True)))
        compatibility.check_files(models, self.engine)
        compatibility.check_together(models, self.engine)
        for one, file in zip(wanted.values(), found, strict=True):
            self._add(file, one.ref)
        for file in models.written_loras.values():
            self._add(file)

    def _models(
        self, request: PictureRequest, files: Mapping[tuple[str, int], ModelFile]
    ) -> Models:
        models = assign_files(request, files)
        written = self.manager.finder.written_loras(request, models.loras)
        return replace(models, written_loras=written)

    def _add(self, file: ModelFile, *refs: ModelRef) -> None:
        self._files.setdefault(file, []).extend(refs)

    def _add_remote(self, wanted: Wanted) -> bool:
        """In a dry run: list a model that would have to be fetched; returns whether it would."""
        if not self.dry_run or self.manager.finder.find(wanted):
            return False
        remote = self.manager.fetcher.resolve(wanted.ref, NO_CANCEL)
        is_there = bool(remote.sha256 and self.volume.has_blob(remote.sha256, remote.size))
        self._rows.append(
            {
                "kind": wanted.kind or remote.role,
                "name": stem_of(remote.filename),
                "size": remote.size,
                "sha256": remote.sha256,
                "source": remote.source,
                "state": "there" if is_there else "to fetch and send",
                "sent": 0,
            }
        )
        return True

    def _own_file(self, path: Path, kind: Kind | None) -> ModelFile:
        if path.suffix in PICKLES and not (self.pickles and kind):
            raise InvalidInput(
                f"{path.name!r} is a pickle: loading it can run any code.",
                hint="Use a .safetensors file, or set ALLOW_PICKLES=true and give --kind.",
            )
        file = ModelFile(kind or "checkpoint", path, stem_of(path.name), path.stat().st_size)
        if kind is None:
            file = replace(file, kind=control_models.kind_of(file.architecture().role))
        file.check()
        return file

    # Send ------------------------------------------------------------------------------------

    def _send(self, file: ModelFile, refs: Sequence[ModelRef]) -> None:
        blob = self.manager.store.blob(file.verified_sha256) if file.verified_sha256 else None
        if file.verified_sha256 and blob is None:
            raise ModelNotFound("the file is gone from the local store.", hint="Push again.")
        if blob:
            key = self.volume.blob_key(blob.sha256, blob.about.suffix)
            is_there = self.volume.has_blob(blob.sha256, blob.about.size)
        else:
            key = self.volume.own_key(file.kind, self._own_name(file))
            is_there = self.volume.has_own(key, file.path)
        sent = 0
        if not self.dry_run:
            with closing(_LateReport(file.filename)) as report:
                if blob:
                    sent = self.volume.send_blob(blob, self._notes(refs), report)
                else:
                    sent = self.volume.send_own(key, file.path, report)
        missing = "to send" if self.dry_run else "sent"
        self._rows.append(
            {
                "kind": file.kind,
                "name": file.stem,
                "size": file.size,
                "sha256": file.verified_sha256,
                "source": file.source,
                "state": "there" if is_there else missing,
                "sent": sent,
                "path": key,
            }
        )

    def _notes(self, refs: Sequence[ModelRef]) -> dict[ModelRef, bytes]:
        notes = {ref: self.manager.fetcher.references.exported(ref) for ref in refs}
        return {ref: note for ref, note in notes.items() if note}

    def _own_name(self, file: ModelFile) -> str:
        """Its path below the folder of its kind, as a job names it."""
        folder = (self.models_dir / FOLDERS[file.kind]).resolve()
        if file.path.is_relative_to(folder):
            return file.path.relative_to(folder).as_posix()
        return file.filename


class _LateReport:
    """A report that shows nothing until something is sent."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._report: DownloadProgress | None = None

    def __call__(self, done: int, size: int | None) -> None:
        self._report = self._report or report_for(self._name, is_sent=True)
        self._report(done, size)

    def close(self) -> None:
        if self._report:
            self._report.close()
