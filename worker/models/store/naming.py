"""What a name can mean in the model folders, and how their files are named in the engine."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from worker.errors import ModelNotFound
from worker.formats.model_file import FOLDERS
from worker.formats.names import PICKLES, Kind, clean_stem, without_suffix
from worker.models.store.listing import Index
from worker.spelling import near_matches


def forms(index: Index, name: str) -> Iterator[list[Path]]:
    """What the name can mean in one folder, the most precise form first."""
    stem = without_suffix(name)
    yield from index.exact(name)
    yield from index.exact(stem)  # a file of another format, if there is none of this
    yield from index.similar(name)
    yield from index.similar(stem)


def repeated(indexes: Iterable[Index]) -> dict[str, list[str]]:
    """The file names that stand in several folders of one index -> their paths below its root."""
    found: dict[str, list[str]] = {}
    for index in indexes:
        counts = Counter(path.name for path in index.files)
        for path in index.files:
            if counts[path.name] > 1:
                below = index.relative(path).as_posix()
                found.setdefault(path.name, []).append(below)
    return found


def natural(name: str) -> list[tuple[bool, int | str]]:
    """A key that sorts as A1111 does: `model2` comes before `model10`."""
    parts = re.split(r"(\d{1,18})", name.casefold())
    return [(not part.isdecimal(), int(part) if part.isdecimal() else part) for part in parts]


@lru_cache(maxsize=8)  # each change of a folder makes a new index
def first_as_listed(index: Index) -> list[Path]:
    """The first file in A1111's order, if there is one."""
    return sorted(index.files, key=lambda path: natural(path.name))[:1]


def missing(kind: Kind, name: str, indexes: Iterable[Index], *, pickles: bool) -> ModelNotFound:
    """The error for a name that no file has, with similar names."""
    known = {clean_stem(path.stem) for index in indexes for path in index.files}
    near = near_matches(clean_stem(without_suffix(name)), known, cutoff=0.4)
    folder = f"Put the file into {FOLDERS[kind]}/ of MODELS_DIR, or name one that is in it."
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else folder
    if not pickles and name.lower().endswith(PICKLES):
        hint = "Such a file can run any code; it is used only with ALLOW_PICKLES=true."
    message = f"{kind} {name!r} is not in the model store ({len(known)} known)."
    return ModelNotFound(message, hint=hint, kind=kind, name=name, near=near)


def ambiguous(kind: Kind, name: str, paths: list[Path]) -> ModelNotFound:
    """The error for a name that several files have."""
    shown = ", ".join(f"{FOLDERS[kind]}/{path}" for path in paths)
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [path.as_posix() for path in paths]
    hint = f"Give the whole file name: {' or '.join(map(repr, names))}."
    message = f"{kind} {name!r} is ambiguous in the model store: {shown}."
    return ModelNotFound(message, hint=hint, kind=kind, name=name, near=names)


def mark_of(path: Path) -> str:
    """Ten digits that distinguish this file from others of its name."""
    return hashlib.sha256(bytes(path)).hexdigest()[:10]
