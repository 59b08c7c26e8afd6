"""Stories about templates: baked and merged into an image, then named by jobs.

The real SDK, start.sh, handler and model manager; the engine is the fake A1111.
"""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from fakes.hosts.model_hosts import ModelHosts
from fakes.model_store import PROJECT, full_environment
from fakes.runpod_plane import RunPodPlane
from fakes.template_models import checkpoint, lora, named, write
from fakes.worker_process import running_worker

from tests.stories.test_models import completed, environ, failed

SMALL = {"steps": 2, "width": 64, "height": 64}


def content():
    detail = named(2, name="Detail", scale=0.5, trigger_words=True)
    fox = {"name": "Foxes", "description": "Red ones", "checkpoint": named(1, name="Base")}
    fox |= {"loras": [detail], "defaults": {"negative_prompt": "dark", "seed": 7, **SMALL}}
    return {"fox": fox, "owl": {"name": "Owls", "checkpoint": named(3, name="Night")}}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A worker that was started from a folder into which one of two templates was baked."""
    folder = tmp_path_factory.mktemp("image")
    with ModelHosts() as hosts, RunPodPlane() as plane:
        hosts.add_model(version_id=1, data=checkpoint(1), name="base.safetensors")
        words = ("fluffy",)
        hosts.add_model(
            version_id=2, data=lora(2), name="fur.safetensors", kind="LORA", trained_words=words
        )
        hosts.add_model(version_id=3, data=checkpoint(3), name="night.safetensors")
        file = write(folder / "templates.json", content(), default_template="fox")
        baking = full_environment(hosts, folder, TEMPLATES_FILE=str(file))
        command = [sys.executable, "model_manager.py", "bake", "--template", "fox", "--merge"]
        subprocess.run(command, cwd=PROJECT, env=baking, check=True, capture_output=True)
        more = {"TEMPLATES_FILE": str(file), "DEFAULT_TEMPLATE": ""}
        with running_worker(folder, plane, **environ(hosts, **more)) as worker:
            hosts.forget_requests()
            yield SimpleNamespace(worker=worker, hosts=hosts, file=file)


def test_a_prompt_alone_uses_the_default_template_merged_and_without_a_network(image):
    result = completed(image.worker.run({"prompt": "a fox"}))

    sent = image.worker.requests()[-1]["body"]
    assert sent["prompt"] == "a fox, fluffy"
    assert (sent["negative_prompt"], sent["steps"], sent["seed"]) == ("dark", 2, 7)
    assert sent["override_settings"]["sd_model_checkpoint"].startswith("base+fur-")
    assert result["template"] == "fox"
    (used,) = result["models"]
    assert used["source"] == "merged"
    assert used["name"] == sent["override_settings"]["sd_model_checkpoint"]
    parts = [(one["name"], one.get("te"), one.get("unet")) for one in used["merged_from"]]
    assert parts == [("base", None, None), ("fur", 0.5, 0.5)]
    assert image.hosts.requests == []


def test_another_scale_gets_the_checkpoint_and_a_tag(image):
    job = {"prompt": "a fox", "template": "fox", "loras": [{"name": "Detail", "scale": 0.8}]}
    result = completed(image.worker.run(job))

    sent = image.worker.requests()[-1]["body"]
    assert sent["prompt"] == "a fox, fluffy <lora:fur:0.8>"
    assert sent["override_settings"]["sd_model_checkpoint"] == "base"
    assert [one["name"] for one in result["models"]] == ["base", "fur"]
    assert image.hosts.requests == []


def test_a_job_with_a_checkpoint_of_its_own_has_no_template(image):
    result = completed(image.worker.run(SMALL | {"prompt": "x", "checkpoint": "first"}))

    assert "template" not in result
    assert image.worker.requests()[-1]["body"].get("negative_prompt") is None


def test_the_templates_are_listed_without_the_engine(image):
    before = len(image.worker.requests())
    result = completed(image.worker.run({"task": "templates"}))

    listed = {one["template"]: one for one in result["templates"]}
    assert list(listed) == ["fox", "owl"]
    assert (listed["fox"]["baked"], listed["fox"]["merged"]) == (True, True)
    assert (listed["owl"]["baked"], listed["owl"]["merged"]) == (False, False)
    assert listed["fox"]["description"] == "Red ones"
    assert result["default_template"] == "fox"
    assert len(image.worker.requests()) == before


def test_an_unknown_template_or_task_costs_nothing_and_is_told_with_near_ones(image):
    before = len(image.worker.requests())

    text = failed(image.worker.run({"prompt": "x", "template": "fux"}), "TEMPLATE_NOT_FOUND")
    assert "Did you mean 'fox'?" in text
    assert "'owl'" in text
    text = failed(image.worker.run({"task": "template"}), "INVALID_INPUT")
    assert "Did you mean 'templates'?" in text
    text = failed(image.worker.run({"task": "templates", "prompt": "x"}), "INVALID_INPUT")
    assert "'prompt'" in text

    assert len(image.worker.requests()) == before


def test_a_template_that_is_added_while_the_worker_runs_can_be_named(image):
    templates = content() | {"crow": content()["fox"] | {"loras": []}}
    write(image.file, templates, default_template="fox")

    result = completed(image.worker.run({"prompt": "x", "template": "crow"}))

    assert [one["name"] for one in result["models"]] == ["base"]
    assert json.loads(result["info"])["all_negative_prompts"] == ["dark"]


def test_a_template_that_is_not_baked_is_fetched_like_any_model(image):
    image.hosts.forget_requests()
    result = completed(image.worker.run(SMALL | {"prompt": "x", "template": "owl"}))

    assert result["models"][0]["name"] == "night"
    assert image.hosts.requests != []


def test_the_default_templates_models_come_during_the_start(tmp_path):
    with ModelHosts() as hosts, RunPodPlane() as plane:
        hosts.add_model(version_id=1, data=checkpoint(1), name="base.safetensors")
        hosts.add_model(version_id=2, data=lora(2), name="fur.safetensors", kind="LORA")
        file = write(tmp_path / "templates.json", content(), default_template="fox")
        more = {"TEMPLATES_FILE": str(file), "DEFAULT_TEMPLATE": ""}
        with running_worker(tmp_path, plane, **environ(hosts, **more)) as worker:
            assert hosts.requests
            hosts.forget_requests()
            first = completed(worker.run({"prompt": "a fox"}))
            second = completed(worker.run({"prompt": "a fox"}))

            assert not hosts.requests
            assert set(first["startup"]) == {"engine", "sdk", "models", "total"}
            assert first["startup"]["models"] > 0
            assert "startup" not in second
            assert worker.log().count("ready for jobs {") == 1


def test_a_default_template_that_cannot_be_had_is_a_warning(tmp_path):
    with ModelHosts() as hosts, RunPodPlane() as plane:
        file = write(tmp_path / "templates.json", content(), default_template="fox")
        more = {"TEMPLATES_FILE": str(file), "DEFAULT_TEMPLATE": ""}
        with running_worker(tmp_path, plane, **environ(hosts, **more)) as worker:
            assert "the default template's models are not there: MODEL_NOT_FOUND" in worker.log()
            completed(worker.run(SMALL | {"prompt": "a fox", "checkpoint": "first"}))
            failed(worker.run({"prompt": "a fox"}), "MODEL_NOT_FOUND")
