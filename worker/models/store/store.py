"""The model store: finds model files, and makes the links that show them to the engine.

Files are searched in this order: the engine's own folders, the writable store (MODELS_DIR), the
baked store (BAKED_MODELS_DIR). Each has A1111's layout (`Stable-diffusion`, `Lora`, `VAE`,
`embeddings`), so a folder that a WebUI already uses can be a store. Both stores also have a folder
`fetched` with the models that the worker downloaded (`worker.models.store.blobs`). Files outside
the engine's folders are linked into them.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from worker.errors import ModelNotFound
from worker.formats.model_file import FOLDERS, ModelFile
from worker.formats.names import PICKLES, SAFETENSORS, Kind, clean_stem, marked_stem, without_suffix
from worker.models.store.blobs import Blob, Blobs
from worker.models.store.listing import Listing

FETCHED = "fetched"


@dataclass(frozen=True)
class _Tree:
    """Folders in A1111's layout; with `blobs` if their files were fetched."""

    folders: dict[Kind, Listing]
    blobs: Blobs | None = None


class Store:
    """The model folders.

    Args:
        webui_dir: the engine's data folder.
        models_dir: the writable store.
        baked_dir: the read-only store.
        pickles: whether files that can run code when they are loaded may be used.
        diffusers: whether the engine can load checkpoints that were converted into diffusers
            folders.
    """

    def __init__(
        self,
        webui_dir: Path,
        models_dir: Path,
        baked_dir: Path,
        *,
        pickles: bool = False,
        diffusers: bool = False,
    ) -> None:
        self._diffusers = diffusers
        self._pickles = pickles
        self._engine = {
            kind: webui_dir / name if kind == "embedding" else webui_dir / "models" / name
            for kind, name in FOLDERS.items()
        }
        self.fetched = Blobs(models_dir / FETCHED)
        self.baked = Blobs(baked_dir / FETCHED)

        def tree(root: Path, blobs: Blobs | None = None) -> _Tree:
            folders = {kind: root / name for kind, name in FOLDERS.items()}
            return _Tree({k: Listing(f, pickles=pickles) for k, f in folders.items()}, blobs)

        own = {kind: Listing(path, pickles=pickles) for kind, path in self._engine.items()}
        self._trees = (
            _Tree(own),
            tree(models_dir),
            tree(self.fetched.root, self.fetched),
            tree(baked_dir),
            tree(self.baked.root, self.baked),
        )
        self._counted: dict[Kind, tuple[tuple[int, ...], dict[str, int]]] = {}

    # Look up ---------------------------------------------------------------------------------

    def files(self, kind: Kind) -> Iterator[ModelFile]:
        """Every file of that kind; of several with one stem, the first in search order."""
        seen: set[str] = set()
        for tree in self._trees:
            for path in tree.folders[kind].files():
                stem = clean_stem(path.stem)
                if stem not in seen and (file := self._model_file(kind, path)):
                    seen.add(stem)
                    yield file

    def find(self, kind: Kind, name: str) -> ModelFile | None:
        """The file with that file name or stem, as written or else in any case.

        A damaged fetched file is not found, and neither is a name that several files have.
        """
        sole = (files for files in self._meant(kind, name) if len(files) == 1)
        return next((file for files in sole for file in files.values()), None)

    def _meant(self, kind: Kind, name: str) -> Iterator[dict[Path, ModelFile]]:
        """The files that the name can mean, tree by tree: path below the kind's folder -> file."""
        listings = [tree.folders[kind] for tree in self._trees]
        stem = without_suffix(name)
        if stem != name:  # a full file name does not mean a file with another suffix
            for one in listings:
                exact = [path for path in one.find(stem) if path.name == name]
                yield self._model_files(kind, one, exact)
        for one in listings:
            for candidate in dict.fromkeys((stem, clean_stem(stem))):
                yield self._model_files(kind, one, one.find(candidate))

    def _model_files(
        self, kind: Kind, listing: Listing, paths: list[Path]
    ) -> dict[Path, ModelFile]:
        files: dict[Path, ModelFile] = {}
        for path in paths:
            file = self._model_file(kind, path)
            if file and file not in files.values():  # two links to one file count once
                files[path.relative_to(listing.folder)] = file
        return files

    def blob(self, sha256: str) -> Blob | None:
        """A fetched or baked file by its hash; the operator's own files are not hashed for this."""
        return self.fetched.find(sha256) or self.baked.find(sha256)

    def by_sha256(self, sha256: str) -> ModelFile | None:
        """The blob as a model file; records the use."""
        blob = self.blob(sha256)
        if blob is None:
            return None
        self.fetched.mark_used(sha256)
        return blob.as_file()

    def is_baked(self, file: ModelFile) -> bool:
        """Whether the file is in the baked store."""
        return file.path.is_relative_to(self.baked.root.parent)

    def not_found(self, kind: Kind, name: str) -> ModelNotFound:
        """The error for a name that no file has, with similar names, or that several files have."""
        if several := next((files for files in self._meant(kind, name) if len(files) > 1), None):
            return _ambiguous(kind, name, list(several))
        paths = (path for tree in self._trees for path in tree.folders[kind].files())
        known = list(dict.fromkeys(clean_stem(path.stem) for path in paths))
        near = difflib.get_close_matches(clean_stem(without_suffix(name)), known, cutoff=0.4)
        details: dict[str, Any] = {"kind": kind, "name": name, "near": near}
        hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else None
        if not self._pickles and name.lower().endswith(PICKLES):
            hint = "Such a file can run any code; it is used only with ALLOW_PICKLES=true."
        message = f"{kind} {name!r} is not in the model store ({len(known)} known)."
        return ModelNotFound(message, hint=hint, **details)

    def is_taken(self, kind: Kind, stem: str) -> bool:
        """Whether a file that was not fetched has that stem; a fetched file then gets another."""
        others = (tree for tree in self._trees if tree.blobs is not self.fetched)
        return any(
            self.fetched.blob_of(_target(path)) is None
            for tree in others
            for path in tree.folders[kind].find(stem)
        )

    def _model_file(self, kind: Kind, path: Path) -> ModelFile | None:
        try:
            target = path.resolve(strict=True)
            size = target.stat().st_size
        except (OSError, RuntimeError):  # before Python 3.13 a loop of links is a RuntimeError
            return None  # a dangling link, or removed by another worker
        for blobs in (self.fetched, self.baked):
            if sha256 := blobs.blob_of(target):
                blob = blobs.find(sha256)
                return blob.as_file() if blob else None
        return ModelFile(kind, target, clean_stem(path.stem), size)

    # Links -----------------------------------------------------------------------------------

    def link(self, file: ModelFile) -> tuple[ModelFile, bool]:
        """Link the file into the engine's folder; returns it as named there, and whether it is new.

        A `.yaml` beside a checkpoint is linked too: A1111 reads from it what the weights do not
        contain, such as v-prediction.
        """
        file, folder = _listed(file), self._engine[file.kind]
        if converted := self._converted(file):
            return file, self._link_folder(folder / file.stem, converted)
        link = folder / file.filename
        if not _points(link, file.path):
            file = _with_free_name(folder, file)
            if file.path.is_relative_to(folder.resolve()) and file.path.stem == file.stem:
                return file, False
            link = folder / file.filename
        config = file.path.with_suffix(".yaml")
        if file.kind == "checkpoint" and config.is_file():
            _point(folder / f"{file.stem}.yaml", config)
        return file, _point(link, file.path)

    def _converted(self, file: ModelFile) -> Path | None:
        """The checkpoint's diffusers folder, if it was converted and the engine can load it."""
        if not self._diffusers or file.kind != "checkpoint" or not self.baked.has_diffusers:
            return None
        # An operator's file has no converted folder: do not read its 7 GB for a hash.
        sha256 = file.sha256() if self.is_baked(file) else file.verified_sha256
        folder = self.baked.diffusers(sha256 or "none")
        return folder if folder.is_dir() else None

    def _link_folder(self, link: Path, target: Path) -> bool:
        """Link the diffusers folder under the checkpoint's name; remove the link to the file."""
        beside = link.with_name(f"{link.name}{SAFETENSORS}")
        if beside.is_symlink():
            beside.unlink(missing_ok=True)
        return _point(link, target)

    def remove_dangling_links(self) -> None:
        """Remove the links in the engine's folders whose targets are missing."""
        for folder in self._engine.values():
            for path in folder.glob("*"):
                if path.is_symlink() and not path.exists():
                    path.unlink(missing_ok=True)

    # Numbers ---------------------------------------------------------------------------------

    def stats(self) -> dict[str, dict[str, int]]:
        """Number and total bytes per kind: `{"checkpoints": {"count": 2, "total_size": 5}}`."""
        return {f"{kind}s": self._totals(kind) for kind in FOLDERS}

    def _totals(self, kind: Kind) -> dict[str, int]:
        listings = [tree.folders[kind] for tree in self._trees]
        generations = tuple(listing.current_generation() for listing in listings)
        if self._counted.get(kind, ((), {}))[0] != generations:
            by_stem: dict[str, int] = {}
            for path, size in (item for one in listings for item in one.sizes().items()):
                by_stem.setdefault(clean_stem(path.stem), size)
            totals = {"count": len(by_stem), "total_size": sum(by_stem.values())}
            self._counted[kind] = (generations, totals)
        return self._counted[kind][1]


def _listed(file: ModelFile) -> ModelFile:
    """The file under a name that A1111 lists: `x.vae.safetensors` is never a checkpoint to it."""
    if file.kind != "checkpoint" or not file.stem.endswith(".vae"):
        return file
    return replace(file, stem=f"{file.stem.removesuffix('.vae')}_vae")


def _ambiguous(kind: Kind, name: str, paths: list[Path]) -> ModelNotFound:
    """The error for a name that several files have; a job can name a file, not a folder."""
    shown = ", ".join(f"{FOLDERS[kind]}/{path}" for path in paths)
    names = [path.name for path in paths]
    hint = "Rename all but one of them; a job cannot name the folder."
    if len(set(names)) == len(names):
        hint = f"Give the whole file name: {' or '.join(map(repr, names))}."
    message = f"{kind} {name!r} is ambiguous in the model store: {shown}."
    return ModelNotFound(message, hint=hint, kind=kind, name=name, near=names)


def _with_free_name(folder: Path, file: ModelFile) -> ModelFile:
    """The file under a name that has no other meaning for the running engine.

    The engine may have loaded another file under that name, even if that file is gone now: another
    worker can have evicted it. A1111 knows checkpoints and LoRAs by their stems, so for them a
    name with another suffix is taken too.
    """
    suffixes = (
        [SAFETENSORS, *PICKLES] if file.kind in {"checkpoint", "lora"} else [file.path.suffix]
    )
    links = (folder / f"{file.stem}{suffix}" for suffix in suffixes)
    if not any(_is_taken(link, file) for link in links):
        return file
    mark = file.verified_sha256 or hashlib.sha256(bytes(file.path)).hexdigest()
    return replace(file, stem=marked_stem(file.stem, mark[:10]))


def _is_taken(link: Path, file: ModelFile) -> bool:
    # Prompts name an embedding by its stem, and the engine reads all of them again.
    is_there = link.exists() if file.kind == "embedding" else os.path.lexists(link)
    return is_there and _target(link) != file.path


def _target(path: Path) -> Path:
    """The target of a link, even if it is missing; a loop of links is its own target."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path.absolute()


def _points(link: Path, target: Path) -> bool:
    """Whether it is our link to the target. One system call: it runs for each file of each job."""
    try:
        return os.readlink(link) == str(target)  # noqa: PTH115 - a Path costs more than the call
    except OSError:
        return False


def _point(link: Path, target: Path) -> bool:
    """Make the link point to the target; returns whether anything changed."""
    if _points(link, target) or (link.is_symlink() and _target(link) == target):
        return False
    link.parent.mkdir(parents=True, exist_ok=True)
    # Replaced in one step: the engine sees the old file or the new one, never a gap.
    temporary = link.with_name(f".{uuid.uuid4().hex}.link")
    temporary.symlink_to(target)
    with suppress(FileNotFoundError):  # two threads link the same model
        temporary.replace(link)
    return True
