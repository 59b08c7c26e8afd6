"""Pictures of a real A1111 v1.9.3 on the CPU, and the engine's for the same requests.

`python -m benchmarks.parity --record` recorded them with the demo model. The table of all samplers,
schedules and features is in docs/internals/engine-parity.md.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.parity import files as parity_files
from benchmarks.parity import img2img as parity_img2img
from engine.api import extras
from engine.api.drawing import Drawing, Models
from engine.api.given import Pictures
from engine.api.img2img import Img2Img
from engine.api.job import Job
from engine.api.library import Library
from engine.api.options import DEFAULTS
from engine.api.progress import Progress
from engine.api.request import Txt2Img
from engine.images import decode
from engine.images.tiles import Tiling
from engine.models.checkpoints import Checkpoint
from engine.models.loaded_model import LoadedModel

FOLDER = Path(__file__).parent
SHEETS = {
    "pictures.png": "requests.json",
    "with_files.png": "with_files.json",
    "img2img.png": "img2img.json",
}
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
    """The demo model; the same weights read as a model that predicts the noise; and two more."""
    folder = tmp_path_factory.mktemp("models")
    with safe_open(DEMO, "pt") as file:
        metadata = file.metadata() | {"prediction_type": "epsilon"}
    save_file(load_file(DEMO), folder / "demo-eps.safetensors", metadata)
    parity_files.write_checkpoints(folder)
    paths = {"demo": DEMO} | {path.stem: path for path in folder.iterdir()}
    return {
        name: LoadedModel.load(Checkpoint(path, path.name, ""), "") for name, path in paths.items()
    }


def drawn(fields, models, library):
    """The picture of a txt2img or img2img request."""
    options = fields["override_settings"]
    kind = Img2Img if "init_images" in fields else Txt2Img
    request = kind(**parity_img2img.sent(fields))
    request.check()
    given = Pictures(*request.pictures()) if kind is Img2Img else None
    job = Job(request, DEFAULTS | options)
    model = models[options["sd_model_checkpoint"]]
    drawing = Drawing(job, Models(lambda _: model, model.checkpoint), library, Progress(), given)
    with drawing.open():
        (found,) = drawing.pictures()
    return found


def upscaled(fields, library):
    """The picture of an upscaling request."""
    request = extras.UpscaleOne(**parity_img2img.sent(fields))
    picture = decode.read(request.image)
    never = Progress().stops
    image, _ = extras.upscale(request, picture, library.upscalers, Tiling(), never)
    return decode.read(image)


@pytest.mark.parametrize(("sheet", "name"), CASES)
def test_same_seed_same_picture(models, pictures, library, sheet, name):
    fields = REQUESTS[sheet][name]
    is_upscaling = "image" in fields
    found = upscaled(fields, library) if is_upscaling else drawn(fields, models, library)
    difference = np.abs(np.asarray(found, dtype=int) - pictures[sheet][name])
    assert difference.mean() < LARGEST_MEAN
