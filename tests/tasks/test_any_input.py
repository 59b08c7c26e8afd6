"""Any input of a task beside drawing is answered, or refused with one of our errors.

What the engine is sent must have a shape that A1111 takes: the fake raises what A1111 would.
"""

import asyncio
import base64
import random
from dataclasses import replace

import pytest
from fakes.a1111.extras import UPSCALERS, read_extras
from fakes.a1111.picture import png
from fakes.stub_engine import StubEngine, handler_with
from PIL import Image

from tests.job.test_request_properties import Draw
from worker.generation.enlarged import Enlarged, size_by
from worker.images.input_image import InputImage
from worker.tasks.table import TASKS

FILE = png(8, 8, b"\x01\x02\x03", "")
IMAGE = base64.b64encode(FILE).decode()
SIZES = [(1, 1), (7, 300), (24, 16), (101, 67), (4096, 4096), (8192, 8192)]
BESIDE = [
    task
    for task in TASKS
    if task.fields and task.name not in {"txt2img", "img2img", "batch", "openai"}
]

PREFETCHED = {"checkpoint", "vae", "refiner_checkpoint", "hr_checkpoint_name", "template"}
REFUSALS = {"INVALID_INPUT", "MODEL_NOT_FOUND", "TEMPLATE_NOT_FOUND"}


class Pictures:
    """A reader whose pictures have any size."""

    def __init__(self, draw):
        self.draw = draw

    def read_all(self, images, _stop):
        return {name: InputImage(FILE, "png", *self.draw.choice(SIZES)) for name in images}


class CheckingEngine(StubEngine):
    """An engine that refuses what A1111 refuses, and makes no pictures."""

    sizes = SIZES

    async def call(self, call, _stopwatch):
        if call.route == "interrogate":
            return call.read({"caption": "a fox"})
        params = read_extras(call.body)
        if params["upscaler_1"] != "None":
            assert params["upscaler_1"] in UPSCALERS
            made = [size_by(size, params["upscaling_resize"]) for size in self.sizes]
            assert any(min(size) >= 8 and max(size) <= 16_384 for size in made), params
        return Enlarged(IMAGE, Image.new("RGB", (8, 8)), "")


class TaskDraw(Draw):
    """Draws inputs of one task after the other."""

    def value(self, field):
        if field in {"image", "images"}:
            good = IMAGE if field == "image" else [IMAGE] * self.randint(0, 3)
            return self.choice([good, good, good, "https://example.com/a.png", self.anything()])
        if field.startswith("upscaler_"):
            return self.choice(["None", "", "Lanczos", "R-ESRGAN 4x+", "nope", self.scalar()])
        if field in {"loras", "embeddings"}:
            return self.choice([[], [self.model()], [self.model(), self.model()], self.model()])
        if field in PREFETCHED:
            return self.model()
        return self.anything() if field == "output" else self.scalar()

    def model(self):
        """Never one that would be fetched."""
        nothing = (None, "", True, ["a"], {"name": "x", "x": 1}, "a\x00", "x" * 600, {})
        return self.choice(["base", "nope", "sub/x", {"name": "base"}, *nothing])

    def beside(self):
        task = self.choice(BESIDE)
        names = [name for name in task.input.model_fields if name != "task"]
        chosen = self.sample(names, self.randint(0, min(5, len(names))))
        odd = {name: self.value(name) for name in chosen}
        good = {name: self.good(name, task.input) for name in chosen}
        good |= {"image": IMAGE} if "image" in good else {}
        base = {"image": IMAGE} if "image" in names else {}
        base |= (
            {"upscaler_1": self.choice(["Lanczos", "Nearest"])} if task.name == "upscale" else {}
        )
        few = dict(list(odd.items())[:1])
        return {"task": task.name, **base, **self.choice([good, good | few, odd, few])}


@pytest.mark.parametrize("inputs", [3_000, pytest.param(60_000, marks=pytest.mark.long)])
def test_any_input_is_answered_or_refused_with_one_of_our_errors(tmp_path, catalog, inputs):
    draw = TaskDraw(1 if inputs == 3_000 else random.SystemRandom().getrandbits(32))
    built = handler_with(CheckingEngine(catalog, tmp_path), tmp_path)
    built.worker = replace(built.worker, images=Pictures(draw))

    async def story():
        codes = {}
        for _ in range(inputs):
            job = draw.beside()
            answer = await built({"id": "a", "input": job})
            codes.setdefault(answer.get("code", job["task"]), job)
        return codes

    codes = asyncio.run(story())
    assert codes.keys() - {task.name for task in BESIDE} <= REFUSALS, codes
    assert codes.keys() > {"upscale", "interrogate", "png_info", "samplers", "INVALID_INPUT"}
