"""What A1111's tab "PNG Info" tells of a picture. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from worker.images.input_image import InputImage
from worker.images.parameters import parameters_of


@dataclass(frozen=True)
class PngInfo:
    """The generation parameters of a picture.

    Attributes:
        info: the infotext; empty if the picture has none.
        items: name -> text of the other texts in the file.
        parameters: the infotext's values by A1111's names.
        left_out: names of the texts in the file that were too long to read.
    """

    info: str
    items: Mapping[str, object]
    parameters: Mapping[str, object]
    left_out: tuple[str, ...] = ()


def describe(image: InputImage) -> PngInfo:
    """Read the generation parameters that the picture as sent carried."""
    info = image.infotext or ""
    return PngInfo(info, image.items, parameters_of(info), image.left_out)
