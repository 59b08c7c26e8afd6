"""Baking: puts all models that templates name into one folder while an image is built.

    fetch      each model once, several in parallel, verified
    rewrite    LoRAs whose tensor names A1111 cannot read
    merge      each template's LoRAs into its checkpoint (`--merge`)
    convert    checkpoints into diffusers folders, for the embedded engine (`--diffusers`)
    manifest   a list of all files with source and sha256; before it is written, all are read again

The next run resumes a killed one: it uses or removes what is left. The same templates always
result in the same manifest.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from worker.config.settings import PROJECT
from worker.errors import ModelNotSupported, WorkerError
from worker.files import discard, storage_error, unfinished_writes, write_atomically
from worker.formats.model_file import ModelFile, file_sha256
from worker.job.models import Models, lora_tag
from worker.job.reference import Wanted
from worker.job.request import PictureRequest
from worker.job.template import Template
from worker.models.finder import all_wanted
from worker.models.merge.merged_checkpoints import SOURCE, MergedCheckpoints
from worker.models.store.blobs import CONVERTED, Blob
from worker.models.store.space import SpaceBudget
from worker.models.store.store import Store

MANIFEST = "manifest.json"
AT_ONCE = 4  # models that are fetched in parallel

Row = dict[str, Any]

log = logging.getLogger(__name__)


class Manager(Protocol):
    """What baking needs of `model_manager.ModelManager`."""

    store: Store
    space: SpaceBudget
    merged: MergedCheckpoints

    def ensure(self, wanted: Sequence[Wanted]) -> list[ModelFile]:
        """Find or fetch."""

    def find_models(self, request: PictureRequest) -> Models:
        """All models of a job, checked against each other."""

    def convert(self, models: Models) -> Models:
        """The models with each LoRA as A1111 can read it."""


@dataclass(frozen=True)
class Baking:
    """One run.

    Attributes:
        manager: its writable store is the folder to bake into.
        root: that folder.
        merge, diffusers: whether to make merged checkpoints, and diffusers folders.
    """

    manager: Manager
    root: Path
    merge: bool = False
    diffusers: bool = False

    def run(self, templates: Mapping[str, Template]) -> list[Row]:
        """Bake the templates; returns a row for each file, or for each failure.

        Raises:
            StoreFull, StoreNotWritable: the folder cannot be written.
        """
        self.manager.space.evicts = False
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            from filelock import FileLock  # noqa: PLC0415 - the start of a worker needs no lock

            with FileLock(self.root / ".bake.lock"):
                return self._bake(templates)
        except OSError as error:
            raise storage_error(error) from error

    def _bake(self, templates: Mapping[str, Template]) -> list[Row]:
        damaged: list[Row] = []
        for _ in range(2):  # damaged files are fetched or merged once more
            rows = self._fetch(templates)
            entries = {}
            if not rows:
                for name, template in sorted(templates.items()):
                    entries[name], more = self._attempt(name, template)
                    rows += more
            if failed := [row for row in rows if "error" in row]:
                return failed
            files = sorted({r["path"]: r for r in rows}.values(), key=lambda row: str(row["path"]))
            damaged = [row for row in files if not self._is_whole(row)]
            if not damaged:
                self._clean({row["path"] for row in files})
                self._write({"version": 1, "templates": entries, "files": files})
                size = sum(row["size"] for row in files) / 1e6
                message = "baked %d templates: %d files, %.1f MB in %s"
                log.info(message, len(entries), len(files), size, self.root)
                return files
            self._remove(damaged)
        message = "{} was written twice and is still damaged. Check the disk."
        return [{"name": row["name"], "error": message.format(row["path"])} for row in damaged]

    # Steps -----------------------------------------------------------------------------------

    def _fetch(self, templates: Mapping[str, Template]) -> list[Row]:
        """Fetch every model once; returns a row for each that cannot be fetched."""
        requests = [template.request() for template in templates.values()]
        unique = dict.fromkeys(one for request in requests for one in all_wanted(request).values())

        needed: set[str | None] = set()

        def attempt(wanted: Wanted) -> list[Row]:
            try:
                needed.update(file.verified_sha256 for file in self.manager.ensure([wanted]))
            except WorkerError as error:
                return [{"name": wanted.ref.shown, "code": error.code, "error": str(error)}]
            return []

        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="bake") as pool:
            failed = [row for rows in pool.map(attempt, unique) for row in rows]
        if not failed:
            self._replace_old_versions(needed)
        return failed

    def _replace_old_versions(self, needed: Collection[str | None]) -> None:
        """Remove models of an earlier build; a new version then gets the old one's name.

        It would have that name in a build without a cache, and prompts name LoRAs by it.
        """
        fetched = self.manager.store.fetched
        made = {SOURCE, CONVERTED}  # here, from the others
        old = [b for b in fetched.all() if b.sha256 not in needed and b.about.source not in made]
        for blob in old:
            self._drop(blob)
        names = {(blob.about.kind, blob.about.stem) for blob in old}
        for blob in fetched.all():
            stem = blob.about.stem.removesuffix(f"-{blob.sha256[:10]}")
            if stem != blob.about.stem and (blob.about.kind, stem) in names:
                self._publish_again(blob, stem)

    def _publish_again(self, blob: Blob, stem: str) -> None:
        store = self.manager.store
        file = store.fetched.partial(blob.sha256)
        blob.path.rename(file)
        store.fetched.remove(blob)
        about = replace(blob.about, stem=stem)
        store.fetched.add(file, blob.sha256, about, partial(store.is_taken, about.kind))

    def _drop(self, blob: Blob) -> None:
        log.info("no template uses %s any more; it is removed", blob.about.stem)
        self.manager.store.fetched.remove(blob)

    def _attempt(self, name: str, template: Template) -> tuple[Row, list[Row]]:
        """The manifest's entry for a template and rows for its files, or a row with the error."""
        try:
            models = self._as_a1111_reads(self.manager.find_models(template.request()))
            if models.loras:
                models = replace(models, merged=self._merged(models))
            return _entry(models), [*self._rows(models), *self._diffusers_rows(models)]
        except WorkerError as error:
            message = f"template {name!r}: {error}"
            return {}, [{"name": name, "code": error.code, "error": message}]

    def _as_a1111_reads(self, models: Models) -> Models:
        """With converted LoRAs: a merge needs them, and so does an image with A1111."""
        try:
            return self.manager.convert(models)
        except ModelNotSupported as error:
            if self.merge:
                raise
            log.warning("%s", error)
            return models

    def _merged(self, models: Models) -> ModelFile | None:
        found = self.manager.merged.find(models)
        if found or not self.merge:
            return found
        begun = time.monotonic()
        blob, unmatched = self.manager.merged.make(models, self.manager.store.fetched)
        for lora, layers in unmatched.items():
            shown = ", ".join(layers[:3])
            log.warning(
                "LoRA %r: the checkpoint does not have %d of its layers (%s)",
                lora,
                len(layers),
                shown,
            )
        log.info("merged %s in %.1f s", blob.about.stem, time.monotonic() - begun)
        return blob.as_file()

    def _rows(self, models: Models) -> list[Row]:
        return [
            {
                "kind": file.kind,
                "name": file.stem,
                "size": file.size,
                "sha256": file.sha256(),
                "source": file.source,
                "path": self._path(file.path),
            }
            for file in dict.fromkeys([*models.files(), *models.sources])
        ]

    def _diffusers_rows(self, models: Models) -> list[Row]:
        """The files of the checkpoint's diffusers folder, where there is one."""
        if models.loaded is None:
            return []
        folder = self.manager.store.fetched.diffusers(models.loaded.sha256() or "")
        if not self.diffusers and not folder.is_dir():
            return []
        return [
            {
                "kind": "diffusers",
                "name": models.loaded.stem,
                "size": file["size"],
                "sha256": file["sha256"],
                "source": "converted",
                "path": self._path(folder / file["path"]),
            }
            for file in _to_diffusers(models.loaded.path, folder)["files"]
        ]

    def _path(self, path: Path) -> str:
        root = self.root.resolve()
        return str(path.relative_to(root) if path.is_relative_to(root) else path)

    # The end ---------------------------------------------------------------------------------

    def _write(self, manifest: Row) -> None:
        content = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        write_atomically(self.root / MANIFEST, content)
        for left in unfinished_writes(self.root / MANIFEST):
            left.unlink(missing_ok=True)

    def _remove(self, damaged: Iterable[Row]) -> None:
        fetched = self.manager.store.fetched
        for row in damaged:
            log.warning("%s is damaged; it is made again", row["path"])
            if blob := fetched.find(row["sha256"]):
                fetched.remove(blob)

    def _is_whole(self, row: Row) -> bool:
        path = self.root / row["path"]
        try:
            return (path.stat().st_size, file_sha256(path)) == (row["size"], row["sha256"])
        except (OSError, WorkerError):
            return False

    def _clean(self, listed: Collection[str]) -> None:
        """Remove partial files, leases and old models, which would stay in the image."""
        fetched = self.manager.store.fetched
        for blob in fetched.all():
            if self._path(blob.path) not in listed:
                self._drop(blob)
        names = {part for path in listed for part in Path(path).parts}
        for folder in fetched.diffusers("").glob("*"):
            if folder.name not in names:
                shutil.rmtree(folder)
        notes = [fetched.root / name for name in ("merged", "converted", "references")]
        unfinished = [path for folder in notes for path in folder.glob(".*.new")]
        for path in [*fetched.partials(), *fetched.leftovers(), *unfinished]:
            discard(path)
        for name in ("downloads", "leases"):
            shutil.rmtree(fetched.root / name, ignore_errors=True)


def baked_before(root: Path) -> list[str]:
    """The templates in the manifest of an earlier run."""
    try:
        return list(json.loads((root / MANIFEST).read_text())["templates"])
    except (OSError, ValueError, LookupError, TypeError):
        return []


def _entry(models: Models) -> Row:
    """The manifest's entry for a template."""
    tags = [(file, lora_tag(file, reference)) for file, reference in models.loras]
    others = [file for file in models.files() if file.kind in {"vae", "embedding"}]
    return {
        "checkpoint": models.checkpoint.sha256() if models.checkpoint else None,
        "loras": [{"sha256": file.sha256(), "te": t.te, "unet": t.unet} for file, t in tags],
        "others": sorted(str(file.sha256()) for file in others),
        "merged": models.merged.verified_sha256 if models.merged else None,
    }


def _to_diffusers(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Make the diffusers folder, or list an existing one; needs the engine's packages.

    Raises:
        ModelNotSupported: they are not installed, or the checkpoint cannot be converted.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "engine.models.convert", str(checkpoint), str(folder)]
    done = subprocess.run(  # noqa: S603 - our own program
        command,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ModelNotSupported(f"{checkpoint.name} cannot be converted: {reason}")
    return dict(json.loads(done.stdout))
