"""A picture that a job brings, after it was checked. Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class InputImage:
    """A picture that Pillow has decoded from its first to its last pixel.

    Its pixels are as people see them (turned as EXIF says), in 8 bits and one of the modes L, RGB
    and RGBA. The file has no metadata but A1111's infotext.

    Attributes:
        data: the file; as the job sent it, or encoded again as PNG.
        format: of the file: png or jpeg.
        width, height: in pixels.
        infotext: the generation parameters that the picture as sent carried; None if it had none.
        items: name -> text of the other texts that the picture as sent carried.
        left_out: names of the texts that were too long to keep.
    """

    data: bytes = field(repr=False)
    format: str
    width: int
    height: int
    infotext: str | None = field(default=None, repr=False)
    items: Mapping[str, str] = field(default_factory=dict, repr=False)
    left_out: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.width, self.height

    def base64(self) -> str:
        """The file as A1111's API takes it: base64 without a `data:` prefix."""
        return base64.b64encode(self.data).decode()
