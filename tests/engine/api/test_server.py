"""The engine over HTTP: lists, answers, refusals, the queue of jobs, and the process itself."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fakes import tiny_models
from fakes.a1111.process import free_port
from fakes.recorded import recorded

ROOT = Path(__file__).parents[3]


def refusal(answer):
    """The status, the class and the message of A1111's error body."""
    body = answer.json()
    assert body.keys() == {"error", "detail", "body", "errors"}
    return answer.status_code, body["error"], body["detail"] or body["errors"]


def test_loras_are_listed(client):
    entry = {lora["name"]: lora for lora in client.get("loras").json()}["style.v1"]
    assert entry.keys() == recorded("get_loras_two")[0].keys()
    assert (entry["alias"], entry["metadata"]) == ("style.v1", {"modelspec.title": "style.v1"})


def test_memory_and_idle_progress(client, cat):
    ram = client.get("memory").json()["ram"]
    assert cat.nbytes < ram["used"] < ram["total"]
    idle, expected = client.get("progress?skip_current_image=true").json(), recorded("get_progress")
    timestamp = {"job_timestamp": idle["state"]["job_timestamp"]}
    assert idle == expected | {"state": expected["state"] | timestamp}


def test_unknown_route_and_wrong_method(client):
    unknown, wrong = client.get("nope"), client.get("txt2img")
    assert (unknown.status_code, unknown.json()) == (404, {"detail": "Not Found"})
    assert (wrong.status_code, wrong.json()) == (405, {"detail": "Method Not Allowed"})


@pytest.mark.parametrize("what", ["checkpoints", "loras", "vae", "embeddings"])
def test_refresh(client, what):
    answer = client.post(f"refresh-{what}")
    assert (answer.status_code, answer.json()) == (200, None)


def test_answer_has_the_keys_of_a1111(client):
    body, expected = client.txt2img().json(), recorded("post_txt2img_lora_checkpoint")
    assert list(body) == list(expected)
    assert list(body["parameters"]) == list(expected["parameters"])
    assert list(json.loads(body["info"])) == list(json.loads(expected["info"]))
    assert (body["parameters"]["seed"], body["parameters"]["sampler_name"]) == (1, None)


def test_a_batch_equals_its_single_pictures(client):
    singles = [client.picture(seed=seed) for seed in (7, 8, 9, 10)]
    assert np.array_equal(client.pictures(batch_size=4, seed=7), singles)
    assert np.array_equal(client.pictures(batch_size=2, n_iter=2, seed=7), singles)


def test_random_seed_and_sides_rounded_down_to_multiples_of_8(client, decode):
    body = client.txt2img(seed=-1, width=79, height=64).json()
    info = json.loads(body["info"])
    assert body["parameters"]["seed"] == -1
    assert info["seed"] >= 0
    assert decode(body["images"][0]).shape == (64, 72, 3)
    assert info["width"] == 79
    assert client.txt2img(send_images=False).json()["images"] == []


@pytest.mark.parametrize("sampler", [entry["name"] for entry in recorded("get_samplers")])
def test_every_listed_sampler_works_and_no_other(client, decode, sampler):
    listed = {entry["name"] for entry in client.get("samplers").json()}
    first, again = (client.txt2img(sampler_name=sampler) for _ in range(2))
    assert first.status_code == (200 if sampler in listed else 404)
    if sampler in listed:
        pictures = (decode(answer.json()["images"][0]) for answer in (first, again))
        assert np.array_equal(*pictures)


def test_lora_hashes_do_not_contain_disabled_and_missing_loras(client, cat, decode):
    """A missing LoRA is silently ignored, the same as in A1111."""
    hashes = client.info(prompt="<lora:style.v1:1>")["extra_generation_params"]["Lora hashes"]
    assert hashes.startswith("style.v1: ")
    for name, is_disabled in (("style.v1", True), ("nope", False)):
        prompt = f"a cat<lora:{name}:1>"
        body = client.txt2img(prompt=prompt, disable_extra_networks=is_disabled).json()
        assert np.array_equal(decode(body["images"][0]), cat)
        assert json.loads(body["info"])["extra_generation_params"] == {}


def test_damaged_lora_is_an_error_and_leaves_no_trace(client, cat):
    answer = client.txt2img(prompt="a cat<lora:style.v1:1><lora:damaged:1>")
    status, error, message = refusal(answer)
    assert (status, error) == (500, "RuntimeError")
    assert "'damaged'" in message
    assert len(message) < 300
    assert np.array_equal(client.picture(), cat)


def test_checkpoint_by_name_and_by_hash(client):
    """An unknown name is silently ignored, the same as in A1111."""
    for alias in ("nope", "sub/beta"):
        info = client.info(override_settings={"sd_model_checkpoint": alias})
        assert info["sd_model_name"] == "alpha"
    client.info(override_settings={"sd_model_checkpoint": "beta"})  # computes the hash
    entry = client.get("sd-models").json()[1]
    assert entry["title"] == f"sub/beta.safetensors [{entry['hash']}]"
    info = client.info(override_settings={"sd_model_checkpoint": entry["hash"]})
    assert (info["sd_model_name"], info["sd_model_hash"]) == ("beta", entry["hash"])


def test_override_is_restored_afterwards_or_kept(client, cat):
    override = {"override_settings": {"CLIP_stop_at_last_layers": 2}}
    client.picture(**override)
    assert np.array_equal(client.picture(), cat)
    kept = client.picture(**override, override_settings_restore_afterwards=False)
    assert np.array_equal(client.picture(), kept)
    client.post("options", CLIP_stop_at_last_layers=1)
    assert np.array_equal(client.picture(), cat)


def test_files_that_are_not_checkpoints_are_errors_and_leave_no_trace(client, data_dir, cat):
    folder = data_dir / "models/Stable-diffusion"
    tiny_models.write(tiny_models.make_lora(), folder / "zz-lora.safetensors")
    client.post("refresh-checkpoints")
    for name in ("zz-damaged", "zz-lora"):
        answer = client.txt2img(override_settings={"sd_model_checkpoint": name})
        status, error, message = refusal(answer)
        assert (status, error) == (500, "RuntimeError")
        assert message.startswith(f"cannot load checkpoint '{name}.safetensors'")
        assert len(message) < 300
        assert np.array_equal(client.picture(), cat)
    assert client.post("options", sd_model_checkpoint="zz-damaged").status_code == 500
    assert np.array_equal(client.picture(), cat)


def test_new_and_deleted_checkpoints_are_seen_after_refresh_only(client, data_dir, cat):
    folder = data_dir / "models/Stable-diffusion"
    (folder / "zz-new.safetensors").symlink_to(folder / "sub/beta.safetensors")
    override = {"override_settings": {"sd_model_checkpoint": "zz-new"}}
    assert client.info(**override)["sd_model_name"] == "alpha"
    client.post("refresh-checkpoints")
    assert client.info(**override)["sd_model_name"] == "zz-new"
    assert np.array_equal(client.picture(), cat)  # frees the other checkpoint
    (folder / "zz-new.safetensors").unlink()
    assert refusal(client.txt2img(**override))[:2] == (500, "FileNotFoundError")
    assert np.array_equal(client.picture(), cat)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("txt2img", "err_bad_sampler"),
        ("txt2img", "err_missing_script"),
        ("txt2img", "err_missing_alwayson_script"),
        ("options", "err_options_unknown_checkpoint"),
    ],
)
def test_refused_as_recorded(client, path, name):
    expected = recorded(name)
    answer = client.post(path, **expected["request"]["body"])
    assert (answer.status_code, answer.json()) == (expected["status"], expected["response"])


def test_wrong_type_is_pydantics_422(client):
    answer = client.txt2img(steps="abc")
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "steps"]


@pytest.mark.parametrize(
    "field",
    [
        {"enable_hr": True},
        {"subseed_strength": 0.5},
        {"save_images": True},
        {"restore_faces": True},
        {"tiling": True},
        {"styles": ["a"]},
        {"eta": 0, "sampler_name": "Euler a"},
        {"s_churn": 1},
        {"s_noise": 0},
        {"firstphase_width": 64},
        {"seed_resize_from_h": 64, "seed_resize_from_w": 64},
        {"infotext": "Steps: 3"},
        {"cfg_scale": 0.5},
        {"override_settings": {"sd_vae": "some.safetensors"}},
        {"override_settings": {"eta_noise_seed_delta": 31337}},
        {"prompt": "a cat AND a dog"},
        {"scheduler": "Karras", "sampler_name": "LCM"},
    ],
    ids=str,
)
def test_unsupported_field_is_refused_by_name(client, field):
    status, error, message = refusal(client.txt2img(**field))
    assert (status, error) == (422, "HTTPException")
    assert message.startswith("the embedded engine does not support ")
    name = next(iter(field.get("override_settings", field)))
    assert ("AND" if name == "prompt" else name) in message


@pytest.mark.parametrize(
    "fields",
    [
        {"restore_faces": False, "tiling": False, "styles": [], "script_name": ""},
        {"restore_faces": None, "tiling": None, "do_not_save_grid": True},
        {"hr_scale": 1.5, "hr_upscaler": "Lanczos", "hr_prompt": "x", "hr_sampler_name": "Euler"},
        {"hr_second_pass_steps": 9, "hr_resize_x": 128, "hr_scheduler": "Karras"},
        {"denoising_strength": 0.2, "subseed": 5, "eta": 0.5},  # Euler has no eta
        {"seed_resize_from_h": -1, "seed_resize_from_w": 512, "s_tmin": 0.1, "s_tmax": 9},
        {"script_args": [1, 2], "comments": {"a": 1}, "disable_extra_networks": True},
        {"refiner_checkpoint": "None", "refiner_switch_at": 0.8},
        {"override_settings": {"sd_vae": "Automatic", "samples_format": "png"}},
        {"clip_skip": 2, "num_inference_steps": 9},  # unknown
        {"steps": "2", "width": 64.9},  # converted to integers
    ],
    ids=str,
)
def test_fields_without_effect_are_accepted(client, cat, fields):
    assert np.array_equal(client.picture(**fields), cat)


@pytest.mark.parametrize(
    ("field", "status", "error"),
    [
        ({"steps": 0}, 500, "ValueError"),
        ({"batch_size": 0}, 500, "ValueError"),
        ({"width": 7}, 500, "ValueError"),
        ({"cfg_scale": 1e30}, 500, "NansException"),
        ({"override_settings": {"CLIP_stop_at_last_layers": "2"}}, 500, "TypeError"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 99}}, 500, "IndexError"),
        ({"prompt": "<lora:style.v1:abc>"}, 422, "HTTPException"),
    ],
    ids=str,
)
def test_impossible_numbers(client, field, status, error):
    assert refusal(client.txt2img(**field))[:2] == (status, error)


def test_interrupt_ends_the_job_at_its_next_step(client, cat):
    job = client.start(steps=100_000, n_iter=3)
    state = client.get("progress").json()["state"]
    assert state.keys() == recorded("get_progress_mid_job")["state"].keys()
    assert client.post("interrupt").json() == {}
    assert len(job.result().json()["images"]) == 1
    client.post("interrupt")  # has no effect on later jobs
    assert np.array_equal(client.picture(), cat)


def test_skip_ends_one_picture(client):
    def is_in_second_picture():
        state = client.get("progress").json()["state"]
        return state["job_no"] == 1 and state["sampling_step"] > 2

    job = client.start(steps=100_000, n_iter=3)
    assert client.post("skip").json() is None
    client.wait_until(is_in_second_picture)
    client.post("interrupt")
    assert len(job.result().json()["images"]) == 2


def test_jobs_run_in_order(client):
    first, second = client.start(steps=100_000), client.start(seed=2)
    assert client.get("sd-models").ok
    assert not second.done()
    client.post("interrupt")
    assert len(first.result().json()["images"]) == len(second.result().json()["images"]) == 1


def run_engine(port, data_dir):
    command = [sys.executable, "-m", "engine", "--threads", "1", "--port", str(port)]
    return subprocess.Popen(
        [*command, "--data-dir", data_dir], cwd=ROOT, text=True, stderr=subprocess.PIPE
    )


def test_a_new_process_gives_the_same_pictures_and_ends_at_sigterm(client, data_dir, cat):
    beta = {"override_settings": {"sd_model_checkpoint": "beta"}}
    port = free_port()
    process, other = run_engine(port, data_dir), type(client)(port)
    try:
        other.wait_until(lambda: other.get("loras").ok)
        assert np.array_equal(other.picture(), cat)
        assert np.array_equal(other.picture(**beta), client.picture(**beta))
        assert np.array_equal(other.picture(), cat)
        job = other.start(steps=100_000)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)
        job.exception()  # answered or disconnected, but not left waiting
    finally:
        process.kill()
        process.communicate()


def test_port_in_use(client, data_dir):
    process = run_engine(client.port, data_dir)
    expected = f"cannot listen on 127.0.0.1:{client.port}: Address already in use\n"
    assert process.communicate() == (None, expected)
    assert process.returncode == 1


@pytest.mark.parametrize("content", ["{", None], ids=["damaged", "unreadable"])
def test_unusable_configuration(tmp_path, content):
    file = tmp_path / "config.json"
    file.write_text(content) if content else file.mkdir()
    process = run_engine(0, tmp_path)
    (line,) = process.communicate()[1].splitlines()
    assert (str(file) in line, process.returncode) == (True, 1)
    assert "cannot listen" not in line
