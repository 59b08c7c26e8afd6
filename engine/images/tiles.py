"""A picture is upscaled in overlapping tiles, which are joined as A1111 joins them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

# a model: (picture) -> the picture, some whole number of times as large
Enlarging = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Tiling:
    """A1111's options `ESRGAN_tile` and `ESRGAN_tile_overlap`, in pixels; side 0 means no tiles."""

    side: int = 192
    overlap: int = 8

    def __post_init__(self) -> None:
        if self.side and self.side <= self.overlap:
            raise ValueError(
                f"ESRGAN_tile ({self.side}) must exceed ESRGAN_tile_overlap ({self.overlap})"
            )

    def enlarge(
        self, picture: Image.Image, model: Enlarging, stop: Callable[[], bool]
    ) -> Image.Image:
        """The enlarged picture; the picture itself if `stop` returns true before a tile."""
        if not self.side:
            return model(picture)
        columns, rows = self._starts(picture.width), self._starts(picture.height)
        found: list[list[Image.Image]] = []
        for top in rows:
            found.append([])
            for left in columns:
                if stop():
                    return picture
                box = (left, top, left + self.side, top + self.side)
                found[-1].append(model(picture.crop(box)))
        return self._join(found, columns, rows, picture.size)

    def _starts(self, length: int) -> list[int]:
        """Where the tiles of a side begin. A side shorter than a tile is made longer in front."""
        step = self.side - self.overlap
        count = max(math.ceil((length - self.overlap) / step), 1)
        distance = (length - self.side) / (count - 1) if count > 1 else 0.0
        # the last one ends with the picture: A1111's can end a pixel before, and leave a black line
        return [*(int(i * distance) for i in range(count - 1)), length - self.side]

    def _join(
        self,
        tiles: list[list[Image.Image]],
        columns: list[int],
        rows: list[int],
        size: tuple[int, int],
    ) -> Image.Image:
        factor = tiles[0][0].width // self.side
        width, height = size[0] * factor, size[1] * factor
        overlap = self.overlap * factor
        lines = []
        for line in tiles:
            whole = Image.new("RGB", (width, self.side * factor))
            for left, tile in zip(columns, line, strict=True):
                _paste(whole, tile, (left * factor, 0), overlap, across=True)
            lines.append(whole)
        joined = Image.new("RGB", (width, height))
        for top, whole in zip(rows, lines, strict=True):
            _paste(joined, whole, (0, top * factor), overlap, across=False)
        return joined


def _paste(
    target: Image.Image, tile: Image.Image, at: tuple[int, int], overlap: int, *, across: bool
) -> None:
    """Paste a tile; over its first `overlap` pixels it fades in, except at the picture's border."""
    if at == (0, 0) or not overlap:
        target.paste(tile, at)
        return
    end = (overlap, tile.height) if across else (tile.width, overlap)
    rest = (overlap, 0) if across else (0, overlap)
    ramp = (np.arange(overlap, dtype=np.float32) * 255 / overlap).astype(np.uint8)
    levels = ramp[None] if across else ramp[:, None]
    fade = Image.fromarray(np.ascontiguousarray(np.broadcast_to(levels, end[::-1])))
    target.paste(tile.crop((0, 0, *end)), at, mask=fade)
    after = tile.crop((*rest, tile.width, tile.height))
    target.paste(after, (at[0] + rest[0], at[1] + rest[1]))
