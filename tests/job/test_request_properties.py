"""Any input is refused with one of our errors, or becomes a request that A1111 can take.

The inputs are drawn with `random`: drawing them with Hypothesis took ten times as long as the
check of them. An input that fails is in the message.
"""

import json
import random
from pathlib import Path

import pytest
from fakes.a1111.shape import shape_error

from worker.errors import InvalidInput
from worker.formats.model_file import ModelFile
from worker.generation.payload import build, engine_names
from worker.job.models import Models
from worker.job.request import OverrideSettings, Txt2ImgRequest, parse

NAMES = ["DPM++ 2M Karras", "Euler a", "euler", "k_dpmpp_sde", "Karras", "SGM Uniform", "nope", ""]
NAMES += ["Latent", "Lanczos", "nope", "None"]
NAMED = {"hr_upscaler", "sampler_name", "scheduler", "hr_sampler_name", "hr_scheduler"}
ODD_NUMBERS = [0, -1, -2, 2**31, 2**63 - 1, 2**63, 2**70, -(2**70), 0.5, -0.0, 5e-324, 1e-9, 1e30]
ODD_NUMBERS += [1.8e308, float("nan"), float("inf"), float("-inf"), "20", "abc", "1e3", " 7 "]
ODD_TEXTS = ["a cat", "<lora:x:0.5>", "<lora:x:bad>", "# <lora:x>", "\ud83d", "a\x00", "x" * 600]


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

    def good(self, field, model=Txt2ImgRequest):
        """What the schema's own bounds allow, their edges included."""
        info = model.model_fields[field]
        rules = [rule for rule in info.metadata if hasattr(rule, "ge") or hasattr(rule, "le")]
        bounds = [getattr(rule, "ge", getattr(rule, "le", None)) for rule in rules]
        if len(bounds) != 2:
            return info.get_default(call_default_factory=True)
        between = self.randint if info.annotation in {int, int | None} else self.uniform
        return self.choice([*bounds, between(*bounds), between(*bounds)])

    def options(self):
        names = self.choices(list(OverrideSettings.model_fields), k=self.randint(0, 3))
        drawn = [self.choice([self.scalar(), self.good(one, OverrideSettings)]) for one in names]
        return dict(zip(names, drawn, strict=True)) | self.choice([{}, {}, {"nope": 1}])

    def value(self, field):
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
        }.get(field, lambda: self.choice([self.scalar(), self.good(field)]))()

    def job_input(self):
        fields = self.choices(list(Txt2ImgRequest.model_fields), k=self.randint(0, 8))
        few = {field: self.value(field) for field in fields[: self.randint(0, 3)]}
        # Some fields A1111 reads only together.
        upscale = {"enable_hr": True, "denoising_strength": self.random()}
        refine = {"refiner_checkpoint": "x", "refiner_switch_at": self.random()}
        pair = self.choice([{}, {}, {}, upscale, refine, {"override_settings": self.options()}])
        good = {field: self.good(field) for field in fields} | pair
        odd = dict(list(few.items())[:1])
        return self.choice([good, good | odd, few, few, self.anything()])


def check(catalog, job_input):
    def found(wanted, kind="checkpoint"):
        return ModelFile(kind, Path("/store/x.safetensors"), "x", 1) if wanted else None

    try:
        request = parse(job_input)
        models = Models(
            checkpoint=found(request.checkpoint),
            loras=tuple((found(lora, "lora"), lora) for lora in request.loras),
            vae=found(request.vae, "vae"),
            refiner=found(request.refiner_checkpoint),
            hr_checkpoint=found(request.hr_checkpoint_name),
        )
        composed = build(request, engine_names(request, catalog), models)
    except InvalidInput as refused:
        json.dumps(str(refused)).encode()
        return
    body = json.loads(json.dumps(composed.body, allow_nan=False))
    error = shape_error(body, checkpoints=["x"])
    # Whether the card is large enough is not a matter of shape.
    is_too_large = error is not None and error[1].get("error") == "OutOfMemoryError"
    assert error is None or error[0] < 500 or is_too_large, (body, error)


@pytest.mark.parametrize("inputs", [8_000, pytest.param(200_000, marks=pytest.mark.long)])
def test_any_input_is_refused_or_has_a_shape_that_a1111_takes(catalog, inputs):
    seed = 1 if inputs == 8_000 else random.SystemRandom().getrandbits(32)
    draw = Draw(seed)
    for _ in range(inputs):
        job_input = draw.job_input()
        try:
            check(catalog, job_input)
        except Exception as problem:
            raise AssertionError(f"seed {seed}: {job_input!r}") from problem
