"""The model store: finds model files, and makes the links that show them to the engine.

Files are searched in this order: the engine's own folders, the writable store (MODELS_DIR), a
store on a volume that cannot be written, the baked store (BAKED_MODELS_DIR). Each has A1111's
layout (`Stable-diffusion`, `Lora`, `VAE`, `embeddings`), so a folder that a WebUI already uses can
be a store. Each store also has a folder `fetched` with the models that the worker downloaded
(`worker.models.store.blobs`). The last place is the Hugging Face cache
(`worker.models.store.hub_cache`). Files outside the engine's folders are linked into them.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from worker.errors import ModelNotFound
from worker.formats.model_file import FOLDERS, ModelFile
from worker.formats.names import PICKLES, SAFETENSORS, Kind, clean_stem, marked_stem, without_suffix
from worker.models.store import engine_configs, links, naming
from worker.models.store.blobs import CONVERTED, Blob, Blobs
from worker.models.store.hub_cache import HubCache
from worker.models.store.links import point, points, target_of
from worker.models.store.listing import Index, Listing, Totals, look_again

FETCHED = "fetched"

_REMEMBERED = 10_000  # names

# A1111 lists a checkpoint's hash by its first 10 digits.
_SHORT_HASH = re.compile(r"[0-9a-f]{8,63}")


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
        baked_dir: the read-only store in the image.
        read_only_dir: a store on a volume that cannot be written.
        hub_cache_dir: a Hugging Face cache.
        pickles: whether files that can run code when they are loaded may be used.
        diffusers: whether the engine can load diffusers folders.

    Attributes:
        engine_folders: the engine's own folder for each kind.
        fetched, baked: the fetched files of the two stores that every worker has.
        hub: the files of the Hugging Face cache.
        replaced: kinds of which the operator has replaced a file under its name.
    """

    def __init__(
        self,
        webui_dir: Path,
        models_dir: Path,
        baked_dir: Path,
        *,
        read_only_dir: Path | None = None,
        hub_cache_dir: Path | None = None,
        pickles: bool = False,
        diffusers: bool = False,
    ) -> None:
        self._diffusers = diffusers
        self._pickles = pickles
        self.engine_folders = {
            kind: webui_dir / name if kind == "embedding" else webui_dir / "models" / name
            for kind, name in FOLDERS.items()
        }
        self.fetched = Blobs(models_dir / FETCHED)
        self.baked = Blobs(baked_dir / FETCHED)
        self.hub = HubCache(hub_cache_dir, self.fetched.root / "hub_hashes", pickles=pickles)
        more = [(read_only_dir, Blobs(read_only_dir / FETCHED))] if read_only_dir else []
        stores = [(models_dir, self.fetched), *more, (baked_dir, self.baked)]

        def tree(root: Path, blobs: Blobs | None = None) -> _Tree:
            folders = {kind: root / name for kind, name in FOLDERS.items()}
            return _Tree({k: Listing(f, pickles=pickles) for k, f in folders.items()}, blobs)

        own = {kind: Listing(path, pickles=pickles) for kind, path in self.engine_folders.items()}
        self._trees = (
            _Tree(own),
            *(t for root, b in stores for t in (tree(root), tree(b.root, b))),
        )
        self._blobs = tuple(blobs for _, blobs in stores)
        self._roots = tuple(target_of(root) for root, _ in stores)
        self._made: dict[Path, Path] = {}  # our links since the start -> targets
        self._shown = links.Shown()
        self._where = links.Targets()
        # What a name meant, and the indexes of the folders then: each change makes a new index.
        self._named: dict[tuple[Kind, str], tuple[list[Index], Path]] = {}
        self.replaced: set[Kind] = set()
        self._totals = {
            kind: Totals([tree.folders[kind] for tree in self._trees]) for kind in FOLDERS
        }

    # Look up ---------------------------------------------------------------------------------

    def files(self, kind: Kind, *, own: bool = False) -> Iterator[ModelFile]:
        """Every file of that kind; of several with one stem, the first in search order.

        Args:
            kind: of the files.
            own: leave out those that a worker fetched.
        """
        seen: set[str] = set()
        own_trees = (tree for tree in self._trees if tree.blobs is None)
        indexes = [tree.folders[kind].index() for tree in own_trees] if own else self._indexes(kind)
        for path in (path for index in indexes for path in index.files):
            file = self._model_file(kind, path)
            if file is None or file.stem in seen or self._is_ours(kind, path):
                continue
            if own and file.source is not None:
                continue  # a link of the operator to a fetched file
            seen.add(file.stem)
            yield file

    def names(self, kind: Kind) -> dict[str, ModelFile]:
        """Every file by a name that means it.

        It is the file name, or the path below the kind's folder where that means another file, or
        several.
        """
        found = {file.filename: file for file in self.files(kind)}
        for name, paths in naming.repeated(self._indexes(kind)).items():
            if len(self._meant(kind, name)) > 1:
                found.pop(name, None)
            for path in paths:
                file = self.find(kind, path)
                if file and all(file.path != other.path for other in found.values()):
                    found[path] = file
        return found

    def own_generation(self, kind: Kind) -> tuple[int, ...]:
        """Numbers that change when a file of the operator may have come or gone."""
        return tuple(
            tree.folders[kind].current_generation() for tree in self._trees if tree.blobs is None
        )

    def find(self, kind: Kind, name: str) -> ModelFile | None:
        """The file that the name means, see `Index`: as it is written, or else in any case.

        A damaged fetched file is not found, and neither is a name that several files have.
        """
        indexes = self._indexes(kind)
        then, path = self._named.get((kind, name), (None, None))
        if path and then == indexes and (file := self._model_file(kind, path)):
            return file
        _, paths = next(self._candidates(kind, name, indexes), (None, []))
        if len(paths) == 1 and (file := self._model_file(kind, paths[0])):
            if len(self._named) >= _REMEMBERED:
                self._named = {}
            self._named[kind, name] = indexes, paths[0]
            return file
        files = list(self._meant(kind, name).values())
        return files[0] if len(files) == 1 else None

    def _candidates(
        self, kind: Kind, name: str, indexes: list[Index]
    ) -> Iterator[tuple[Index, list[Path]]]:
        """The paths that the name can mean, the most precise form first."""
        for level in zip(*(naming.forms(index, name) for index in indexes), strict=True):
            for index, paths in zip(indexes, level, strict=True):
                if others := [path for path in paths if not self._is_ours(kind, path)]:
                    yield index, others

    def _meant(self, kind: Kind, name: str) -> dict[Path, ModelFile]:
        """The files that the name means: path below the kind's folder -> file.

        An exact name in any folder comes before a similar one in another. A link of ours in the
        engine's folder is not a file of its name: only a name that nothing else has means it.
        """
        indexes = self._indexes(kind)
        for index, paths in self._candidates(kind, name, indexes):
            if files := self._model_files(kind, index, paths):
                return files
        clean = clean_stem(without_suffix(name)).casefold()
        for index in indexes:
            files = self._model_files(kind, index, index.with_clean_stem(clean))
            if files := {p: file for p, file in files.items() if file.stem.casefold() == clean}:
                return files
        by_hash = self._by_short_hash(name) if kind == "checkpoint" else []
        return {file.path: file for file in by_hash}

    def _indexes(self, kind: Kind, *, again: bool = True) -> list[Index]:
        """Of every folder, in search order."""
        if again:
            self.fetched.add_links(self.is_taken)
        own = [tree.folders[kind].index(again=again) for tree in self._trees]
        return [*own, self.hub.index(kind, again=again)]

    def _by_short_hash(self, name: str) -> list[ModelFile]:
        """The fetched checkpoints whose SHA-256 begins so."""
        if not _SHORT_HASH.fullmatch(name.lower()):
            return []
        stores: tuple[Blobs | HubCache, ...] = (*self._blobs, self.hub)
        blobs = (found for store in stores for found in store.starting(name.lower()))
        files = {blob.sha256: blob.as_file() for blob in blobs}
        return [file for file in files.values() if file.kind == "checkpoint"]

    def _model_files(
        self, kind: Kind, index: Index, paths: Iterable[Path]
    ) -> dict[Path, ModelFile]:
        files: dict[Path, ModelFile] = {}
        for path in paths:
            file = self._model_file(kind, path)
            if file and all(file.path != other.path for other in files.values()):
                files[index.relative(path)] = file  # two links to one file count once
        return files

    def blob(self, sha256: str) -> Blob | None:
        """A fetched, baked or cached file by its hash; the operator's own files are not hashed."""
        found = (store.find(sha256) for store in self._blobs)
        return next(filter(None, found), None) or next(self.hub.starting(sha256), None)

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
        if several := self._meant(kind, name):
            return naming.ambiguous(kind, name, list(several))
        return naming.missing(kind, name, self._indexes(kind), pickles=self._pickles)

    def is_taken(self, kind: Kind, stem: str) -> bool:
        """Whether a file that was not fetched has that stem; a fetched file then gets another."""
        others = (tree for tree in self._trees if tree.blobs is not self.fetched)
        return any(
            self.fetched.blob_of(target_of(path)) is None
            for tree in others
            for path in tree.folders[kind].find(stem)
        )

    def _model_file(self, kind: Kind, path: Path) -> ModelFile | None:
        try:
            target, status = self._where.of(path)
        except (OSError, RuntimeError):  # before Python 3.13 a loop of links is a RuntimeError
            return None  # a dangling link, or removed by another worker
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO or a device could block for ever
            return None
        if self.hub.contains(target):
            return self.hub.of_target(target, kind)
        for blobs in self._blobs:
            if sha256 := blobs.blob_of(target):
                blob = blobs.find(sha256)
                # A conversion is used only in place of its source.
                is_own = blob and blob.about.source != CONVERTED
                return blob.as_file() if blob and is_own else None
        return ModelFile(kind, target, self._stem_for(kind, path), status.st_size)

    def _stem_for(self, kind: Kind, path: Path) -> str:
        """The file's clean stem; with a mark if that is the name of another file.

        An exact name keeps its meaning: of `foo_1` and `foo,1`, only the first is named `foo_1`.
        """
        stem = clean_stem(path.stem)
        if stem == path.stem:
            return stem
        indexes = self._indexes(kind, again=False)
        rivals = [p for one in indexes for p in one.with_clean_stem(stem.casefold())]
        rivals = [p for p in rivals if clean_stem(p.stem) == stem and not self._is_ours(kind, p)]
        rivals.sort(key=lambda rival: rival.stem != stem)  # exact names first
        if not rivals or rivals[0] == path or rivals[0].stem == path.stem:
            return stem
        return marked_stem(stem, naming.mark_of(path))

    # Links -----------------------------------------------------------------------------------

    def link(self, file: ModelFile) -> tuple[ModelFile, bool]:
        """Link the file into the engine's folder; returns it as named there, and whether it is new.

        It is new if the engine has not seen this version of it. A checkpoint's `.yaml` is linked
        too, or one of ours: A1111 reads from it what it does not find in the weights, such as
        v-prediction.
        """
        folder = self.engine_folders[file.kind]
        if diffusers := self._diffusers_folder(file):
            return file, links.point_to_folder(folder / file.stem, diffusers, SAFETENSORS)
        file = self.named(file)
        if self._is_in_engine(file):
            self._link_config(file, file.path)
            return file, self._note(file, file.path)
        link = folder / file.filename
        self._link_config(file, link)
        is_changed = point(link, file.path)
        if is_changed:
            look_again()
        self._made[link] = file.path
        return file, self._note(file, link, is_changed=is_changed)

    def named(self, file: ModelFile) -> ModelFile:
        """The file under its name in the engine's folder, which has no other meaning there.

        The engine may have loaded another file under that name, even if that file is gone now:
        another worker can have evicted it. A1111 knows checkpoints and LoRAs by their stems, so
        for them a name with another suffix, or in a subfolder, is taken too. Of embeddings, A1111
        reads all files again: the last meaning counts.
        """
        folder = self.engine_folders[file.kind]
        if file.kind == "checkpoint" and file.stem.lower().endswith(".vae"):
            file = replace(file, stem=f"{file.stem[:-4]}_vae")  # A1111 takes `x.vae.*` for a VAE
        if points(folder / file.filename, file.path) or file.kind == "embedding":
            return file
        suffixes = [file.path.suffix]
        if file.kind != "vae":
            suffixes = [SAFETENSORS, *PICKLES]
        same = [folder / f"{file.stem}{suffix}" for suffix in suffixes]
        # As of the last look: finding the file was one, and every new link would cost another.
        below = self._trees[0].folders[file.kind].index(again=False).with_stem(file.stem)
        same += [path for path in below if path.stem == file.stem]
        if all(self._means(path, file) for path in same):
            return file
        mark = file.verified_sha256 or naming.mark_of(file.path)
        return replace(file, stem=marked_stem(file.stem, mark[:10]))

    def _means(self, path: Path, file: ModelFile) -> bool:
        """Whether the name in the engine's folder is free, or the file's already."""
        earlier = self._made.get(path)
        if earlier is None and os.path.lexists(path):
            earlier = target_of(path)
        return earlier in {None, file.path}

    def _is_in_engine(self, file: ModelFile) -> bool:
        folder = self.engine_folders[file.kind]
        if file.path.stem != file.stem:
            return False
        # A fetched file lies in no engine's folder: most files are known without a system call.
        return self._sha256_of(file.path) is None and file.path.is_relative_to(folder.resolve())

    def _sha256_of(self, path: Path) -> str | None:
        """The hash of a fetched file, from its path."""
        return next(filter(None, (blobs.blob_of(path) for blobs in self._blobs)), None)

    def arrange(self, kind: Kind, files: Iterable[ModelFile]) -> bool:
        """Let the engine see exactly these files, beside those that lie in its own folder.

        Returns:
            Whether the engine must read its folder again.
        """
        outside = [file for file in files if not self._is_in_engine(file)]
        wanted = {file.filename: file for file in outside}
        targets = {name: file.path for name, file in wanted.items()}
        folder = self.engine_folders[kind]
        changed = links.arrange(folder, targets, lambda path: self._is_ours(kind, path))
        is_new = bool(changed)
        if changed:
            look_again()
        for name, file in wanted.items():
            if points(folder / name, file.path):  # else the operator has put another file there
                self._made[folder / name] = file.path
                is_new |= self._note(file, folder / name, is_changed=name in changed)
        return is_new

    def operators_in_engine(self, kind: Kind) -> list[Path]:
        """The files of the operator in the engine's own folder, which cannot be hidden."""
        paths = self._trees[0].folders[kind].files()
        return [path for path in paths if not self._is_ours(kind, path)]

    def hide(self, file: ModelFile) -> bool:
        """Remove our link to the file; returns whether there was one."""
        link = self.engine_folders[file.kind] / file.filename
        if not points(link, file.path):
            return False
        link.unlink(missing_ok=True)
        look_again()
        return True

    def is_shown(self, file: ModelFile) -> bool:
        """Whether the engine has a link to the file, and has seen this version."""
        link = self.engine_folders[file.kind] / file.filename
        return points(link, file.path) and self._shown.is_current(link)

    def note_linked(self, file: ModelFile) -> bool:
        """Note that a job can use the file, if it is linked; returns whether it is new."""
        link = self.engine_folders[file.kind] / file.filename
        return points(link, file.path) and self._note(file, link)

    def in_engine(self, kind: Kind, name: str | None) -> ModelFile | None:
        """The file behind a name in the engine's folder; without a name, the first in the list."""
        index = self._trees[0].folders[kind].index()
        paths = next(filter(None, naming.forms(index, name)), []) if name else []
        paths = paths or naming.first_as_listed(index)
        file = self._model_file(kind, paths[0]) if paths else None
        return replace(file, stem=paths[0].stem) if file else None

    def _note(self, file: ModelFile, path: Path, *, is_changed: bool = False) -> bool:
        is_new, is_replaced = self._shown.note(path, is_changed=is_changed)
        if is_replaced and file.verified_sha256 is None:
            self.replaced.add(file.kind)
        return is_new

    def _is_ours(self, kind: Kind, path: Path) -> bool:
        """Whether a worker made this link in the engine's folder."""
        # Strings: this runs for each candidate of each name, and a Path costs more than the rest.
        if not str(path).startswith(f"{self.engine_folders[kind]}/") or not path.is_symlink():
            return False
        if path in self._made:
            return True
        target = target_of(path)
        return self.hub.contains(target) or any(map(target.is_relative_to, self._roots))

    def _link_config(self, file: ModelFile, link: Path) -> None:
        if file.kind == "checkpoint":
            engine_configs.link(file, link, has_ours=not self._diffusers)

    def _diffusers_folder(self, file: ModelFile) -> Path | None:
        """The checkpoint's diffusers folder, if it has one and the engine can load it."""
        if not self._diffusers or file.kind != "checkpoint" or not self.baked.has_diffusers:
            return None
        # An operator's file has no such folder: do not read its 7 GB for a hash.
        sha256 = file.sha256() if self.is_baked(file) else file.verified_sha256
        folder = self.baked.diffusers(sha256 or "none")
        return folder if folder.is_dir() else None

    def remove_dangling_links(self) -> None:
        """Remove the links in the engine's folders whose targets are missing."""
        for folder in self.engine_folders.values():
            for path in links.remove_dangling(folder):
                self._made.pop(path, None)  # its name is free again

    def count_links(self) -> int:
        """Number of files that the engine sees."""
        return sum(len(self._trees[0].folders[kind].files()) for kind in FOLDERS)

    # Numbers ---------------------------------------------------------------------------------

    def stats(self) -> dict[str, dict[str, int]]:
        """Number and total bytes per kind: `{"checkpoints": {"count": 2, "total_size": 5}}`."""
        return {f"{kind}s": totals.current() for kind, totals in self._totals.items()}
