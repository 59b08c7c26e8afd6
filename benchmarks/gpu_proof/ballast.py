"""Fills the GPU's memory from outside the engine, so that every card can run out of it.

It calls the driver's library directly: the worker's Python has no torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LEFT_FREE = 256 << 20  # bytes
SMALLEST_PIECE = 32 << 20
OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


class NoDriver(Exception):
    """The driver's library cannot be used; the message has the reason."""


@contextmanager
def filled_gpu(library: Any = None) -> Iterator[int]:  # noqa: ANN401 - a ctypes library
    """Hold nearly all free memory of the first visible GPU while the block lasts; yields the bytes.

    Raises:
        NoDriver: there is no driver, or it refuses.
    """
    cuda = library or _load()
    context = ctypes.c_void_p()
    _call(cuda.cuInit, 0)
    device = ctypes.c_int()
    _call(cuda.cuDeviceGet, ctypes.byref(device), 0)
    _call(cuda.cuDevicePrimaryCtxRetain, ctypes.byref(context), device)
    try:
        _call(cuda.cuCtxSetCurrent, context)
        yield _allocate(cuda)
    finally:
        cuda.cuDevicePrimaryCtxReset_v2(device)  # frees what was allocated
        cuda.cuDevicePrimaryCtxRelease_v2(device)


def _load() -> Any:  # noqa: ANN401 - a ctypes library
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise NoDriver(f"the NVIDIA driver's library cannot be loaded ({error})") from error


def _call(function: Any, *arguments: Any) -> None:  # noqa: ANN401 - ctypes
    if status := function(*arguments):
        raise NoDriver(f"{function.__name__} failed with CUDA error {status}")


def _allocate(cuda: Any) -> int:  # noqa: ANN401 - a ctypes library
    """Allocate until `LEFT_FREE` bytes are free; returns the bytes that were allocated."""
    free, total, pointer = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_uint64()
    held = 0
    _call(cuda.cuMemGetInfo_v2, ctypes.byref(free), ctypes.byref(total))
    piece = free.value - LEFT_FREE
    while piece >= SMALLEST_PIECE:
        status = cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(piece))
        if status == OUT_OF_MEMORY:  # the free memory is not in one piece
            piece //= 2
            continue
        if status:
            raise NoDriver(f"cuMemAlloc failed with CUDA error {status}")
        held += piece
        _call(cuda.cuMemGetInfo_v2, ctypes.byref(free), ctypes.byref(total))
        piece = min(piece, free.value - LEFT_FREE)
    return held
