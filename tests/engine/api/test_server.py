"""The engine over HTTP, for real: one process for the module, tiny random models."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from fakes import tiny_models
from fakes.recorded import recorded


@pytest.fixture(scope="module")
def cat(client):
    """The picture most tests compare with."""
    return client.picture()


def refusal(answer):
    """The status and the A1111 error body of a refused request."""
    body = answer.json()
    assert body.keys() == {"error", "detail", "body", "errors"}
    return answer.status_code, body["error"], body["detail"] or body["errors"]


# ------------------------------------------------------------------------------- what there is

LISTS = ["upscalers", "latent-upscale-modes", "prompt-styles", "sd-vae"]


@pytest.mark.parametrize("path", LISTS)
def test_what_the_engine_lacks_is_an_empty_list(client, path):
    assert client.get(path).json() == []


def test_scripts_and_embeddings_have_a1111s_shape(client):
    assert client.get("scripts").json() == {"txt2img": [], "img2img": []}
    assert client.get("embeddings").json() == recorded("get_embeddings")


def test_samplers_and_schedulers(client):
    assert client.get("samplers").json()[0] == recorded("get_samplers")[0]
    assert client.get("schedulers").json() == recorded("get_schedulers")


def test_loras_are_listed(client):
    entry = {lora["name"]: lora for lora in client.get("loras").json()}["style.v1"]
    assert entry.keys() == recorded("get_loras_two")[0].keys()
    assert (entry["alias"], entry["metadata"]) == ("style.v1", {"modelspec.title": "style.v1"})


def test_memory(client):
    memory = client.get("memory").json()
    assert memory.keys() == recorded("get_memory").keys()
    assert 0 < memory["ram"]["used"] < memory["ram"]["total"]


def test_idle_progress(client):
    client.picture()
    idle, expected = client.get("progress?skip_current_image=true").json(), recorded("get_progress")
    timestamp = {"job_timestamp": idle["state"]["job_timestamp"]}
    assert idle == expected | {"state": expected["state"] | timestamp}


def test_unknown_route_and_wrong_method(client):
    assert (client.get("nope").status_code, client.get("nope").json()) == (
        404,
        {"detail": "Not Found"},
    )
    assert client.get("txt2img").json() == {"detail": "Method Not Allowed"}


@pytest.mark.parametrize("what", ["checkpoints", "loras", "vae", "embeddings"])
def test_refresh(client, what):
    answer = client.post(f"refresh-{what}")
    assert (answer.status_code, answer.json()) == (200, None)


# ------------------------------------------------------------------------------------ pictures


def test_answer_has_a1111s_keys(client):
    body, expected = client.txt2img().json(), recorded("post_txt2img_lora_checkpoint")
    assert list(body) == list(expected)
    assert list(body["parameters"]) == list(expected["parameters"])
    assert list(json.loads(body["info"])) == list(json.loads(expected["info"]))
    assert (body["parameters"]["seed"], body["parameters"]["sampler_name"]) == (1, None)


def test_same_seed_same_picture(client, cat):
    assert cat.shape == (64, 64, 3)
    assert cat.std() > 5
    assert np.array_equal(client.picture(), cat)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"prompt": "a dog"},
        {"prompt": "a (cat:1.5)"},
        {"negative_prompt": "blurry"},
        {"cfg_scale": 3},
        {"steps": 3},
        {"sampler_name": "DPM++ 2M"},
        {"override_settings": {"CLIP_stop_at_last_layers": 2}},
        {"override_settings": {"sd_model_checkpoint": "beta"}},
    ],
    ids=str,
)
def test_every_field_changes_the_picture(client, cat, change):
    assert not np.array_equal(client.picture(**change), cat)


def test_the_scheduler_changes_the_picture(client):
    pictures = [client.picture(steps=4, scheduler=name) for name in (None, "Karras")]
    assert not np.array_equal(*pictures)


def test_a_batch_is_its_single_pictures(client):
    singles = [client.picture(seed=seed) for seed in (7, 8, 9, 10)]
    assert np.array_equal(client.pictures(batch_size=4, seed=7), singles)
    assert np.array_equal(client.pictures(batch_size=2, n_iter=2, seed=7), singles)


def test_a_new_process_and_a_switch_there_and_back_give_the_same_picture(client, data_dir, cat):
    again = type(client)(data_dir)
    try:
        again.wait_until(lambda: again.get("loras").ok)
        assert np.array_equal(again.picture(), cat)
        other = again.picture(override_settings={"sd_model_checkpoint": "beta"})
        assert np.array_equal(again.picture(), cat)
    finally:
        again.close()
    assert np.array_equal(client.picture(override_settings={"sd_model_checkpoint": "beta"}), other)


def test_seeds_in_info(client):
    assert client.info(n_iter=2, seed=7)["all_seeds"] == [7, 8]
    assert client.txt2img(seed=-1).json()["parameters"]["seed"] == -1
    assert client.info(seed=-1)["seed"] >= 0


def test_sides_are_floored_to_8(client):
    answer = client.txt2img(width=79, height=64)
    assert client.picture(width=79, height=64).shape == (64, 72, 3)
    assert json.loads(answer.json()["info"])["width"] == 79


def test_the_last_words_of_a_long_prompt_count(client):
    """400 tokens and more: six chunks."""
    long = "cat, " * 200
    pictures = [client.picture(prompt=long + last) for last in ("red", "blue", "red")]
    assert not np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[0], pictures[2])


@pytest.mark.parametrize("sampler", ["Euler", "Heun"])
@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_words_that_change_on_the_way(client, field, sampler):
    def picture(text):
        return client.picture(**{field: text}, steps=6, sampler_name=sampler)

    cat, dog = picture("a cat"), picture("a dog")
    assert np.array_equal(picture("a [cat:dog:99]"), cat)
    assert np.array_equal(picture("a [cat:dog:0]"), dog)
    early = picture("a [cat:dog:0.2]")
    assert not np.array_equal(early, cat)
    assert not np.array_equal(early, dog)
    assert not np.array_equal(picture("a [cat|dog]"), early)


def test_send_images_false(client):
    assert client.txt2img(send_images=False).json()["images"] == []


def test_unknown_fields_are_ignored(client, cat):
    assert np.array_equal(client.picture(clip_skip=2, num_inference_steps=9), cat)


@pytest.mark.parametrize("sampler", ["DPM++ SDE", "Euler a"])
def test_samplers_are_deterministic(client, sampler):
    first, again = (client.picture(sampler_name=sampler) for _ in range(2))
    assert np.array_equal(first, again)


@pytest.mark.parametrize("sampler", [entry["name"] for entry in recorded("get_samplers")])
def test_every_listed_sampler_works_and_no_other(client, sampler):
    listed = {entry["name"] for entry in client.get("samplers").json()}
    status = client.txt2img(sampler_name=sampler).status_code
    assert status == (200 if sampler in listed else 404)


# ------------------------------------------------------------------------------- LoRAs


def test_lora_changes_the_picture_and_leaves_no_trace(client, cat):
    changed = client.picture(prompt="a cat<lora:style.v1:1>")
    assert not np.array_equal(changed, cat)
    assert np.array_equal(client.picture(), cat)
    assert np.array_equal(client.picture(prompt="a cat<lora:style.v1:1>"), changed)


def test_lora_of_weight_0_is_the_plain_picture(client, cat):
    assert np.array_equal(client.picture(prompt="a cat<lora:style.v1:0>"), cat)


def test_lora_weights_of_both_networks_count(client):
    tags = ("<lora:style.v1:1>", "<lora:style.v1:1:0>", "<lora:style.v1:te=0:unet=1>")
    pictures = [client.picture(prompt="a cat" + tag) for tag in tags]
    assert len({picture.tobytes() for picture in pictures}) == 3


def test_lora_is_named_in_the_answer(client):
    hashes = client.info(prompt="<lora:style.v1:1>")["extra_generation_params"]["Lora hashes"]
    assert hashes.startswith("style.v1: ")


def test_extra_networks_can_be_switched_off(client, cat):
    fields = {"prompt": "a cat<lora:style.v1:1>", "disable_extra_networks": True}
    assert np.array_equal(client.picture(**fields), cat)
    assert client.info(**fields)["extra_generation_params"] == {}


def test_missing_lora_is_silently_ignored_as_in_a1111(client, cat):
    assert np.array_equal(client.picture(prompt="a cat<lora:nope:1>"), cat)
    assert client.info(prompt="a cat<lora:nope:1>")["extra_generation_params"] == {}


def test_damaged_lora_is_an_error_and_leaves_no_trace(client, cat):
    status, error, text = refusal(client.txt2img(prompt="a cat<lora:style.v1:1><lora:damaged:1>"))
    assert (status, error) == (500, "RuntimeError")
    assert "'damaged'" in text
    assert len(text) < 300
    assert np.array_equal(client.picture(), cat)


def test_lora_for_another_model_is_an_error(client, data_dir, cat):
    fitting = tiny_models.make_lora()
    wrong = {key: value.repeat(1, 2) for key, value in fitting.items() if value.ndim > 1}
    tiny_models.write(wrong, data_dir / "models/Lora/wrong.safetensors")
    status, _, text = refusal(client.txt2img(prompt="a cat<lora:wrong:1>"))
    assert status == 500
    assert "LoRA 'wrong' does not fit checkpoint 'alpha'" in text
    assert np.array_equal(client.picture(), cat)


# ------------------------------------------------------------------------------- checkpoints


def test_the_first_checkpoint_is_the_default(client):
    assert client.info()["sd_model_name"] == "alpha"
    assert client.get("options").json()["sd_model_checkpoint"].startswith("alpha.safetensors [")


def test_a_checkpoint_is_chosen_by_name_and_then_by_hash(client):
    client.info(override_settings={"sd_model_checkpoint": "beta"})  # hashes it
    entry = client.get("sd-models").json()[1]
    assert entry["title"] == f"sub/beta.safetensors [{entry['hash']}]"
    info = client.info(override_settings={"sd_model_checkpoint": entry["hash"]})
    assert (info["sd_model_name"], info["sd_model_hash"]) == ("beta", entry["hash"])


@pytest.mark.parametrize("alias", ["nope", "sub/beta"])
def test_unknown_checkpoint_is_silently_ignored_as_in_a1111(client, alias):
    info = client.info(override_settings={"sd_model_checkpoint": alias})
    assert info["sd_model_name"] == "alpha"


def test_override_is_restored_afterwards(client, cat):
    client.picture(override_settings={"sd_model_checkpoint": "beta", "CLIP_stop_at_last_layers": 2})
    assert np.array_equal(client.picture(), cat)


def test_override_stays_if_it_shall(client, cat):
    kept = client.picture(
        override_settings={"CLIP_stop_at_last_layers": 2},
        override_settings_restore_afterwards=False,
    )
    assert np.array_equal(client.picture(), kept)
    client.post("options", CLIP_stop_at_last_layers=1)
    assert np.array_equal(client.picture(), cat)


def test_damaged_checkpoint_does_not_poison(client, cat):
    override = {"sd_model_checkpoint": "zz-damaged"}
    status, error, text = refusal(client.txt2img(override_settings=override))
    assert (status, error) == (500, "RuntimeError")
    assert text.startswith("cannot load checkpoint 'zz-damaged.safetensors'")
    assert len(text) < 300
    assert np.array_equal(client.picture(), cat)
    assert client.post("options", sd_model_checkpoint="zz-damaged").status_code == 500
    assert np.array_equal(client.picture(), cat)


def test_a_lora_is_no_checkpoint(client, data_dir, cat):
    tiny_models.write(
        tiny_models.make_lora(), data_dir / "models/Stable-diffusion/zz-lora.safetensors"
    )
    client.post("refresh-checkpoints")
    answer = client.txt2img(override_settings={"sd_model_checkpoint": "zz-lora"})
    assert "cannot load checkpoint" in refusal(answer)[2]
    assert np.array_equal(client.picture(), cat)


def test_new_checkpoint_is_seen_after_refresh_only(client, data_dir):
    path = data_dir / "models/Stable-diffusion/zz-fresh.safetensors"
    path.symlink_to(data_dir / "models/Stable-diffusion/sub/beta.safetensors")
    override = {"override_settings": {"sd_model_checkpoint": "zz-fresh"}}
    assert client.info(**override)["sd_model_name"] == "alpha"
    client.post("refresh-checkpoints")
    assert client.info(**override)["sd_model_name"] == "zz-fresh"


def test_deleted_checkpoint_is_an_error(client, data_dir, cat):
    path = data_dir / "models/Stable-diffusion/zz-gone.safetensors"
    path.write_bytes(b"")
    client.post("refresh-checkpoints")
    path.unlink()
    answer = client.txt2img(override_settings={"sd_model_checkpoint": "zz-gone"})
    assert refusal(answer)[:2] == (500, "FileNotFoundError")
    assert np.array_equal(client.picture(), cat)


def test_post_options(client, cat):
    assert client.post("options", sd_model_checkpoint="beta").json() is None
    assert client.info()["sd_model_name"] == "beta"
    client.post("options", sd_model_checkpoint="alpha")
    assert np.array_equal(client.picture(), cat)


def test_post_options_unknown_checkpoint(client):
    expected = recorded("err_options_unknown_checkpoint")
    answer = client.post("options", **expected["request"]["body"])
    assert (answer.status_code, answer.json()) == (expected["status"], expected["response"])


# ------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "name", ["err_bad_sampler", "err_missing_script", "err_missing_alwayson_script"]
)
def test_refused_as_recorded(client, name):
    expected = recorded(name)
    answer = client.post("txt2img", **expected["request"]["body"])
    assert (answer.status_code, answer.json()) == (expected["status"], expected["response"])


def test_wrong_type_is_pydantics_422(client):
    answer = client.txt2img(steps="abc")
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "steps"]


def test_numbers_are_coerced(client, cat):
    assert np.array_equal(client.picture(steps="2", width=64.9), cat)


@pytest.mark.parametrize(
    "field",
    [
        {"enable_hr": True},
        {"subseed_strength": 0.5},
        {"save_images": True},
        {"restore_faces": True},
        {"styles": ["a"]},
        {"sampler_name": "Euler a", "eta": 0},
        {"s_churn": 1},
        {"s_noise": 0},
        {"firstphase_width": 64},
        {"seed_resize_from_h": 64, "seed_resize_from_w": 64},
        {"infotext": "Steps: 3"},
        {"cfg_scale": 0.5},
        {"override_settings": {"sd_vae": "some.safetensors"}},
        {"override_settings": {"samples_format": "jpg"}},
        {"prompt": "a cat AND a dog"},
        {"sampler_name": "LCM", "scheduler": "Karras"},
    ],
    ids=str,
)
def test_unsupported_is_refused(client, field):
    status, error, text = refusal(client.txt2img(**field))
    assert (status, error) == (422, "HTTPException")
    assert text.startswith("the embedded engine does not support ")


@pytest.mark.parametrize(
    "field",
    [
        {"restore_faces": False},
        {"styles": []},
        {"hr_scale": 2.0},
        {"do_not_save_grid": True},
        {"eta": 0.5},  # of no use to Euler
        {"subseed": 5},
        {"comments": {"a": 1}},
        {"refiner_checkpoint": "None", "refiner_switch_at": 0.8},
        {"disable_extra_networks": True},
        {"override_settings": {"sd_vae": "Automatic", "samples_format": "png"}},
    ],
    ids=str,
)
def test_asking_for_nothing_is_not_refused(client, cat, field):
    assert np.array_equal(client.picture(**field), cat)


def test_bad_lora_weight(client):
    assert refusal(client.txt2img(prompt="<lora:style.v1:abc>"))[0] == 422


@pytest.mark.parametrize(
    ("field", "error"),
    [
        ({"steps": 0}, "ValueError"),
        ({"batch_size": 0}, "ValueError"),
        ({"width": 7}, "ValueError"),
        ({"cfg_scale": 1e30}, "NansException"),
        ({"override_settings": {"CLIP_stop_at_last_layers": "2"}}, "TypeError"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 99}}, "IndexError"),
    ],
    ids=str,
)
def test_impossible_numbers(client, field, error):
    assert refusal(client.txt2img(**field))[:2] == (500, error)


# ------------------------------------------------------------------------------- one at a time


class Job(threading.Thread):
    """A request that runs beside the test."""

    def __init__(self, client, **fields):
        super().__init__()
        self.client, self.fields, self.answer = client, fields, None
        self.start()

    def run(self):
        self.answer = self.client.txt2img(**self.fields)

    def pictures(self):
        self.join(timeout=30)
        return self.answer.json()["images"]


def running(client):
    return client.get("progress").json()["state"]["sampling_step"] > 0


def test_interrupt_ends_the_job_at_its_next_step(client, cat):
    job = Job(client, steps=1000, n_iter=3)
    client.wait_until(lambda: running(client))
    progress = client.get("progress").json()
    assert 0 < progress["progress"] < 0.3
    assert progress["state"]["job_count"] == 3
    assert progress["state"].keys() == recorded("get_progress_mid_job")["state"].keys()
    started = time.monotonic()
    assert client.post("interrupt").json() == {}
    assert len(job.pictures()) == 1
    assert time.monotonic() - started < 5
    assert np.array_equal(client.picture(), cat)


def test_skip_ends_one_picture(client):
    job = Job(client, steps=1000, n_iter=2)
    client.wait_until(lambda: running(client))
    assert client.post("skip").json() is None
    client.wait_until(lambda: client.get("progress").json()["state"]["job_no"] == 1)
    client.post("interrupt")
    assert len(job.pictures()) == 2


def test_interrupt_when_idle_does_nothing_later(client, cat):
    client.post("interrupt")
    assert np.array_equal(client.picture(), cat)


def test_jobs_wait_in_order(client):
    first = Job(client, steps=1000)
    client.wait_until(lambda: running(client))
    second = Job(client, seed=2)
    assert client.get("sd-models").ok
    assert second.is_alive()
    client.post("interrupt")
    assert len(first.pictures()) == len(second.pictures()) == 1


# ------------------------------------------------------------------------------- the process


def test_port_in_use(client, data_dir):
    command = [sys.executable, "-m", "engine", "--port", str(client.port)]
    done = subprocess.run(
        [*command, "--data-dir", str(data_dir)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    expected = f"cannot listen on 127.0.0.1:{client.port}: Address already in use\n"
    assert (done.stdout, done.stderr) == ("", expected)


def test_damaged_configuration(tmp_path):
    (tmp_path / "config.json").write_text("{")
    command = [sys.executable, "-m", "engine", "--port", "0", "--data-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{tmp_path}/config.json is not valid JSON" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_sigterm_ends_a_running_job_and_the_process(client):
    """Stays the last test: the module's process ends here."""
    job = Job(client, steps=1000)
    client.wait_until(lambda: running(client))
    os.kill(client.process.pid, signal.SIGTERM)
    assert client.process.wait(timeout=5) in (0, -signal.SIGTERM)
    job.join(timeout=5)
