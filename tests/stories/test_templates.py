"""Stories about templates: baked and merged into an image, then named by jobs.

The real SDK, start.sh, handler and model manager; the engine is the fake A1111.
"""

import json
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from fakes import model_files
from fakes.hosts.model_hosts import ModelHosts
from fakes.model_files import safetensors
from fakes.model_store import PROJECT, full_environment
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import completed, failed, running_worker

SMALL = {"steps": 2, "width": 64, "height": 64}


def named(number, name, **more):
    url = f"https://civitai.com/api/download/models/{number}"
    return {"name": name, "url": url, **more}


FOX = {
    "name": "Foxes",
    "description": "Red ones",
    "checkpoint": named(1, "Base"),
    "loras": [named(2, "Detail", scale=0.5, trigger_words=True)],
    "defaults": {"negative_prompt": "dark", "seed": 7, **SMALL},
}
TEMPLATES = {"fox": FOX, "owl": {"name": "Owls", "checkpoint": named(3, "Night")}}
MODELS = [
    (1, "base", model_files.SD1, {}),
    (2, "fur", model_files.LORA, {"kind": "LORA", "trained_words": ("fluffy",)}),
    (3, "night", model_files.SD1, {}),
]


def write(file, templates):
    file.write_text(json.dumps({"templates": templates, "default_template": "fox"}))


@contextmanager
def worker_with_templates(folder, *, bake=(), models=MODELS):
    """A worker whose default template is `fox`, after `model_manager.py bake` with `bake`."""
    file = folder / "templates.json"
    write(file, TEMPLATES)
    environ = {"TEMPLATES_FILE": str(file), "DEFAULT_TEMPLATE": ""}
    with ModelHosts() as hosts, RunPodPlane() as plane:
        for number, name, shapes, more in models:
            data = safetensors(shapes, number=number)
            hosts.add_model(version_id=number, data=data, name=f"{name}.safetensors", **more)
        if bake:
            subprocess.run(
                [sys.executable, "model_manager.py", "bake", *bake],
                cwd=PROJECT,
                env=full_environment(hosts, folder, **environ),
                check=True,
                capture_output=True,
            )
            hosts.forget_requests()
        with running_worker(folder, plane, hosts=hosts, **environ) as worker:
            yield SimpleNamespace(worker=worker, hosts=hosts, file=file, run=worker.run)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A worker that was started from a folder into which one of two templates was baked."""
    bake = ("--template", "fox", "--merge")
    with worker_with_templates(tmp_path_factory.mktemp("image"), bake=bake) as image:
        yield image


def test_a_prompt_alone_uses_the_default_template_merged_and_without_a_network(image):
    result = completed(image.run({"prompt": "a fox"}))
    sent = image.worker.requests()[-1]["body"]
    assert sent["prompt"] == "a fox, fluffy"
    assert (sent["negative_prompt"], sent["steps"], sent["seed"]) == ("dark", 2, 7)
    assert sent["override_settings"]["sd_model_checkpoint"].startswith("base+fur-")
    assert result["template"] == "fox"
    (used,) = result["models"]
    parts = [(one["name"], one.get("te"), one.get("unet")) for one in used["merged_from"]]
    assert used["source"] == "merged"
    assert used["name"] == sent["override_settings"]["sd_model_checkpoint"]
    assert parts == [("base", None, None), ("fur", 0.5, 0.5)]
    assert image.hosts.requests == []


def test_another_scale_uses_the_unmerged_checkpoint_and_a_tag(image):
    job = {"prompt": "a fox", "template": "fox", "loras": [{"name": "Detail", "scale": 0.8}]}
    result = completed(image.run(job))
    sent = image.worker.requests()[-1]["body"]
    assert sent["prompt"] == "a fox, fluffy <lora:fur:0.8>"
    assert sent["override_settings"]["sd_model_checkpoint"] == "base"
    assert [one["name"] for one in result["models"]] == ["base", "fur"]
    assert image.hosts.requests == []


def test_the_templates_are_listed_without_the_engine(image):
    before = len(image.worker.requests())
    result = completed(image.run({"task": "templates"}))
    listed = [(one["template"], one["baked"], one["merged"]) for one in result["templates"]]
    assert listed == [("fox", True, True), ("owl", False, False)]
    assert result["templates"][0]["description"] == "Red ones"
    assert result["default_template"] == "fox"
    assert len(image.worker.requests()) == before


@pytest.mark.parametrize(
    ("job_input", "code", "words"),
    [
        ({"prompt": "x", "template": "fux"}, "TEMPLATE_NOT_FOUND", ["you mean 'fox'?", "'owl'"]),
        ({"task": "template"}, "INVALID_INPUT", ["Did you mean 'templates'?"]),
        ({"task": "templates", "prompt": "x"}, "INVALID_INPUT", ["'prompt'"]),
    ],
)
def test_an_unknown_template_or_task_costs_nothing_and_the_error_has_near_names(
    image, job_input, code, words
):
    before = len(image.worker.requests())
    message = failed(image.run(job_input), code)
    assert all(word in message for word in words)
    assert len(image.worker.requests()) == before


def test_templates_that_are_not_baked_or_added_while_the_worker_runs_are_fetched(image):
    write(image.file, TEMPLATES | {"crow": FOX | {"loras": []}})
    owl = completed(image.run(SMALL | {"prompt": "x", "template": "owl"}))
    assert owl["models"][0]["name"] == "night"
    assert image.hosts.requests != []
    crow = completed(image.run({"prompt": "x", "template": "crow"}))
    assert [one["name"] for one in crow["models"]] == ["base"]
    assert json.loads(crow["info"])["all_negative_prompts"] == ["dark"]
    without = completed(image.run(SMALL | {"prompt": "x", "checkpoint": "first"}))
    assert "template" not in without
    assert image.worker.requests()[-1]["body"].get("negative_prompt") is None


def test_the_default_templates_models_are_fetched_during_the_start(tmp_path):
    with worker_with_templates(tmp_path) as started:
        assert started.hosts.requests
        started.hosts.forget_requests()
        first = completed(started.run({"prompt": "a fox"}))
        second = completed(started.run({"prompt": "a fox"}))
        assert not started.hosts.requests
        assert set(first["startup"]) == {"engine", "sdk", "models", "total"}
        assert first["startup"]["models"] > 0
        assert "startup" not in second
        assert started.worker.log().count("ready for jobs {") == 1


def test_a_default_template_whose_models_cannot_be_fetched_is_a_warning(tmp_path):
    with worker_with_templates(tmp_path, models=[]) as started:
        assert "MODEL_NOT_FOUND" in started.worker.log()
        completed(started.run(SMALL | {"prompt": "a fox", "checkpoint": "first"}))
        failed(started.run({"prompt": "a fox"}), "MODEL_NOT_FOUND")
