"""The client `webuiapi`, which people use against A1111, drives the engine unchanged.

It sends every field that it knows with each request, with values of its own.
"""

import asyncio
import threading

import numpy as np
import pytest
import webuiapi
from fakes.recorded import recorded
from PIL import Image

SMALL = {"prompt": "a cat", "seed": 1, "steps": 2, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def api(client):
    api = webuiapi.WebUIApi(host="127.0.0.1", port=client.port)
    api.txt2img(**SMALL)  # the default checkpoint is loaded and hashed
    yield api
    api.session.close()


@pytest.fixture
def default_options(api):
    before = api.get_options()
    yield before
    api.set_options(before)


def draw(api, **fields):
    return np.asarray(api.txt2img(**(SMALL | fields)).image, dtype=int)


# ------------------------------------------------------------------------------------- pictures


def test_a_picture_with_its_parameters_and_info(api):
    answer = api.txt2img(
        prompt="a cat", negative_prompt="dog", seed=7, width=128, height=64, steps=3
    )

    assert isinstance(answer.image, Image.Image)
    assert answer.image.size == (128, 64)
    assert (answer.parameters["seed"], answer.parameters["steps"]) == (7, 3)
    assert (answer.info["seed"], answer.info["sampler_name"]) == (7, "Euler a")
    assert answer.image.info["parameters"] == answer.info["infotexts"][0]


def test_the_clients_values_without_effect_are_told_as_a1111_tells_them(api):
    info = api.txt2img(**SMALL).info

    assert info["denoising_strength"] == 0.7
    assert (info["seed_resize_from_w"], info["seed_resize_from_h"]) == (0, 0)
    assert "Schedule type: automatic" in info["infotexts"][0]


def test_the_same_seed_gives_the_same_picture(api):
    first, again, other = draw(api), draw(api), draw(api, seed=2)

    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_its_values_are_those_of_a_request_without_them(api, client):
    plain = client.picture(sampler_name="Euler a")

    assert np.array_equal(draw(api), plain)


def test_several_pictures(api):
    answer = api.txt2img(**SMALL, batch_size=2, n_iter=2)

    assert len(answer.images) == 4
    assert answer.info["all_seeds"] == [1, 2, 3, 4]


def test_a_random_seed_is_told(api):
    assert api.txt2img(**(SMALL | {"seed": -1})).info["seed"] >= 0


def test_an_asynchronous_picture(api):
    async def draw():
        return await api.txt2img(**SMALL, use_async=True)

    assert asyncio.run(draw()).image.size == (64, 64)


@pytest.mark.parametrize("name", [entry["name"] for entry in recorded("get_samplers")])
def test_every_listed_sampler(api, name):
    if name in api.util_get_sampler_names():
        assert api.txt2img(**SMALL, sampler_name=name).image.size == (64, 64)
    else:
        with pytest.raises(RuntimeError, match="Sampler not found"):
            api.txt2img(**SMALL, sampler_name=name)


def test_every_listed_scheduler(api):
    pictures = {
        name: draw(api, steps=4, sampler_name="DPM++ 2M", scheduler=name).tobytes()
        for name in api.util_get_scheduler_names()
    }

    assert pictures["automatic"] == pictures["uniform"]
    assert pictures["polyexponential"] == pictures["exponential"]
    assert len({*pictures.values()}) == 4


def test_its_eta_of_1_counts_for_ddim(api):
    """As in A1111, where the eta that is sent takes the place of the option `eta_ddim`."""
    noisy, plain = (api.txt2img(**SMALL, sampler_name="DDIM", eta=eta) for eta in (1.0, 0.0))

    assert noisy.info["extra_generation_params"]["Eta DDIM"] == 1.0
    assert "Eta DDIM: 1.0" in noisy.image.info["parameters"]
    assert not np.array_equal(np.asarray(noisy.image), np.asarray(plain.image))


@pytest.mark.parametrize(
    "fields",
    [
        {"hr_scale": 1.5, "hr_upscaler": webuiapi.HiResUpscaler.Lanczos, "hr_prompt": "x"},
        {"hr_second_pass_steps": 9, "hr_resize_x": 128, "hr_resize_y": 128},
        {"hr_sampler_name": "Euler", "hr_scheduler": "Karras", "hr_checkpoint_name": "beta"},
        {"denoising_strength": 0.2},
        {"subseed": 5},
        {"seed_resize_from_h": -1, "seed_resize_from_w": 512},
        {"s_tmin": 0.1, "s_tmax": 9},
        {"script_args": [1, 2]},
        {"restore_faces": None, "tiling": None, "script_name": ""},
    ],
    ids=str,
)
def test_what_has_no_effect_in_a1111_is_taken(api, fields):
    assert np.array_equal(draw(api, **fields), draw(api))


@pytest.mark.parametrize(
    "fields",
    [
        {"enable_hr": True},
        {"firstphase_width": 64},
        {"subseed_strength": 0.1},
        {"seed_resize_from_h": 64, "seed_resize_from_w": 64},
        {"restore_faces": True},
        {"tiling": True},
        {"eta": 0.5},
        {"s_churn": 1},
        {"s_noise": 0.9},
        {"styles": ["nice"]},
        {"save_images": True},
        {"override_settings": {"eta_noise_seed_delta": 31337}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_the_engine_lacks_is_refused_by_its_name(api, fields):
    name = next(iter(fields.get("override_settings", fields)))
    with pytest.raises(RuntimeError, match=f"does not support .*{name}") as refusal:
        api.txt2img(**(SMALL | fields))
    assert refusal.value.args[0] == 422


def test_a_missing_script_is_refused_by_its_name(api):
    with pytest.raises(RuntimeError, match="ADetailer"):
        api.txt2img(**SMALL, adetailer=[webuiapi.ADetailer()], alwayson_scripts={})


# ------------------------------------------------------------------------- models and options


def test_models_by_title(api):
    assert api.util_get_model_names() == sorted(m["title"] for m in api.get_sd_models())
    assert api.util_get_current_model().startswith("alpha.safetensors [")


@pytest.mark.usefixtures("default_options")
def test_the_checkpoint_is_switched_by_its_title(api):
    alpha = draw(api)
    title = next(t for t in api.util_get_model_names() if "beta" in t)

    assert api.set_options({"sd_model_checkpoint": title}) is None

    assert api.util_get_current_model().startswith("sub/beta.safetensors [")
    assert api.txt2img(**SMALL).info["sd_model_name"] == "beta"
    assert not np.array_equal(draw(api), alpha)
    api.util_set_model(next(t for t in api.util_get_model_names() if t.startswith("alpha")))
    assert np.array_equal(draw(api), alpha)


@pytest.mark.usefixtures("default_options")
def test_clip_skip(api):
    plain = draw(api)

    api.set_options({"CLIP_stop_at_last_layers": 2})

    assert api.get_options()["CLIP_stop_at_last_layers"] == 2
    assert not np.array_equal(draw(api), plain)


def test_all_options_given_back_change_nothing(api, default_options):
    assert api.set_options(default_options) is None
    assert api.get_options() == default_options


def test_options_are_a1111s_in_its_order_and_but_for_these_with_its_values(api):
    options, expected = api.get_options(), recorded("get_options")

    assert list(options) == [name for name in expected if name in options]
    differing = {name for name, value in options.items() if value != expected[name]}
    assert differing - {"sd_model_checkpoint", "sd_checkpoint_hash"} == {
        "randn_source",
        "live_previews_enable",
    }


def test_an_option_that_the_engine_lacks_is_refused_and_nothing_is_changed(api, default_options):
    answer = api.set_options({"CLIP_stop_at_last_layers": 2, "eta_noise_seed_delta": 1})

    assert "eta_noise_seed_delta" in answer["detail"]
    assert api.get_options() == default_options


def test_refresh(api, data_dir):
    link = data_dir / "models/Stable-diffusion/zz-webuiapi.safetensors"
    link.symlink_to(data_dir / "models/Stable-diffusion/alpha.safetensors")
    assert "zz-webuiapi.safetensors" not in str(api.get_sd_models())

    assert api.refresh_checkpoints() is None

    assert "zz-webuiapi.safetensors" in str(api.get_sd_models())


# -------------------------------------------------------------------------------------- lists


def test_loras_samplers_schedulers_and_memory(api):
    assert "style.v1" in [lora["name"] for lora in api.get_loras()]
    assert api.get_samplers()[0] == recorded("get_samplers")[0]
    assert api.get_schedulers() == recorded("get_schedulers")
    assert api.get_memory().keys() == recorded("get_memory").keys()


def test_what_the_engine_lacks_is_empty(api):
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


def test_flags_are_some_of_a1111s_in_its_order(api, data_dir):
    flags, expected = api.get_cmd_flags(), recorded("get_cmd-flags")

    assert list(flags) == [name for name in expected if name in flags]
    assert flags["data_dir"] == str(data_dir)
    assert flags["lora_dir"] == str(data_dir / "models/Lora")


# ------------------------------------------------------------------------------- a running job


def test_progress_and_interrupt(api, client):
    answers = []
    job = threading.Thread(
        target=lambda: answers.append(api.txt2img(**(SMALL | {"steps": 900}), n_iter=2))
    )
    job.start()
    client.wait_until(lambda: api.get_progress()["state"]["sampling_step"] > 0)
    running = api.get_progress()

    assert api.interrupt() == {}
    job.join(timeout=30)

    assert running.keys() == recorded("get_progress_mid_job").keys()
    assert 0 < running["progress"] < 0.5
    assert (running["state"]["job_count"], running["state"]["sampling_steps"]) == (2, 900)
    assert len(answers[0].images) == 1
    api.util_wait_for_ready(check_interval=0.1)
    assert api.get_progress()["state"]["job"] == ""


def test_skip(api):
    assert api.skip() is None
