"""How well pictures match their prompts, measured from the pixels, without a model.

`python -m training.adherence CHECKPOINT` makes pictures of 200 scenes that were never trained on,
with the embedded engine's code, and prints the share of pictures with the right background colour,
object colour, position and shape.
"""

import argparse
import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine.models.checkpoints import Checkpoint, old_hash
from engine.models.loaded_model import LoadedModel, PictureSettings, plain_settings
from engine.prompt.encoding import TextOptions
from engine.sampling.noise import Seeds
from training import scenes

Pixels = np.ndarray[Any, np.dtype[Any]]

PROMPTS = 200
FOREGROUND = 60  # distance in RGB from the background's colour
SMALLEST = 8  # pixels of an object
TEMPLATE = 48  # side of the compared masks
CENTER = 0.25  # an object nearer than this to an axis is centered on it


@dataclass(frozen=True)
class Seen:
    """The recognized attributes; the shape is empty if there is no object."""

    background: str
    color: str = ""
    shape: str = ""
    position: str = ""


def look(picture: Image.Image) -> Seen:
    """The background from the picture's border, the object from the pixels that differ from it."""
    pixels = np.asarray(picture.convert("RGB"), dtype=float)
    background = np.median(np.concatenate([*pixels[[0, 1, -2, -1]], *pixels[:, [0, 1, -2, -1]]]), 0)
    mask = np.linalg.norm(pixels - background, axis=-1) > FOREGROUND
    if mask.sum() < SMALLEST:
        return Seen(_color(background))
    return Seen(
        _color(background), _color(np.median(pixels[mask], 0)), _shape(mask), _position(mask)
    )


def _color(rgb: Pixels) -> str:
    return min(scenes.COLORS, key=lambda name: np.linalg.norm(rgb - scenes.COLORS[name]))


def _position(mask: Pixels) -> str:
    """The position of the middle of the object's box."""
    middles = ((line[0] + line[-1] + 1) / len(mask) - 1 for line in _extent(mask))
    x, y = (0 if abs(v) < CENTER else int(np.sign(v)) for v in middles)
    return next(name for name, place in scenes.POSITIONS.items() if place == (x, y))


def _extent(mask: Pixels) -> tuple[Pixels, Pixels]:
    """The columns and the rows in which the mask is not empty."""
    return np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))


def _shape(mask: Pixels) -> str:
    """The shape whose template overlaps most with the object, both scaled to the same box."""
    seen = _stretched(mask)

    def overlap(name: str) -> float:
        template = _template(name)
        return float((seen & template).sum() / (seen | template).sum())

    return max(scenes.SHAPES, key=overlap)


@cache
def _template(name: str) -> Pixels:
    return _stretched(np.asarray(scenes.mask(name, (0, 0), 0.8, 4 * TEMPLATE)) > 127)


def _stretched(mask: Pixels) -> Pixels:
    columns, rows = _extent(mask)
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scaled = Image.fromarray(box.astype(np.uint8) * 255).resize((TEMPLATE, TEMPLATE))
    return np.asarray(scaled) > 127


@dataclass(frozen=True)
class Score:
    """Shares of pictures, 0 to 1."""

    background: float
    color: float
    position: float
    shape: float
    all: float

    @classmethod
    def of(cls, pairs: Iterable[tuple[scenes.Scene, Seen]]) -> "Score":
        """The score of pairs of (requested scene, recognized attributes)."""
        rows = [
            (
                seen.background == scene.background,
                seen.color == scene.things[0].color,
                seen.position == scene.things[0].position,
                seen.shape == scene.things[0].shape,
            )
            for scene, seen in pairs
        ]
        table = np.array(rows, dtype=float)
        background, color, position, shape = map(float, table.mean(0))
        return cls(background, color, position, shape, float(table.all(1).mean()))

    def __str__(self) -> str:
        return ", ".join(f"{name} {share:.1%}" for name, share in vars(self).items())


def prompts(count: int, seed: int = 0) -> list[tuple[scenes.Scene, str]]:
    """Scenes of one object that were never trained on, each with a caption."""
    rng = random.Random(seed)
    found: list[tuple[scenes.Scene, str]] = []
    while len(found) < count:
        scene = scenes.held_out_scene(rng)
        text = scenes.caption(scene, rng)
        if scene.background in text:  # some captions do not name it
            found.append((scene, text))
    return found


def load(path: Path) -> LoadedModel:
    """The checkpoint as the embedded engine loads it."""
    return LoadedModel.load(Checkpoint(path, path.name, old_hash(path)), sha256="")


def picture(model: LoadedModel, prompt: str, settings: PictureSettings) -> Image.Image:
    """One picture, as the embedded engine makes it."""
    calls = settings.sampling.sampler.calls(settings.sampling.steps)
    conditioning = model.text_encoder(TextOptions()).conditioning(prompt, "", calls)
    return model.picture(conditioning, settings)


def measure(model: LoadedModel, count: int, settings: PictureSettings) -> Score:
    """The score of `count` pictures; picture i has the seed of `settings` plus i."""
    wanted = prompts(count)
    pictures = (
        picture(model, text, replace(settings, seeds=Seeds(settings.seeds.seed + i)))
        for i, (_, text) in enumerate(wanted)
    )
    return Score.of((scene, look(p)) for (scene, _), p in zip(wanted, pictures, strict=True))


def main() -> None:
    """The command line: measure a checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m training.adherence", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg-scale", type=float, default=4.0)
    parser.add_argument("--sampler", default="Euler a")
    given = parser.parse_args()
    size = (given.side, given.side)
    settings = plain_settings(given.sampler, given.steps, 0, size, given.cfg_scale)
    sys.stdout.write(f"{measure(load(given.checkpoint), given.prompts, settings)}\n")


if __name__ == "__main__":
    main()
