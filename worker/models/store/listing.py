"""The model files below a folder; the folder is read again only when it has changed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from worker.formats.names import PICKLES, SAFETENSORS


class Listing:
    """Names and sizes of the model files below one folder, hidden ones left out. Thread-safe.

    If nothing has changed, a lookup costs one `stat` per folder, however many files there are. A
    file that is rewritten in place does not change its folder, so code that opens a file checks
    the file's own size and time.

    Args:
        folder: searched with its subfolders; it need not exist yet.
        pickles: whether `.ckpt`, `.pt` and the like are listed too.
        settled: seconds. A folder that changed less than this ago is read again next time: it may
            change once more within the same tick of the file system's clock.
    """

    def __init__(self, folder: Path, *, pickles: bool = False, settled: float = 2.0) -> None:
        self._settled = settled
        self._generation = 0
        self.folder = folder
        self._suffixes = (SAFETENSORS, *PICKLES) if pickles else (SAFETENSORS,)
        self._reading = threading.Lock()
        self._folders: dict[str, int | None] = {}  # folder -> modification time when it was read
        self._files: list[Path] = []
        self._by_stem: dict[str, list[Path]] = {}
        self._by_folded: dict[str, list[Path]] = {}
        self._sizes: dict[Path, int] = {}

    def files(self) -> list[Path]:
        """All of them, sorted."""
        self._refresh()
        return self._files

    def find(self, stem: str) -> list[Path]:
        """The files with that stem; if there are none, those whose stem differs only in case."""
        self._refresh()
        return self._by_stem.get(stem) or self._by_folded.get(stem.casefold(), [])

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
        with self._reading:
            known = self._folders.items()
            if not known or any(_changed(path) != then for path, then in known):
                self._read_all()

    def _read_all(self) -> None:
        self._generation += 1
        self._folders = {}
        files = sorted(self._read(str(self.folder)))
        by_stem: dict[str, list[Path]] = {}
        by_folded: dict[str, list[Path]] = {}
        for path in files:
            by_stem.setdefault(path.stem, []).append(path)
            by_folded.setdefault(path.stem.casefold(), []).append(path)
        # Replaced as a whole, because other threads may be reading them.
        self._files, self._by_stem, self._by_folded = files, by_stem, by_folded
        self._sizes = {path: self._sizes[path] for path in files if path in self._sizes}

    def _read(self, folder: str) -> Iterator[Path]:
        changed = _changed(folder)
        recently = changed is not None and time.time() - changed / 1e9 < self._settled
        self._folders[folder] = -1 if recently else changed
        # Another worker may remove a folder of a shared volume at any moment.
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    yield from self._read(entry.path)
                elif entry.name.endswith(self._suffixes):
                    yield Path(entry.path)


def _changed(folder: str) -> int | None:
    try:
        return Path(folder).stat().st_mtime_ns
    except OSError:
        return None
