"""Pictures as files, in the forms that jobs bring."""

import base64
import io
import struct
import zlib

import piexif
import piexif.helper
from PIL import Image, PngImagePlugin

SIZE = (6, 4)
INFOTEXT = (
    "a (fox)\nNegative prompt: blurry\nSteps: 8, Sampler: Euler a, CFG scale: 4, Seed: 1,"
    ' Size: 128x192, Model: demo, Lora hashes: "a: 12, b: 34", Version: v1.9.3'
)


def picture(mode="RGB", size=SIZE):
    """A picture without symmetry: turned or mirrored, it is another one."""
    image = Image.new("L", size)
    image.putdata([(7 + 11 * number) % 256 for number in range(size[0] * size[1])])
    if mode.startswith("I;16"):
        order = "big" if mode.endswith("B") else "little"
        values = [(256 * value + 200).to_bytes(2, order) for value in image.tobytes()]
        return Image.frombytes(mode, size, b"".join(values))
    return image.convert(mode)


def file_of(image=None, format_="PNG", **options):
    file = io.BytesIO()
    (image or picture()).save(file, format_, **options)
    return file.getvalue()


def exif(**tags):
    return piexif.dump({"0th": {getattr(piexif.ImageIFD, name): tag for name, tag in tags.items()}})


def comment(text, encoding="unicode"):
    """EXIF with a UserComment as A1111 writes it."""
    field = piexif.helper.UserComment.dump(text, encoding=encoding)
    return piexif.dump({"Exif": {piexif.ExifIFD.UserComment: field}})


def png_texts(**texts):
    chunks = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        chunks.add_text(name, text)
    return file_of(pnginfo=chunks)


def png_header(width, height):
    """A PNG that claims a size and has no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = [
        struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one))
        for one in (chunk, data)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff_bomb(entries, size):
    """A TIFF whose entries all point to the same bytes: each is read anew."""
    start = 8 + 2 + 12 * entries + 4
    directory = [struct.pack("<HHII", 300 + number, 7, size, start) for number in range(entries)]
    head = b"II*\0" + struct.pack("<IH", 8, entries)
    return head + b"".join(directory) + bytes(4) + bytes(size)


def text_of(data):
    return base64.b64encode(data).decode()
