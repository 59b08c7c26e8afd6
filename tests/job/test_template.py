"""What a template is, what is wrong with one, and what a job makes of it."""

import json
from pathlib import Path

import pytest

from worker.errors import ConfigError
from worker.job import template
from worker.job.reference import CivitAIVersion
from worker.job.request import parse

ROOT = Path(__file__).parents[2]
CIVITAI = "https://civitai.com/api/download/models"
BASE = {"name": "Base", "url": f"{CIVITAI}/1", "filename": "b.safetensors"}
DETAIL = {
    "name": "Detail Tweaker",
    "url": f"{CIVITAI}/2",
    "filename": "detail.safetensors",
    "scale": 1.5,
}
DEFAULTS = {
    "steps": 30,
    "negative_prompt": "dark",
    "sampler_name": "DPM++ 2M",
    "scheduler": "Karras",
}
FOX = {"name": "Foxes", "checkpoint": BASE, "loras": [DETAIL], "defaults": DEFAULTS}


def read(one=FOX, **more):
    return template.parse(json.dumps({"templates": {"fox": one}, **more}))


def fill_in(one=FOX, **said):
    return template.fill_in("fox", read(one).templates["fox"], said)


def without(*keys):
    """All that the template says, but for these."""
    all_of_it = {"template": "fox", "checkpoint": BASE, "loras": [DETAIL], **DEFAULTS}
    return {key: value for key, value in all_of_it.items() if key not in keys}


SMALLER = {key: DETAIL[key] for key in ("name", "url", "filename")}
CASES = [
    ("nothing", {}, without()),
    ("a prompt", {"prompt": "a fox"}, without() | {"prompt": "a fox"}),
    ("its own steps", {"steps": 5}, without() | {"steps": 5}),
    ("no negative prompt", {"negative_prompt": ""}, without() | {"negative_prompt": ""}),
    ("another checkpoint", {"checkpoint": "x"}, without() | {"checkpoint": "x"}),
    ("no LoRAs", {"loras": []}, without() | {"loras": []}),
    ("another LoRA", {"loras": ["x"]}, without() | {"loras": ["x"]}),
    (
        "a LoRA by the template's name",
        {"loras": ["detail TWEAKER"]},
        without() | {"loras": [DETAIL | {"name": "detail TWEAKER"}]},
    ),
    (
        "a LoRA by its file",
        {"loras": [{"name": "detail"}]},
        without() | {"loras": [DETAIL | {"name": "detail"}]},
    ),
    (
        "another scale",
        {"loras": [{"name": "Detail Tweaker", "scale": 0.5}]},
        without() | {"loras": [SMALLER | {"scale": 0.5}]},
    ),
    (
        "another weight",
        {"loras": [{"name": "Detail Tweaker", "weight": 0.5}]},
        without() | {"loras": [SMALLER | {"weight": 0.5}]},
    ),
    (
        "the UNet's weight alone",
        {"loras": [{"name": "Detail Tweaker", "unet": 0.5}]},
        without() | {"loras": [SMALLER | {"unet": 0.5}]},
    ),
    (
        "a LoRA of that name from elsewhere",
        {"loras": [{"name": "Detail Tweaker", "version_id": 9}]},
        without() | {"loras": [{"name": "Detail Tweaker", "version_id": 9}]},
    ),
    (
        "its checkpoint by name",
        {"checkpoint": "base"},
        without() | {"checkpoint": BASE | {"name": "base"}},
    ),
    ("a sampler", {"sampler_name": "Euler a"}, without("scheduler") | {"sampler_name": "Euler a"}),
    (
        "a sampler's old name",
        {"sampler_index": "Euler"},
        without("scheduler", "sampler_name") | {"sampler_index": "Euler"},
    ),
    (
        "a checkpoint the other way",
        {"override_settings": {"sd_model_checkpoint": "x"}},
        without("checkpoint") | {"override_settings": {"sd_model_checkpoint": "x"}},
    ),
    ("null for a default", {"scheduler": None}, without("sampler_name") | {"scheduler": None}),
    ("null for the checkpoint", {"checkpoint": None}, without()),
    (
        "null for the checkpoint the other way",
        {"override_settings": {"sd_model_checkpoint": None}},
        without() | {"override_settings": {"sd_model_checkpoint": None}},
    ),
    ("something that is no list", {"loras": 3}, without() | {"loras": 3}),
    ("something that is no object", {"override_settings": 3}, without() | {"override_settings": 3}),
]


@pytest.mark.parametrize(("said", "filled"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_what_the_job_says_counts_instead_of_what_the_template_says(said, filled):
    assert fill_in(**said) == filled


WITH_OVERRIDES = FOX | {
    "defaults": {"clip_skip": 2, "override_settings": {"eta_ddim": 0.5, "sd_vae": "x.pt"}}
}
OVERRIDES = [
    (
        {"override_settings": {"eta_ancestral": 1}},
        {
            "clip_skip": 2,
            "override_settings": {"eta_ddim": 0.5, "sd_vae": "x.pt", "eta_ancestral": 1},
        },
    ),
    (
        {"override_settings": {"CLIP_stop_at_last_layers": 1}},
        {"override_settings": {"eta_ddim": 0.5, "sd_vae": "x.pt", "CLIP_stop_at_last_layers": 1}},
    ),
    ({"vae": "y"}, {"clip_skip": 2, "vae": "y", "override_settings": {"eta_ddim": 0.5}}),
    ({}, {"clip_skip": 2, "override_settings": {"eta_ddim": 0.5, "sd_vae": "x.pt"}}),
]


@pytest.mark.parametrize(("said", "filled"), OVERRIDES)
def test_options_of_both_sides_count_together(said, filled):
    models = {"template": "fox", "checkpoint": BASE, "loras": [DETAIL]}

    assert fill_in(WITH_OVERRIDES, **said) == models | filled
    parse(fill_in(WITH_OVERRIDES, **said))  # one thing is never said twice


def test_a_template_is_as_long_as_before_however_often_it_is_used():
    file = read(WITH_OVERRIDES)
    template.fill_in("fox", file.templates["fox"], {"vae": "y"})

    assert file == read(WITH_OVERRIDES)


def say(more=None, **file):
    """A file with a fox that has this, too."""
    return json.dumps({"templates": {"fox": FOX | (more or {})}, **file})


def say_defaults(**defaults):
    return say({"defaults": defaults})


WRONG = [
    ("", "it is not JSON: Expecting value: line 1 column 1 (char 0)."),
    ('{"templates": {"a": 1, "a": 2}}', "the key 'a' stands twice in one object"),
    ("[]", "must be a valid dictionary"),
    ("{}", "$.templates is missing"),
    (say({"checkpoint": None}), "$.templates.fox.checkpoint = None: must be a reference"),
    (json.dumps({"templates": {"fox": {"name": "x"}}}), "$.templates.fox.checkpoint is missing"),
    (say({"steps": 5}), "$.templates.fox: steps must stand inside `defaults`"),
    (say({"chekpoint": 5}), "$.templates.fox.chekpoint is not a known field"),
    (say_defaults(steps=0), "$.templates.fox.defaults.steps = 0: must be greater"),
    (
        say_defaults(stepz=9),
        "$.templates.fox.defaults.stepz is not a known field, did you mean `steps`?",
    ),
    (say_defaults(checkpoint="x"), "$.templates.fox.defaults.checkpoint is not a known field"),
    (
        say({"loras": [DETAIL | {"scale": "much"}]}),
        "$.templates.fox.loras[0].scale = 'much': must be a valid number",
    ),
    (say({"checkpoint": BASE | {"url": "ftp://x"}}), "$.templates.fox.checkpoint: "),
    (say_defaults(enable_hr=True), "$.templates.fox: enable_hr needs denoising_strength"),
    (
        say_defaults(refiner_checkpoint="ftp://x", refiner_switch_at=0.8),
        "$.templates.fox: the model 'ftp://x' is ",
    ),
    (
        json.dumps({"templates": {"a fox": {"name": 5}}}),
        "$.templates['a fox'].name = 5: must be a valid string",
    ),
    (say(default_template="fix"), "default_template 'fix' is none of 'fox'"),
    ("[" * 100_000, "it is not JSON"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_is_said_with_its_json_path(text, message):
    with pytest.raises(ConfigError) as raised:
        template.parse(text)

    assert message in raised.value.message


def test_every_problem_is_said_at_once_and_no_secret():
    wrong = {"checkpoint": "https://user:hunter2@example.com/x?token=hunter2 y", "name": ""}
    with pytest.raises(ConfigError) as raised:
        template.parse(say(wrong | {"defaults": {"steps": 0}}))

    message = raised.value.message
    assert message.count("$.templates.fox.") == 3
    assert "hunter2" not in message


def test_the_schema_for_editors_is_that_of_the_code():
    assert json.loads((ROOT / "templates.schema.json").read_text()) == template.json_schema()


def test_the_templates_that_ship_can_be_used():
    file = template.parse((ROOT / "templates.json").read_text())

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
    file = read(
        {key: value for key, value in one.items() if key != "defaults"}, default_template="fox"
    )

    assert "diffusers_dir" not in str(template.fill_in("fox", file.templates["fox"], {}))
