"""The formats of checkpoints' numbers, and sums in them that are rounded once. Pure.

numpy converts half precision number by number, some 2 ns each, and knows no bfloat16; numkong has
the processor do either in a twentieth of that time, with the same results.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numkong
import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Numbers = NDArray[Any]


@dataclass(frozen=True)
class FloatFormat:
    """Numbers that numpy sums as they are stored.

    Attributes:
        storage: numpy's dtype of the stored numbers.
    """

    storage: np.dtype[Any]

    def to_float32(self, numbers: Numbers, out: Float32) -> None:
        """Fill `out` with the stored numbers, both on one axis. Exact, but for F64."""
        out[:] = numbers

    def add(self, numbers: Numbers, addition: Float32, _scratch: Float32) -> bool:
        """Add in place, rounded to nearest, ties to even.

        Args:
            numbers: stored ones, on one axis.
            addition: as many; lost.
            scratch: as many or more; lost.

        Returns:
            Whether all numbers that were finite still are.
        """
        sums = numbers + addition
        is_right = _stayed_finite(numbers, sums)
        numbers[:] = sums
        return is_right


@dataclass(frozen=True)
class ShortFloatFormat(FloatFormat):
    """Numbers of 16 bits, which become float32 to be summed.

    Attributes:
        storage: integers where numpy has no such floats.
        name: numkong's, of the dtype.
    """

    name: Literal["float16", "bfloat16"]

    def to_float32(self, numbers: Numbers, out: Float32) -> None:
        """See `FloatFormat`."""
        numkong.astype(self._tensor(numbers), "float32", out=out)

    def add(self, numbers: Numbers, addition: Float32, scratch: Float32) -> bool:
        """See `FloatFormat`."""
        before = scratch[: numbers.size]
        self.to_float32(numbers, before)
        np.add(before, addition, out=addition)
        stored = self._tensor(numbers)
        numkong.astype(addition, self.name, out=stored)
        if math.isfinite(numkong.sum(stored)):  # the quick way to see that they all are
            return True
        self.to_float32(numbers, addition)
        return _stayed_finite(before, addition)

    def _tensor(self, numbers: Numbers) -> numkong.Tensor:
        return numkong.from_pointer(numbers.ctypes.data, numbers.shape, self.name, owner=numbers)


def _stayed_finite(before: Numbers, after: Numbers) -> bool:
    return not np.any(np.isfinite(before) & ~np.isfinite(after))


FORMATS = {
    "F16": ShortFloatFormat(np.dtype(np.float16), "float16"),
    "BF16": ShortFloatFormat(np.dtype(np.uint16), "bfloat16"),
    "F32": FloatFormat(np.dtype(np.float32)),
    "F64": FloatFormat(np.dtype(np.float64)),
}
