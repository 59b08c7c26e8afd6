"""Sums in half precision and its like, against numpy's own conversions, number by number."""

import numpy as np
import pytest

from worker.float_formats import FORMATS, Scratch, to_float32

ALL_HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16)
FINITE = ALL_HALVES[np.isfinite(ALL_HALVES)]
LARGEST = 65504.0


def added(halves, addition):
    """The halves plus float32 numbers, and whether all stayed finite."""
    form = FORMATS["F16"]
    numbers = halves.copy().view(form.storage)
    scaled = addition.astype(np.float32) * np.float32(form.scale)
    with np.errstate(over="ignore"):  # as the writer does
        is_right = form.add(numbers, scaled, Scratch(len(halves)))
    return numbers.view(np.float16), is_right


def assert_same(result, expected):
    """As numbers: a 0 may lose its sign."""
    same = (result == expected) | (np.isnan(result) & np.isnan(expected))
    assert same.all(), (result[~same][:5], expected[~same][:5])


def test_every_half_is_widened_exactly():
    for halves in (ALL_HALVES, FINITE):
        assert_same(to_float32(halves.view(np.int16), "F16"), halves.astype(np.float32))


def test_adding_nothing_changes_no_half():
    result, is_right = added(FINITE, np.zeros(len(FINITE)))

    assert is_right
    assert_same(result, FINITE)


@pytest.mark.parametrize("exponent", range(-30, 16))
def test_sums_of_every_size_are_rounded_as_numpy_rounds(exponent):
    numbers = np.random.default_rng(exponent + 100)
    halves = FINITE[numbers.integers(0, len(FINITE), 20_000)]
    halves = halves[np.abs(halves) < LARGEST / 2]
    addition = (numbers.normal(size=len(halves)) * 2.0**exponent).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = (halves.astype(np.float32) + addition).astype(np.float16)

    result, is_right = added(halves, addition)

    assert is_right == np.isfinite(expected).all()
    assert_same(result, expected)


def test_ties_go_to_even_also_among_the_smallest():
    steps = np.spacing(np.abs(FINITE[np.abs(FINITE) < LARGEST / 2]).astype(np.float16))
    halves = FINITE[np.abs(FINITE) < LARGEST / 2]
    for part in (0.5, -0.5, 0.25, -0.25, 0.75):
        addition = part * steps.astype(np.float32)
        result, _ = added(halves, addition)
        assert_same(result, (halves.astype(np.float32) + addition).astype(np.float16))


def test_what_becomes_infinite_is_told_and_what_was_so_is_not():
    top = np.array([LARGEST, 1.0], np.float16)
    assert added(top, np.array([20.0, 0.0]))[1] is False
    assert added(top, np.array([15.0, 0.0]))[1] is True
    assert added(np.array([np.inf, np.nan], np.float16), np.array([1.0, 1.0]))[1] is True


def test_long_arrays_are_the_same_as_short_ones():
    numbers = np.random.default_rng(0)
    halves = numbers.normal(size=300_001).astype(np.float16)
    addition = numbers.normal(size=300_001).astype(np.float32)

    result, _ = added(halves, addition)

    assert_same(result, (halves.astype(np.float32) + addition).astype(np.float16))


def test_brain_floats_are_the_upper_halves_of_float32_rounded_to_even():
    form = FORMATS["BF16"]
    numbers = np.random.default_rng(1)
    before = (numbers.normal(size=50_000).astype(np.float32).view(np.uint32) >> 16).astype("uint16")
    addition = numbers.normal(size=50_000).astype(np.float32)
    sums = (to_float32(before, "BF16") + addition).astype(np.float64)

    assert form.add(before, addition.copy(), Scratch(len(before)))

    after = to_float32(before, "BF16").astype(np.float64)
    step = np.spacing(np.abs(after).astype(np.float32)) * 2.0**16
    assert (np.abs(after - sums) <= step / 2).all()
    tie = np.array([0x3F80, 0x3F81], np.uint16)
    assert form.add(tie, np.full(2, 2.0**-8, np.float32), Scratch(2))
    assert tie.tolist() == [0x3F80, 0x3F82]
