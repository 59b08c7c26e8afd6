"""Draws the project's icon: a picture with a sun and mountains.

The page has it as an SVG (docs/generate.py writes that), and RunPod's Hub as docs/images/icon.png:

    python -m docs.figures.icon
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

PNG = Path(__file__).parents[1] / "images" / "icon.png"
SIZE, DETAIL = 512, 4  # pixels of a side; each is drawn as 4x4, so that edges are smooth

SIDE, CORNER = 32, 8  # of the drawing, in its own units
SUN, RADIUS = (12, 13), 5
MOUNTAINS = ((5, 26), (13, 18), (18, 23), (22, 19), (28, 26))
GROUND, LIGHT, SHADE = "#4f46e5", "#ffffff", "#c7d2fe"


def svg() -> str:
    """As an SVG."""
    points = " ".join(f"{x},{y}" for x, y in MOUNTAINS)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIDE} {SIDE}">'
        f'<rect width="{SIDE}" height="{SIDE}" rx="{CORNER}" fill="{GROUND}"/>'
        f'<circle cx="{SUN[0]}" cy="{SUN[1]}" r="{RADIUS}" fill="{LIGHT}"/>'
        f'<polygon points="{points}" fill="{SHADE}"/></svg>\n'
    )


def picture() -> Image.Image:
    """As an image of 512x512 with transparent corners."""
    unit = SIZE * DETAIL // SIDE
    image = Image.new("RGBA", (SIZE * DETAIL, SIZE * DETAIL))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((0, 0, SIDE * unit - 1, SIDE * unit - 1), CORNER * unit, GROUND)
    box = tuple(unit * (centre + way * RADIUS) for way in (-1, 1) for centre in SUN)
    draw.ellipse(box, LIGHT)
    draw.polygon([(x * unit, y * unit) for x, y in MOUNTAINS], SHADE)
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    picture().save(PNG, optimize=True)
