"""The A1111 client `webuiapi` works with the engine.

It sends every field that it knows with each request, with its own default values.
"""

import asyncio

import numpy as np
import pytest
import webuiapi
from fakes.recorded import recorded
from PIL import Image

SMALL = {"prompt": "a cat", "seed": 1, "steps": 2, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def api(client):
    api = webuiapi.WebUIApi(host="127.0.0.1", port=client.port)
    api.txt2img(**SMALL)  # loads and hashes the default checkpoint
    yield api
    api.session.close()


@pytest.fixture
def default_options(api):
    before = api.get_options()
    yield before
    api.set_options(before)


def draw(api, **fields):
    return np.asarray(api.txt2img(**SMALL, **fields).image)


def test_default_values_have_no_effect_and_are_repeated_in_info(api, client):
    async def wait():
        return await api.txt2img(**SMALL, use_async=True)

    plain = client.picture(sampler_name="Euler a")
    for answer in (api.txt2img(**SMALL), asyncio.run(wait())):
        assert np.array_equal(np.asarray(answer.image), plain)
        assert answer.info["denoising_strength"] == 0.7
        size = (answer.info["seed_resize_from_w"], answer.info["seed_resize_from_h"])
        assert size == (0, 0)
        assert "Schedule type: automatic" in answer.info["infotexts"][0]


def test_eta_has_an_effect_on_ddim(api):
    """As in A1111: `eta` in a request replaces the option `eta_ddim`."""
    noisy, plain = (api.txt2img(**SMALL, sampler_name="DDIM", eta=eta) for eta in (1.0, 0.0))
    assert noisy.info["extra_generation_params"]["Eta DDIM"] == 1.0
    assert "Eta DDIM: 1.0" in noisy.image.info["parameters"]
    assert not np.array_equal(np.asarray(noisy.image), np.asarray(plain.image))


RED, MASK = Image.new("RGB", (64, 48), "red"), Image.new("L", (64, 48), 255)
# {name: call, size of the picture}
PICTURES = {
    "img2img": (lambda api: api.img2img(images=[RED], **SMALL), (64, 64)),
    "mask": (
        lambda api: api.img2img([RED], mask_image=MASK, inpaint_full_res=False, **SMALL),
        (64, 64),
    ),
    "only the masked area": (lambda api: api.img2img([RED], mask_image=MASK, **SMALL), (64, 48)),
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


def test_png_info_reads_the_engine_s_own_picture(api):
    answer = api.txt2img(**SMALL)
    assert api.png_info(answer.image).info == answer.info["infotexts"][0]


def test_set_options(api, default_options):
    alpha = draw(api)
    assert api.set_options(default_options) is None
    assert api.get_options() == default_options
    answer = api.set_options({"CLIP_stop_at_last_layers": 2, "face_restoration": True})
    assert "face_restoration" in answer["detail"]
    assert api.get_options() == default_options
    api.set_options({"CLIP_stop_at_last_layers": 2})
    assert api.get_options()["CLIP_stop_at_last_layers"] == 2
    assert not np.array_equal(draw(api), alpha)
    title = next(t for t in api.util_get_model_names() if "beta" in t)
    assert api.set_options({"sd_model_checkpoint": title}) is None
    assert api.util_get_current_model().startswith("sub/beta.safetensors [")
    assert api.txt2img(**SMALL).info["sd_model_name"] == "beta"
    assert default_options["sd_model_checkpoint"].startswith("alpha.safetensors [")
    api.util_set_model(default_options["sd_model_checkpoint"])
    api.set_options({"CLIP_stop_at_last_layers": 1})
    assert np.array_equal(draw(api), alpha)


def test_options_and_flags_are_those_of_a1111(api, data_dir):
    options, expected = api.get_options(), recorded("get_options")
    assert list(options) == [name for name in expected if name in options]
    differing = {name for name, value in options.items() if value != expected[name]}
    own = {"sd_model_checkpoint", "sd_checkpoint_hash"}
    assert differing - own == {"randn_source", "live_previews_enable"}
    flags, expected = api.get_cmd_flags(), recorded("get_cmd-flags")
    assert list(flags) == [name for name in expected if name in flags]
    assert flags["data_dir"] == str(data_dir)
    assert flags["lora_dir"] == str(data_dir / "models/Lora")


EMPTY = [
    *("hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles", "sd-vae"),
    *("extensions", "script-info"),
]


def test_lists_are_those_of_a1111(api, client):
    assert api.get_samplers()[0] == recorded("get_samplers")[0]
    assert api.get_schedulers() == recorded("get_schedulers")
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert api.get_embeddings() == recorded("get_embeddings")
    assert api.get_latent_upscale_modes() == recorded("get_latent-upscale-modes")
    assert api.get_upscalers() == recorded("get_upscalers")[:3]
    for name in EMPTY:
        assert api.custom_get(name, baseurl=True) == []
    entry = {lora["name"]: lora for lora in api.get_loras()}["style.v1"]
    assert entry.keys() == recorded("get_loras_two")[0].keys()
    assert (entry["alias"], entry["metadata"]) == ("style.v1", {"modelspec.title": "style.v1"})
    for what in ("checkpoints", "loras", "vae", "embeddings"):
        answer = client.post(f"refresh-{what}")
        assert (answer.status_code, answer.json()) == (200, None)


def test_memory_and_idle_progress(api, client, cat):
    memory = api.get_memory()
    assert memory.keys() == recorded("get_memory").keys()
    assert cat.nbytes < memory["ram"]["used"] < memory["ram"]["total"]
    idle, expected = client.get("progress?skip_current_image=true").json(), recorded("get_progress")
    timestamp = {"job_timestamp": idle["state"]["job_timestamp"]}
    assert idle == expected | {"state": expected["state"] | timestamp}


def test_progress_and_interrupt_at_the_next_step(api, client, cat):
    job = client.start(steps=100_000, n_iter=2)
    running, expected = api.get_progress(), recorded("get_progress_mid_job")
    assert api.interrupt() == {}
    assert len(job.result().json()["images"]) == 1
    assert running.keys() == expected.keys()
    assert running["state"].keys() == expected["state"].keys()
    assert 0 < running["progress"] < 0.5
    assert (running["state"]["job_count"], running["state"]["sampling_steps"]) == (2, 100_000)
    api.util_wait_for_ready(check_interval=0.1)
    assert api.get_progress()["state"]["job"] == ""
    api.interrupt()  # has no effect on later jobs
    assert np.array_equal(client.picture(), cat)
