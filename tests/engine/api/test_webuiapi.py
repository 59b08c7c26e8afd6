"""The A1111 client `webuiapi` works with the engine.

It sends every field that it knows with each request, with its own default values.
"""

import asyncio

import numpy as np
import pytest
import webuiapi
from fakes.recorded import recorded

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
    return np.asarray(api.txt2img(**(SMALL | fields)).image, dtype=int)


def test_pictures_with_parameters_and_info(api):
    answer = api.txt2img(**(SMALL | {"width": 128, "seed": 7}), batch_size=2, n_iter=2)
    assert [image.size for image in answer.images] == [(128, 64)] * 4
    assert answer.info["all_seeds"] == [7, 8, 9, 10]
    assert (answer.parameters["seed"], answer.parameters["steps"]) == (7, 2)
    assert (answer.info["seed"], answer.info["sampler_name"]) == (7, "Euler a")
    assert answer.image.info["parameters"] == answer.info["infotexts"][0]


def test_default_values_have_no_effect_and_are_repeated_in_info(api, client):
    info = api.txt2img(**SMALL).info
    assert np.array_equal(draw(api), client.picture(sampler_name="Euler a"))
    assert info["denoising_strength"] == 0.7
    assert (info["seed_resize_from_w"], info["seed_resize_from_h"]) == (0, 0)
    assert "Schedule type: automatic" in info["infotexts"][0]


def test_asynchronous_request(api):
    async def draw():
        return await api.txt2img(**SMALL, use_async=True)

    assert asyncio.run(draw()).image.size == (64, 64)


def test_every_listed_scheduler(api):
    pictures = {
        name: draw(api, steps=4, sampler_name="DPM++ 2M", scheduler=name).tobytes()
        for name in api.util_get_scheduler_names()
    }
    assert pictures["automatic"] == pictures["uniform"]
    assert pictures["polyexponential"] == pictures["exponential"]
    assert len({*pictures.values()}) == 4


def test_eta_has_an_effect_on_ddim(api):
    """As in A1111: `eta` in a request replaces the option `eta_ddim`."""
    noisy, plain = (api.txt2img(**SMALL, sampler_name="DDIM", eta=eta) for eta in (1.0, 0.0))
    assert noisy.info["extra_generation_params"]["Eta DDIM"] == 1.0
    assert "Eta DDIM: 1.0" in noisy.image.info["parameters"]
    assert not np.array_equal(np.asarray(noisy.image), np.asarray(plain.image))


def test_missing_script_is_refused_by_name(api):
    with pytest.raises(RuntimeError, match="ADetailer") as refusal:
        api.txt2img(**SMALL, adetailer=[webuiapi.ADetailer()], alwayson_scripts={})
    assert refusal.value.args[0] == 422


def test_switch_checkpoint_by_title(api, default_options):
    alpha = draw(api)
    title = next(t for t in api.util_get_model_names() if "beta" in t)
    assert api.set_options({"sd_model_checkpoint": title}) is None
    assert api.util_get_current_model().startswith("sub/beta.safetensors [")
    assert api.txt2img(**SMALL).info["sd_model_name"] == "beta"
    assert not np.array_equal(draw(api), alpha)
    assert default_options["sd_model_checkpoint"].startswith("alpha.safetensors [")
    api.util_set_model(default_options["sd_model_checkpoint"])
    assert np.array_equal(draw(api), alpha)


def test_set_options(api, default_options):
    plain = draw(api)
    assert api.set_options(default_options) is None
    assert api.get_options() == default_options
    answer = api.set_options({"CLIP_stop_at_last_layers": 2, "eta_noise_seed_delta": 1})
    assert "eta_noise_seed_delta" in answer["detail"]
    assert api.get_options() == default_options
    api.set_options({"CLIP_stop_at_last_layers": 2})
    assert api.get_options()["CLIP_stop_at_last_layers"] == 2
    assert not np.array_equal(draw(api), plain)


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


def test_lists_are_those_of_a1111(api):
    assert api.get_samplers()[0] == recorded("get_samplers")[0]
    assert api.get_schedulers() == recorded("get_schedulers")
    assert api.get_memory().keys() == recorded("get_memory").keys()
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert api.get_embeddings() == recorded("get_embeddings")
    empty = [
        api.get_upscalers(),
        api.get_latent_upscale_modes(),
        api.get_hypernetworks(),
        api.get_face_restorers(),
        api.get_realesrgan_models(),
        api.get_prompt_styles(),
        api.get_sd_vae(),
        api.custom_get("extensions", baseurl=True),
        api.custom_get("script-info", baseurl=True),
    ]
    assert empty == [[]] * len(empty)


def test_progress_and_interrupt(api, client):
    job = client.start(steps=100_000, n_iter=2)
    running = api.get_progress()
    assert api.interrupt() == {}
    assert len(job.result().json()["images"]) == 1
    assert running.keys() == recorded("get_progress_mid_job").keys()
    assert 0 < running["progress"] < 0.5
    assert (running["state"]["job_count"], running["state"]["sampling_steps"]) == (2, 100_000)
    api.util_wait_for_ready(check_interval=0.1)
    assert api.get_progress()["state"]["job"] == ""
