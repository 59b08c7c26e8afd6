"""Sums in short float formats, compared with numpy's own conversions."""

import numpy as np
import pytest

from worker.models.merge.float_formats import FORMATS

ALL_HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16)
FINITE = ALL_HALVES[np.isfinite(ALL_HALVES)]


def widened(numbers, dtype):
    out = np.empty(numbers.shape, np.float32)
    FORMATS[dtype].to_float32(numbers, out)
    return out


def add(numbers, addition, dtype):
    scratch = np.empty(numbers.size + 1, np.float32)
    return FORMATS[dtype].add(numbers, addition.astype(np.float32), scratch)


def added(halves, addition):
    """The sums with float32 numbers, and whether all stayed finite."""
    numbers = halves.copy()
    with np.errstate(all="ignore"):  # as the writer does
        is_right = add(numbers, addition, "F16")
    return numbers, is_right


def assert_same(result, expected):
    """NaN equals NaN."""
    same = (result == expected) | (np.isnan(result) & np.isnan(expected))
    assert same.all(), (result[~same][:5], expected[~same][:5])


def test_every_half_is_converted_exactly_and_a_sum_with_0_changes_none():
    assert_same(widened(ALL_HALVES, "F16"), ALL_HALVES.astype(np.float32))
    result, is_right = added(FINITE, np.zeros(len(FINITE)))
    assert is_right
    assert_same(result, FINITE)


@pytest.mark.parametrize("exponent", range(-30, 16, 3))
def test_sums_of_every_size_are_rounded_as_numpy_rounds(exponent):
    numbers = np.random.default_rng(exponent + 100)
    halves = FINITE[numbers.integers(0, len(FINITE), 100_000)]
    halves = halves[np.abs(halves) < 2**15]
    addition = (numbers.normal(size=len(halves)) * 2.0**exponent).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = (halves.astype(np.float32) + addition).astype(np.float16)
    result, is_right = added(halves, addition)
    assert is_right == np.isfinite(expected).all()
    assert_same(result, expected)


def test_bfloat16_is_the_upper_half_of_float32_rounded_to_even():
    numbers = np.random.default_rng(1)
    before = (numbers.normal(size=50_000).astype(np.float32).view(np.uint32) >> 16).astype("uint16")
    addition = numbers.normal(size=50_000).astype(np.float32)
    assert (widened(before, "BF16").view(np.uint32) >> 16 == before).all()
    sums = widened(before, "BF16") + addition
    after = before.copy()
    assert add(after, addition, "BF16")
    bits = sums.view(np.uint32)
    assert (after == (bits + 0x7FFF + (bits >> 16 & 1)) >> 16).all()
    tie = np.array([0x3F80, 0x3F81], np.uint16)
    assert add(tie, np.full(2, 2.0**-8), "BF16")
    assert tie.tolist() == [0x3F80, 0x3F82]


LARGEST = [("F16", 65504.0), ("BF16", 0x7F7F), ("F32", 3.4e38), ("F64", 1.7e308)]


@pytest.mark.parametrize(("dtype", "largest"), LARGEST, ids=str)
def test_only_a_new_infinity_is_reported(dtype, largest):
    numbers = np.array([largest, largest, 0], FORMATS[dtype].storage)
    with np.errstate(all="ignore"):
        assert add(numbers.copy(), np.array([0, 0, 1]), dtype)  # although their sum is infinite
        if dtype != "F64":  # a float32 is too small to make it infinite
            assert not add(numbers, np.array([3.0e38, 0, 1]), dtype)
            assert add(numbers, np.array([0, 0, 1]), dtype)  # it was infinite before
