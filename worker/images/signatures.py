"""Says what a file is that is not an accepted picture, from its first bytes. Pure."""

from __future__ import annotations

_LOOKED_AT = 512  # bytes

_STARTS = {
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"8BPS": "a Photoshop document",
    b"\xff\x0a": "a JPEG XL picture, which is not accepted",
    b"\0\0\0\x0cJXL ": "a JPEG XL picture, which is not accepted",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 picture, which is not accepted",
    b"\0\0\x01\0": "an icon, which is not accepted",
    b"\x1aE\xdf\xa3": "a video",
    b"{": "JSON",
    b"[": "JSON",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself",
    b"\x89PNG\r\n\x1a\n": "a PNG whose start is damaged",
    b"\xff\xd8\xff": "a JPEG whose start is damaged",
    b"GIF8": "a GIF whose start is damaged",
    b"BM": "a BMP whose start is damaged",
    b"II*\0": "a TIFF whose start is damaged",
    b"MM\0*": "a TIFF whose start is damaged",
}
# Of a container of ISO's base media format: the brand is at byte 8.
_BRANDS = {
    b"avif": "an AVIF whose start is damaged",
    b"avis": "an AVIF whose start is damaged",
    **dict.fromkeys(
        (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"),
        "a HEIC picture, which is not accepted",
    ),
}


def what_it_is(data: bytes) -> str:
    """A name with its article, as `a PDF document`."""
    head = data[:_LOOKED_AT]
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "a video")
    if head[:4] == b"RIFF":
        return "a WebP whose start is damaged" if head[8:12] == b"WEBP" else "a video or a sound"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if b"<svg" in text:
        return "an SVG drawing, which is not accepted"
    for start, name in _STARTS.items():
        if text.startswith(start.lower()) or head.startswith(start):
            return name
    return "not a picture" if len(data) > len(head) or head.strip() else "empty"
