"""Pictures of a real A1111 v1.9.3 on the CPU, and the engine's for the same requests.

`python -m benchmarks.parity --record` recorded them with the demo model. The table of all samplers,
schedules and features is in docs/modules/engine-parity.md.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks import parity_files
from engine.api.drawing import Drawing, Models
from engine.api.job import Job
from engine.api.library import Library
from engine.api.options import DEFAULTS
from engine.api.progress import Progress
from engine.api.request import Txt2Img
from engine.models.checkpoints import Checkpoint
from engine.models.loaded_model import LoadedModel

FOLDER = Path(__file__).parent
SHEETS = {"pictures.png": "requests.json", "with_files.png": "with_files.json"}
DEMO = FOLDER.parents[2] / "demo/Stable-diffusion/demo-shapes.safetensors"
REQUESTS = {
    name: json.loads((FOLDER / listed).read_text(encoding="utf-8"))
    for name, listed in SHEETS.items()
}
CASES = [(sheet, name) for sheet, requests in REQUESTS.items() for name in requests]
SIDE = 80
LARGEST_MEAN = 0.5  # of 255; the last bits of a float differ between processors


@pytest.fixture(scope="module")
def pictures():
    """{name of a sheet: {name of the request: A1111's picture}}."""
    found = {}
    for name, requests in REQUESTS.items():
        sheet = np.asarray(Image.open(FOLDER / name), dtype=int)
        columns = sheet.shape[1] // SIDE
        places = (divmod(number, columns) for number in range(len(requests)))
        tiles = [sheet[y * SIDE : (y + 1) * SIDE, x * SIDE : (x + 1) * SIDE] for y, x in places]
        found[name] = dict(zip(requests, tiles, strict=True))
    return found


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The files of the requests."""
    folder = tmp_path_factory.mktemp("files")
    parity_files.write(folder)
    return Library.of(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The demo model, and the same weights read as a model that predicts the noise."""
    other = tmp_path_factory.mktemp("models") / "demo-eps.safetensors"
    with safe_open(DEMO, "pt") as file:
        metadata = file.metadata() | {"prediction_type": "epsilon"}
    save_file(load_file(DEMO), other, metadata)
    paths = {"demo": DEMO, "demo-eps": other}
    return {
        name: LoadedModel.load(Checkpoint(path, path.name, ""), "") for name, path in paths.items()
    }


@pytest.mark.parametrize(("sheet", "name"), CASES)
def test_same_seed_same_picture(models, pictures, library, sheet, name):
    fields = REQUESTS[sheet][name]
    options = fields["override_settings"]
    job = Job(Txt2Img(**fields), DEFAULTS | options)
    model = models[options["sd_model_checkpoint"]]
    drawing = Drawing(job, Models(lambda _: model, model.checkpoint), library, Progress())
    with drawing.open():
        (found,) = drawing.pictures()
    difference = np.abs(np.asarray(found, dtype=int) - pictures[sheet][name])
    assert difference.mean() < LARGEST_MEAN
