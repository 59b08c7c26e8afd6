"""The engine over HTTP: answers, refusals, the queue of jobs, and the process itself."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import requests
from fakes.a1111.process import free_port, wait_until
from fakes.recorded import recorded

ROOT = Path(__file__).parents[3]


def refusal(answer):
    """The status, the class and the message of A1111's error body."""
    body = answer.json()
    assert body.keys() == {"error", "detail", "body", "errors"}
    return answer.status_code, body["error"], body["detail"] or body["errors"]


def assert_fails(client, beginning, **fields):
    """A1111's error with a short message that begins like this."""
    status, error, message = refusal(client.txt2img(**fields))
    assert (status, error, message[: len(beginning)]) == (500, "RuntimeError", beginning)
    assert len(message) < 300


def of_checkpoint(name):
    return {"override_settings": {"sd_model_checkpoint": name}}


def test_answer_has_the_keys_of_a1111_and_the_seed_and_size_used(client, decode):
    expected = recorded("post_txt2img_lora_checkpoint")
    body = client.txt2img(seed=-1, width=79, height=64).json()
    info = json.loads(body["info"])
    assert list(body) == list(expected)
    assert list(body["parameters"]) == list(expected["parameters"])
    assert list(info) == list(json.loads(expected["info"]))
    assert (body["parameters"]["seed"], body["parameters"]["sampler_name"]) == (-1, None)
    assert (info["seed"] >= 0, info["width"]) == (True, 79)
    assert decode(body["images"][0]).shape == (64, 72, 3)  # multiples of 8
    assert client.txt2img(send_images=False).json()["images"] == []


def test_a_batch_equals_its_single_pictures(client):
    singles = [client.picture(seed=seed) for seed in (7, 8, 9, 10)]
    assert np.array_equal(client.pictures(batch_size=4, seed=7), singles)
    assert np.array_equal(client.pictures(batch_size=2, n_iter=2, seed=7), singles)


@pytest.mark.parametrize("sampler", [entry["name"] for entry in recorded("get_samplers")])
def test_every_listed_sampler_works_and_no_other(client, decode, sampler):
    is_listed = sampler in {entry["name"] for entry in client.get("samplers").json()}
    answers = [client.txt2img(sampler_name=sampler) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200 if is_listed else 404] * 2
    if is_listed:
        assert np.array_equal(*(decode(answer.json()["images"][0]) for answer in answers))


@pytest.mark.parametrize(
    ("name", "checkpoint", "own"),
    [("xl", "alpha", "style.v1"), ("style.v1", "xl", "xl")],
)
def test_a_lora_of_another_family_is_an_error_and_leaves_no_trace(client, name, checkpoint, own):
    override = of_checkpoint(checkpoint)
    before = client.picture(**override)
    expected = f"LoRA '{name}' does not fit checkpoint '{checkpoint}': "
    assert_fails(client, expected, prompt=f"a cat<lora:{own}:1><lora:{name}:1>", **override)
    assert np.array_equal(client.picture(**override), before)


def test_override_is_restored_afterwards_or_kept(client, cat):
    override = {"override_settings": {"CLIP_stop_at_last_layers": 2}}
    client.picture(**override)
    assert np.array_equal(client.picture(), cat)
    kept = client.picture(**override, override_settings_restore_afterwards=False)
    assert np.array_equal(client.picture(), kept)
    client.post("options", CLIP_stop_at_last_layers=1)
    assert np.array_equal(client.picture(), cat)


def test_the_list_of_checkpoints_changes_with_a_refresh(client, data_dir):
    new = data_dir / "models/Stable-diffusion/zz-new.safetensors"
    for change, is_listed in (
        (partial(new.symlink_to, "alpha.safetensors"), True),
        (new.unlink, False),
    ):
        change()
        client.post("refresh-checkpoints")
        names = [entry["model_name"] for entry in client.get("sd-models").json()]
        assert ("zz-new" in names) is is_listed


RECORDED = ["err_bad_sampler", "err_missing_script", "err_missing_alwayson_script"]


@pytest.mark.parametrize("name", [*RECORDED, "err_options_unknown_checkpoint"])
def test_refused_as_recorded(client, name):
    expected = recorded(name)
    path = expected["request"]["path"].removeprefix("/sdapi/v1/")
    answer = client.post(path, **expected["request"]["body"])
    assert (answer.status_code, answer.json()) == (expected["status"], expected["response"])


SECOND_PASS = {"enable_hr": True, "denoising_strength": 0.5}
UNSUPPORTED = [
    *({"save_images": True}, {"restore_faces": True}, {"infotext": "Steps: 3"}),
    *({"override_settings": {name: value}} for name, value in (("emphasis", "x"), ("nope", 1))),
    {"firstpass_image": "x", "enable_hr": True, "denoising_strength": 0.5},
    *({"prompt": "<hypernet:x:1>"}, {"hr_prompt": "<hypernet:x>", **SECOND_PASS}),
]


@pytest.mark.parametrize("field", UNSUPPORTED, ids=str)
def test_unsupported_field_is_refused_by_name(client, field):
    status, error, message = refusal(client.txt2img(**field))
    assert (status, error) == (422, "HTTPException")
    assert message.startswith("the embedded engine does not support ")
    name = next(iter(field.get("override_settings", field)))
    assert ("hypernetworks" if "prompt" in name else name) in message


WITHOUT_EFFECT = [
    {"restore_faces": False, "tiling": False, "styles": ["None", "nope"], "script_name": ""},
    {"restore_faces": None, "tiling": None, "do_not_save_grid": True},
    {"hr_scale": 1.5, "hr_upscaler": "nope", "hr_prompt": "x", "hr_sampler_name": "nope"},
    {"hr_checkpoint_name": "nope", "firstpass_image": "x", "refiner_switch_at": 0.5},
    {"refiner_checkpoint": "alpha", "refiner_switch_at": 0.1},  # the same checkpoint
    {"hr_second_pass_steps": 9, "hr_resize_x": 128, "hr_scheduler": "Karras"},
    {"denoising_strength": 0.2, "subseed": 5, "eta": 0.5},  # Euler has no eta
    {"seed_resize_from_h": -1, "seed_resize_from_w": 512, "s_tmin": 0.1, "s_tmax": 9},
    {
        "s_churn": 0,
        "s_noise": 1,
        "s_min_uncond": 0,
        "firstphase_width": 64,
        "firstphase_height": 64,
    },
    {"script_args": [1, 2], "comments": {"a": 1}},
    {"refiner_checkpoint": "None", "refiner_switch_at": 0.8},
    {"override_settings": {"sd_vae": "Automatic", "samples_format": "png"}},
    *({"override_settings": {"sd_vae": "None"}}, {"override_settings": {"sd_vae": "nope"}}),
    {"prompt": "a cat<lora:style.v1:1><hypernet:x:1>", "disable_extra_networks": True},
    *({"prompt": "a cat<lora:nope:1>"}, {"override_settings": {"sd_model_checkpoint": "nope"}}),
    {"clip_skip": 2, "num_inference_steps": 9},  # unknown
    {"steps": "2", "width": 64.9},  # converted to integers
]


@pytest.mark.parametrize("fields", WITHOUT_EFFECT, ids=str)
def test_fields_without_effect_are_accepted(client, cat, fields):
    assert np.array_equal(client.picture(**fields), cat)


WRONG_OPTIONS = [
    *(("eta_ddim", "1", "TypeError"), ("s_churn", True, "TypeError"), ("tiling", 1, "TypeError")),
    *(("uni_pc_order", 1.5, "TypeError"), ("uni_pc_order", 0, "ValueError")),
]
SECOND_PASS = {"enable_hr": True, "denoising_strength": 0.5}
WRONG_SECOND_PASSES = [
    *(({"denoising_strength": None}, "ValueError"), ({"denoising_strength": 2}, "ValueError")),
    *(({"hr_upscaler": "ESRGAN_4x"}, "LookupError"), ({"hr_scale": 1e9}, "ValueError")),
    *(({"hr_scale": 0.01}, "ValueError"), ({"hr_second_pass_steps": -1}, "ValueError")),
    ({"hr_resize_x": -64, "hr_resize_y": 64}, "ValueError"),
]
IMPOSSIBLE = [
    ({"steps": 0}, "ValueError"),
    ({"batch_size": 0}, "ValueError"),
    ({"width": 7}, "ValueError"),
    ({"cfg_scale": 1e30}, "NansException"),
    ({"override_settings": {"CLIP_stop_at_last_layers": "2"}}, "TypeError"),
    ({"override_settings": {"CLIP_stop_at_last_layers": 9}}, "HTTPException"),
    ({"override_settings": {"CLIP_stop_at_last_layers": 99}}, "ValueError"),
    ({"override_settings": {"CLIP_stop_at_last_layers": -1}}, "ValueError"),
    *(
        ({"steps": 2_000_000}, "ValueError"),
        ({"steps": 1001, "sampler_name": "DDIM"}, "ValueError"),
    ),
    *(({"width": 10**30}, "ValueError"), ({"n_iter": 10**6}, "ValueError")),
    *(({"seed": 2**64}, "ValueError"), ({"seed": -(10**40)}, "ValueError")),
    *(({"override_settings": {name: value}}, error) for name, value, error in WRONG_OPTIONS),
    *((SECOND_PASS | fields, error) for fields, error in WRONG_SECOND_PASSES),
    ({"eta": 1e30, "sampler_name": "DDIM"}, "NansException"),
    *(({"subseed": 2**64}, "ValueError"), ({"refiner_checkpoint": "nope"}, "RuntimeError")),
    (SECOND_PASS | {"hr_checkpoint_name": "nope"}, "RuntimeError"),
    ({"seed_resize_from_w": 1, "seed_resize_from_h": 10**9}, "ValueError"),
    ({"prompt": "<lora:style.v1:abc>"}, "HTTPException"),
]


@pytest.mark.parametrize(("field", "error"), IMPOSSIBLE, ids=str)
def test_impossible_numbers(client, field, error):
    status = 422 if error == "HTTPException" else 500
    assert refusal(client.txt2img(**field))[:2] == (status, error)


@pytest.mark.parametrize(
    "upscaler", [None, *(m["name"] for m in recorded("get_latent-upscale-modes"))]
)
def test_second_pass_in_the_latent_picture(client, upscaler):
    fields = SECOND_PASS | {"hr_upscaler": upscaler, "hr_scale": 1.5, "width": 72}
    assert client.picture(**fields).shape == (96, 104, 3)


@pytest.mark.parametrize("upscaler", ["None", "Lanczos", "Nearest"])
def test_second_pass_of_the_enlarged_picture(client, cat, upscaler):
    fields = SECOND_PASS | {"hr_upscaler": upscaler, "hr_resize_x": 128, "hr_resize_y": 96}
    found = client.picture(**fields)
    assert found.shape == (96, 128, 3)
    assert np.array_equal(client.picture(**fields), found)
    # what is made of nothing anew is the enlarged picture, as far as the VAE keeps it
    kept = client.pictures(**SECOND_PASS | {"denoising_strength": 0, "hr_upscaler": upscaler})
    assert kept[0].shape == (128, 128, 3)
    assert np.array_equal(client.picture(), cat)


def test_second_pass_has_its_own_prompts_sampler_and_loras(client):
    plain = client.picture(**SECOND_PASS)
    for own in (
        {"hr_prompt": "a dog"},
        {"hr_negative_prompt": "blue"},
        {"hr_sampler_name": "Heun"},
        {"hr_scheduler": "SGM Uniform"},
        {"hr_second_pass_steps": 3},
        {"hr_prompt": "a cat<lora:style.v1:1>"},
    ):
        assert not np.array_equal(client.picture(**SECOND_PASS, **own), plain), own
    assert np.array_equal(client.picture(**SECOND_PASS), plain)


def test_another_checkpoint_takes_over_and_the_next_picture_is_the_first_ones_again(client, cat):
    """Both checkpoints have the same architecture, and other weights."""
    beta = {"override_settings": {"sd_model_checkpoint": "beta"}}
    at_once = {"refiner_checkpoint": "beta", "refiner_switch_at": 0}
    assert np.array_equal(client.picture(**at_once), client.picture(**beta))
    halfway = {"refiner_checkpoint": "beta", "refiner_switch_at": 0.5, "steps": 4}
    one, other = client.pictures(**halfway, n_iter=2)
    assert np.array_equal(client.picture(**halfway), one)
    assert np.array_equal(client.picture(**halfway, seed=2), other)
    info = client.info(**halfway)
    assert info["sd_model_name"] == "alpha"
    entries = info["extra_generation_params"]
    assert (entries["Refiner"][:6], entries["Refiner switch at"]) == ("beta [", 0.5)
    second = SECOND_PASS | {"hr_checkpoint_name": "beta"}
    found = client.info(**second)
    assert found["extra_generation_params"]["Hires checkpoint"].startswith("beta [")
    assert not np.array_equal(client.picture(**second), client.picture(**SECOND_PASS))
    assert np.array_equal(
        client.picture(**second, prompt="a cat<lora:style.v1:0>"), client.picture(**second)
    )
    assert np.array_equal(client.picture(), cat)


VARIED = [
    *({"cfg_scale": 0.5}, {"cfg_scale": -3}, {"subseed": 5, "subseed_strength": 0.5}),
    *({"seed_resize_from_w": 96, "seed_resize_from_h": 96}, {"tiling": True}),
    *({"prompt": "a cat AND a dog"}, {"prompt": "a cat:1.5"}, {"s_churn": 2}),
    *({"s_min_uncond": 20.0, "steps": 3}, {"prompt": "a cat BREAK cat"}),
    *({"override_settings": {name: value}} for name, value in {
        "randn_source": "NV", "sgm_noise_multiplier": True, "s_churn": 1.0,
        "always_discard_next_to_last_sigma": True,
    }.items()),
]  # fmt: skip


@pytest.mark.parametrize("fields", VARIED, ids=str)
def test_what_varies_a_picture(client, cat, fields):
    found = client.picture(**fields)
    assert not np.array_equal(found, cat)
    assert np.array_equal(client.picture(**fields), found)
    assert np.array_equal(client.picture(), cat)


def test_the_noise_of_a_size_below_one_latent_pixel_changes_nothing(client, cat):
    fields = {"seed_resize_from_w": 1, "seed_resize_from_h": 7}
    assert np.array_equal(client.picture(**fields), cat)


def test_with_a_variation_all_pictures_have_the_same_seed(client):
    info = client.info(batch_size=2, subseed=5, subseed_strength=0.5)
    assert (info["all_seeds"], info["all_subseeds"]) == ([1, 1], [5, 6])
    one, other = client.pictures(batch_size=2, subseed=5, subseed_strength=0.5)
    assert np.array_equal(client.picture(subseed=6, subseed_strength=0.5), other)
    assert not np.array_equal(one, other)


def test_skip_ends_one_picture(client):
    def is_in_second_picture():
        return client.state()["job_no"] == 1 and client.state()["sampling_step"] > 2

    job = client.start(steps=100_000, n_iter=3)
    assert client.post("skip").json() is None
    wait_until(is_in_second_picture, "the second picture", 120)
    client.post("interrupt")
    assert len(job.result().json()["images"]) == 2


def test_a_web_page_cannot_use_the_engine(client):
    """Not even to stop a job: a browser sends such a request without asking."""
    url = f"{client.url}interrupt"
    own = {"Origin": f"http://127.0.0.1:{client.port}", "Sec-Fetch-Site": "same-origin"}
    assert requests.post(url, headers=own, timeout=60).status_code == 200
    for foreign in ({"Origin": "https://evil.example"}, {"Host": f"evil.example:{client.port}"}):
        status, _, detail = refusal(requests.post(url, headers=foreign, timeout=60))
        assert (status, bool(detail)) == (403, True)


def run_engine(port, data_dir):
    command = [sys.executable, "-m", "engine", "--threads", "1", "--port", str(port)]
    return subprocess.Popen(
        [*command, "--data-dir", data_dir], cwd=ROOT, text=True, stderr=subprocess.PIPE
    )


def test_a_new_process_gives_the_same_pictures_and_ends_at_sigterm(client, data_dir, cat):
    port = free_port()
    process, other = run_engine(port, data_dir), type(client)(port)
    try:
        other.wait()
        assert np.array_equal(other.picture(), cat)
        job = other.start(steps=100_000)
        wait_until(lambda: other.state()["sampling_step"] > 2, "the third step", 120)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)
        # Disconnected or refused, but neither left waiting nor answered with an unfinished picture.
        assert job.exception() or job.result().status_code == 500
    finally:
        process.kill()
        process.communicate()


def test_port_in_use_and_unusable_configuration_are_one_line(client, data_dir, tmp_path):
    process = run_engine(client.port, data_dir)
    expected = f"cannot listen on 127.0.0.1:{client.port}: Address already in use\n"
    assert (process.communicate(), process.returncode) == ((None, expected), 1)
    file = tmp_path / "config.json"
    for spoil in (lambda: file.write_text("{"), lambda: (file.unlink(), file.mkdir())):
        spoil()
        process = run_engine(0, tmp_path)
        (line,) = process.communicate()[1].splitlines()
        assert (str(file) in line, process.returncode) == (True, 1)
        assert "cannot listen" not in line
