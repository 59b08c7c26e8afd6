"""The scenes of the demo model: coloured shapes on coloured backgrounds, drawn by code; captions.

A scene is one object (of any size, anywhere) or two small ones side by side. Lengths are in units
of half the picture's side; x grows to the right, y downwards, (0, 0) is the centre.
"""

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw

Point = tuple[float, float]
Rgb = tuple[int, int, int]

COLORS: dict[str, Rgb] = {
    "red": (220, 30, 35),
    "green": (35, 160, 60),
    "blue": (35, 70, 215),
    "yellow": (250, 220, 40),
    "orange": (250, 135, 25),
    "purple": (125, 45, 165),
    "pink": (250, 145, 190),
    "cyan": (50, 205, 225),
    "brown": (125, 75, 35),
    "gray": (128, 128, 128),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
POSITIONS: dict[str, Point] = {
    "": (0, 0),
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
    "top left": (-1, -1),
    "top right": (1, -1),
    "bottom left": (-1, 1),
    "bottom right": (1, 1),
}
OFFSET = 0.48  # of a position from the centre
SIZES = {"small": 0.32, "": 0.48, "large": 0.68}
PAIR_SIZE = 0.36
COLOR_JITTER = 4  # standard deviation, of 255
SHADE = 0.72  # how much a stripe darkens
STRIPES = 8  # across the picture
OVERSAMPLING = 2
HELD_OUT = 10  # one of this many combinations of attributes is never trained on


def _polar(radius: Callable[[float], float], corners: int) -> list[Point]:
    """The closed line at distance `radius(angle)`, beginning at the top."""
    angles = (2 * math.pi * i / corners for i in range(corners))
    return [(radius(a) * math.sin(a), -radius(a) * math.cos(a)) for a in angles]


def _heart() -> list[Point]:
    """The well-known heart curve, scaled to a half-width of 0.95."""
    angles = [2 * math.pi * i / 96 for i in range(96)]
    x = [16 * math.sin(a) ** 3 for a in angles]
    y = [
        13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)
        for a in angles
    ]
    return [(0.95 * u / 16, -0.95 * (v + 2.5) / 16) for u, v in zip(x, y, strict=True)]


_ARM = 0.34
# outlines that look about equally large, in units of the object's size
OUTLINES: dict[str, list[Point]] = {
    "circle": _polar(lambda _: 0.95, 96),
    "square": [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)],
    "triangle": [(0, -1.0), (1.04, 0.8), (-1.04, 0.8)],
    "star": _polar(lambda angle: 0.46 if round(angle * 5 / math.pi) % 2 else 1.12, 10),
    "heart": _heart(),
    "ring": _polar(lambda _: 1.0, 96),
    "cross": [
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ],
    "diamond": [(0, -1.12), (1.12, 0), (0, 1.12), (-1.12, 0)],
}  # fmt: skip
RING_HOLE = 0.52
SHAPES = tuple(OUTLINES)


@dataclass(frozen=True)
class Thing:
    """One object; an empty position is the centre, an empty size is medium."""

    shape: str
    color: str
    position: str = ""
    size: str = ""


@dataclass(frozen=True)
class Scene:
    """A background and one or two things; the first of two is on the left."""

    background: str
    things: tuple[Thing, ...]

    @property
    def is_held_out(self) -> bool:
        """Whether this combination is used for measuring only, not for training."""
        text = repr((self.background, *map(astuple, self.things)))
        return hashlib.sha256(text.encode()).digest()[0] % HELD_OUT == 0


def random_scene(rng: random.Random, pairs: float = 0.2) -> Scene:
    """Any scene; `pairs` is the share of scenes with two things."""
    background, first, second = rng.sample(list(COLORS), 3)
    if rng.random() < pairs:
        left = Thing(rng.choice(SHAPES), first, "left", "small")
        return Scene(background, (left, Thing(rng.choice(SHAPES), second, "right", "small")))
    position = rng.choice(list(POSITIONS)) if rng.random() < 0.7 else ""
    sizes = ["", "", "small"] if position else ["", "", "small", "large"]
    return Scene(background, (Thing(rng.choice(SHAPES), first, position, rng.choice(sizes)),))


def training_scene(rng: random.Random) -> Scene:
    """A scene that is not held out."""
    while (scene := random_scene(rng)).is_held_out:
        pass
    return scene


def held_out_scene(rng: random.Random) -> Scene:
    """A scene of one thing whose combination of attributes was never trained on."""
    while not (scene := random_scene(rng, pairs=0)).is_held_out:
        pass
    return scene


def mask(shape: str, center: Point, radius: float, side: int) -> Image.Image:
    """The shape as a picture of `side` x `side`: 255 inside, 0 outside, soft on the edge."""
    large = side * OVERSAMPLING

    def polygon(scale: float) -> Image.Image:
        points = [
            tuple(
                (c + scale * radius * v + 1) * large / 2 for c, v in zip(center, point, strict=True)
            )
            for point in OUTLINES[shape]
        ]
        drawn = Image.new("L", (large, large))
        ImageDraw.Draw(drawn).polygon(points, fill=255)
        return drawn

    drawn = polygon(1)
    if shape == "ring":
        drawn = ImageChops.subtract(drawn, polygon(RING_HOLE))
    return drawn.reduce(OVERSAMPLING)


def draw(scene: Scene, side: int, rng: random.Random, striped: bool = False) -> Image.Image:
    """The scene as an RGB picture of `side` x `side`; colours, sizes and places vary a little."""
    picture = Image.new("RGB", (side, side), _jittered(scene.background, rng))
    for thing in scene.things:
        radius = PAIR_SIZE if len(scene.things) > 1 else SIZES[thing.size]
        x, y = (OFFSET * v + rng.uniform(-0.05, 0.05) for v in POSITIONS[thing.position])
        color = _jittered(thing.color, rng)
        fill = _stripes(color, side) if striped else Image.new("RGB", (side, side), color)
        picture.paste(fill, mask=mask(thing.shape, (x, y), radius * rng.uniform(0.92, 1.08), side))
    return picture


def _jittered(color: str, rng: random.Random) -> Rgb:
    red, green, blue = (
        min(255, max(0, round(v + rng.gauss(0, COLOR_JITTER)))) for v in COLORS[color]
    )
    return red, green, blue


def _stripes(color: Rgb, side: int) -> Image.Image:
    """Diagonal stripes of the colour and a much darker (for dark colours: lighter) one."""
    y, x = np.mgrid[0:side, 0:side] / side
    wave = np.sin((x + y) * math.pi * STRIPES * math.sqrt(2)) > 0
    other = np.array(color) * (1 - SHADE) + (255 * SHADE if sum(color) < 200 else 0)
    pixels = np.where(wave[..., None], other, np.array(color))
    return Image.fromarray(pixels.round().astype(np.uint8))


# --------------------------------------------------------------------------------------- captions

_PLACES: dict[str, Sequence[str]] = {
    "": ("", "", " in the center", " in the middle"),
    "left": (" on the left", " at the left side"),
    "right": (" on the right", " at the right side"),
    "top": (" at the top",),
    "bottom": (" at the bottom",),
    **{
        corner: (f" in the {corner} corner", f" at the {corner}", f" in the {corner}")
        for corner in ("top left", "top right", "bottom left", "bottom right")
    },
}
_OPENINGS = ("a picture of ", "a photo of ", "an image of ", "a drawing of ")
_PRAISE = ("masterpiece, best quality, ", "best quality, ", "high quality, ", "masterpiece, ")
# usual words of prompts without a meaning here
_FILLERS = (
    "highly detailed", "sharp focus", "8k", "flat design", "vector art", "minimal", "clean lines",
    "studio lighting", "trending on artstation", "centered composition", "award winning",
    "beautiful", "simple",
)  # fmt: skip
FILLED = 0.12  # share of captions that end with fillers
WITHOUT_BACKGROUND = 0.05


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def caption(scene: Scene, rng: random.Random) -> str:
    """One of many possible captions of the scene."""
    text = _pair(scene, rng) if len(scene.things) > 1 else _single(scene, rng)
    if rng.random() < FILLED:
        text = ", ".join([text, *rng.sample(_FILLERS, rng.randint(1, 8))])
    return text


def _pair(scene: Scene, rng: random.Random) -> str:
    one, two = (_a(f"{thing.color} {thing.shape}") for thing in scene.things)
    things = rng.choice(
        (
            f"{one} and {two}",
            f"{one} on the left and {two} on the right",
            f"{one} next to {two}",
            f"{one} to the left of {two}",
        )
    )
    background = f"{scene.background} background"
    return things + rng.choice((f" on {_a(background)}", f", {background}"))


def _single(scene: Scene, rng: random.Random) -> str:
    (thing,) = scene.things
    noun = " ".join(filter(None, (thing.size, thing.color, thing.shape)))
    place = rng.choice(_PLACES[thing.position])
    background = f"{scene.background} background"
    if rng.random() < WITHOUT_BACKGROUND:
        return _a(noun) + place
    forms = {
        f"{_a(noun)}{place} on {_a(background)}": 9,
        f"{noun}{',' if place else ''}{place}, {background}": 4,
        f"{rng.choice(_OPENINGS)}{_a(noun)}{place} on {_a(background)}": 2,
        f"{_a(background)} with {_a(noun)}{place}": 2,
        f"{rng.choice(_PRAISE)}{noun}{',' if place else ''}{place}, {background}": 2,
        f"{_a(noun)}{place}, {background}": 1,
    }
    return rng.choices(list(forms), list(forms.values()))[0]
