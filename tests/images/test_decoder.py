"""What each format becomes for the engine, and what is refused."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images.samples import (
    INFOTEXT,
    SIZE,
    comment,
    exif,
    file_of,
    picture,
    png_header,
    png_texts,
    tiff_bomb,
)
from PIL import Image

from worker.errors import InvalidInput
from worker.images.decoder import FORMATS, decode
from worker.images.input_image import InputImage
from worker.images.limits import IMAGE_LIMITS, ImageLimits


def pixels(data):
    with Image.open(io.BytesIO(data)) as image:
        return image.mode, image.size, image.tobytes()


def alpha(size=SIZE):
    image = picture("RGBA", size)
    image.putalpha(picture("L", size))
    return image


def indexed(transparency):
    image = picture("RGB").quantize(8)
    return file_of(image, transparency=transparency)


PLAIN, GRAY = picture(), picture("L")
AS_SENT = {
    "PNG": file_of(),
    "gray PNG": file_of(GRAY),
    "PNG with alpha": file_of(alpha()),
    "JPEG": file_of(format_="JPEG", quality=90),
    "progressive JPEG": file_of(format_="JPEG", progressive=True),
    "PNG with an infotext": png_texts(parameters=INFOTEXT),
    "PNG with bytes behind its end": file_of() + b"more",
}


@pytest.mark.parametrize("name", AS_SENT)
def test_a_picture_that_every_engine_reads_goes_through_as_it_came(name):
    image = decode(AS_SENT[name], IMAGE_LIMITS)
    assert image.data is AS_SENT[name]
    assert (image.width, image.height) == SIZE
    assert image.format in name.lower()


ENCODED = {
    "palette": (file_of(PLAIN.quantize(8)), "RGB"),
    "palette with a transparent color": (indexed(0), "RGBA"),
    "palette with transparencies": (indexed(bytes([0, 128, 255])), "RGBA"),
    "one bit": (file_of(picture("1")), "L"),
    "gray with alpha": (file_of(picture("LA")), "RGBA"),
    "one transparent color": (file_of(transparency=(7, 7, 7)), "RGBA"),
    "16 bits": (file_of(picture("I;16")), "L"),
    "16 bits, the high byte first": (file_of(picture("I;16B"), "TIFF"), "L"),
    "CMYK": (file_of(picture("CMYK"), "JPEG"), "RGB"),
    "GIF": (file_of(PLAIN, "GIF"), "RGB"),
    "BMP": (file_of(PLAIN, "BMP"), "RGB"),
    "TIFF": (file_of(PLAIN, "TIFF", compression="tiff_lzw"), "RGB"),
    "AVIF": (file_of(PLAIN, "AVIF"), "RGB"),
    "two frames of a GIF": (file_of(PLAIN, "GIF", save_all=True, append_images=[GRAY]), "RGB"),
    "two frames of a PNG": (file_of(save_all=True, append_images=[PLAIN.rotate(180)]), "RGB"),
    "WebP": (file_of(format_="WEBP", lossless=True), "RGB"),
    "two frames of a WebP": (
        file_of(format_="WEBP", save_all=True, append_images=[PLAIN.rotate(180)]),
        "RGB",
    ),
    "texts that A1111 cannot read": (png_texts(comment="of ImageMagick"), "RGB"),
    "EXIF that A1111 cannot read": (file_of(exif=b"Exif\0\0garbage"), "RGB"),
}


@pytest.mark.parametrize("name", ENCODED)
def test_every_other_form_becomes_a_plain_png(name):
    data, mode = ENCODED[name]
    image = decode(data, IMAGE_LIMITS)
    with Image.open(io.BytesIO(image.data)) as made:
        made.load()
        assert (image.format, made.format, made.mode, made.size) == ("png", "PNG", mode, SIZE)
        assert made.info.keys() <= {"parameters"}


def test_pixels_are_not_changed_by_the_form():
    gray = pixels(file_of(GRAY))
    for name in ("16 bits", "16 bits, the high byte first"):
        assert pixels(decode(ENCODED[name][0], IMAGE_LIMITS).data) == gray
    with_alpha = file_of(picture("LA"))
    assert pixels(decode(with_alpha, IMAGE_LIMITS).data)[2][::4] == gray[2]
    transparent = pixels(decode(indexed(bytes([0, 128, 255])), IMAGE_LIMITS).data)[2][3::4]
    assert set(transparent) == {0, 128, 255}
    for name in ("GIF", "PNG", "WebP"):  # the first frame
        first = pixels(decode(ENCODED[f"two frames of a {name}"][0], IMAGE_LIMITS).data)[2][::3]
        assert max(abs(a - b) for a, b in zip(first, gray[2], strict=True)) < 20


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_picture_is_turned_as_exif_says(orientation, format_):
    from PIL import ImageOps

    image = Image.new("RGB", (40, 24), "white")
    image.paste("black", (0, 0, 24, 8))
    made = decode(file_of(image, format_, exif=exif(Orientation=orientation)), IMAGE_LIMITS)
    image.getexif()[0x0112] = orientation
    expected = ImageOps.exif_transpose(image)
    assert (made.width, made.height) == expected.size
    mode, size, found = pixels(made.data)
    assert (mode, size) == ("RGB", expected.size)
    far = sum(abs(a - b) > 100 for a, b in zip(found, expected.tobytes(), strict=True))
    assert far < len(found) / 20  # blocks of a lossy file


def test_the_infotext_stays_in_a_picture_that_is_encoded_again():
    made = decode(file_of(format_="JPEG", exif=comment(INFOTEXT)), IMAGE_LIMITS)
    assert made.infotext == INFOTEXT
    assert Image.open(io.BytesIO(made.data)).info == {"parameters": INFOTEXT}


BAD = {
    b"": "it is empty",
    b"<!doctype html><p>": "it is an HTML page",
    b"\xef\xbb\xbf\n<HTML>": "it is an HTML page",
    b'<?xml version="1.0"?><svg/>': "it is an SVG drawing",
    b"\0\0\0\x18ftypheic": "it is a HEIC picture",
    b"\0\0\0\x18ftypmp42": "it is a video",
    b"%PDF-1.7": "it is a PDF document",
    b'{"error": 1}': "it is JSON",
    b"%!PS-Adobe-3.0 EPSF-3.0\n": "it is not a picture",  # Pillow would start Ghostscript
    b"hello": "it is not a picture",
    file_of(format_="PPM"): "it is not a picture",  # Pillow reads it, but no plugin is asked
    file_of(format_="JPEG2000"): "it is a JPEG 2000 picture",
    file_of()[:10] + b"\n" + file_of()[10:]: "it is a PNG whose start is damaged",
    file_of()[:60]: "the picture is damaged",
    file_of(format_="JPEG")[:-40]: "the picture is damaged",
    file_of(picture("F"), "TIFF"): "the picture has 32 bits a channel",
    png_header(8193, 1): "the picture has 8193 x 1 pixels; at most 8192 x 8192 are accepted",
    png_header(60_000, 60_000): "the picture has 60000 x 60000 pixels",
    file_of(Image.new("1", (1, 8200)), "GIF"): "the picture has 1 x 8200 pixels",
}


@pytest.mark.parametrize(("data", "message"), BAD.items(), ids=BAD.values())
def test_a_file_that_cannot_be_used_is_named(data, message):
    with pytest.raises(InvalidInput) as refused:
        decode(data, IMAGE_LIMITS)
    assert refused.value.message.startswith(message)
    assert refused.value.hint
    assert "0x" not in str(refused.value)  # no address of a buffer
    assert len(str(refused.value)) < 300


def test_nothing_is_decoded_of_a_picture_that_is_too_large(monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)  # fails if it is called
    with pytest.raises(InvalidInput, match="pixels"):
        decode(file_of(Image.new("1", (8193, 8))), IMAGE_LIMITS)


def test_texts_have_a_limit_together():
    limits = ImageLimits(text_bytes=100)
    data = png_texts(parameters="p" * 40, first="é" * 25, second="x" * 11, third="y" * 10)
    made = decode(data, limits)
    assert (made.infotext, made.items) == ("p" * 40, {"first": "é" * 25, "third": "y" * 10})
    assert made.left_out == ("second",)
    many = decode(png_texts(**{f"name{number}": "x" for number in range(200)}), IMAGE_LIMITS)
    assert (len(many.items), len(many.left_out)) == (64, 64)


SEEDS = [*AS_SENT.values(), *(data for data, _ in ENCODED.values()), *BAD, tiff_bomb(20, 500)]


@settings(max_examples=300)
@given(st.data())
def test_any_bytes_become_a_picture_or_our_error(data):
    """Real files with some bytes changed: they get further than random ones."""
    file = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(0, 4)) if file else 0):
        place = data.draw(st.integers(0, len(file) - 1))
        file[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
        if not file:
            break
    try:
        image = decode(bytes(file), IMAGE_LIMITS)
    except InvalidInput as error:
        message = str(error)
    else:
        message = ""
        assert isinstance(image, InputImage)
        mode, size, _ = pixels(image.data)
        assert mode in {"L", "RGB", "RGBA"}
        assert size == (image.width, image.height)
    assert len(message) < 400
    assert message.isprintable()


def test_the_accepted_formats_are_those_that_the_messages_name():
    message = "Send the whole file of a PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF picture."
    with pytest.raises(InvalidInput) as refused:
        decode(b"hello", IMAGE_LIMITS)
    assert refused.value.hint == message
    assert all(name.lower() in message.lower() for name in FORMATS)
