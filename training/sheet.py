"""Make the sheet of docs/demo-model.md: prompts that were never trained on, not selected.

`python -m training.sheet MODELS_DIR OUT.png`: 24 pictures with their prompts, and the last eight
again with the LoRA.
"""

import argparse
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw

from engine.models.loaded_model import LoadedModel, plain_settings
from engine.models.loras import Loras, LoraUse
from training import adherence

COLUMNS, ROWS = 8, 3
SIDE, SHOWN, GAP, TEXT = 256, 160, 8, 44
SEED = 1  # of the prompts; the measurement uses other ones


def draw(model: LoadedModel, lora: LoraUse) -> Image.Image:
    """The whole sheet; picture i has seed i."""
    asked = [text for _, text in adherence.prompts(COLUMNS * ROWS, SEED)]
    settings = [plain_settings("Euler a", 20, i, (SIDE, SIDE), 4.0) for i in range(len(asked))]
    pictures = [adherence.picture(model, *pair) for pair in zip(asked, settings, strict=True)]
    with model.with_loras([lora]):
        again = [
            adherence.picture(model, *pair)
            for pair in zip(asked[-COLUMNS:], settings[-COLUMNS:], strict=True)
        ]
    texts = [*asked, *(f"the same with <lora:{lora.lora.name}:1>" for _ in again)]
    return arrange([*pictures, *again], texts)


def arrange(pictures: list[Image.Image], texts: list[str]) -> Image.Image:
    """Pictures in rows, each above its text."""
    width, height = SHOWN + GAP, SHOWN + TEXT
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        x, y = number % COLUMNS * width, number // COLUMNS * height
        sheet.paste(picture.resize((SHOWN, SHOWN)), (x, y))
        pen.multiline_text((x, y + SHOWN + 2), textwrap.fill(text, 27), "black")
    return sheet


def main() -> None:
    """The command line: make the sheet with the models of a folder in A1111's layout."""
    parser = argparse.ArgumentParser(prog="python -m training.sheet", description=__doc__)
    parser.add_argument("models", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    model = adherence.load(given.models / "Stable-diffusion" / "demo-shapes.safetensors")
    (lora,) = Loras(given.models / "Lora").all
    draw(model, LoraUse(lora, 1, 1)).save(given.out)


if __name__ == "__main__":
    main()
