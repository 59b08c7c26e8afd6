"""The Hub's files: settings that exist; GPUs, CUDA versions and memory as in the table of GPUs."""

import json

import pytest

from worker.config import gpus
from worker.config.credentials import CREDENTIALS
from worker.config.settings import PROJECT, Settings
from worker.job.txt2img import parse

HUB, TESTS = (json.loads((PROJECT / f".runpod/{n}.json").read_text()) for n in ("hub", "tests"))
INPUTS = [one for one in HUB["config"]["env"] if "input" in one]
SDXL = next(picture for picture in gpus.PICTURES if picture.name == "SDXL, 1024x1024")


def test_it_offers_the_pools_and_the_cuda_versions_of_the_table_of_gpus():
    assert HUB["config"]["gpuIds"].split(",") == list(gpus.POOLS)
    for file in (HUB, TESTS):
        assert file["config"]["allowedCudaVersions"] == list(gpus.CUDA_OF_HOSTS)
    assert HUB["config"]["gpuCount"] == 1


def test_it_names_the_memory_of_the_table_of_gpus():
    (given,) = [entry["input"] for entry in INPUTS if entry["key"] == "WEBUI_ARGS"]
    sdxl = gpus.size_for(SDXL.memory(single=True))
    sd1 = gpus.size_for(gpus.SMALLEST_GPU)
    assert f"SDXL needs a GPU of {sdxl} GB, and SD1 one of {sd1} GB" in given["description"]
    sizes = {option["value"]: option["label"] for option in given["options"]}
    assert f"Less than {sdxl} GB" in sizes["--medvram"]
    assert f"Less than {sd1} GB" in sizes["--lowvram"]


@pytest.mark.parametrize("entry", INPUTS, ids=lambda entry: entry["key"])
def test_every_input_is_a_setting_with_a_help_text(entry):
    key, given = entry["key"], entry["input"]
    values = [option["value"] for option in given.get("options", [])]
    assert key.lower() in Settings.model_fields
    assert given["description"].endswith((".", ")"))
    for value in values + [given[name] for name in ("default", "min", "max") if name in given]:
        Settings.from_environ({key: str(value)})
    if "default" in given and key != "DEFAULT_TEMPLATE":
        assert Settings.from_environ({key: str(given["default"])}) == Settings.from_environ({})


def test_no_credential_has_a_value():
    entries = [*INPUTS, *TESTS["config"]["env"]]
    secret = [one for one in entries if one["key"].lower() in CREDENTIALS]
    assert [one["key"] for one in secret if one["input"].get("default")] == []


def test_the_hubs_tests_are_jobs_and_settings_that_are_accepted():
    for test in TESTS["tests"]:
        job = test["input"]
        assert job == {"task": "health"} or parse(job).checkpoint is not None
        assert test["timeout"] <= 600_000  # milliseconds
    environ = {one["key"]: one["value"] for one in TESTS["config"]["env"]}
    assert Settings.from_environ(environ).default_template == "none"
