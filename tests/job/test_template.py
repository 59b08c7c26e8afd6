import json
import re

import pytest

from worker.config.settings import PROJECT
from worker.errors import ConfigError
from worker.job import template
from worker.job.img2img import Img2ImgRequest
from worker.job.reference import CivitAIVersion
from worker.job.txt2img import parse

CIVITAI = "https://civitai.com/api/download/models"
BASE = {"name": "Base", "url": f"{CIVITAI}/1", "filename": "b.safetensors"}
SOURCE = {"name": "Detail Tweaker", "url": f"{CIVITAI}/2", "filename": "detail.safetensors"}
DETAIL = SOURCE | {"scale": 1.5}
SAMPLING = {"sampler_name": "DPM++ 2M", "scheduler": "Karras"}
DEFAULTS = {"steps": 30, "negative_prompt": "dark"} | SAMPLING
FOX = {"name": "Foxes", "checkpoint": BASE, "loras": [DETAIL], "defaults": DEFAULTS}
MODELS = {"template": "fox", "checkpoint": BASE, "loras": [DETAIL]}
FILLED = MODELS | DEFAULTS


def read(one=FOX, **more):
    return template.parse(json.dumps({"templates": {"fox": one}, **more}))


def fill_in(one=FOX, **job):
    return template.fill_in("fox", read(one).templates["fox"], job)


def detail(**lora):
    """A job with this LoRA, whose name is that of the template's, and what it becomes."""
    return {"loras": [lora]}, FILLED | {"loras": [SOURCE | lora]}


def replaces(value, *keys):
    """A job with this value, which replaces those of the template under `keys` as well."""
    return value, {key: FILLED[key] for key in FILLED if key not in keys} | value


CASES = [
    ({}, FILLED),
    replaces({"prompt": "a fox"}),
    replaces({"negative_prompt": ""}),
    replaces({"checkpoint": "x"}),
    replaces({"loras": []}),
    replaces({"loras": ["x"]}),
    replaces({"loras": [{"name": "Detail Tweaker", "version_id": 9}]}),
    ({"loras": ["detail TWEAKER"]}, FILLED | {"loras": [DETAIL | {"name": "detail TWEAKER"}]}),
    ({"loras": [{"name": "detail"}]}, FILLED | {"loras": [DETAIL | {"name": "detail"}]}),
    detail(name="Detail Tweaker", scale=0.5),
    detail(name="Detail Tweaker", weight=0.5),
    detail(name="Detail Tweaker", unet=0.5),
    ({"checkpoint": "base"}, FILLED | {"checkpoint": BASE | {"name": "base"}}),
    replaces({"sampler_name": "Euler a"}, "scheduler"),
    replaces({"sampler_index": "Euler"}, "scheduler", "sampler_name"),
    replaces({"override_settings": {"sd_model_checkpoint": "x"}}, "checkpoint"),
    replaces({"scheduler": None}, "sampler_name"),
    ({"checkpoint": None}, FILLED),
    replaces({"override_settings": {"sd_model_checkpoint": None}}),
    replaces({"loras": 3}),
    replaces({"override_settings": 3}),
]


HIRES = {"enable_hr": True, "denoising_strength": 0.4, "hr_scale": 1.5, "hr_prompt": "x"}
SIZED = {"denoising_strength": 0.4, "width": 512, "height": 768}


@pytest.mark.parametrize(
    ("defaults", "taken"),
    [(DEFAULTS | HIRES, DEFAULTS), (SIZED, {"denoising_strength": 0.4})],
)
def test_img2img_takes_no_size_and_no_values_of_a_second_pass(defaults, taken):
    one = read(FOX | {"defaults": defaults}).templates["fox"]
    filled = template.fill_in("fox", one, {}, Img2ImgRequest.model_fields)
    assert filled == MODELS | taken


@pytest.mark.parametrize(("job", "filled"), CASES)
def test_the_values_of_the_job_replace_those_of_the_template(job, filled):
    assert fill_in(**job) == filled


OPTIONS, CLIP_1 = {"eta_ddim": 0.5, "sd_vae": "x.pt"}, {"CLIP_stop_at_last_layers": 1}
OVERRIDES = [
    # the job's fields, whether the template's clip_skip stays, the options that are sent
    ({}, True, OPTIONS),
    ({"override_settings": {"eta_ancestral": 1}}, True, OPTIONS | {"eta_ancestral": 1}),
    ({"override_settings": CLIP_1}, False, OPTIONS | CLIP_1),
    ({"vae": "y"}, True, {"eta_ddim": 0.5}),
]


@pytest.mark.parametrize(("job", "has_clip_skip", "options"), OVERRIDES)
def test_the_options_of_the_template_and_the_job_are_merged(job, has_clip_skip, options):
    file = read(FOX | {"defaults": {"clip_skip": 2, "override_settings": OPTIONS}})
    before = file.model_copy(deep=True)
    filled = template.fill_in("fox", file.templates["fox"], job)
    clip_skip = {"clip_skip": 2} if has_clip_skip else {}
    assert filled == MODELS | job | clip_skip | {"override_settings": options}
    parse(filled)  # nothing is given twice
    assert file == before


def text(more=None, **file):
    """A file whose fox has these values, too."""
    return json.dumps({"templates": {"fox": FOX | (more or {})}, **file})


def defaults(**fields):
    return text({"defaults": fields})


FIELDS = "$.templates.fox.defaults"
REFINER = {"refiner_checkpoint": "ftp://x", "refiner_switch_at": 0.8}
WRONG = [
    ("", "the text is not valid JSON: Expecting value: line 1 column 1 (char 0)."),
    ("[" * 100_000, "the text is not valid JSON"),
    ('{"templates": {"a": 1, "a": 2}}', "an object has the key 'a' twice"),
    ("{}", "$.templates is missing"),
    (text({"checkpoint": None}), "$.templates.fox.checkpoint = None: must be a reference"),
    (text({"checkpoint": BASE | {"url": "ftp://x"}}), "$.templates.fox.checkpoint: "),
    ('{"templates": {"fox": {"name": "x"}}}', "$.templates.fox.checkpoint is missing"),
    ('{"templates": {"a b": {"name": 5}}}', "$.templates['a b'].name = 5: must be a text"),
    (text({"steps": 5}), "$.templates.fox: steps must be inside `defaults`"),
    (text({"loras": [{"name": "x", "scale": "a"}]}), "fox.loras[0].scale = 'a': must be a number"),
    (defaults(steps=0), f"{FIELDS}.steps = 0: must be at least 1"),
    (defaults(stepz=9), f"{FIELDS}.stepz is not a known field (did you mean `steps`?)"),
    (defaults(checkpoint="x"), f"{FIELDS}.checkpoint is not a known field"),
    (defaults(enable_hr=True), "$.templates.fox: enable_hr needs denoising_strength"),
    (defaults(**REFINER), "$.templates.fox: the model 'ftp://x' is "),
    (text(default_template="fix"), "default_template 'fix' is not in templates, which has 'fox'"),
]


@pytest.mark.parametrize(("content", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_problem_is_reported_with_its_json_path(content, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        template.parse(content)


def test_all_problems_are_reported_at_once_and_without_secrets():
    wrong = {"checkpoint": "https://user:hunter2@example.com/x?token=hunter2 y", "name": ""}
    with pytest.raises(ConfigError) as raised:
        template.parse(text(wrong | {"defaults": {"steps": 0}}))
    assert raised.value.message.count("$.templates.fox.") == 3
    assert "hunter2" not in raised.value.message


def test_the_templates_that_ship_can_be_used():
    file = template.parse((PROJECT / "templates.json").read_text())
    assert file.default_template == "jib_mix_realistic"
    assert {"demo", "demo_striped"} < set(file.templates)
    for name, one in file.templates.items():
        job = parse(template.fill_in(name, one, {"prompt": "a fox"}))
        assert (job.template, job.checkpoint.filename) == (name, one.checkpoint.filename)
    jib = file.templates["jib_mix_realistic"]
    assert jib.checkpoint.wanted("checkpoint").ref == CivitAIVersion(1590699)
    assert jib.loras[0].scale == 1.5


def test_a_file_of_the_diffusers_worker_can_be_used():
    """The shape of the first version's templates.json, field by field."""
    one = FOX | {"checkpoint": BASE | {"diffusers_dir": "jib-df"}, "description": "High quality"}
    del one["defaults"]
    file = read(one, default_template="fox")
    assert template.fill_in("fox", file.templates["fox"], {}) == MODELS
