"""The pictures that the recorded requests of `recorded/tasks.json` bring, made by their names.

    picture("rotated.jpg") -> bytes

A1111's answers were recorded with these pictures, so a fake or another engine can be asked the
same. Their pixels may differ a little between versions of Pillow; forms, sizes and faults do not.
"""

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, PngImagePlugin

MASKED = (32, 32, 96, 80)  # left, top, right, bottom of the masks' white part
ROTATED = 6  # EXIF orientation: to be turned by 90 degrees
EXIF_ORIENTATION, EXIF_PARENT, USER_COMMENT = 0x112, 0x8769, 0x9286
BYTE, LONG, UNDEFINED = 1, 4, 7  # kinds of EXIF values
INFOTEXT = (
    "a fox\nNegative prompt: blurry\nSteps: 8, Sampler: Euler a, CFG scale: 4, Seed: 1,"
    " Size: 128x128, Model: demo, Version: v1.9.3"
)
PARAMETERS = (
    "a fox <lora:kohya:0.5>\nNegative prompt: blurry\nSteps: 8, Sampler: Euler a, Schedule type:"
    " Automatic, CFG scale: 4, Seed: 1, Size: 128x128, Model hash: 0123456789, Model: demo,"
    " Clip skip: 2, Version: v1.9.3"
)
NOVELAI = {
    "Software": "NovelAI",
    "Description": "a fox",
    "Comment": '{"steps":28,"sampler":"k_euler","seed":5,"scale":11.0,"uc":"lowres"}',
    "Source": "NAI",
}
COMFYUI = {"prompt": '{"3": {"class_type": "KSampler"}}', "workflow": '{"nodes": []}'}


def scene(width: int = 128, height: int = 128) -> Image.Image:
    """A red circle, a blue rectangle and a green triangle on a light background."""
    image = Image.new("RGB", (width, height), (240, 240, 235))
    draw = ImageDraw.Draw(image)
    x, y = width / 100, height / 100
    draw.ellipse((x * 15, y * 15, x * 60, y * 70), fill=(205, 40, 35))
    draw.rectangle((x * 55, y * 60, x * 95, y * 95), fill=(40, 80, 200))
    draw.polygon([(x * 75, y * 10), (x * 95, y * 40), (x * 55, y * 40)], fill=(30, 150, 60))
    return image


def mask(place: tuple[int, int, int, int] = MASKED) -> Image.Image:
    """A mask of 128 x 128 pixels that is white at `place`."""
    image = Image.new("L", (128, 128), 0)
    image.paste(255, place)
    return image


def _with_alpha(alpha: int, background: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("RGBA", (128, 128), background)
    image.paste((255, 255, 255, alpha), MASKED)
    return image


def _half_transparent() -> Image.Image:
    image = scene().convert("RGBA")
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 64, 128))
    image.putalpha(alpha)
    return image


def _gray(kind: type, factor: float) -> Image.Image:
    values = np.asarray(scene().convert("L"), dtype=np.float64) * factor
    return Image.fromarray(values.astype(kind))


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    """The picture as a file of this format."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _png_text(texts: dict[str, str], *, international: bool = False) -> bytes:
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        (info.add_itxt if international else info.add_text)(key, text)
    return saved(scene(), "PNG", pnginfo=info)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(side: int, depth: int, rows: bytes) -> bytes:
    """An RGB PNG of `depth` bits that states this side, whatever its rows contain."""
    header = struct.pack(">IIBBBBB", side, side, depth, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)


def _rgb16() -> bytes:
    rows = np.asarray(scene()).astype(">u2") * 257
    return raw_png(128, 16, b"".join(b"\0" + row.tobytes() for row in rows))


def _animated(form: str, **options: Any) -> bytes:
    upside_down = scene().transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return saved(scene(), form, save_all=True, append_images=[upside_down], **options)


def _exif(form: str, comment: bytes, kind: int = UNDEFINED) -> bytes:
    """A picture whose EXIF data has this UserComment; Pillow itself writes it as kind BYTE."""
    first = struct.pack("<4sIHHHIII", b"II*\0", 8, 1, EXIF_PARENT, LONG, 1, 26, 0)
    second = struct.pack("<HHHIII", 1, USER_COMMENT, kind, len(comment), 44, 0)
    return saved(scene(), form, exif=b"Exif\0\0" + first + second + comment)


def _rotated(form: str, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = ROTATED
    return saved(scene(192, 96), form, exif=exif, **options)


def _damaged(name: str) -> bytes:
    png, jpeg = saved(scene(), "PNG"), saved(scene(), "JPEG", quality=95)
    return {
        "truncated.png": png[: len(png) * 2 // 3],
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "trailing.png": png + b"x" * 100,
        "header_only.png": png[:40],
        "bad_crc.png": png[:60] + bytes([png[60] ^ 255]) + png[61:],
    }[name]


UNICODE, ASCII = b"UNICODE\0" + INFOTEXT.encode("utf-16-be"), b"ASCII\0\0\0" + INFOTEXT.encode()
PALETTE_ALPHA = bytes([0, 128, *[255] * 14])

PNGS: dict[str, Callable[[], Image.Image]] = {
    "source": scene,
    "other": lambda: scene().transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "wide": lambda: scene(192, 96),
    "tall": lambda: scene(96, 192),
    "odd": lambda: scene(101, 67),
    "small": lambda: scene(64, 64),
    "tiny16": lambda: scene(16, 16),
    "pixel": lambda: Image.new("RGB", (1, 1), (200, 30, 30)),
    "line": lambda: scene(128, 1),
    "flat64x32": lambda: Image.new("RGB", (64, 32), (10, 20, 30)),
    "flat32x64": lambda: Image.new("RGB", (32, 64), (10, 20, 30)),
    "mask": mask,
    "mask_rgb": lambda: mask().convert("RGB"),
    "mask_1": lambda: mask().convert("1"),
    "mask_la": lambda: Image.merge("LA", (Image.new("L", (128, 128), 255), mask())),
    "mask_rgba_alpha": lambda: _with_alpha(255, (255, 255, 255, 0)),
    "mask_rgba_opaque": lambda: _with_alpha(255, (0, 0, 0, 255)),
    "mask_rgba_half": lambda: _with_alpha(128, (0, 0, 0, 0)),
    "mask_gray": lambda: mask().point(lambda value: value // 2),
    "mask_gradient": lambda: Image.linear_gradient("L").resize((128, 128)),
    "mask_black": lambda: Image.new("L", (128, 128), 0),
    "mask_white": lambda: Image.new("L", (128, 128), 255),
    "mask_small": lambda: mask().resize((32, 32), Image.Resampling.NEAREST),
    "mask_wide": lambda: mask().resize((192, 96)),
    "mask_big": lambda: mask().resize((512, 512)),
    "mask_pixel": lambda: Image.new("L", (1, 1), 255),
    "mask_thin": lambda: mask((60, 60, 61, 61)),
    "mask_edge": lambda: mask((100, 100, 128, 128)),
    "palette": lambda: scene().quantize(16),
    "gray": lambda: scene().convert("L"),
    "gray_alpha": lambda: scene().convert("LA"),
    "one_bit": lambda: scene().convert("1"),
    "gray16": lambda: _gray(np.uint16, 257),
    "alpha": _half_transparent,
    "transparent": lambda: Image.new("RGBA", (128, 128), (205, 40, 35, 0)),
}
OTHERS: dict[str, Callable[[], bytes]] = {
    "palette_transparent_index.png": lambda: saved(scene().quantize(16), "PNG", transparency=0),
    "palette_transparent_bytes.png": lambda: saved(
        scene().quantize(16), "PNG", transparency=PALETTE_ALPHA
    ),
    "rgb16.png": _rgb16,
    "int32.tif": lambda: saved(_gray(np.int32, 257), "TIFF"),
    "float.tif": lambda: saved(_gray(np.float32, 1 / 255), "TIFF"),
    "cmyk.jpg": lambda: saved(scene().convert("CMYK"), "JPEG", quality=95),
    "cmyk.tif": lambda: saved(scene().convert("CMYK"), "TIFF"),
    "lab.tif": lambda: saved(Image.merge("LAB", scene().split()), "TIFF"),
    "plain.jpg": lambda: saved(scene(), "JPEG", quality=95),
    "plain.webp": lambda: saved(scene(), "WEBP", lossless=True),
    "plain.gif": lambda: saved(scene().quantize(64), "GIF"),
    "plain.ico": lambda: saved(scene(64, 64), "ICO", sizes=[(64, 64)]),
    "plain.jp2": lambda: saved(scene(), "JPEG2000"),
    "bitmap.bmp": lambda: saved(scene(), "BMP"),
    "animated.gif": lambda: _animated("GIF", duration=100),
    "animated.png": lambda: _animated("PNG", duration=100),
    "animated.webp": lambda: _animated("WEBP", duration=100, lossless=True),
    "pages.tif": lambda: _animated("TIFF"),
    "rotated.jpg": lambda: _rotated("JPEG", quality=95),
    "rotated.png": lambda: _rotated("PNG"),
    "rotated.webp": lambda: _rotated("WEBP", lossless=True),
    "bomb_header.png": lambda: raw_png(60_000, 8, b"\0" * 1000),
    "text.txt": lambda: b"hello, no picture",
    "page.html": lambda: b"<html><body>404</body></html>",
    "picture.svg": lambda: b"<svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'/>",
    "info.png": lambda: _png_text({"parameters": PARAMETERS}),
    "info_itxt.png": lambda: _png_text(
        {"parameters": PARAMETERS.replace("fox", "füchs 狐")}, international=True
    ),
    "info_comfyui.png": lambda: _png_text(COMFYUI),
    "info_novelai.png": lambda: _png_text(NOVELAI),
    "info_odd.png": lambda: _png_text({"parameters": "Steps"}),
    "info_unicode.jpg": lambda: _exif("JPEG", UNICODE),
    "info_unicode.webp": lambda: _exif("WEBP", UNICODE),
    "info_unicode.avif": lambda: _exif("AVIF", UNICODE),
    "info_ascii.jpg": lambda: _exif("JPEG", ASCII),
    "info_ascii.webp": lambda: _exif("WEBP", ASCII),
    "info_raw.jpg": lambda: _exif("JPEG", INFOTEXT.encode()),
    "info_byte_comment.jpg": lambda: _exif("JPEG", ASCII, BYTE),
    "info_no_comment.jpg": lambda: _exif("JPEG", b""),
    "info_bad_exif.jpg": lambda: saved(scene(), "JPEG", exif=b"Exif\0\0garbage"),
    "info_comment.gif": lambda: saved(scene().quantize(16), "GIF", comment=INFOTEXT.encode()),
    "info_jpeg_comment.jpg": lambda: saved(scene(), "JPEG", comment=INFOTEXT.encode()),
}
PLAIN = {"tif": "TIFF", "ppm": "PPM", "tga": "TGA", "pcx": "PCX", "avif": "AVIF", "eps": "EPS"}
PLAIN |= {"pdf": "PDF"}


@cache
def picture(name: str) -> bytes:
    """The content of the input picture `name`. Raises KeyError for another name."""
    stem, _, ending = name.rpartition(".")
    if ending == "png" and stem in PNGS:
        return saved(PNGS[stem](), "PNG")
    if name in OTHERS:
        return OTHERS[name]()
    if stem == "plain" and ending in PLAIN:
        return saved(scene(), PLAIN[ending])
    return _damaged(name)
