import json
import os
from pathlib import Path

import pytest

from worker.config.settings import PROJECT, Settings
from worker.errors import ConfigError, TemplateNotFound
from worker.job.template_file import Templates

BASE = {"name": "Base", "url": "https://civitai.com/api/download/models/1"}
DETAIL = {"name": "Detail Tweaker", "url": "https://civitai.com/api/download/models/2"}
FOX = {"name": "Foxes", "checkpoint": BASE, "loras": [DETAIL], "defaults": {"steps": 30}}
ABOUT_OWL = {"name": "Owls", "description": "Night"}
OWL = ABOUT_OWL | {"checkpoint": BASE, "loras": [DETAIL | {"scale": 0.5}]}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "templates.json"
    write(path, {"fox": FOX, "owl": OWL}, default_template="fox")
    return path


def write(path, templates, **more):
    path.write_text(json.dumps({"templates": templates, **more}))


def test_a_template_is_found_by_name_or_is_the_default_one_and_models_are_listed_once(file):
    templates = Templates(file)
    assert list(templates.get_templates()) == ["fox", "owl"]
    assert templates.get_default_template() == "fox"
    assert templates.get_template("owl").name == "Owls"
    assert templates.get_template() == templates.get_template("fox")
    checkpoints, loras = templates.get_all_unique_checkpoints(), templates.get_all_unique_loras()
    assert [one.name for one in checkpoints.values()] == ["Base"]
    assert [one.name for one in loras.values()] == ["Detail Tweaker"]


def test_the_error_for_an_unknown_template_has_the_known_names(file):
    with pytest.raises(TemplateNotFound) as raised:
        Templates(file).get_template("fux")
    assert str(raised.value) == (
        "TEMPLATE_NOT_FOUND: template 'fux' is not known. Did you mean 'fox'? Known: 'fox', 'owl'."
    )
    assert raised.value.details == {"near": ["fox"], "templates": ["fox", "owl"]}


def test_the_list_is_plain_json_without_secrets(file):
    url, secret = "https://example.com/x.safetensors", "?token=hunter2"
    names = {"refiner_checkpoint": url + secret, "hr_checkpoint_name": url + secret}
    models = {"vae": {"url": url + secret}, "embeddings": [url + secret], "refiner_switch_at": 0.8}
    by_option = {"override_settings": {"sd_vae": url + secret}}
    write(file, {"owl": OWL | {"defaults": models | names}, "cat": OWL | {"defaults": by_option}})
    owl, cat = json.loads(json.dumps(Templates(file).list_templates()))
    assert "hunter2" not in str([cat, owl])
    assert cat["defaults"] == {"override_settings": {"sd_vae": url}}
    assert owl.pop("defaults")["refiner_checkpoint"] == url
    assert owl.pop("loras") == [{"name": "Detail Tweaker", "scale": 0.5, "te": None, "unet": None}]
    assert owl == {"template": "owl", "default": False, "checkpoint": "Base", **ABOUT_OWL}


JOBS = [
    ({}, "fox"),
    ({"template": "owl"}, "owl"),
    ({"template": " owl "}, "owl"),
    ({"template": None}, None),
    ({"template": "None"}, None),
    ({"checkpoint": "mine"}, None),
    ({"checkpoint": None}, "fox"),
    ({"override_settings": {"sd_model_checkpoint": "mine"}}, None),
    ({"override_settings": {"eta_ddim": 0.5}}, "fox"),
    ({"loras": ["mine"]}, "fox"),
    ({"template": "owl", "checkpoint": "mine"}, "owl"),
]


@pytest.mark.parametrize(("job", "name"), JOBS, ids=str)
def test_the_default_is_for_jobs_that_name_neither_template_nor_checkpoint(file, job, name):
    filled = Templates(file).fill_in(job)
    assert filled.get("template") == name
    assert ("steps" in filled) == (name == "fox")


@pytest.mark.parametrize("job", [None, "x", [], {"template": 5}, {"template": ["fox"]}])
def test_a_wrong_input_is_left_to_the_schema(file, job):
    assert Templates(file).fill_in(job) == job


def test_the_setting_names_another_default_or_none(file):
    assert Templates(file, "owl").get_default_template() == "owl"
    assert Templates(file, "none").fill_in({"prompt": "x"}) == {"prompt": "x"}
    with pytest.raises(ConfigError, match="DEFAULT_TEMPLATE='fix': no such template"):
        Templates(file, "fix")


@pytest.mark.parametrize(
    "change",
    [lambda file: file.write_text("{"), Path.unlink, lambda file: write(file, {"fox": FOX})],
    ids=["damaged", "missing", "without its default"],
)
def test_a_changed_file_is_read_and_a_damaged_one_reported_once(file, change, caplog):
    caplog.set_level("INFO")
    templates = Templates(file, "owl")
    change(file)
    for _ in range(3):
        assert list(templates.get_templates()) == ["fox", "owl"]
    assert caplog.text.count("The templates from before are kept.") == 1
    with pytest.raises(ConfigError):
        templates.reload_templates()
    write(file, {"owl": OWL, "fox": FOX, "crow": FOX})
    status = file.stat()  # a change within one tick of the file system's clock is not noticed
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    assert list(templates.get_templates()) == ["owl", "fox", "crow"]
    assert "was read again: 3 templates" in caplog.text


def test_the_file_is_in_the_working_folder_or_beside_the_code(tmp_path, monkeypatch, file):
    assert Settings.from_environ({}).templates_path == PROJECT / "templates.json"
    monkeypatch.chdir(tmp_path)
    assert Settings.from_environ({}).templates_path == file
    named = Settings.from_environ({"TEMPLATES_FILE": "/nowhere/t.json"})
    with pytest.raises(ConfigError, match=r"/nowhere/t\.json cannot be read"):
        Templates(named.templates_path)


def test_without_a_file_there_are_no_templates():
    templates = Templates(None)
    assert templates.list_templates() == []
    assert templates.fill_in({"prompt": "x"}) == {"prompt": "x"}
    with pytest.raises(TemplateNotFound, match="Known: none"):
        templates.get_template("fox")
