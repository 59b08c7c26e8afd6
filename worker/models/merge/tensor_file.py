"""An open safetensors file whose tensors are read one by one, never mapped into memory.

The safetensors library cannot do this for the merge: with numpy it cannot read bfloat16, and it
maps the file, so memory grows by the size of the file (512 MB more for 512 MB of tensors, in
0.42 s; `preadv` into one buffer takes 0.26 s and no more memory). The library checks the files
before the merge and the merged checkpoint after it: see `formats.model_file`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worker.errors import ModelFileInvalid
from worker.formats import safetensors_header
from worker.formats.safetensors_header import Header
from worker.models.merge.float_formats import FORMATS, Float32, Numbers

_START = 1 << 16  # bytes that are read first; most headers of LoRAs fit


@dataclass(frozen=True)
class TensorFile:
    """A whole file, open for reading. Thread-safe.

    Attributes:
        name: the name in messages.
        descriptor: the open file.
        header: read from the open file, so it stays right if the path changes.
    """

    name: str
    descriptor: int
    header: Header

    def read(self, position: int, numbers: Numbers) -> None:
        """Fill `numbers` with the data that begin `position` bytes after the header.

        Raises:
            ModelFileInvalid: it cannot be read.
        """
        _read(self.name, self.descriptor, self.header.data_start + position, numbers)

    def floats(self, name: str) -> Float32:
        """A tensor whose dtype is one of `worker.models.merge.float_formats.FORMATS`, as float32.

        Raises:
            ModelFileInvalid: it cannot be read, or a value is infinite or NaN.
        """
        tensor = self.header.tensors[name]
        form = FORMATS[tensor.dtype]
        numbers = np.empty(math.prod(tensor.shape), form.storage)
        self.read(tensor.begin, numbers)
        values = np.empty(numbers.shape, np.float32)
        form.to_float32(numbers, values)
        if not np.isfinite(values).all():
            raise ModelFileInvalid(
                f"{self.name!r} cannot be used: {name!r} has infinite or NaN values.",
                model=self.name,
            )
        return values.reshape(tensor.shape)

    def number(self, name: str) -> float:
        """The value of a tensor that has one element, a float or an integer.

        Raises:
            ModelFileInvalid: it cannot be read, or the value is infinite or NaN.
        """
        tensor = self.header.tensors[name]
        if tensor.dtype in FORMATS:
            return float(self.floats(name).reshape(()))
        number = np.empty(1, {"I32": np.int32, "I64": np.int64}[tensor.dtype])
        self.read(tensor.begin, number)
        return float(number[0])


@contextmanager
def open_tensors(path: Path, name: str) -> Iterator[TensorFile]:
    """Open the file at `path`, read its header and compare the file's size with it.

    Raises:
        ModelFileInvalid: it cannot be read, is truncated, has trailing bytes, or is not
            safetensors.
        ModelUnsafe, ModelNotSupported: it is of another format.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise _unreadable(name, error) from error
    try:
        yield TensorFile(name, descriptor, _header(name, descriptor))
    finally:
        os.close(descriptor)


def _header(name: str, descriptor: int) -> Header:
    size = os.fstat(descriptor).st_size
    try:
        start = _bytes(name, descriptor, min(size, _START))
        needed = safetensors_header.header_length(start) or 0
        start = _bytes(name, descriptor, min(size, max(needed, len(start))))
        header = safetensors_header.parse_header(start)
    except ModelFileInvalid as error:
        raise ModelFileInvalid(f"{name!r} cannot be used: {error.message}") from error
    if header.size != size:
        raise ModelFileInvalid(
            f"{name!r} cannot be used: it has {size} bytes, but its header requires {header.size}."
        )
    return header


def _bytes(name: str, descriptor: int, length: int) -> bytes:
    start = np.empty(length, np.uint8)
    _read(name, descriptor, 0, start)
    return start.tobytes()


def _read(name: str, descriptor: int, position: int, numbers: Numbers) -> None:
    rest = numbers.reshape(-1).view(np.uint8).data
    while rest:
        try:
            count = os.preadv(descriptor, [rest], position)
        except OSError as error:
            raise _unreadable(name, error) from error
        if not count:
            raise ModelFileInvalid(
                f"{name!r} cannot be used: it became shorter while it was read.", model=name
            )
        rest, position = rest[count:], position + count


def _unreadable(name: str, error: OSError) -> ModelFileInvalid:
    return ModelFileInvalid(f"{name!r} cannot be read: {error.strerror or error}.", model=name)
