"""Writes a checkpoint with some of its rows changed, at about the speed of a copy.

Unchanged data are copied inside the kernel. Changed rows pass through the processor's cache in
blocks: read, summed in float32, rounded once, written. The work is shared by threads, because
numpy and the system calls release Python's lock; the sums of a block therefore must not start
threads of their own.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from worker.errors import ModelNotSupported
from worker.files import storage_error
from worker.models.merge.float_formats import FORMATS, Float32, Numbers
from worker.models.merge.lora_deltas import ALPHA, Delta, Layer, join, make_delta
from worker.models.merge.tensor_file import TensorFile

_NO_KERNEL_COPY = {errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}
_SYNC_EVERY = 0.2  # seconds
_LONGEST = 8  # bytes of a number
_THREADS = 8  # more would wait for Python's lock


@dataclass(frozen=True)
class BlockSizes:
    """How much is read and written at once.

    Attributes:
        span: bytes; a longer range of unchanged data is shared by several threads.
        block: numbers; the work on one block stays in the processor's cache.
    """

    span: int = 1 << 25
    block: int = 1 << 18


DEFAULT_SIZES = BlockSizes()


@dataclass(frozen=True)
class PatchSource:
    """A layer of a LoRA file and its weight."""

    file: TensorFile
    layer: Layer
    weight: float

    def delta(self) -> Delta:
        """The numbers that it adds, read from the file."""
        keys = {part: f"{self.layer.name}.{part}" for part in (*self.layer.parts, ALPHA)}
        alpha = self.file.number(keys[ALPHA]) if self.layer.has_alpha else None
        parts = {part: self.file.floats(keys[part]) for part in self.layer.parts}
        strength = self.weight * (1.0 if alpha is None else self.layer.scale(alpha))
        return make_delta(self.layer, parts, strength)


@dataclass(frozen=True)
class Patch:
    """A change of some rows of one of the checkpoint's tensors.

    Attributes:
        key: the tensor's name.
        begin: offset of the first row in bytes, counted from the end of the header.
        sources: what is added to the rows.
    """

    key: str
    dtype: str
    begin: int
    rows: int
    columns: int
    sources: tuple[PatchSource, ...]

    @property
    def row_size(self) -> int:
        """Bytes of one row."""
        return self.columns * FORMATS[self.dtype].storage.itemsize

    @property
    def end(self) -> int:
        """Offset of the end of the last row, counted like `begin`."""
        return self.begin + self.rows * self.row_size


@dataclass(frozen=True)
class _Span:
    """A range of unchanged data, in bytes after the header."""

    begin: int
    end: int


class _Buffers:
    """The memory of one thread, reused for every block, because allocation costs time."""

    def __init__(self, patches: Sequence[Patch], block: int) -> None:
        size = max([block, *(patch.columns for patch in patches)])
        self.numbers = np.empty(size * _LONGEST, np.uint8)
        self.sums = np.empty(size, np.float32)
        self.scratch = np.empty(size, np.float32)


def write(
    base: TensorFile, patches: Sequence[Patch], header: bytes, target: Path, sizes: BlockSizes
) -> None:
    """Write `target` and sync it to the disk; after a failure nothing is left of it.

    Args:
        base: the checkpoint.
        patches: the changes; no two overlap.
        header: of the new file; its tensors have the same offsets as the checkpoint's.
        target: a path without a file.
        sizes: how much is read and written at once.

    Raises:
        ModelFileInvalid: the checkpoint or a LoRA cannot be read, or a LoRA has infinite or NaN
            values.
        ModelNotSupported: a sum is too large for the checkpoint's dtype.
        StoreFull, StoreNotWritable: see `worker.files.storage_error`.
    """
    try:
        descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    except OSError as error:
        raise storage_error(error) from error
    with ExitStack() as on_failure:
        on_failure.callback(target.unlink, missing_ok=True)
        try:
            _Writer(base, descriptor, len(header), sizes).write(header, patches)
        finally:
            os.close(descriptor)
        on_failure.pop_all()


@dataclass(frozen=True)
class _Writer:
    """Writes one file. Positions are bytes after the header, the same in both files.

    Attributes:
        target: descriptor of the new file.
        data_start: length of its header.
    """

    base: TensorFile
    target: int
    data_start: int
    sizes: BlockSizes

    def write(self, header: bytes, patches: Sequence[Patch]) -> None:
        """Write all of it."""
        self._put(np.frombuffer(header, np.uint8), -self.data_start)
        count = min(os.cpu_count() or 1, _THREADS)
        end = self.base.header.size - self.base.header.data_start
        pieces = deque(_pieces(patches, end, self.sizes.span))
        written = Event()
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(count + 1) as threads:
            disk = threads.submit(self._sync, pieces, written)
            try:
                for done in [threads.submit(self._work, pieces, patches) for _ in range(count)]:
                    done.result()
            finally:
                written.set()
            disk.result()
        self._fsync()

    def _sync(self, pieces: deque[_Span | Patch], written: Event) -> None:
        """Sync repeatedly: the disk works while the file is written, not only afterwards."""
        try:
            while not written.wait(_SYNC_EVERY):
                self._fsync()
        finally:
            pieces.clear()

    def _fsync(self) -> None:
        try:
            os.fsync(self.target)
        except OSError as error:
            raise storage_error(error) from error

    def _work(self, pieces: deque[_Span | Patch], patches: Sequence[Patch]) -> None:
        """The work of one thread: process pieces until none is left."""
        buffers = _Buffers(patches, self.sizes.block)
        try:
            with np.errstate(all="ignore"):  # overflow is found in the sums
                while piece := _next(pieces):
                    if isinstance(piece, Patch):
                        self._patch(piece, buffers)
                    else:
                        self._copy(piece, buffers)
        finally:
            pieces.clear()  # after a failure the other threads stop too

    def _patch(self, patch: Patch, buffers: _Buffers) -> None:
        form = FORMATS[patch.dtype]
        deltas = join([source.delta() for source in patch.sources])
        step = max(1, self.sizes.block // patch.columns)
        for first in range(0, patch.rows, step):
            end = min(first + step, patch.rows)
            sums = buffers.sums[: (end - first) * patch.columns]
            _add_up(deltas, first, end, sums.reshape(-1, patch.columns))
            numbers = buffers.numbers[: (end - first) * patch.row_size].view(form.storage)
            position = patch.begin + first * patch.row_size
            self.base.read(position, numbers)
            if not form.add(numbers, sums, buffers.scratch):
                raise _too_large(patch)
            self._put(numbers, position)

    def _copy(self, span: _Span, buffers: _Buffers) -> None:
        begin = self._copy_in_kernel(span.begin, span.end)
        while begin < span.end:
            data = buffers.numbers[: span.end - begin]
            self.base.read(begin, data)
            self._put(data, begin)
            begin += data.size

    def _copy_in_kernel(self, begin: int, end: int) -> int:
        """Copy without reading the data into our memory; returns the offset that was reached."""
        copy = getattr(os, "copy_file_range", None)  # on Linux
        while copy and begin < end:
            source, target = self.base.header.data_start + begin, self.data_start + begin
            try:
                count = copy(self.base.descriptor, self.target, end - begin, source, target)
            except OSError as error:
                if error.errno in _NO_KERNEL_COPY:
                    break
                raise storage_error(error) from error
            if not count:
                break  # the file became shorter; reading it raises the error
            begin += count
        return begin

    def _put(self, numbers: Numbers, position: int) -> None:
        rest = numbers.view(np.uint8).data
        position += self.data_start
        try:
            while rest:
                count = os.pwrite(self.target, rest, position)
                rest, position = rest[count:], position + count
        except OSError as error:
            raise storage_error(error) from error


def _pieces(patches: Sequence[Patch], end: int, span: int) -> Iterator[_Span | Patch]:
    """The patches and the unchanged spans between them, in file order."""
    position = 0
    for patch in sorted(patches, key=lambda patch: patch.begin):
        yield from _spans(position, patch.begin, span)
        yield patch
        position = patch.end
    yield from _spans(position, end, span)


def _spans(begin: int, end: int, span: int) -> Iterator[_Span]:
    for first in range(begin, end, span):
        yield _Span(first, min(first + span, end))


def _next(pieces: deque[_Span | Patch]) -> _Span | Patch | None:
    with suppress(IndexError):  # another thread may take the last piece
        return pieces.popleft()
    return None


def _add_up(deltas: Sequence[Delta], first: int, end: int, out: Float32) -> None:
    """Fill `out` with the sum of the deltas' rows `first` to `end` (exclusive)."""
    deltas[0].write(first, end, out)
    for delta in deltas[1:]:
        more = np.empty_like(out)
        delta.write(first, end, more)
        out += more


def _too_large(patch: Patch) -> ModelNotSupported:
    names = ", ".join(repr(source.file.name) for source in patch.sources)
    return ModelNotSupported(
        f"with {names} merged in, {patch.key!r} has values too large for {patch.dtype}.",
        hint="Use lower weights, or leave the LoRA out of the merge: it then works as a tag in the"
        " prompt.",
        layer=patch.key,
    )
