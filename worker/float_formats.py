"""The formats of checkpoints' numbers, and sums in them that are rounded once. Pure.

numpy converts half precision number by number, 2 to 3 ns each. Operations on whole blocks of
integers and float32 do the same in a third of that time, with the same results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Numbers = NDArray[Any]

_HALF_NOT_FINITE = 0x7C00  # from here on: infinity and NaN
_HALF_SIGN = 0x8000
_WITHOUT_COPIES_OF_SIGN = -0x70002000
_EXPONENT = 0x7F800000
# Half precision's sums are 2**15 times as large while they are float32: then the exponents of
# both formats differ by a multiple of 64, and the lowest bits of float32's are half's own.
_HALF_SCALE = 2.0**15
_BIASES = 2.0**112  # float32 has another bias: its bits of a half mean so many times less
_HALF_SMALLEST_NORMAL = 2.0**-14
_HALF_SAFE = 2.0**15  # below it nothing rounds to infinity


class Scratch:
    """Memory for what lies between, to be used again and again: new memory costs time."""

    def __init__(self, size: int) -> None:
        """Have room for blocks of `size` numbers."""
        self.wide = np.empty(size, np.int32)
        self.exponents = np.empty(size, np.int16)
        self.signs = np.empty(size, np.int16)
        # numpy compares two arrays several times as fast as an array and a number
        self.least = np.full(size, _HALF_SMALLEST_NORMAL * _HALF_SCALE, np.float32)


@dataclass(frozen=True)
class Format:
    """How numbers of one dtype are stored, and how float32 is added to them.

    Attributes:
        storage: numpy's dtype of the stored numbers; integers where numpy has no such floats.
        scale: how many times as large the additions are given.
        add: adds the second array to the first in place and rounds to nearest, ties to even; what
            is in the second is lost. False: a finite number has become infinite or NaN.
    """

    storage: np.dtype[Any]
    scale: float
    add: Callable[[Numbers, Float32, Scratch], bool]


def to_float32(numbers: Numbers, dtype: str) -> Float32:
    """The stored numbers (see `Format.storage`) of safetensors' dtype as float32.

    Exact, but for F64.
    """
    if dtype == "F16":
        if not _all_finite(numbers):
            return numbers.view(np.float16).astype(np.float32)
        wide = np.empty(numbers.shape, np.int32)
        return _widened(numbers, wide, _BIASES)
    if dtype == "BF16":
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.astype(np.float32, copy=False)


def _all_finite(halves: Numbers) -> bool:
    """Whether no half is infinite or NaN: each sign's largest bit pattern tells."""
    if not halves.size:
        return True
    negative = halves.view(np.uint16).max() >= _HALF_SIGN | _HALF_NOT_FINITE
    return bool(halves.max() < _HALF_NOT_FINITE and not negative)


def _widened(halves: Numbers, wide: NDArray[np.int32], factor: float) -> Float32:
    """Finite halves as float32 in the memory of `wide`, times `factor` / 2**112."""
    np.copyto(wide, halves)
    np.left_shift(wide, 13, out=wide)
    np.bitwise_and(wide, _WITHOUT_COPIES_OF_SIGN, out=wide)
    numbers = wide.view(np.float32)
    return np.multiply(numbers, factor, out=numbers)


def _add_half(halves: Numbers, addition: Float32, scratch: Scratch) -> bool:
    """Add to halves.

    A float32 is rounded to multiples of 2**n by adding 1.5 * 2**(n + 23): what does not fit is
    rounded away, and the sum's last bits count the multiples. n is the exponent less 10, and
    never less than that of the smallest half. A negative number that rounds to 0 becomes +0.
    """
    if not _all_finite(halves):
        before = halves.view(np.float16)
        return _settle_half(halves, before + addition / _HALF_SCALE, np.isfinite(before))
    wide = scratch.wide[: halves.size]
    sums = _widened(halves, wide, _BIASES * _HALF_SCALE)
    np.add(sums, addition, out=sums)
    powers = addition  # of two: each sum without its fraction
    np.bitwise_and(wide, _EXPONENT, out=powers.view(np.int32))
    np.maximum(powers, scratch.least[: halves.size], out=powers)
    if not powers.max(initial=0) < _HALF_SAFE * _HALF_SCALE:
        return _settle_half(halves, sums / _HALF_SCALE, np.True_)
    exponents, signs = scratch.exponents[: halves.size], scratch.signs[: halves.size]
    np.right_shift(powers.view(np.int32), 13, out=exponents, casting="unsafe")
    np.multiply(powers, 1.5 * 2.0**13, out=powers)
    np.add(sums, powers, out=sums)
    np.copyto(halves, wide, casting="unsafe")  # the last 16 bits
    np.bitwise_and(halves, -_HALF_SIGN, out=signs)
    np.absolute(halves, out=halves)
    np.add(halves, exponents, out=halves)
    np.add(halves, signs, out=halves)
    return True


def _settle_half(halves: Numbers, sums: Float32, were_finite: NDArray[np.bool_] | np.bool_) -> bool:
    """Numpy's own way, for blocks with numbers that are not finite or might become so."""
    rounded = sums.astype(np.float16)
    halves[:] = rounded.view(np.int16)
    return not np.any(were_finite & ~np.isfinite(rounded))


def _add_bfloat(numbers: Numbers, addition: Float32, _scratch: Scratch) -> bool:
    """Add to numbers that are the upper halves of float32."""
    before = to_float32(numbers, "BF16")
    bits = (before + addition).view(np.uint32)
    np.add(bits, ((bits >> 16) & 1) + 0x7FFF, out=bits)
    np.bitwise_and(bits, 0xFFFF0000, out=bits)
    np.right_shift(bits, 16, out=numbers, casting="unsafe")
    return _stayed_finite(before, bits.view(np.float32))


def _add_float(numbers: Numbers, addition: Float32, _scratch: Scratch) -> bool:
    sums = numbers + addition
    is_right = _stayed_finite(numbers, sums)
    numbers[:] = sums
    return is_right


def _stayed_finite(before: Numbers, after: Numbers) -> bool:
    return not np.any(np.isfinite(before) & ~np.isfinite(after))


FORMATS = {
    "F16": Format(np.dtype(np.int16), _HALF_SCALE, _add_half),
    "BF16": Format(np.dtype(np.uint16), 1.0, _add_bfloat),
    "F32": Format(np.dtype(np.float32), 1.0, _add_float),
    "F64": Format(np.dtype(np.float64), 1.0, _add_float),
}
