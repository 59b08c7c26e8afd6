"""A cache of Hugging Face whose files the worker uses where they are; it is only read.

RunPod puts the repository of the endpoint's field "Model" there. The layout is that of the library
huggingface_hub:

    models--ORG--NAME/refs/main              the commit that `main` was when it was downloaded
    models--ORG--NAME/snapshots/COMMIT/PATH  link to ../../blobs/BLOB, or a file
    models--ORG--NAME/blobs/BLOB             a file; its name is its SHA-256 if it is in LFS or Xet

Everything in it is text from outside: a file is used only if it lies in the cache, and if its size
is the one that its header requires.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from worker.errors import InvalidInput, WorkerError
from worker.exhaustion import is_exhaustion
from worker.files import is_folder, read_small, write_atomically
from worker.formats import control_models
from worker.formats.model_file import FOLDERS, ModelFile, file_sha256, version
from worker.formats.names import PICKLES, SAFETENSORS, Kind, clean_stem
from worker.hosts.huggingface import HuggingFaceFile
from worker.models.store.about import About
from worker.models.store.blobs import Blob
from worker.models.store.links import Targets, target_of
from worker.models.store.listing import Index, Listing, current_look

_PREFIX, _SNAPSHOTS, _MAIN = "models--", "snapshots", "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REF_SIZE = 1000  # bytes; a commit has 40
_SHOWN = 20  # repositories in the answer of `health`
_SETTLED = 2.0  # seconds; a file that changed less than this ago may change within the same tick
_WARNED = 1000  # files whose warning is remembered

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Note:
    """The hash of a file whose name does not tell it, for this size and time of the file."""

    size: int
    mtime_ns: int
    sha256: str


_NOTE = TypeAdapter(_Note)


@dataclass(frozen=True)
class _Content:
    """What the cache has at one time.

    Attributes:
        files: path of each model file in a snapshot -> the reference to it, at its commit.
        targets: the file that such a path leads to -> the path, in a snapshot of `main` if there
            is one.
        commits: repository -> the commit of `main`.
        indexes: the usable files of `main` by their names.
    """

    files: dict[Path, HuggingFaceFile]
    targets: dict[Path, Path]
    commits: dict[str, str]
    indexes: dict[Kind, CacheIndex]


class CacheIndex(Index):
    """The cached files of one kind; the path of a file is `ORG/NAME/PATH`."""

    def __init__(self, folder: Path, files: dict[Path, HuggingFaceFile]) -> None:
        super().__init__(folder, sorted(files))
        self._refs = files

    def relative(self, path: Path) -> Path:
        """The repository, and the path in it."""
        ref = self._refs[path]
        return Path(ref.repo, ref.path)


class HubCache:
    """The files of one cache. Thread-safe. Nothing in it is written, locked or removed.

    Args:
        root: the folder with the repositories; None, or a folder that does not exist: no files.
        notes: a folder for the hashes of files whose names do not tell them.
        pickles: whether files that can run code when they are loaded may be used.

    Attributes:
        root: the folder without links in its path.
    """

    def __init__(self, root: Path | None, notes: Path, *, pickles: bool = False) -> None:
        self._suffixes = (SAFETENSORS, *PICKLES) if pickles else (SAFETENSORS,)
        self._notes = notes
        self.root = Path(os.path.realpath(root)) if root else None
        self._prefix = f"{str(self.root).rstrip('/')}/"
        # The blobs are reached by the links of the snapshots.
        beside = ("blobs", "refs")
        self._listing = Listing(self.root, pickles=pickles, unlisted=beside) if self.root else None
        self._reading = threading.RLock()
        self._generation = 0
        self._folders: list[Path] = []  # of the repositories that have model files
        self._state: Any = None
        self._looked: object = None
        self._branches: dict[Path, tuple[object, str | None]] = {}
        self._where = Targets()
        self._content = _Content({}, {}, {}, {})
        self._hashes: dict[tuple[Path, tuple[int, int]], str] = {}
        self._warned: set[Path] = set()

    # Look up ---------------------------------------------------------------------------------

    def find(self, ref: HuggingFaceFile, kind: Kind | None = None) -> ModelFile | None:
        """The file that the reference means, with its hash; None if it is not in the cache.

        A branch or a tag means what it meant when the cache was filled.

        Args:
            ref: of the job.
            kind: that it must be; None: the one that its header shows.
        """
        folder = self._folder(ref.repo)
        commit = self._commit_of(folder, ref.revision) if folder else None
        if folder is None or commit is None or not ref.path.endswith(self._suffixes):
            return None
        snapshot = folder / _SNAPSHOTS / commit
        if commit != ref.revision and not is_folder(snapshot):
            self._warn(snapshot, ref, f"the commit {commit} of {ref.revision!r} is missing.")
        file = self._usable(
            snapshot / ref.path, HuggingFaceFile(_repo(folder.name), ref.path, commit), kind
        )
        return self.with_hash(file) if file else None

    def starting(self, digits: str) -> Iterator[Blob]:
        """The files of all snapshots whose hash begins so, if it is known without reading them."""
        content = self._read()
        for target, path in content.targets.items():
            sha256 = _hash_in_name(target) or self._noted(target) or ""
            file = self._usable(path, content.files[path]) if sha256.startswith(digits) else None
            if file:
                yield _as_blob(file, sha256)

    def of_target(self, target: Path, kind: Kind) -> ModelFile | None:
        """The file that a link leads to; None if it is no usable file of this cache."""
        if not self.contains(target):
            return None
        content = self._content  # as of the last look: this runs for each file of each list
        if target not in content.targets:
            content = self._read()
        path = content.targets.get(target)
        return self._usable(path, content.files[path], kind) if path else None

    def contains(self, path: Path) -> bool:
        """Whether the path, which has no links in it, lies in the cache."""
        return self.root is not None and str(path).startswith(self._prefix)

    def has(self, file: ModelFile) -> bool:
        """Whether the file was found in this cache."""
        return self.contains(file.path)

    def index(self, kind: Kind, *, again: bool = True) -> Index:
        """The files of this kind in the snapshots of `main`, by their names."""
        content = self._read() if again else self._content
        with self._reading:
            if kind not in content.indexes:
                content.indexes.update(self._indexes(content))
            return content.indexes[kind]

    def with_hash(self, file: ModelFile) -> ModelFile:
        """The file with its hash, which is computed once if its name does not tell it."""
        if file.verified_sha256:
            return file
        target = file.path.resolve()
        log.info("hashing %s, because its name in the cache is not its SHA-256", file.source)
        with suppress(WorkerError, OSError):  # the check of the whole job reports it
            sha256 = file_sha256(target)
            self._note(target, sha256)
            return replace(file, verified_sha256=sha256)
        return file

    def health(self) -> list[dict[str, Any]]:
        """`[{"repo": "org/name", "commit": "...", "files": 2, "bytes": 5}]`, at most 20."""
        content = self._read()
        found = []
        for repo, commit in sorted(content.commits.items())[:_SHOWN]:
            refs = content.files.items()
            paths = [path for path, ref in refs if (ref.repo, ref.revision) == (repo, commit)]
            sizes = [size for path in paths if (size := _size(path)) is not None]
            if paths:
                entry = {"repo": repo, "commit": commit, "files": len(sizes), "bytes": sum(sizes)}
                found.append(entry)
        return found

    # Read the folders ------------------------------------------------------------------------

    def _read(self) -> _Content:
        """The content; the folders are read again only if one of them has changed."""
        look = current_look()
        if self._listing is None or (look is not None and look is self._looked):
            return self._content
        with self._reading:
            self._looked = None
            generation = self._listing.current_generation()
            paths = self._listing.index(again=False).files
            if generation != self._generation:
                self._generation = generation
                self._folders = _folders(self._listing.folder, paths)
                self._branches, self._where = {}, Targets()
            found = ((_repo(folder.name), self._main_of(folder)) for folder in self._folders)
            commits = {repo: commit for repo, commit in found if commit}
            if (generation, commits) != self._state:
                self._content = _content(self._listing.folder, paths, commits)
                self._state = generation, commits
            self._looked = look
            return self._content

    def _commit_of(self, folder: Path, revision: str) -> str | None:
        return self._main_of(folder) if revision == _MAIN else _commit(folder, revision)

    def _main_of(self, folder: Path) -> str | None:
        """The commit of a repository's `main`; its file is read again only if it has changed."""
        try:
            one = os.stat(f"{folder}/refs/{_MAIN}")  # noqa: PTH116 - runs for each repository
            # A program can set the time of modification, but not the time of change.
            now = one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns
            then, commit = self._branches.get(folder, (None, None))
            if then != now:
                commit = _referenced(folder, _MAIN)
                is_settled = time.time() - one.st_ctime > _SETTLED
                self._branches[folder] = (now if is_settled else None), commit
        except OSError:  # without the file, it is the newest snapshot
            return _commit(folder, _MAIN)
        return commit or _commit(folder, _MAIN)

    def _folder(self, repo: str) -> Path | None:
        """The repository's folder; the host does not distinguish upper and lower case in names."""
        if self.root is None or "--" in repo:  # of two repositories the folder would be one
            return None
        name = f"{_PREFIX}{repo.replace('/', '--')}"
        if is_folder(self.root / name):
            return self.root / name
        with suppress(OSError), os.scandir(self.root) as entries:
            for entry in entries:
                if entry.name.casefold() == name.casefold():
                    return Path(entry.path)
        return None

    def _indexes(self, content: _Content) -> dict[Kind, CacheIndex]:
        """The files of `main` by kind: those that can be used as what their headers show."""
        found: dict[Kind, dict[Path, HuggingFaceFile]] = {kind: {} for kind in FOLDERS}
        for path, ref in content.files.items():
            # Only the checkpoints among the pickles are known by their suffix.
            is_open = path.suffix in {SAFETENSORS, ".ckpt"}
            if is_open and content.commits.get(ref.repo) == ref.revision:
                file = self._usable(path, ref)
                if file and _is_model(file):
                    found[file.kind][path] = ref
        root = self.root or Path()
        return {kind: CacheIndex(root, files) for kind, files in found.items()}

    # One file --------------------------------------------------------------------------------

    def _usable(
        self, path: Path, ref: HuggingFaceFile, kind: Kind | None = None
    ) -> ModelFile | None:
        """The file at a path of a snapshot; None, with a warning once, if it is damaged."""
        if not os.path.lexists(path):
            return None
        try:
            file = self._file(path, ref)
            found = file.architecture()  # reads the header, so it compares the size with it
            if path.suffix in PICKLES:
                file.check()
        except (WorkerError, OSError, RuntimeError, ValueError) as error:  # a loop of links
            if is_exhaustion(error):  # which says nothing about the file
                raise
            ours = error.message if isinstance(error, WorkerError) else ""
            self._warn(path, ref, ours or f"it cannot be read ({error}).")
            return None
        return replace(file, kind=kind or control_models.kind_of(found.role))

    def _file(self, path: Path, ref: HuggingFaceFile) -> ModelFile:
        target, status = self._where.of(path)
        if not self.contains(target):
            raise OSError("its link leads out of the cache")
        stem = clean_stem(path.stem)
        return ModelFile(
            "checkpoint",
            path,
            stem,
            status.st_size,
            _hash_in_name(target) or self._noted(target),
            f"hf://{ref.repo}@{ref.revision}/{ref.path}",
            host_name=stem,
        )

    def _warn(self, path: Path, ref: HuggingFaceFile, reason: str) -> None:
        if path not in self._warned and len(self._warned) < _WARNED:
            self._warned.add(path)
            name = f"{ref.repo}/{ref.path}"
            log.warning("%s in the Hugging Face cache is not used: %s", name, reason)

    # Hashes that no name tells ---------------------------------------------------------------

    def _note_file(self, target: Path) -> Path:
        return self._notes / f"{hashlib.sha256(bytes(target)).hexdigest()}.json"

    def _noted(self, target: Path) -> str | None:
        try:
            now = version(target)
            if (target, now) not in self._hashes:
                note = _NOTE.validate_json(read_small(self._note_file(target)))
                if (note.size, note.mtime_ns) != now or not _SHA256.fullmatch(note.sha256):
                    return None
                self._hashes[target, now] = note.sha256
        except (WorkerError, OSError, ValidationError):
            return None
        return self._hashes[target, now]

    def _note(self, target: Path, sha256: str) -> None:
        """Remember the hash; without a writable store, for as long as this process runs."""
        with suppress(WorkerError, OSError):
            now = version(target)
            self._hashes[target, now] = sha256
            self._notes.mkdir(parents=True, exist_ok=True)
            write_atomically(self._note_file(target), _NOTE.dump_json(_Note(*now, sha256)))


def _repo(folder: str) -> str:
    return folder.removeprefix(_PREFIX).replace("--", "/")


def _commit(folder: Path, revision: str) -> str | None:
    """The commit of a revision; of `main` without a readable reference it is the newest snapshot.

    Only a whole commit counts: the file could hold anything.
    """
    if _COMMIT.fullmatch(revision):
        return revision
    with suppress(OSError):
        if commit := _referenced(folder, revision):
            return commit
    snapshots = _snapshots(folder) if revision == _MAIN else ()
    return max(snapshots, default=(0, None))[1]


def _referenced(folder: Path, revision: str) -> str | None:
    """The commit in the file of a branch or a tag."""
    text = read_small(folder / "refs" / revision, _REF_SIZE).strip().decode(errors="replace")
    return text if _COMMIT.fullmatch(text) else None


def _snapshots(folder: Path) -> Iterator[tuple[int, str]]:
    """Modification time in ns, and commit."""
    with suppress(OSError), os.scandir(folder / _SNAPSHOTS) as entries:
        for entry in entries:
            if _COMMIT.fullmatch(entry.name) and entry.is_dir():
                yield entry.stat().st_mtime_ns, entry.name


def _folders(root: Path, paths: list[Path]) -> list[Path]:
    start = len(root.parts)
    names = {path.parts[start] for path in paths}
    return [root / name for name in sorted(names) if name.startswith(_PREFIX)]


def _content(root: Path, paths: list[Path], commits: dict[str, str]) -> _Content:
    files: dict[Path, HuggingFaceFile] = {}
    for path in paths:
        if ref := _reference(path.relative_to(root).parts):
            files[path] = ref
    targets: dict[Path, Path] = {}
    for path, ref in files.items():
        target = target_of(path)
        if target not in targets or commits.get(ref.repo) == ref.revision:
            targets[target] = path
    return _Content(files, targets, commits, {})


def _reference(parts: tuple[str, ...]) -> HuggingFaceFile | None:
    """What a path below the root means; None for all but files of snapshots."""
    folder, snapshots, commit, *inner = (*parts, "", "")[: max(3, len(parts))]
    is_there = folder.startswith(_PREFIX) and snapshots == _SNAPSHOTS and inner
    if not is_there or not _COMMIT.fullmatch(commit):
        return None
    try:
        return HuggingFaceFile(_repo(folder), "/".join(inner), commit)
    except InvalidInput:  # such as a name with a line end, or a repository without an owner
        return None


def _hash_in_name(target: Path) -> str | None:
    """A blob of LFS or Xet is named by its SHA-256, another one by git's hash of 40 digits."""
    is_hash = target.parent.name == "blobs" and _SHA256.fullmatch(target.name)
    return target.name if is_hash else None


def _is_model(file: ModelFile) -> bool:
    """Whether a job could use the file; a part of a diffusers folder is none."""
    try:
        file.check(has_vae=True)
    except (WorkerError, OSError) as error:
        if is_exhaustion(error):
            raise
        return False
    return True


def _as_blob(file: ModelFile, sha256: str) -> Blob:
    """The file as the model store describes those that it has fetched."""
    of_file = file.kind, file.stem, file.path.suffix, file.size
    about = About(*of_file, 0, file.source or "", name=file.host_name)
    return Blob(sha256, file.path, about)


def _size(path: Path) -> int | None:
    with suppress(OSError):
        return path.stat().st_size
    return None
