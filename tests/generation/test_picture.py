import base64
import io

import piexif
import piexif.helper
import pytest
from fakes.a1111.picture import png, png_text
from PIL import Image

from worker.errors import DeliveryFailed
from worker.generation.picture import from_engine, thumbnail
from worker.images.base64_text import decoded_size
from worker.images.metadata import infotext_of

TEXTS = [
    "a fox\nNegative prompt: blurry\nSteps: 5, Sampler: Euler a, Seed: 1",
    "ein Fuchs, caf\u00e9 \u72d0 \U0001f98a\nSteps: 5",
    "x",
]


def in_base64(data):
    return base64.b64encode(data).decode()


def from_a1111(text=TEXTS[0], width=64, height=64):
    return in_base64(png(width, height, b"\xc0\x40\x20", text))


def without_infotext(image):
    image.save(file := io.BytesIO(), "PNG")
    return in_base64(file.getvalue())


def opened(picture):
    return Image.open(io.BytesIO(picture.data))


def as_a1111_reads(data):
    """`read_info_from_image` of modules/images.py of v1.9.3."""
    items = Image.open(io.BytesIO(data)).info
    if "exif" not in items:
        return items.get("parameters")
    comment = piexif.load(items["exif"]).get("Exif", {}).get(piexif.ExifIFD.UserComment, b"")
    return piexif.helper.UserComment.load(comment)


def as_a1111_writes(text, form):
    """`save_image_with_geninfo` of modules/images.py of v1.9.3."""
    file, done = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (64, 64), (192, 64, 32)).save(file, form, quality=80)
    comment = piexif.helper.UserComment.dump(text, encoding="unicode")
    exif = piexif.dump({"Exif": {piexif.ExifIFD.UserComment: comment}})
    piexif.insert(exif, file.getvalue(), done)
    return in_base64(done.getvalue())


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_the_infotext_is_kept_in_every_format_and_from_every_format(form, text):
    picture = from_engine(from_a1111(text), form)
    assert as_a1111_reads(picture.data) == infotext_of(opened(picture)) == text
    assert picture.complete
    for theirs in ("jpeg", "webp"):  # an engine that does not make PNG
        picture = from_engine(as_a1111_writes(text, theirs), form)
        assert as_a1111_reads(picture.data) == text
        assert form != "png" or png_text(picture.data) == text


@pytest.mark.parametrize(
    ("form", "suffix", "quality"), [("png", "png", None), ("jpeg", "jpg", 90), ("webp", "webp", 90)]
)
def test_a_converted_picture_has_the_same_size_and_colours(form, suffix, quality):
    original = from_a1111(width=72, height=40)
    picture = from_engine(original, form)
    assert (opened(picture).format, opened(picture).size) == (form.upper(), (72, 40))
    red, green, blue = opened(picture).convert("RGB").getpixel((30, 20))
    assert abs(red - 192) + abs(green - 64) + abs(blue - 32) < 20
    found = (picture.content_type, picture.suffix, picture.quality)
    assert found == (f"image/{form}", suffix, quality)
    assert (picture.base64() == original) == (form == "png")  # as the engine made it


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_a_lower_quality_makes_a_smaller_file_and_each_mode_becomes_rgb(form):
    image = without_infotext(Image.effect_noise((128, 128), 80).convert("RGB"))
    sizes = [len(from_engine(image, form, quality).data) for quality in (100, 60, 20)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 2 * sizes[-1]
    for mode in ("RGBA", "L", "P"):
        image = without_infotext(Image.new("RGB", (8, 8), (255, 0, 0)).convert(mode))
        picture = opened(from_engine(image, form))
        assert (picture.mode, infotext_of(picture)) == ("RGB", None)


def test_an_infotext_that_is_too_long_for_a_jpeg_is_left_out():
    longest = "x" * 32_737
    for text, complete in ((longest, True), (longest + "x", False)):
        picture = from_engine(from_a1111(text), "jpeg")
        assert picture.complete == complete
        assert infotext_of(opened(picture)) == (text if complete else None)
    assert infotext_of(opened(from_engine(from_a1111("x" * 100_000), "webp"))) == "x" * 100_000


@pytest.mark.parametrize(
    ("image", "form", "message"),
    [
        ("not base64!", "png", "is not base64"),
        (in_base64(b"<html>"), "jpeg", "did not return a picture"),
        (in_base64(b"<html>"), "png", "did not return a picture"),
        (from_a1111()[:120], "jpeg", "PNG of 90 bytes is damaged"),
        (in_base64(from_engine(from_a1111(), "jpeg").data[:400]), "webp", "cannot be converted to"),
        (from_a1111(width=16_400, height=8), "webp", "16383 pixels"),
    ],
)
def test_a_picture_that_cannot_be_converted_is_an_error(image, form, message):
    with pytest.raises(DeliveryFailed, match=message) as raised:
        from_engine(image, form)
    assert "BytesIO" not in str(raised.value)


DAMAGES = {
    "only its first bytes": lambda png: png[:8],
    "cut in its header": lambda png: png[:20],
    "cut in its pixels": lambda png: png[: len(png) // 2],
    "without its end": lambda png: png[:-12],
    "cut in its end": lambda png: png[:-1],
    "zeros behind the header": lambda png: png[:33] + bytes(50),
    "a flipped bit": lambda png: png[:-20] + bytes([png[-20] ^ 1]) + png[-19:],
    "a length of 4 GB": lambda png: png[:33] + b"\xff" * 4 + png[37:],
    "without pixels": lambda png: png[:33] + png[-12:],
}


@pytest.mark.parametrize("form", ["png", "webp"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_picture_is_never_delivered(damage, form):
    png = without_infotext(Image.effect_noise((64, 64), 50))
    damaged = in_base64(DAMAGES[damage](base64.b64decode(png)))
    assert from_engine(png, form)
    with pytest.raises(DeliveryFailed):
        from_engine(damaged, form)


def test_the_size_of_base64_is_known_without_decoding_it():
    for length in range(60):
        assert decoded_size(in_base64(bytes(length))) == length


def test_a_png_of_the_engine_is_not_decoded(monkeypatch):
    image = from_a1111(width=512, height=512)
    monkeypatch.setattr(Image, "open", None)

    picture = from_engine(image)

    assert picture.base64() is image
    assert picture.size == len(base64.b64decode(image))
    assert picture.data == base64.b64decode(image)


def test_a_thumbnail_is_a_small_jpeg_of_the_same_shape():
    small = thumbnail(without_infotext(Image.new("RGBA", (1024, 512), "red")))
    with Image.open(io.BytesIO(base64.b64decode(small))) as image:
        assert (image.format, image.size) == ("JPEG", (256, 128))
    for unreadable in ("", "not base64!", in_base64(b"not a picture")):
        assert thumbnail(unreadable) is None
