"""Masks and resizing; that the pictures are A1111's is tested in tests/engine/parity."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engine.images import masks
from engine.images.resize import ResizeMode, TooNarrow, resized

ROW = [0, 0, 0, 0, 255, 255, 255, 0, 9, 200]
# by OpenCV 4.11: GaussianBlur of bytes
BLURRED = {
    1: [0, 1, 15, 77, 177, 225, 179, 90, 67, 86],
    2: [18, 28, 55, 93, 129, 148, 142, 121, 102, 96],
    5: [86, 86, 88, 93, 94, 99, 102, 107, 108, 109],
}


@pytest.mark.parametrize("sigma", BLURRED)
def test_blur_is_the_one_of_opencv(sigma):
    row = Image.fromarray(np.array([ROW], np.uint8))
    assert np.asarray(masks.blurred(row, sigma, 0)).tolist() == [BLURRED[sigma]]
    column = row.transpose(Image.Transpose.TRANSPOSE)
    assert np.asarray(masks.blurred(column, 0, sigma))[:, 0].tolist() == BLURRED[sigma]


sides = st.integers(1, 60)


@given(sides, sides, sides, sides, st.integers(0, 30), st.integers(8, 90), st.integers(8, 90))
def test_the_region_covers_the_mask_and_stays_within_it(left, top, width, height, pad, w, h):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (left, top, left + width, top + height))
    box = masks.region(mask, pad, (w, h))
    inner = mask.getbbox()
    for start, end in ((0, 2), (1, 3)):
        assert 0 <= box[start] <= inner[start] < inner[end] <= box[end] <= 64


def test_an_empty_mask_has_no_region_and_a_negative_padding_may_leave_nothing():
    mask = Image.new("L", (64, 64))
    assert masks.region(mask, 0, (8, 8)) is None
    mask.paste(255, (10, 10, 20, 20))
    with pytest.raises(ValueError, match="leaves nothing"):
        masks.region(mask, -30, (8, 8))


@given(sides, sides, sides, sides, st.sampled_from(list(ResizeMode)))
def test_every_mode_gives_the_size_or_says_that_a_picture_is_too_narrow(w, h, to_w, to_h, mode):
    picture = Image.new("RGB", (w, h), (7, 7, 7))
    with suppress(TooNarrow):
        found = resized(picture, mode, (to_w, to_h))
        assert (found.size, found.mode) == ((to_w, to_h), "RGB")


MASKS = {
    "brightness": (Image.new("L", (1, 1), 90), True, 90),
    "opaque": (Image.new("RGBA", (1, 1), (90, 90, 90, 255)), True, 90),
    "alpha, rounded": (Image.new("RGBA", (1, 1), (90, 90, 90, 129)), True, 255),
    "half alpha, rounded": (Image.new("RGBA", (1, 1), (90, 90, 90, 128)), True, 0),
    "alpha": (Image.new("RGBA", (1, 1), (90, 90, 90, 129)), False, 129),
}


@pytest.mark.parametrize("name", MASKS)
def test_what_of_a_picture_is_the_mask(name):
    picture, rounds, level = MASKS[name]
    assert masks.one_channel(picture, rounds=rounds).getpixel((0, 0)) == level
