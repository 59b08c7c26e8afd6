"""The three forms of a picture, and A1111's infotext in each of them."""

import base64
import io

import piexif
import piexif.helper
import pytest
from fakes.a1111.picture import png, png_text
from PIL import Image

from worker.errors import DeliveryFailed
from worker.webui.picture import from_engine, infotext, thumbnail

TEXTS = [
    "a fox\nNegative prompt: blurry\nSteps: 5, Sampler: Euler a, Seed: 1",
    "ein Fuchs, caf\u00e9 \u72d0 \U0001f98a\nSteps: 5",
    "x",
]


def encoded(text=TEXTS[0], width=64, height=64):
    return base64.b64encode(png(width, height, b"\xc0\x40\x20", text)).decode()


def opened(picture):
    return Image.open(io.BytesIO(picture.data))


def as_a1111_reads(data):
    """`read_info_from_image` of modules/images.py of v1.9.3."""
    items = Image.open(io.BytesIO(data)).info
    geninfo = items.pop("parameters", None)
    if "exif" in items:
        exif = piexif.load(items["exif"]) or {}
        comment = exif.get("Exif", {}).get(piexif.ExifIFD.UserComment, b"")
        geninfo = piexif.helper.UserComment.load(comment)
    return geninfo


def as_a1111_writes(text, form):
    """`save_image_with_geninfo` of modules/images.py of v1.9.3."""
    file, done = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (64, 64), (192, 64, 32)).save(file, form, quality=80)
    comment = piexif.helper.UserComment.dump(text, encoding="unicode")
    exif = piexif.dump({"Exif": {piexif.ExifIFD.UserComment: comment}})
    piexif.insert(exif, file.getvalue(), done)
    return done.getvalue()


def test_a_png_stays_as_the_engine_made_it():
    picture = from_engine(encoded())

    assert picture.base64() == encoded()
    assert (picture.content_type, picture.suffix, picture.quality) == ("image/png", "png", None)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_a1111_reads_the_infotext_back(form, text):
    picture = from_engine(encoded(text), form)

    assert as_a1111_reads(picture.data) == text
    assert infotext(opened(picture)) == text
    assert picture.complete


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_a_picture_that_a1111_itself_wrote_so_keeps_its_infotext(form, text):
    """An engine whose `samples_format` is not png."""
    theirs = base64.b64encode(as_a1111_writes(text, form)).decode()

    for ours in ("png", "jpeg", "webp"):
        assert as_a1111_reads(from_engine(theirs, ours).data) == text
    assert png_text(from_engine(theirs, "png").data) == text


@pytest.mark.parametrize(("form", "suffix"), [("jpeg", "jpg"), ("webp", "webp")])
def test_the_picture_is_the_same_one(form, suffix):
    picture = from_engine(encoded(width=72, height=40), form)

    assert opened(picture).format == form.upper()
    assert opened(picture).size == (72, 40)
    red, green, blue = opened(picture).convert("RGB").getpixel((30, 20))
    assert abs(red - 192) + abs(green - 64) + abs(blue - 32) < 20
    assert (picture.content_type, picture.suffix) == (f"image/{form}", suffix)
    assert picture.quality == 90


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_a_lower_quality_makes_a_smaller_file(form):
    noise = io.BytesIO()
    Image.effect_noise((128, 128), 80).convert("RGB").save(noise, "PNG")
    image = base64.b64encode(noise.getvalue()).decode()
    sizes = [len(from_engine(image, form, quality).data) for quality in (100, 60, 20)]

    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 2 * sizes[-1]


@pytest.mark.parametrize("mode", ["RGBA", "L", "P"])
@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_other_kinds_of_png_become_rgb(form, mode):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).convert(mode).save(file, "PNG")
    picture = from_engine(base64.b64encode(file.getvalue()).decode(), form)

    assert opened(picture).mode == "RGB"


def test_a_picture_without_infotext_has_none_afterwards():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    image = base64.b64encode(file.getvalue()).decode()

    for form in ("jpeg", "webp"):
        assert infotext(opened(from_engine(image, form))) is None


def test_an_infotext_that_no_jpeg_can_hold_is_said_to_be_missing():
    just = "x" * 32_737
    for length, complete in ((len(just), True), (len(just) + 1, False)):
        picture = from_engine(encoded("x" * length), "jpeg")
        assert picture.complete == complete
        assert infotext(opened(picture)) == ("x" * length if complete else None)

    assert infotext(opened(from_engine(encoded("x" * 100_000), "webp"))) == "x" * 100_000


@pytest.mark.parametrize(
    ("image", "form", "said"),
    [
        ("not base64!", "png", "is not base64"),
        (base64.b64encode(b"<html>").decode(), "jpeg", "is none"),
        (base64.b64encode(b"<html>").decode(), "png", "is none"),
        (encoded()[:120], "jpeg", "cannot be made jpeg"),
        (encoded(width=16_400, height=8), "webp", "16383 pixels"),
    ],
    ids=["no base64", "no picture", "no png", "cut off", "too wide"],
)
def test_what_cannot_be_converted_is_told(image, form, said):
    with pytest.raises(DeliveryFailed, match=said) as raised:
        from_engine(image, form)

    assert "BytesIO" not in str(raised.value)


def test_a_thumbnail_is_a_small_jpeg_of_the_same_shape():
    file = io.BytesIO()
    Image.new("RGBA", (1024, 512), "red").save(file, "PNG")

    small = thumbnail(base64.b64encode(file.getvalue()).decode())

    with Image.open(io.BytesIO(base64.b64decode(small))) as image:
        assert (image.format, image.size) == ("JPEG", (256, 128))


@pytest.mark.parametrize("image", ["", "no base64!", base64.b64encode(b"no picture").decode()])
def test_what_is_no_picture_has_no_thumbnail(image):
    assert thumbnail(image) is None
