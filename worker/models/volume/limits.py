"""How files are sent to a network volume."""

from __future__ import annotations

from dataclasses import dataclass

MOST_PARTS = 10_000  # of S3


@dataclass(frozen=True)
class SendLimits:
    """Sizes, attempts and waits of an upload.

    Attributes:
        part: bytes of each part of a file. A killed run loses at most `at_once` of them, and
            `at_once` of them are in memory. RunPod accepts up to 500 MB.
        at_once: parts of one file that are sent in parallel.
        attempts: for each request.
        first_attempts: for the first request, whose host name may be wrong.
        first_pause: seconds between the first two attempts; each further pause doubles.
        longest_pause: seconds.
        connect_timeout, read_timeout: seconds; RunPod computes checksums before it answers.
        completions: requests to put the parts of a file together.
        looks: how often it is checked after each of them whether the file is there.
        look_pause: seconds between these checks.
    """

    part: int = 16 << 20
    at_once: int = 4
    attempts: int = 8
    first_attempts: int = 3
    first_pause: float = 1.0
    longest_pause: float = 30.0
    connect_timeout: float = 15.0
    read_timeout: float = 180.0
    completions: int = 3
    looks: int = 12
    look_pause: float = 5.0

    def part_size(self, size: int) -> int:
        """Bytes of each part of a file of `size` bytes, so that S3's 10,000 parts are enough.

        >>> SendLimits(part=16).part_size(7), SendLimits(part=16).part_size(320_001)
        (16, 48)
        """
        return self.part * max(1, -(-size // (self.part * MOST_PARTS)))


DEFAULT = SendLimits()
