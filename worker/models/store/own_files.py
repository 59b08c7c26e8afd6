"""The operator's files: the engine sees the good ones, the others are left out.

One bad file in a folder of A1111 can make a route fail that every job needs, such as the list of
LoRAs. So each file is checked before it is linked, and again when it has changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from worker.errors import InvalidInput, WorkerError
from worker.exhaustion import is_exhaustion
from worker.files import read_small, write_atomically
from worker.formats.model_file import FOLDERS, ModelFile, version
from worker.formats.names import Kind
from worker.job.models import words
from worker.models.store.store import Store

_SHOWN = 20  # files in the answer of `health`
_KEPT = 1000  # files whose reason is remembered

# A1111 acts on these without a job that names them: on an embedding whose name is in the prompt,
# and on a VAE whose name begins with the checkpoint's. So fetched ones are linked for their job
# only, see `Store.arrange`.
ARRANGED: tuple[Kind, ...] = ("embedding", "vae")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeftOut:
    """Why a file is left out, and its size and time when it was checked."""

    file: str
    reason: str
    version: tuple[int, int]


_LEFT_OUT = TypeAdapter(list[LeftOut])


class OwnFiles:
    """The operator's files of one store. Not thread-safe: the model manager holds its lock.

    Args:
        store: the folders.
        note: where `prepare-engine` writes which files it left out, for the worker's process.
        is_replaced: whether the engine gets another file in place of this one.
    """

    def __init__(
        self, store: Store, note: Path, is_replaced: Callable[[ModelFile], bool] = lambda _: False
    ) -> None:
        self._store = store
        self._note = note
        self._is_replaced = is_replaced
        self._generations: dict[Kind, tuple[int, ...]] = {}
        self._arranged: dict[Kind, list[ModelFile]] = {}
        self._left_out: dict[Path, LeftOut] = {}
        with suppress(OSError, ValidationError):
            for one in _LEFT_OUT.validate_json(read_small(note)):
                self._left_out[Path(one.file)] = one

    def show(self) -> bool:
        """Let the engine see the good files that came or changed since the last call.

        If no folder has changed, this costs one `stat` per folder.

        Returns:
            Whether the engine must read its folders again.
        """
        is_new = False
        for kind in FOLDERS:
            generation = self._store.own_generation(kind)
            if generation != self._generations.get(kind):
                self._generations[kind] = generation
                good = [file for file in self._store.files(kind, own=True) if self.is_good(file)]
                self._arranged[kind] = good
                for file in good if kind not in ARRANGED else ():
                    is_new |= self._link(file)
        return is_new

    def arranged(self, kind: Kind) -> list[ModelFile]:
        """The good embeddings, or VAEs, as of the last `show`."""
        return self._arranged.get(kind, [])

    def check(self, files: Iterable[ModelFile]) -> None:
        """Hide those of the files that turn out to be bad."""
        for file in files:
            self.is_good(file, again=True)

    def check_names(self, embeddings: Iterable[ModelFile]) -> None:
        """Refuse a job's embedding if another one in the engine's own folder has its name.

        Raises:
            InvalidInput: that file cannot be hidden, so A1111 might use it instead.
        """
        embeddings = list(embeddings)
        if not embeddings:
            return
        fixed = {words(path.stem): path for path in self._store.operators_in_engine("embedding")}
        for file in embeddings:
            other = fixed.get(words(file.stem))
            if other and other.resolve() != file.path:
                raise InvalidInput(
                    f"another embedding in the engine's own folder is named {file.stem!r}.",
                    hint="Give the job's embedding another `name`, and write it in the prompt.",
                    field="embeddings",
                )

    def _leave_out(self, file: ModelFile, reason: str) -> None:
        """Hide the file from the engine, and remember why; logged once per version of it."""
        known = self._left_out.get(file.path)
        try:
            now = LeftOut(str(file.path), reason, version(file.path))
        except WorkerError:
            return  # gone
        hidden = self._store.hide(file)
        if known is None or known.version != now.version:
            where = "" if hidden or self._is_outside(file) else " It lies in the engine's folder."
            log.warning("%r is left out: %s%s", str(file.path), reason, where)
        if len(self._left_out) < _KEPT:
            self._left_out[file.path] = now

    def write_note(self) -> None:
        """Tell the worker's process which files are left out; without the note it checks again."""
        known = [one for one in self._current() if one.file.isprintable()]
        with suppress(OSError):
            self._note.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._note, _LEFT_OUT.dump_json(known))

    def health(self) -> list[dict[str, str]]:
        """`[{"file": "Lora/x.safetensors", "reason": "..."}]`, at most 20."""
        shown = self._current()[:_SHOWN]
        return [{"file": _short(Path(one.file)), "reason": one.reason} for one in shown]

    def _current(self) -> list[LeftOut]:
        """Those whose file is still there and unchanged."""
        return [one for path, one in list(self._left_out.items()) if _is_version(path, one.version)]

    def is_good(self, file: ModelFile, *, again: bool = False) -> bool:
        """Whether A1111 can use the file; if not, it is hidden. Unchanged files are checked once.

        Args:
            file: of the operator, or fetched by a worker that checked less.
            again: check it even if it is shown already.
        """
        known = self._left_out.get(file.path)
        if known and _is_version(file.path, known.version):
            self._store.hide(file)
            return False
        if not again and self._store.is_shown(file):  # `prepare-engine` has checked it
            return True
        try:
            file.check()
            self._is_replaced(file)  # raises an error if that is impossible
        except WorkerError as error:
            if is_exhaustion(error):  # which says nothing about the file
                raise
            self._leave_out(file, error.message)
            return False
        except (OSError, ValueError, RecursionError, MemoryError) as error:
            # A damaged file can ask for any amount of memory: a MemoryError is about the file.
            if isinstance(error, OSError) and is_exhaustion(error):
                raise
            self._leave_out(file, f"it cannot be read: {type(error).__name__}.")
            return False
        self._left_out.pop(file.path, None)
        return True

    def _link(self, file: ModelFile) -> bool:
        try:
            if self._is_replaced(file):
                self._store.hide(file)
                return False
            return self._store.link(file)[1]
        except WorkerError as error:
            self._leave_out(file, error.message)
            return False
        except OSError as error:
            if is_exhaustion(error):
                raise
            self._leave_out(file, f"it cannot be linked: {error.strerror}.")
            return False

    def _is_outside(self, file: ModelFile) -> bool:
        return file.path not in self._store.operators_in_engine(file.kind)


def _is_version(path: Path, then: tuple[int, int]) -> bool:
    try:
        return version(path) == tuple(then)
    except WorkerError:
        return False


def _short(path: Path) -> str:
    """The file with its folder, as valid text: a name may have any bytes."""
    return f"{path.parent.name}/{path.name}".encode(errors="replace").decode()
