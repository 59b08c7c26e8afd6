"""Pictures from outside: their files, their texts, and the text that carries them."""

import base64
import io
import json
from dataclasses import replace
from functools import cache

from PIL import Image, PngImagePlugin

from tests.fuzz.prompts import INFO
from tests.fuzz.target import target
from worker.errors import DeliveryFailed, InvalidInput
from worker.generation import picture
from worker.images import base64_text, decoder, metadata
from worker.images.input_image import InputImage
from worker.images.limits import ImageLimits
from worker.images.png_info import describe
from worker.images.signatures import what_it_is
from worker.job.image_fields import is_url, payload_start

LIMITS = ImageLimits(side=256, text_bytes=2_000)
EXIF = picture._exif("a fox\nSteps: 1")
NOVELAI = {"Software": "NovelAI", "Description": "a", "Comment": '{"sampler": "ddim", "uc": "b"}'}


@cache
def files():
    """Small pictures of each format, some with texts."""
    found = []
    base = Image.effect_noise((16, 12), 40)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        mode = "L" if kind == "GIF" else "RGB"
        more = {"exif": EXIF} if kind in {"JPEG", "WEBP", "TIFF"} else {}
        base.convert(mode).save(file := io.BytesIO(), kind, **more)
        found.append(file.getvalue())
    for mode in ("1", "P", "LA", "RGBA", "I;16"):
        source = base.convert("I").convert("I;16") if mode == "I;16" else base.convert(mode)
        source.save(file := io.BytesIO(), "PNG")
        found.append(file.getvalue())
    texts = PngImagePlugin.PngInfo()
    for name, text in {"parameters": "a\nSteps: 1, Sampler: x, Seed: 1", **NOVELAI}.items():
        texts.add_text(name, text)
    texts.add_itxt("x", "ä" * 99, "en", "x", zip=True)
    base.save(file := io.BytesIO(), "PNG", pnginfo=texts, exif=EXIF)
    frames = [base.convert("L"), base.convert("L").rotate(90)]
    frames[0].save(moving := io.BytesIO(), "GIF", save_all=True, append_images=frames[1:])
    return [*found, file.getvalue(), moving.getvalue()]


def check_image(image):
    """What the engine and the caller get of a picture."""
    assert max(image.size) <= LIMITS.side
    described = describe(image)
    json.dumps([described.info, dict(described.items), dict(described.parameters)])
    described.info.encode()


@target(InvalidInput, seconds=2.0, share=1.5)
def picture_file(draw):
    """A picture's file in any format."""
    data = draw.blob(files())
    try:
        check_image(decoder.decode(data, LIMITS))
    except InvalidInput as error:
        assert len(str(error)) < 600
        assert str(error).isprintable()


@target(InvalidInput)
def picture_text(draw):
    """The text that carries a picture: base64, a data URI, a URL."""
    whole = base64.b64encode(files()[0]).decode()
    text = draw.text(("data:image/png;base64,", "QUJD", "=", "-_", "\n", "https://x", whole))
    is_url(text)
    payload_start(text)
    what_it_is(base64_text.decoded(text))


@target(DeliveryFailed, seconds=2.0)
def picture_of_the_engine(draw):
    """A picture in an answer of the engine, converted for the caller."""
    data = draw.blob(files())
    text = base64.b64encode(data).decode() if draw.randrange(8) else draw.text(("QUJD", "="))
    size = picture.size_of(text)
    assert size is None or min(size) >= 0
    found = picture.thumbnail(text) if len(data) < 5_000 else None
    assert found is None or base64.b64decode(found)
    made = picture.from_engine(text, draw.choice(("png", "jpeg", "webp")), 50)
    assert made.size == len(made.data)


@target()
def picture_texts(draw):
    """What stands in a picture's metadata."""
    items = {
        draw.choice((*NOVELAI, "prompt", draw.text())): draw.text([*INFO, *NOVELAI.values()])
        for _ in range(draw.randrange(5))
    }
    if draw.randrange(2):
        comment = draw.json([json.loads(NOVELAI["Comment"])]).decode("utf-8", "replace")
        items |= NOVELAI | {"Comment": comment}
    image = InputImage(b"", "png", 1, 1, draw.text(INFO), items)
    describe(image)
    describe(replace(image, infotext=None))
    metadata._of_user_comment(draw.choice((b"UNICODE\0", b"ASCII\0\0\0", b"")) + draw.rest())
