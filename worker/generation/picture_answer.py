"""What the engine returned for a request to draw. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from worker.generation.payload import Expected


@dataclass(frozen=True)
class PictureAnswer:
    """What txt2img or img2img returned.

    Attributes:
        images: base64 PNG without `data:` prefix.
        parameters: the request as the engine understood it, without the pictures in it.
        info: A1111's JSON string with what the pictures were made from.
        facts: `info`, parsed; `worker.generation.answers.facts` has the types of its fields.
    """

    images: list[str]
    parameters: dict[str, Any]
    info: str
    facts: dict[str, Any]

    def without_maps(self, expected: Expected) -> PictureAnswer:
        """The answer without the maps that ControlNet appends to the pictures."""
        maps = expected.units.maps if expected.units else 0
        return replace(self, images=self.images[:-maps]) if maps else self

    @property
    def grids(self) -> int:
        """Number of grids, which come before the pictures."""
        return int(self.facts.get("index_of_first_image") or 0)

    @property
    def seeds(self) -> list[int | None]:
        """The seed of each image; None of a grid, or where the engine does not report it."""
        known = self.facts.get("all_seeds")
        pictures = len(self.images) - self.grids
        if not isinstance(known, list) or len(known) != pictures:
            known = [None] * pictures
        seeds = [seed if isinstance(seed, int) else None for seed in known]
        return [*[None] * self.grids, *seeds]
