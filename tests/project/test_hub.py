"""The Hub's files: as RunPod documents them, with settings, GPUs and jobs that exist."""

import json

import pytest
from jsonschema import Draft202012Validator
from PIL import Image, ImageChops

from docs import hub
from docs.figures import icon
from tests.project.runpod_documents import HUB, HUB_TESTS
from worker.config import gpus
from worker.config.credentials import CREDENTIALS
from worker.config.settings import PROJECT, Settings
from worker.job.template_file import Templates
from worker.job.txt2img import parse

QUEUE, BALANCED, TESTS = (
    json.loads((PROJECT / f".runpod/{name}.json").read_text())
    for name in ("hub", "hub-load-balancing", "tests")
)
TEMPLATES = Templates(PROJECT / "templates.json")
INPUTS = {one["key"]: one["input"] for one in QUEUE["config"]["env"]}
PRESETS = {one["name"]: one["defaults"] for one in QUEUE["config"]["presets"]}


@pytest.mark.parametrize(
    ("file", "schema"),
    [(QUEUE, HUB), (BALANCED, HUB), (TESTS, HUB_TESTS)],
    ids=["q", "lb", "tests"],
)
def test_each_file_is_as_documented(file, schema):
    assert [one.message for one in Draft202012Validator(schema).iter_errors(file)] == []


def test_the_files_that_the_hub_needs_are_in_the_root():
    assert all((PROJECT / name).is_file() for name in ("handler.py", "Dockerfile", "README.md"))


def test_the_two_listings_differ_by_their_type_and_ports_only():
    assert BALANCED["config"].pop("endpointType") == "LB"
    ports = [one["key"] for one in BALANCED["config"]["env"] if "value" in one]
    assert ports == ["PORT", "PORT_HEALTH"]
    BALANCED["config"]["env"] = [one for one in BALANCED["config"]["env"] if "input" in one]
    assert QUEUE | {"title": BALANCED["title"]} == BALANCED


def test_it_offers_all_gpus_and_cuda_versions():
    assert QUEUE["config"]["gpuIds"].split(",") == list(gpus.POOLS)
    for file in (QUEUE, TESTS):
        assert file["config"]["allowedCudaVersions"] == list(gpus.CUDA_OF_HOSTS)


@pytest.mark.parametrize("key", INPUTS)
def test_every_input_is_a_setting_with_a_help_text(key):
    given = INPUTS[key]
    values = [option["value"] for option in given.get("options", [])]
    assert key.lower() in Settings.model_fields
    assert given["description"].endswith((".", ")"))
    assert given.get("default", "") in values or not values
    for value in values + [given[name] for name in ("default", "min", "max") if name in given]:
        Settings.from_environ({key: str(value)})
    if "default" in given and key != "DEFAULT_TEMPLATE":
        assert Settings.from_environ({key: str(given["default"])}) == Settings.from_environ({})
    if key.lower() in CREDENTIALS:
        assert "default" not in given


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_values_that_the_form_could_have(name):
    preset = PRESETS[name]
    for key, value in preset.items():
        options = [option["value"] for option in INPUTS[key].get("options", [])]
        assert value in options or not options
        assert isinstance(value, int) == (INPUTS[key]["type"] == "number")
    settings = Settings.from_environ({key: str(value) for key, value in preset.items()})
    checkpoint = TEMPLATES.get_template(settings.default_template).checkpoint
    assert ("civitai.com" in str(checkpoint)) == ("CivitAI key" in name)
    # Another preset must replace all that this one has set.
    assert all(preset.keys() == other.keys() for other in PRESETS.values())


def test_there_is_a_preset_for_each_kind_of_gpu_and_for_a_cached_model():
    for word in ("SDXL on 24 GB", "SD1 on 16 GB", "Blackwell", "Cached model"):
        assert sum(word in name for name in PRESETS) == 1


def test_the_hubs_tests_are_jobs_and_settings_that_are_accepted_without_a_key():
    for test in TESTS["tests"]:
        job = test["input"]
        if job != {"task": "health"}:
            filled = parse(TEMPLATES.fill_in(job))
            assert "huggingface.co" in str(filled.checkpoint)
    environ = {one["key"]: one["value"] for one in TESTS["config"]["env"]}
    assert Settings.from_environ(environ).default_template == "none"


def test_both_readmes_have_the_badge_of_the_repository_that_has_the_icon():
    for page in ("README.md", "README.tr.md"):
        assert hub.badge() in (PROJECT / page).read_text()
    assert f"/{hub.REPOSITORY}/" in QUEUE["iconUrl"]
    assert (PROJECT / QUEUE["iconUrl"].partition("/main/")[2]) == icon.PNG


def test_the_icon_of_the_hub_is_the_one_that_is_drawn():
    with Image.open(icon.PNG) as saved:
        difference = ImageChops.difference(saved.convert("RGBA"), icon.picture())
    assert max(high for _, high in difference.getextrema()) < 16  # other versions of Pillow
