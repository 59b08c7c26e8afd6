"""The tasks beside drawing, through the handler: with the fake, the embedded and a live engine."""

import asyncio
import base64
import io

import pytest
from PIL import Image

import handler
from tests.contract.test_contract import SMALL, TIMEOUT, engine  # noqa: F401 - a fixture
from worker.config.settings import Settings
from worker.generation.picture import infotext
from worker.tasks.lists import LISTS
from worker.tasks.table import TASKS


@pytest.fixture
def run(engine, tmp_path):  # noqa: F811 - the fixture
    """Run jobs in a handler with this engine; returns their answers."""
    folders = {"MODELS_DIR": "models", "BAKED_MODELS_DIR": "baked", "WEBUI_DIR": "webui"}
    settings = {name: str(tmp_path / one) for name, one in folders.items()}
    built, client = handler.build(
        Settings.from_environ(settings | {"WEBUI_URL": engine.url, "DEFAULT_TEMPLATE": "none"})
    )
    client.boot(TIMEOUT)

    def run(*jobs):
        async def story():
            return [await built({"id": "a", "input": job}) for job in jobs]

        answers = asyncio.run(story())
        for job, answer in zip(jobs, answers, strict=True):
            if "error" not in answer:
                TASKS.of(job).output.model_validate(answer, strict=True, extra="forbid")
        return answers

    return run


def opened(image):
    return Image.open(io.BytesIO(base64.b64decode(image)))


def test_a_drawn_picture_is_enlarged_with_its_infotext(run):
    (drawn,) = run(SMALL)[0]["images"]
    job = {"task": "upscale", "image": drawn, "upscaler_1": "Lanczos"}
    size = {"upscaling_resize_w": 100, "upscaling_resize_h": 60}
    both = {"upscaler_2": "Nearest", "extras_upscaler_2_visibility": 0.5}
    answers = run(job | {"upscaling_resize": 1.5}, job | size, job | both)
    pictures = [opened(answer["images"][0]) for answer in answers]
    assert [picture.size for picture in pictures] == [(96, 96), (100, 60), (128, 128)]
    assert {infotext(picture) for picture in pictures} == {infotext(opened(drawn))}
    plain = opened(drawn).convert("RGB").resize((96, 96), Image.Resampling.LANCZOS)
    assert pictures[0].convert("RGB").tobytes() == plain.tobytes()


def test_an_upscaler_that_is_not_there_and_a_model_that_is_missing_are_errors(run):
    (drawn,) = run(SMALL)[0]["images"]
    job = {"task": "upscale", "image": drawn}
    unknown, describes = run(
        job | {"upscaler_1": "lanczos"}, {"task": "interrogate", "image": drawn}
    )
    assert (unknown["code"], unknown["near"]) == ("INVALID_INPUT", ["Lanczos"])
    assert describes.get("code", "ENGINE_MODEL_MISSING") in {
        "ENGINE_MODEL_MISSING",
        "REQUEST_REFUSED",
    }


def test_every_list_has_the_names_that_jobs_can_give(run):
    answers = run(*({"task": task.name} for task in LISTS))
    lists = {
        task.name: {one["name"] for one in answer[task.name]}
        for task, answer in zip(LISTS, answers, strict=True)
    }
    assert lists["samplers"] > {"Euler a", "DPM++ 2M", "UniPC"}
    assert lists["schedulers"] > {"Karras"}
    assert lists["upscalers"] > {"Lanczos", "Nearest", "Latent"}
