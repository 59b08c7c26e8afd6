"""Pictures that a request brings: what is read, and what is refused before it costs memory."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engine.errors import InvalidImage, Refused, Unsupported
from engine.images import decode

SQUARE = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))


def encoded(content):
    return base64.b64encode(content).decode()


def saved(picture=SQUARE, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def header_of(width, height):
    """A PNG that has nothing but its size, and pixels that never come."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + crc + b"\0\0\1\0IDAT"


@pytest.mark.parametrize("kind", decode.FORMATS)
def test_formats_that_are_read(kind):
    found = decode.read(encoded(saved(kind=kind)))
    assert found.size == (8, 8)


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", " \n"])
def test_base64_and_data_uris(prefix):
    found = decode.read(prefix + encoded(saved()))
    assert np.array_equal(np.asarray(found), np.asarray(SQUARE))


def test_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    found = decode.read(encoded(saved(SQUARE.resize((8, 4)), "PNG", exif=exif)))
    assert found.size == (4, 8)


REFUSED = {
    "nothing": ("", "it is empty"),
    "no base64": ("a-b_", "it is not base64"),
    "no padding": (encoded(saved()).rstrip("=") + "A", "it is not base64"),
    "a data URI without base64": ("data:image/png,abc", "no ';base64,'"),
    "a web page": (encoded(b"<html>404</html>"), "it is not one of PNG"),
    "a program for Ghostscript": (encoded(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "it is not one of PNG"),
    "a cut picture": (encoded(saved()[:-30]), "cannot be decoded"),
    "a side too long": (encoded(saved(Image.new("1", (8193, 1)))), "it has 8193x1 pixels"),
    "a bomb": (encoded(header_of(60_000, 60_000)), "it has 60000x60000 pixels"),
    "a small bomb": (encoded(header_of(12_000, 10)), "it has 12000x10 pixels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_pictures(name):
    text, cause = REFUSED[name]
    with pytest.raises(InvalidImage, match=cause) as caught:
        decode.read(text)
    assert caught.value.status == 500
    assert str(caught.value).startswith("Invalid encoded image: ")


@pytest.mark.parametrize("url", ["http://127.0.0.1/a.png", "https://a.test/a.png", "HTTP://a.test"])
def test_urls_are_never_fetched(url):
    with pytest.raises(Unsupported, match="pictures from URLs"):
        decode.read(url)


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda end: saved()[:40] + end))
def test_any_bytes_give_a_picture_or_a_refusal(content):
    try:
        found = decode.read(encoded(content))
    except Refused:
        return
    assert max(found.size) <= decode.LONGEST_SIDE


def test_transparency_becomes_the_background():
    clear = Image.new("RGBA", (2, 2), (200, 0, 0, 0))
    assert decode.flattened(clear, "#102030").getpixel((0, 0)) == (0x10, 0x20, 0x30)
