import asyncio
import json

import pytest
from fakes.a1111.process import write_safetensors
from fakes.recorded import recorded
from fakes.stub_engine import StubEngine, handler_with

from worker.errors import ConnectionLost, EngineFault
from worker.tasks.lists import LISTS

FOLDERS = {"models": "Stable-diffusion", "loras": "Lora", "vaes": "VAE", "embeddings": "embeddings"}


class ListingEngine(StubEngine):
    """An engine with these answers; an exception is raised, the others are recorded ones."""

    def __init__(self, catalog, folder, **answers):
        super().__init__(catalog, folder)
        self.answers = answers

    async def listed(self, route):
        answer = self.answers.get(route.replace("-", "_"), recorded(f"get_{route}"))
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def listed(tmp_path, catalog):
    """Run a list with an engine of these answers, in a store of two files of each kind."""
    for folder in FOLDERS.values():
        write_safetensors(tmp_path / "models" / folder / "first.safetensors")
        write_safetensors(tmp_path / "models" / folder / "sub/Second.safetensors")

    def listed(task, answers=(), **fields):
        built = handler_with(ListingEngine(catalog, tmp_path, **dict(answers)), tmp_path)
        answer = asyncio.run(built({"id": "a", "input": {"task": task} | fields}))
        assert str(tmp_path) not in json.dumps(answer)
        return answer

    return listed


@pytest.mark.parametrize("task", FOLDERS)
def test_models_are_those_of_the_store_marked_by_what_the_engine_lists(listed, task):
    at = "/secret/folder/first.safetensors"
    answers = {
        "sd_models": [{"model_name": "first", "sha256": "ab" * 32, "filename": at, "title": at}],
        "loras": [{"name": "first", "path": at, "metadata": {"a": "b" * 9}}],
        "sd_vae": [{"model_name": "first.safetensors", "filename": at}],
        "embeddings": {"loaded": {}, "skipped": {"first": {"step": None}}},
    }
    answer = listed(task, answers)
    names = [(one["name"], one["in_engine"]) for one in answer[task]]
    assert names == [("first.safetensors", True), ("Second.safetensors", False)]
    assert answer["total"] == 2
    assert "secret" not in json.dumps(answer)
    if task == "models":
        first = answer["models"][0]
        assert (first["title"], first["hash"]) == ("first.safetensors [ababababab]", "ababababab")


def test_a_name_that_several_files_have_is_listed_with_their_folders(listed, tmp_path):
    for path in ("sub/first", "a/both", "b/both"):
        write_safetensors(tmp_path / f"models/Stable-diffusion/{path}.safetensors")
    found = {one["name"]: one["model_name"] for one in listed("models")["models"]}
    of_path = {
        f"{a}/{b}.safetensors": f"{a}_{b}"
        for a, b in (("a", "both"), ("b", "both"), ("sub", "first"))
    }
    assert found == {"first.safetensors": "first", "Second.safetensors": "Second"} | of_path


@pytest.mark.parametrize("error", [ConnectionLost("no answer."), EngineFault("not JSON.")])
def test_without_an_answer_of_the_engine_the_store_is_listed_and_names_are_an_error(listed, error):
    answer = listed("loras", {"loras": error})
    assert [one["in_engine"] for one in answer["loras"]] == [None, None]
    assert listed("samplers", {"samplers": error})["code"] == error.code
    assert listed("styles", {"prompt_styles": [{"prompt": 5}]})["code"] == "ENGINE_ERROR"


def test_a_list_can_be_searched_and_is_bounded(listed):
    found = listed("models", search="SEC")
    assert ([one["name"] for one in found["models"]], found["total"]) == (["Second.safetensors"], 1)
    short = listed("samplers", limit=2)
    assert (len(short["samplers"]), short["total"]) == (2, 19)
    assert "limit = 0: must be at least 1" in listed("samplers", limit=0)["error"]


def test_names_of_the_engine_are_those_that_a_job_can_give(listed, catalog):
    lists = {task.name: {one["name"] for one in listed(task.name)[task.name]} for task in LISTS}
    assert lists["samplers"] == set(catalog.samplers.values())
    assert lists["schedulers"] == set(catalog.schedulers.values())
    assert lists["upscalers"] == catalog.upscalers - {"None"}
    assert set().union(*catalog.scripts.values()) == lists["scripts"]
    upscalers = {one["name"]: one for one in listed("upscalers")["upscalers"]}
    assert upscalers["Latent"]["fields"] == ["hr_upscaler"]
    assert "upscaler_1" in upscalers["R-ESRGAN 4x+"]["fields"]
    assert (upscalers["Lanczos"]["scale"], upscalers["DAT x2"]["scale"]) == (None, 2)
    scripts = {one["name"]: one for one in listed("scripts")["scripts"]}
    assert (scripts["x/y/z plot"]["always_on"], scripts["seed"]["always_on"]) == (False, True)
    assert (scripts["loopback"]["tasks"], scripts["x/y/z plot"]["args"][0]) == (
        ["img2img"],
        "X type",
    )
    without = listed("scripts", {"script_info": EngineFault("no.")})["scripts"]
    assert {one["always_on"] for one in without} == {None}
    style = {"name": "ink", "prompt": "ink, {prompt}", "negative_prompt": None}
    (ink,) = listed("styles", {"prompt_styles": [style]})["styles"]
    assert ink == style | {"negative_prompt": ""}
