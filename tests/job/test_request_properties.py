"""Any input is refused with one of our errors, or becomes a request that A1111 can take.

The inputs are drawn with `random`: drawing them with Hypothesis took ten times as long as the
check of them. An input that fails is in the message.
"""

import io
import json
import random
from pathlib import Path

import pytest
from fakes.a1111.shape import shape_error
from PIL import Image

from worker.errors import InvalidInput
from worker.formats.model_file import ModelFile
from worker.generation import init_images
from worker.generation.payload import build, engine_names
from worker.images.base64_text import decoded
from worker.images.decoder import decode
from worker.images.input_image import InputImage
from worker.images.limits import IMAGE_LIMITS
from worker.job.img2img import Img2ImgOptions, Img2ImgRequest
from worker.job.models import Models
from worker.job.request import check
from worker.job.txt2img import Txt2ImgRequest
from worker.tasks.table import TASKS

NAMES = ["DPM++ 2M Karras", "Euler a", "euler", "k_dpmpp_sde", "Karras", "SGM Uniform", "nope", ""]
NAMES += ["Latent", "Lanczos", "nope", "None"]
NAMED = {"hr_upscaler", "sampler_name", "scheduler", "hr_sampler_name", "hr_scheduler"}
ODD_NUMBERS = [0, -1, -2, 2**31, 2**63 - 1, 2**63, 2**70, -(2**70), 0.5, -0.0, 5e-324, 1e-9, 1e30]
ODD_NUMBERS += [1.8e308, float("nan"), float("inf"), float("-inf"), "20", "abc", "1e3", " 7 "]
ODD_TEXTS = ["a cat", "<lora:x:0.5>", "<lora:x:bad>", "# <lora:x>", "\ud83d", "a\x00", "x" * 600]


DRAWING = {"txt2img": Txt2ImgRequest, "img2img": Img2ImgRequest}
URL = "https://example.com/a.png"


def picture(size, colour, mode="RGB"):
    Image.new(mode, size, colour).save(file := io.BytesIO(), "PNG")
    return InputImage(file.getvalue(), "png", *size)


SOME = [picture((64, 64), colour) for colour in ("black", "white", "#808080")]
SOME += [picture((64, 64), "white"), picture((96, 64), "white"), picture((64, 4), "white")]
SOME += [picture((64, 64), (9, 9, 9, alpha), "RGBA") for alpha in (0, 128, 129)]
PICTURES = {one.base64(): one for one in SOME} | {URL: SOME[1]}


def read(text):
    return PICTURES.get(text) or decode(decoded(text), IMAGE_LIMITS)


class Draw(random.Random):
    """Draws parts of a job's input."""

    def number(self):
        small, large = self.randint(-2, 200), self.randint(60, 4200)
        return self.choice([self.choice(ODD_NUMBERS), small, large, self.uniform(-1, 2)])

    def text(self):
        letters = "".join(map(chr, self.choices(range(0x300), k=self.randint(0, 20))))
        return self.choice([letters, self.choice(ODD_TEXTS), self.choice(NAMES)])

    def scalar(self):
        return self.choice([None, True, False, self.number(), self.number(), self.text()])

    def anything(self, depth=3):
        if depth == 0 or self.random() < 0.4:
            return self.scalar()
        inner = [self.anything(depth - 1) for _ in range(self.randint(0, 3))]
        return inner if self.random() < 0.5 else {self.text(): item for item in inner}

    def model(self):
        weights = {"scale": self.number(), "te": self.number(), "x": self.scalar()}
        kept = self.sample(sorted(weights.items(), key=repr), self.choice([0, 0, 1, 1, 2]))
        return self.choice([self.text(), {"name": self.text(), **dict(kept)}])

    def good(self, field, model):
        """What the schema's own bounds allow, their edges included."""
        if field in {"init_images", "images"}:
            return self.choices(list(PICTURES), k=self.choice([1, 1, 1, 2, 3]))
        if field in {"image", "mask"}:
            return self.choice([None, *PICTURES])
        if field in {"inputs", "upscaler_1"}:
            return [{"task": "schema"}] if field == "inputs" else "Lanczos"
        info = model.model_fields[field]
        rules = [rule for rule in info.metadata if hasattr(rule, "ge") or hasattr(rule, "le")]
        bounds = [getattr(rule, "ge", getattr(rule, "le", None)) for rule in rules]
        if len(bounds) != 2:
            return info.get_default(call_default_factory=True)
        between = self.randint if info.annotation in {int, int | None} else self.uniform
        return self.choice([*bounds, between(*bounds), between(*bounds)])

    def options(self):
        names = self.choices(list(Img2ImgOptions.model_fields), k=self.randint(0, 3))
        drawn = [self.choice([self.scalar(), self.good(one, Img2ImgOptions)]) for one in names]
        return dict(zip(names, drawn, strict=True)) | self.choice([{}, {}, {"nope": 1}])

    def value(self, field, model):
        """Mostly something of the right type, so that inputs get past the first check."""
        if field in NAMED:
            return self.choice(NAMES)
        script = self.choice([{"args": []}, self.anything()])
        return {
            "checkpoint": self.model,
            "vae": self.model,
            "loras": lambda: [self.model() for _ in range(self.randint(0, 3))],
            "override_settings": self.options,
            "alwayson_scripts": lambda: {self.choice(["hypertile", "nope"]): script},
        }.get(field, lambda: self.choice([self.scalar(), self.good(field, model)]))()

    def job_input(self):
        task = self.choice(["txt2img", "txt2img", "img2img", "img2img", self.any_task()])
        model = DRAWING.get(task, TASKS[task].input)
        fields = self.choices([*model.model_fields], k=self.randint(0, 8))
        few = {field: self.value(field, model) for field in fields[: self.randint(0, 3)]}
        # Some fields A1111 reads only together.
        second = {"enable_hr": True, "denoising_strength": self.random()}
        refine = {"refiner_checkpoint": "x", "refiner_switch_at": self.random()}
        pair = self.choice([{}, {}, {}, second, refine, {"override_settings": self.options()}])
        good = {field: self.good(field, model) for field in fields} | pair
        odd = dict(list(few.items())[:1])
        brings = {
            "image",
            "init_images",
            "inputs",
            "mask",
            "upscaler_1",
        } & model.model_fields.keys()
        brought = {field: self.good(field, model) for field in sorted(brings)}
        needed = {"task": task} | self.choice([brought, brought, {}])
        drawn = self.choice([good | needed, good | odd | needed, few | needed, few])
        return self.choice([drawn, drawn, drawn, self.anything()])

    def any_task(self):
        return self.choice([task.name for task in TASKS])


def check_one(catalog, job_input):
    """Whether the job is accepted; then A1111 must accept its body."""

    def found(wanted, kind="checkpoint"):
        return ModelFile(kind, Path("/store/x.safetensors"), "x", 1) if wanted else None

    try:
        task = TASKS.of(job_input)
        request = check(job_input, task.input)
        if task.name not in DRAWING:
            return task.name
        brought = None
        if task.name == "img2img":
            pictures = {field: read(text) for field, text in request.images.items()}
            brought = init_images.read(request, pictures)
        models = Models(
            checkpoint=found(request.checkpoint),
            loras=tuple((found(lora, "lora"), lora) for lora in request.loras),
            vae=found(request.vae, "vae"),
            refiner=found(request.refiner_checkpoint),
            hr_checkpoint=found(request.second_pass and request.second_pass.hr_checkpoint_name),
        )
        composed = build(request, engine_names(request, catalog), models, brought=brought)
    except InvalidInput as refused:
        json.dumps(str(refused)).encode()
        return None
    body = json.loads(json.dumps(composed.body, allow_nan=False))
    error = shape_error(body, checkpoints=["x"], route=composed.route)
    # Whether the card is large enough is not a matter of shape.
    is_too_large = error is not None and error[1].get("error") == "OutOfMemoryError"
    assert error is None or error[0] < 500 or is_too_large, (body, error)
    return task.name


@pytest.mark.parametrize("inputs", [8_000, pytest.param(200_000, marks=pytest.mark.long)])
def test_any_input_is_refused_or_has_a_shape_that_a1111_takes(catalog, inputs):
    seed = 1 if inputs == 8_000 else random.SystemRandom().getrandbits(32)
    draw, accepted = Draw(seed), set()
    for _ in range(inputs):
        job_input = draw.job_input()
        try:
            accepted.add(check_one(catalog, job_input))
        except Exception as problem:
            raise AssertionError(f"seed {seed}: {job_input!r}") from problem
    # A job of OpenAI's API has no `task`: tests/translation/test_openai_images.py draws those.
    assert {task.name for task in TASKS if not task.named_by} <= accepted
