"""The model files below a folder; the folder is read again only when it has changed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

from worker.formats.names import PICKLES, SAFETENSORS, clean_stem

_DEEPEST = 16  # levels of subfolders; each costs a `stat` per lookup
_UNLISTED_AT = 2  # the level of folders whose files can be left out


class _Look(threading.local):
    """Which look of `one_look` this thread is in."""

    number: object = None


_LOOK = _Look()


@contextmanager
def one_look() -> Iterator[None]:
    """In this block and thread, each folder is looked at once: a job looks up many names.

    What this worker changes in a folder itself is seen after `look_again`.
    """
    before = _LOOK.number
    _LOOK.number = object()
    try:
        yield
    finally:
        _LOOK.number = before


def look_again() -> None:
    """Begin another look in a block of `one_look`: something was fetched, written or linked."""
    if _LOOK.number is not None:
        _LOOK.number = object()


def current_look() -> object:
    """Stands for the look that this thread is in; None outside of `one_look`."""
    return _LOOK.number


class Index:
    """The files of a folder at one time, by each form of their names.

    A file can be named by its path below the folder, by its file name, or by either without the
    suffix. A1111 also lists a checkpoint `SDXL/own.safetensors` under the name `SDXL_own`.

    Args:
        folder: the folder.
        files: below it, sorted.
    """

    def __init__(self, folder: Path, files: list[Path]) -> None:
        self.folder = folder
        self.files = files

    def relative(self, path: Path) -> Path:
        """The path of a file below the folder, as a name has it."""
        return path.relative_to(self.folder)

    def exact(self, name: str) -> Iterator[list[Path]]:
        """The files that the name means as it is written, the most precise form first."""
        for forms in (self._paths, self._names, self._stems, self._flat):
            yield forms.get(name, [])

    def similar(self, name: str) -> Iterator[list[Path]]:
        """The files that it means in another case."""
        folded = name.casefold()
        yield self._folded_names.get(folded, [])
        yield self._folded.get(folded, [])

    def with_stem(self, stem: str) -> list[Path]:
        """The files with that stem; if there are none, those whose stem differs only in case."""
        return self._stems.get(stem) or self._folded.get(stem.casefold(), [])

    def with_clean_stem(self, folded: str) -> list[Path]:
        """The files whose clean stem is this one, ignoring case."""
        return self._clean.get(folded, [])

    @cached_property
    def _paths(self) -> dict[str, list[Path]]:
        return _grouped((self.relative(path).as_posix(), path) for path in self.files)

    @cached_property
    def _names(self) -> dict[str, list[Path]]:
        return _grouped((path.name, path) for path in self.files)

    @cached_property
    def _stems(self) -> dict[str, list[Path]]:
        forms = ((form, path) for path in self.files for form in self._without_suffix(path))
        return _grouped(forms)

    @cached_property
    def _flat(self) -> dict[str, list[Path]]:
        below = (path for path in self.files if len(self.relative(path).parts) > 1)
        return _grouped((self._below(path).replace("/", "_"), path) for path in below)

    @cached_property
    def _folded_names(self) -> dict[str, list[Path]]:
        return _grouped((name.casefold(), path) for path in self.files for name in self._full(path))

    @cached_property
    def _folded(self) -> dict[str, list[Path]]:
        return _grouped((stem.casefold(), p) for stem, found in self._stems.items() for p in found)

    @cached_property
    def _clean(self) -> dict[str, list[Path]]:
        return _grouped((clean_stem(path.stem).casefold(), path) for path in self.files)

    def _below(self, path: Path) -> str:
        return self.relative(path).with_suffix("").as_posix()

    def _without_suffix(self, path: Path) -> set[str]:
        return {path.stem, self._below(path)}

    def _full(self, path: Path) -> set[str]:
        return {path.name, self.relative(path).as_posix()}


class Listing:
    """Names and sizes of the model files below one folder, hidden ones left out. Thread-safe.

    If nothing has changed, a lookup costs one `stat` per folder, however many files there are. A
    file that is rewritten in place does not change its folder, so code that opens a file checks
    the file's own size and time. Only regular files and links are listed, down to 16 levels.

    Args:
        folder: searched with its subfolders; it need not exist yet.
        pickles: whether `.ckpt`, `.pt` and the like are listed too.
        suffixes: of the files, if they are no models.
        unlisted: names of folders two levels below `folder` whose files are not listed.
        settled: seconds. A folder that changed less than this ago is read again next time: it may
            change once more within the same tick of the file system's clock.
    """

    def __init__(
        self,
        folder: Path,
        *,
        pickles: bool = False,
        suffixes: tuple[str, ...] = (),
        unlisted: tuple[str, ...] = (),
        settled: float = 2.0,
    ) -> None:
        self._settled = settled
        self._unlisted = unlisted
        self._looked: object = None
        self._generation = 0
        self.folder = folder
        self._suffixes = suffixes or ((SAFETENSORS, *PICKLES) if pickles else (SAFETENSORS,))
        self._reading = threading.Lock()
        self._folders: dict[str, int | None] = {}  # folder -> modification time when it was read
        self._index = Index(folder, [])
        self._sizes: dict[Path, int] = {}

    def index(self, *, again: bool = True) -> Index:
        """The files by their names; with `again=False` as they were at the last look."""
        if again or not self._folders:
            self._refresh()
        return self._index

    def files(self) -> list[Path]:
        """All of them, sorted."""
        return self.index().files

    def find(self, stem: str) -> list[Path]:
        """The files with that stem; if there are none, those whose stem differs only in case."""
        return self.index().with_stem(stem)

    def sizes(self) -> dict[Path, int]:
        """Size of each in bytes, read once per file; dangling links are left out."""
        for path in self.files():
            if path not in self._sizes:
                with suppress(OSError):
                    self._sizes[path] = path.stat().st_size
        return self._sizes

    def current_generation(self) -> int:
        """A number that changes when the folder changes."""
        self._refresh()
        return self._generation

    def _refresh(self) -> None:
        look = current_look()
        if look is not None and look is self._looked:
            return
        with self._reading:
            self._looked = None
            known = self._folders.items()
            if not known or any(_changed(path) != then for path, then in known):
                self._read_all()
            self._looked = look

    def _read_all(self) -> None:
        self._generation += 1
        self._folders = {}
        files = sorted(self._read())
        # Replaced as a whole, because other threads may be reading it.
        self._index = Index(self.folder, files)
        self._sizes = {path: self._sizes[path] for path in files if path in self._sizes}

    def _read(self) -> Iterator[Path]:
        waiting = [(str(self.folder), 0)]
        while waiting:
            folder, depth = waiting.pop()
            changed = _changed(folder)
            recently = changed is not None and time.time() - changed / 1e9 < self._settled
            self._folders[folder] = -1 if recently else changed
            if depth == _UNLISTED_AT and folder.rpartition("/")[2] in self._unlisted:
                continue
            # Another worker may remove a folder of a shared volume at any moment.
            with suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting += [(entry.path, depth + 1)] if depth < _DEEPEST else []
                    elif entry.name.endswith(self._suffixes) and _is_plain(entry):
                        yield Path(entry.path)


class Totals:
    """Number and bytes of the files of several folders, each stem once; kept while none changes."""

    def __init__(self, listings: list[Listing]) -> None:
        self._listings = listings
        self._then: tuple[int, ...] = ()
        self._found: dict[str, int] = {}

    def current(self) -> dict[str, int]:
        """`{"count": 2, "total_size": <bytes>}`."""
        now = tuple(listing.current_generation() for listing in self._listings)
        if self._then != now:
            sizes: dict[str, int] = {}
            for path, size in (item for one in self._listings for item in one.sizes().items()):
                sizes.setdefault(clean_stem(path.stem), size)
            self._then = now
            self._found = {"count": len(sizes), "total_size": sum(sizes.values())}
        return self._found


def _is_plain(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file or a link: opening a FIFO or a device could block for ever."""
    return entry.is_symlink() or entry.is_file(follow_symlinks=False)


def _changed(folder: str) -> int | None:
    try:
        # A Path would cost more than the call, which every job makes for every folder.
        return os.stat(folder).st_mtime_ns  # noqa: PTH116
    except OSError:
        return None


def _grouped(pairs: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = {}
    for name, path in pairs:
        groups.setdefault(name, []).append(path)
    return groups
