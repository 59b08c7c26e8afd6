"""The folders that hold models, and the links that show them to the engine.

A store has A1111's own layout (`Stable-diffusion`, `Lora`, `VAE`), so a folder that a WebUI
already uses can serve as one. Several are searched: the engine's own, the writable one, the
baked one. What is found outside the engine's folder is linked into it.
"""

from __future__ import annotations

import difflib
import re
import stat
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from worker.errors import ModelNotFound
from worker.model_file import FOLDERS, Kind, ModelFile

SUFFIX = ".safetensors"

# What a name in a `<lora:name:1>` tag, in its hash list or before a ` [hash]` cannot carry.
_UNSAFE = re.compile(r"[:=<>,\[\]/\\\x00-\x1f]+")


def clean_stem(stem: str) -> str:
    """The stem as it can stand in a LoRA tag and in A1111's titles: `a: b ` becomes `a_ b`."""
    return _UNSAFE.sub("_", stem).strip(" .") or "model"


class Store:
    """The model folders, in the order in which they are searched; the first is the engine's."""

    def __init__(self, engine_models: Path, *stores: Path) -> None:
        self._engine = engine_models
        self._roots = (engine_models, *stores)

    def files(self, kind: Kind) -> list[ModelFile]:
        """Every file of that kind; of two with one stem the first folder's."""
        found: dict[str, ModelFile] = {}
        for root in self._roots:
            for path, size in _walk(root / FOLDERS[kind]):
                file = ModelFile(kind, path.resolve(), clean_stem(path.stem), size)
                found.setdefault(file.stem, file)
        return list(found.values())

    def find(self, kind: Kind, names: Sequence[str]) -> ModelFile:
        """The file that one of the names means: file name or stem, as written, else in any case.

        Raises:
            ModelNotFound: names the near ones and how many there are.
        """
        files = self.files(kind)
        for same in (str, str.casefold):
            for name in names:
                wanted = same(clean_stem(name.removesuffix(SUFFIX)))
                hits = [file for file in files if same(file.stem) == wanted]
                if len(hits) == 1:
                    return hits[0]
        raise _not_found(kind, names, [file.stem for file in files])

    def link(self, file: ModelFile) -> bool:
        """Show the file to the engine under its stem; true if it was not visible before.

        A `.yaml` beside a checkpoint comes along: A1111 reads there what the weights do not tell,
        such as v-prediction.
        """
        folder = self._engine / FOLDERS[file.kind]
        if file.path.is_relative_to(folder.resolve()) and file.path.stem == file.stem:
            return False
        config = file.path.with_suffix(".yaml")
        if file.kind == "checkpoint" and config.is_file():
            _point(folder / f"{file.stem}.yaml", config)
        return _point(folder / file.filename, file.path)

    def stats(self) -> dict[str, dict[str, int]]:
        """Number and bytes of each kind's files: `{"checkpoints": {"count", "total_size"}}`."""
        return {
            f"{kind}s": {"count": len(files), "total_size": sum(file.size for file in files)}
            for kind in FOLDERS
            for files in [self.files(kind)]
        }


def _point(link: Path, target: Path) -> bool:
    """Make the link point to the target; true if it did not before."""
    if link.is_symlink() and link.resolve() == target:
        return False
    link.parent.mkdir(parents=True, exist_ok=True)
    # Replaced in one step: the engine sees the old file or the new one, never none.
    temporary = link.with_name(f".{uuid.uuid4().hex}.link")
    temporary.symlink_to(target)
    temporary.replace(link)
    return True


def _walk(folder: Path) -> Iterable[tuple[Path, int]]:
    """Model files below the folder and their bytes; hidden ones and dangling links are none."""
    for path in sorted(folder.rglob(f"*{SUFFIX}")):
        # Another worker may remove a file of a shared volume at any moment.
        with suppress(OSError):
            status = path.stat()
            if stat.S_ISREG(status.st_mode) and not path.name.startswith("."):
                yield path, status.st_size


def _not_found(kind: Kind, names: Sequence[str], known: list[str]) -> ModelNotFound:
    near = difflib.get_close_matches(clean_stem(names[0].removesuffix(SUFFIX)), known, cutoff=0.4)
    details: dict[str, Any] = {"kind": kind, "name": names[0], "near": near}
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else None
    message = f"{kind} {names[0]!r} is not in the model store ({len(known)} known)."
    return ModelNotFound(message, hint=hint, **details)
