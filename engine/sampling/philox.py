"""The random numbers of an NVIDIA GPU, computed on any machine (A1111's `randn_source` NV).

CUDA's generator is Philox 4x32-10 (Salmon et al., 2011): each number comes from its own place and
from the seed alone. Two of four 32-bit words become one normal number (Box and Muller).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Numbers = npt.NDArray[Any]

ROUNDS = 10
_FACTORS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 2**32
_LOW = np.uint64(_WORD - 1)
_HALF = np.uint64(32)

# CUDA's constants: 2^-32 and 2 pi / 2^32, rounded to single precision
_UNIT = float(np.float32(2.3283064e-10))
_ANGLE = float(np.float32(2.3283064e-10 * 6.2831855))


class Philox:
    """The sequence of one seed; each call of `randn` is one call of torch.randn on a GPU."""

    def __init__(self, seed: int) -> None:
        self._keys = (seed % _WORD, (seed >> 32) % _WORD)
        self._calls = 0

    def randn(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Normal numbers in single precision."""
        count = int(np.prod(shape))
        zeros = np.zeros(count, dtype=np.uint64)
        words = [zeros + np.uint64(self._calls), zeros, np.arange(count, dtype=np.uint64), zeros]
        self._calls += 1
        for number in range(ROUNDS):
            words = _round(words, number, self._keys)
        normal = _box_muller(words[0], words[1])
        return torch.from_numpy(normal.reshape(shape))


def _round(words: list[Numbers], number: int, keys: tuple[int, int]) -> list[Numbers]:
    """One round; the keys grow by a constant in each."""
    first, second = words[0] * _FACTORS[0], words[2] * _FACTORS[1]
    one, two = (
        np.uint64((key + number * step) % _WORD) for key, step in zip(keys, _KEY_STEPS, strict=True)
    )
    return [
        (second >> _HALF) ^ words[1] ^ one,
        second & _LOW,
        (first >> _HALF) ^ words[3] ^ two,
        first & _LOW,
    ]


def _box_muller(x: Numbers, y: Numbers) -> Numbers:
    """The sine of the pair; CUDA gives the cosine to another place, and A1111 drops it."""
    radius = np.sqrt(-2 * np.log(x * _UNIT + _UNIT / 2))
    normal: Numbers = radius * np.sin(y * _ANGLE + _ANGLE / 2)
    return normal.astype(np.float32)
