"""Which GPU draws which picture with the images, from worker/config/gpus.py."""

from __future__ import annotations

from docs import gpu_tables
from docs.figures.svg import Drawing
from worker.config import gpus
from worker.config.gpus import Cards, Picture

PICTURES = tuple(picture for picture in gpus.PICTURES if picture.batch == 1)
LEFT, NEEDS, FIRST, COLUMN, TOP, ROW = 16, 262, 352, 80, 92, 27


def draw() -> str:
    """A row for each kind of card; in a cell the memory that the picture needs there."""
    rented = [cards for kinds in gpus.POOLS.values() for cards in kinds]
    sections = (("on RunPod", rented), ("elsewhere", list(gpus.OTHER_CARDS)))
    rows = sum(len(cards) + 1 for _, cards in sections)
    drawing = Drawing(
        FIRST + COLUMN * len(PICTURES) + 8,
        TOP + ROW * rows + 76,
        "Which GPU draws which picture",
        " ".join(_sentence(cards) for _, found in sections for cards in found),
    )
    _head(drawing)
    y = TOP
    for name, found in sections:
        drawing.text(LEFT, y + 17, name, "faint small")
        y += ROW
        for cards in found:
            _row(drawing, cards, y)
            y += ROW
    drawing.lines(LEFT, y + 22, _notes(), "faint small", 19)
    return drawing.svg()


def _notes() -> tuple[str, ...]:
    return (
        "Both images run on the same GPUs. A cell says whether the picture fits: on all such cards",
        '("yes"), on those with that much memory or more, or on none ("no"). With *: only with a',
        "VAE that works in half precision. Calculated, without --medvram.",
    )


def _head(drawing: Drawing) -> None:
    drawing.text(LEFT, TOP - 12, "GPU", "strong small")
    drawing.lines(NEEDS, TOP - 28, ("driver, at", "least"), "strong small", 16)
    for number, picture in enumerate(PICTURES):
        x = FIRST + COLUMN * number + COLUMN / 2 - 3
        name = [picture.family, "hires to" if "hires" in picture.name else "", f"{picture.side}²"]
        drawing.lines(x, TOP - 44, name, "strong small middle", 16)


def _row(drawing: Drawing, cards: Cards, y: float) -> None:
    drawing.text(LEFT, y + 17, cards.names, "small")
    if not gpus.has_code(cards.capability):
        drawing.text(NEEDS, y + 17, "the images do not run on them: torch has no code", "small")
        return
    drawing.text(NEEDS, y + 17, _driver(cards), "small")
    for number, picture in enumerate(PICTURES):
        text, colour = cell(cards, picture)
        x = FIRST + COLUMN * number
        drawing.box(x, y, COLUMN - 6, ROW - 3, colour)
        drawing.text(x + COLUMN / 2 - 3, y + 17, text, "small middle")


def cell(cards: Cards, picture: Picture) -> tuple[str, str]:
    """Its text, and the name of its colour."""
    for single, mark, colour in ((True, "", "green"), (False, "*", "yellow")):
        needed = gpus.size_for(picture.memory(single=single))
        fitting = [size for size in cards.memory if size >= needed]
        if len(fitting) == len(cards.memory):
            return f"yes{mark}", colour
        if fitting:
            return f"{fitting[0]} GB{mark}", colour
    return "no", "box"


def _driver(cards: Cards) -> str:
    return gpu_tables.driver(cards.capability)


def _sentence(cards: Cards) -> str:
    if not gpus.has_code(cards.capability):
        return f"{cards.names}: the images do not run on them."
    found = [f"{picture.name} {cell(cards, picture)[0]}" for picture in PICTURES]
    return f"{cards.names}: driver {_driver(cards)}; {', '.join(found)}."
