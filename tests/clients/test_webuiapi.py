"""The Python client webuiapi, as it is published."""

import asyncio
import base64
import io
import threading

import numpy as np
import pytest
import webuiapi
from fakes import model_files
from fakes.a1111.process import wait_until
from fakes.model_files import safetensors
from fakes.recorded import recorded
from PIL import Image

SMALL = {"prompt": "a cat", "seed": 1, "steps": 2, "width": 64, "height": 64}
RED, MASK = Image.new("RGB", (64, 48), "red"), Image.new("L", (64, 48), 255)


@pytest.fixture
def api(url):
    api = webuiapi.WebUIApi(port=int(url.rpartition(":")[2]))
    yield api
    api.session.close()


LISTS = {
    "get_samplers": "get_samplers",
    "get_schedulers": "get_schedulers",
    "get_upscalers": "get_upscalers",
    "get_latent_upscale_modes": "get_latent-upscale-modes",
    "get_scripts": "get_scripts",
    "get_embeddings": "get_embeddings",
    "get_sd_models": "get_sd-models_two",
    "get_loras": "get_loras_two",
    "get_realesrgan_models": "get_realesrgan-models",
    "get_memory": "get_memory",
    "get_progress": "get_progress",
}


def shape(value):
    """The keys of an object, and those of the objects in it and in a list."""
    if isinstance(value, dict):
        return {name: shape(one) for name, one in value.items()}
    return shape(value[0]) if isinstance(value, list) and value else None


@pytest.mark.parametrize("name", LISTS)
def test_lists_have_the_form_of_a1111(api, name):
    answer, expected = getattr(api, name)(), recorded(LISTS[name])
    same = {"metadata": None, "options": None}  # their keys differ from one item to the other

    def without(value):
        return value | same if isinstance(value, dict) else value

    first = [one[0] if isinstance(one, list) else one for one in (answer, expected)]
    if isinstance(answer, dict):
        assert answer.keys() == expected.keys()
    else:
        assert shape(without(first[0])).keys() == shape(without(first[1])).keys()


def test_names_are_those_of_the_worker(api):
    assert [one["name"] for one in api.get_samplers()] == [
        one["name"] for one in recorded("get_samplers")
    ]
    assert api.get_schedulers() == recorded("get_schedulers")
    assert api.util_get_model_names() == sorted(api.util_get_model_names())
    titles = [one["title"] for one in api.get_sd_models()]
    assert titles[0] == "Red foxes"
    own = {title.partition(" [")[0] for title in titles[1:]}
    assert own >= {"first.safetensors", "second.safetensors"}
    assert [one["name"] for one in api.get_loras()] == ["detail"]
    for name in ("hypernetworks", "face-restorers", "prompt-styles", "sd-vae", "extensions"):
        assert api.custom_get(name, baseurl=True) == []
    for what in ("checkpoints", "loras", "vae", "embeddings"):
        assert api.session.post(f"{api.baseurl}/refresh-{what}").json() is None
    assert (api.controlnet_version(), api.controlnet_model_list()) == (0, [])


def test_a_picture_is_drawn_with_the_default_template_and_warnings_are_in_info(api):
    answer = api.txt2img(**SMALL | {"steps": 20})
    assert answer.info["sd_model_name"] == "second"
    assert api.util_get_current_model() == "Red foxes"
    assert any("'automatic'" in one for one in answer.info["worker_warnings"])
    assert answer.image.size == (64, 64)
    assert api.png_info(answer.image).info == answer.info["infotexts"][0]

    async def wait():
        return await api.txt2img(**SMALL, use_async=True)

    assert asyncio.run(wait()).info["seed"] == 1


PICTURES = {
    "img2img": (lambda api: api.img2img(images=[RED], **SMALL), (64, 64)),
    "mask": (lambda api: api.img2img([RED], mask_image=MASK, **SMALL), (64, 48)),
    "upscale": (
        lambda api: api.extra_single_image(RED, upscaler_1="Lanczos", upscaling_resize=3),
        (192, 144),
    ),
    "upscale several": (
        lambda api: api.extra_batch_images([RED, RED], upscaler_1="Nearest", upscaling_resize=2),
        (128, 96),
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_taken_and_returned(api, name):
    call, size = PICTURES[name]
    assert {image.size for image in call(api).images} == {size}


def test_a_picture_is_not_described_without_a_model_and_the_client_gets_the_sentence(api):
    with pytest.raises(RuntimeError, match="BLIP"):
        api.interrogate(RED)


def test_options_are_remembered_and_an_unknown_checkpoint_is_refused_as_by_a1111(api):
    before = api.get_options()
    assert api.set_options(before) is None
    assert api.get_options() == before
    assert api.set_options({"sd_model_checkpoint": "first", "CLIP_stop_at_last_layers": 2}) is None
    answer = api.txt2img(**SMALL)
    assert (answer.info["sd_model_name"], answer.info["clip_skip"]) == ("first", 2)
    expected = recorded("err_options_unknown_checkpoint")["response"]
    refused = api.set_options({"sd_model_checkpoint": "nope.safetensors"})
    assert (refused["errors"], refused.keys()) == (expected["errors"], expected.keys())
    refused = api.set_options({"upscaler_for_img2img": "LDSR", "CLIP_stop_at_last_layers": 3})
    assert "upscaler_for_img2img" in refused["detail"]
    assert api.get_options()["CLIP_stop_at_last_layers"] == 3
    assert api.set_options({"CLIP_stop_at_last_layers": "x"})["error"] == "INVALID_INPUT"
    api.set_options({"sd_model_checkpoint": "Red foxes", "CLIP_stop_at_last_layers": 1})
    assert api.txt2img(**SMALL).info["sd_model_name"] == "second"
    api.set_options({"sd_model_checkpoint": ""})


def test_a_checkpoint_of_civitai_is_drawn_by_its_url_and_then_listed(api, hosts, url):
    number = 1 if url.startswith("http://localhost") else 2  # each gateway a new one
    data = safetensors(model_files.SD1, number=number)
    hosts.add_model(version_id=number, model_id=number, data=data, name=f"far{number}.safetensors")
    page = f"https://civitai.com/models/{number}?modelVersionId={number}"
    assert api.set_options({"sd_model_checkpoint": page}) is None
    try:
        assert api.txt2img(**SMALL).info["sd_model_name"] == f"far{number}"
        assert api.util_get_current_model() == page
        wait_until(lambda: f"far{number}" in str(api.get_sd_models()), "the new model in the list")
    finally:
        api.set_options({"sd_model_checkpoint": ""})


REFUSED = {
    "a sampler": ({"sampler_name": "nope"}, "sampler_name"),
    "a style": ({"styles": ["nope"]}, "styles"),
    "a script": ({"script_name": "nope"}, "script_name"),
    "a checkpoint": ({"override_settings": {"sd_model_checkpoint": "nope"}}, "nope"),
    "a LoRA": ({"prompt": "a <lora:nope:1>"}, "nope"),
    "the size": ({"width": 1}, "width"),
    "an option": ({"override_settings": {"sd_unet": "nope"}}, "sd_unet"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_worker_refuses_reaches_the_client_with_its_sentence(api, what):
    fields, word = REFUSED[what]
    with pytest.raises(RuntimeError) as refused:
        api.txt2img(**SMALL | fields)
    status, body = refused.value.args
    assert status == 422
    assert word in body


def drawing(api, worker, **fields):
    """Start a picture that takes long; returns what becomes of it."""
    worker.worker.fault("slow_steps", seconds=0.2)
    ends = []

    def draw():
        try:
            ends.append(api.txt2img(**SMALL | {"steps": 100} | fields))
        except RuntimeError as error:
            ends.append(error.args)

    thread = threading.Thread(target=draw)
    thread.start()
    return thread, ends


def test_progress_is_that_of_the_picture_with_a_preview_and_interrupt_ends_it(api, worker):
    thread, ends = drawing(api, worker)
    try:
        wait_until(lambda: api.get_progress()["current_image"], "a preview")
        progress = api.get_progress()
        assert progress["state"]["job_count"] == 1
        assert 0 < progress["progress"] < 1
        assert progress["state"]["sampling_steps"] == 100
        preview = base64.b64decode(progress["current_image"])
        assert Image.open(io.BytesIO(preview)).format == "JPEG"
        without = api.session.get(f"{api.baseurl}/progress?skip_current_image=true").json()
        assert without["current_image"] is None
        assert api.interrupt() == {}
        thread.join(60)
        (end,) = ends
        assert end[0] == 409
        assert "cancelled" in end[1]
        wait_until(worker.worker.engine_is_idle, "an idle engine")
        assert api.get_progress()["state"]["job_count"] == 0
    finally:
        worker.worker.no_faults()


def test_two_programs_of_one_computer_have_options_and_jobs_of_their_own(api, url, worker):
    other = webuiapi.WebUIApi(port=int(url.rpartition(":")[2]))
    other.session.headers["User-Agent"] = "another program"
    api.set_options({"sd_model_checkpoint": "first"})
    assert other.util_get_current_model().startswith("first")  # it has chosen none itself
    other.set_options({"sd_model_checkpoint": "second"})
    assert api.util_get_current_model().startswith("first")
    assert other.txt2img(**SMALL).info["sd_model_name"] == "second"
    first, ends = drawing(api, worker)
    second, others = drawing(other, worker, steps=3)
    try:
        worker.worker.wait_until_generating()
        wait_until(lambda: other.get_progress()["state"]["job_count"], "the other job")
        api.interrupt()
        first.join(60)
        second.join(60)
        assert ends[0][0] == 409
        assert np.asarray(others[0].image).shape == (64, 64, 3)
    finally:
        worker.worker.no_faults()
        api.set_options({"sd_model_checkpoint": ""})
        other.session.close()
