"""Pictures of a real A1111 v1.9.3 with a tiny checkpoint of each family, and the engine's.

`python -m benchmarks.parity.families` makes the checkpoints, and recorded the pictures.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.parity import families
from engine.api.drawing import Drawing, Models
from engine.api.job import Job
from engine.api.library import Library
from engine.api.options import DEFAULTS
from engine.api.progress import Progress
from engine.api.request import Txt2Img
from engine.models.checkpoints import Checkpoint
from engine.models.loaded_model import LoadedModel

FOLDER = Path(__file__).parent
REQUESTS = json.loads((FOLDER / "families.json").read_text(encoding="utf-8"))
SHEET = np.asarray(Image.open(FOLDER / "families.png"), dtype=int)
LARGEST_MEAN = 0.5  # of 255; the last bits of a float differ between processors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    families.write(folder)
    return folder


@pytest.fixture(scope="module")
def load():
    return cache(lambda checkpoint: LoadedModel.load(checkpoint, ""))


def tile(name):
    """A1111's picture of this request."""
    side = families.SIDE
    y, x = (side * part for part in divmod(list(REQUESTS).index(name), SHEET.shape[1] // side))
    return SHEET[y : y + side, x : x + side]


@pytest.mark.parametrize("name", REQUESTS)
def test_same_seed_same_picture(folder, load, tmp_path, name):
    fields = REQUESTS[name]
    options = fields["override_settings"]
    names = (
        options["sd_model_checkpoint"],
        *map(fields.get, ("hr_checkpoint_name", "refiner_checkpoint")),
    )
    checkpoints = [
        name and Checkpoint(folder / f"{name}.safetensors", f"{name}.safetensors", "")
        for name in names
    ]
    job = Job(Txt2Img(**fields), DEFAULTS | options)
    drawing = Drawing(job, Models(load, *checkpoints), Library.of(tmp_path), Progress())
    with drawing.open():
        (found,) = drawing.pictures()
    difference = np.abs(np.asarray(found, dtype=int) - tile(name))
    assert difference.mean() < LARGEST_MEAN
