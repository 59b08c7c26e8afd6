"""The limits on the pictures that a job brings. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from worker.errors import InvalidInput

MiB = 1 << 20


@dataclass(frozen=True)
class ImageLimits:
    """Limits on the pictures of one job.

    Attributes:
        count: pictures of a job.
        file_bytes: bytes of one picture's file.
        total_bytes: bytes of all files together.
        side: pixels of a picture's width and of its height.
        total_pixels: pixels of all pictures together: they are in memory at the same time.
        text_bytes: UTF-8 bytes of a picture's metadata that are read.
        fetch_seconds: time for all URLs of a job.
        attempts: requests for one URL.
        fetch_threads: URLs of a job that are fetched at the same time.
        first_pause: seconds before the second attempt; then 2, 4, ... times that.
        longest_pause: seconds that a host can ask for before the next attempt.
        decode_seconds: time to decode all pictures of a job.
        decode_memory: bytes of memory of the process that decodes them.
    """

    count: int = 64
    file_bytes: int = 32 * MiB
    total_bytes: int = 128 * MiB
    side: int = 8192
    total_pixels: int = 2 * 8192 * 8192
    text_bytes: int = MiB
    fetch_seconds: float = 60.0
    attempts: int = 4
    fetch_threads: int = 4
    first_pause: float = 0.5
    longest_pause: float = 10.0
    decode_seconds: float = 120.0
    decode_memory: int = 3072 * MiB


IMAGE_LIMITS = ImageLimits()
_HINT = "Send a smaller picture, for example as JPEG or WebP."


def check_file(size: int, limits: ImageLimits) -> None:
    """Check the size of a picture's file in bytes.

    Raises:
        InvalidInput: it is too large.
    """
    if size > limits.file_bytes:
        raise InvalidInput(
            f"the picture's file has {size / 1e6:.1f} MB or more; at most"
            f" {limits.file_bytes / 1e6:.1f} MB are accepted.",
            hint=_HINT,
        )


def check_files(field: str, files: Collection[bytes], limits: ImageLimits) -> None:
    """Check the size of all files of a job.

    Raises:
        InvalidInput: names the field with which they became too large.
    """
    if sum(map(len, files)) > limits.total_bytes:
        raise InvalidInput(
            f"{field}: with this one, the pictures of the job have more than"
            f" {limits.total_bytes / 1e6:.0f} MB.",
            hint="Send fewer or smaller pictures.",
        )
