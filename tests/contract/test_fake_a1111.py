"""The fakes behave as the originals: checked against answers recorded from A1111 v1.9.3."""

import base64
import io
import json
import os
import re
import struct
import threading
import time

import pytest
import requests
from fakes.a1111.process import DEADLINE, SMALL, running_a1111, wait_until, write_safetensors
from fakes.a1111.shape import shape_error
from fakes.recorded import recorded
from fakes.recorded_tasks import recorded_tasks
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import png_size
from PIL import Image


def fill(data_dir):
    checkpoints, loras = data_dir / "models/Stable-diffusion", data_dir / "models/Lora"
    write_safetensors(checkpoints / "tinyA.safetensors", b"A" * 8)
    write_safetensors(checkpoints / "tinyB.safetensors", b"B" * 8)
    (checkpoints / "torn.safetensors").write_bytes(b"<html>" * 9)
    write_safetensors(loras / "loraA.safetensors", b"L" * 8)
    write_safetensors(loras / "sub" / "loraB.safetensors", b"M" * 8, ss_output_name="AliasOfB")
    return data_dir


@pytest.fixture(scope="module")
def a1111(tmp_path_factory):
    with running_a1111(fill(tmp_path_factory.mktemp("shared"))) as engine:
        yield engine


@pytest.fixture
def fresh(tmp_path):
    with running_a1111(fill(tmp_path)) as engine:
        yield engine


# --- as recorded


def upscaled(a1111, size=(16, 16), **fields):
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    image = base64.b64encode(file.getvalue()).decode()
    body = {"image": image, "upscaler_1": "Lanczos", "upscaling_resize": 2} | fields
    return a1111.post("extra-single-image", body)


@pytest.mark.parametrize(
    ("fields", "status", "text"),  # of A1111 v1.9.3
    [
        ({}, 200, "<p>Postprocess upscale by: 2.0, Postprocess upscaler: Lanczos</p>"),
        ({"upscaler_1": "None", "upscaler_2": "no such"}, 200, "<p></p>"),
        ({"upscaler_1": "DAT x2"}, 200, "upscaler: DAT x2</p>"),  # but it is Lanczos
        ({"gfpgan_visibility": 1}, 200, "GFPGAN visibility: 1.0</p>"),  # but nothing is restored
        ({"upscaler_1": "lanczos"}, 500, "could not find upscaler named lanczos"),
        ({"upscaler_2": "Latent"}, 500, "could not find upscaler named Latent"),
        ({"upscaling_resize": 0.01}, 500, "height and width must be > 0"),
        ({"upscaling_resize": 0}, 422, "upscaling_resize"),
        ({"upscaler_1": None}, 422, "upscaler_1"),
        ({"resize_mode": 2}, 422, "resize_mode"),
        ({"codeformer_weight": 2}, 422, "codeformer_weight"),
        ({"image": "%%%"}, 500, "Invalid encoded image"),
    ],
    ids=str,
)
def test_it_enlarges_and_refuses_as_recorded(a1111, fields, status, text):
    answer = upscaled(a1111, **fields)
    assert answer.status_code == status
    assert text in answer.text


def test_it_takes_a_flat_picture_of_another_width_for_the_last_one(fresh):
    sizes = []
    for size in ((64, 32), (32, 64)):
        image = upscaled(fresh, size).json()["image"]
        sizes.append(Image.open(io.BytesIO(base64.b64decode(image))).size)
    assert sizes == [(128, 64), (128, 64)]
    fresh.post("options", {"upscaling_max_images_in_cache": 0})
    upscaled(fresh, (64, 32))
    image = upscaled(fresh, (32, 64)).json()["image"]
    assert Image.open(io.BytesIO(base64.b64decode(image))).size == (64, 128)


# test_contract.py has the others
ERRORS = ["err_bad_type", "err_missing_alwayson_script", "err_missing_script"]


@pytest.mark.parametrize("name", ERRORS)
def test_refuses_as_recorded(a1111, name):
    record = recorded(name)
    answer = a1111.post("txt2img", record["request"]["body"])
    assert (answer.status_code, answer.json()) == (record["status"], record["response"])


def test_without_any_checkpoint_it_serves_and_refuses_as_recorded(tmp_path):
    record = recorded("err_no_checkpoint_loaded")
    with running_a1111(tmp_path, "--ckpt-dir", str(tmp_path / "more")) as engine:
        answer = engine.post("txt2img", record["request"]["body"])
        assert engine.get("sd-models").json() == []
    text = record["response"]["errors"].replace("/x/data/ckpts", str(tmp_path / "more"))
    expected = record["response"] | {"errors": text.replace("/x/webui", str(tmp_path))}
    assert (answer.status_code, answer.json()) == (500, expected)


ANSWERS = ["post_txt2img_lora_checkpoint", "post_txt2img_unknown_checkpoint_and_lora_silent_200"]


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_as_recorded(a1111, name):
    expected = recorded(name)
    answer = a1111.post("txt2img", expected["parameters"]).json()
    info, expected_info = json.loads(answer["info"]), json.loads(expected["info"])
    assert answer["parameters"] == expected["parameters"]
    assert info["sd_model_name"] == expected_info["sd_model_name"]
    assert info["extra_generation_params"].keys() == expected_info["extra_generation_params"].keys()
    same = info["infotexts"][0].partition("Model hash")[0]
    assert same == expected_info["infotexts"][0].partition("Model hash")[0]


@pytest.mark.parametrize("route", ["progress", "options", "memory", "samplers"])
def test_reports_as_recorded(a1111, route):
    found, expected = a1111.get(route).json(), recorded(f"get_{route}")
    assert list(found) == list(expected)


# --- the shape of a request

SKIP = {"CLIP_stop_at_last_layers": 99}
HIRES = {"enable_hr": True, "denoising_strength": 0.4}
SHAPES = {
    None: [
        {"steps": "64", "width": 100.7, "unknown": 1, "seed": None},
        [],
        {"scheduler": "no such", "styles": ["no such"]},
        HIRES | {"hr_upscaler": "Latent"},
    ],
    "ZeroDivisionError": [{"steps": 0}],
    "IndexError": [{"n_iter": -1}, {"batch_size": -1, "n_iter": -1}, {"override_settings": SKIP}],
    "RuntimeError": [
        {"width": 4},
        {"height": -64},
        {"seed": 2**64},
        {"seed": 2**64 - 1, "n_iter": 2},
    ],
    "NansException": [{"cfg_scale": 1e30}, {"cfg_scale": float("nan")}],
    "AssertionError": [{"prompt": None}, HIRES | {"hr_sampler_name": "no such"}],
    "TypeError": [
        {"width": None},
        {"enable_hr": True},
        {"override_settings": {"CLIP_stop_at_last_layers": "2"}},
    ],
    "Exception": [HIRES | {"hr_upscaler": "no such"}, {"refiner_checkpoint": "no such"}],
    "KeyError": [{"override_settings": {"no_such": 1}}],
}


@pytest.mark.parametrize("error", SHAPES)
def test_shape(error):
    for payload in SHAPES[error]:
        found = shape_error(payload)
        assert (found and (found[0], found[1]["error"])) == (error and (500, error)), payload


# Rows of which the fake draws more than A1111, or fails with another error.
UNLIKE = re.compile(
    "url|bomb|script|eps$|bad_crc|urlsafe|size .*0x|size 128x0|size -|TAESD|NaN|Infinity"
    "|always .*seed|refiner|checkpoint|lora|100000|grid|save_images|return_mask|send_images"
)
IMG2IMG = [
    task for task in recorded_tasks() if task.path == "img2img" and not UNLIKE.search(task.name)
]


def test_img2img_as_recorded(a1111):
    assert len(IMG2IMG) > 200
    for task in IMG2IMG:
        answer = a1111.post("img2img", task.sent_body())
        found = answer.json()
        assert answer.status_code == task.status, task.name
        if task.status != 200:
            assert found.get("error") == task.answer.get("error"), task.name
            continue
        assert found["parameters"]["mask"] is None or task.body.get("include_init_images")
        sizes = [["RGB", *png_size(image)] for image in found["images"]]
        assert sizes == task.answer["pictures"], task.name
        reported = json.loads(found["info"])["extra_generation_params"]
        expected = task.answer["extra_generation_params"]
        assert reported.items() <= expected.items(), task.name


def test_sizes_are_rounded_down_and_reported_as_requested(a1111):
    answer = a1111.post("txt2img", SMALL | {"width": 100.7, "height": "71"}).json()
    width, height = struct.unpack(">II", base64.b64decode(answer["images"][0])[16:24])
    info = json.loads(answer["info"])
    assert (width, height, info["width"], info["height"]) == (96, 64, 100, 71)


# --- models and options

HASH_A, HASH_B = "b7fb5774afac", "46c66708d976"  # sha256 of the bytes after the header


@pytest.mark.parametrize(
    ("prompt", "hashes"),
    [
        ("<lora:loraA:0.5:1>", f"loraA: {HASH_A}"),
        ("<lora:loraA:te=0.5:unet=1>", f"loraA: {HASH_A}"),
        ("<lora:loraA><lora:AliasOfB:1>", f"loraA: {HASH_A}, AliasOfB: {HASH_B}"),
        ("<lora:loraB:1><lora:nope:1>", f"loraB: {HASH_B}"),
        ("<lora:LORAA:1>", None),
        ("<lora: loraA:1>", None),
        ("<lora:sub/loraB:1>", None),
        ("<lora:loraA:abc><lora:loraB:1>", None),
    ],
)
def test_lora_tags(a1111, prompt, hashes):
    assert a1111.lora_hashes(prompt) == hashes


def test_finds_a_new_lora_by_itself_and_a_new_checkpoint_only_after_a_refresh(fresh, tmp_path):
    write_safetensors(tmp_path / "models/Lora/late.safetensors")
    write_safetensors(tmp_path / "models/Stable-diffusion/late.safetensors")
    late = {"override_settings": {"sd_model_checkpoint": "late"}}
    assert fresh.lora_hashes("<lora:late:1>")
    assert fresh.info(**late)["sd_model_name"] == "tinyA"
    assert fresh.post("refresh-checkpoints", {}).text == "null"
    assert fresh.info(**late)["sd_model_name"] == "late"
    assert fresh.info()["sd_model_name"] == "tinyA"


def test_a_title_gains_its_hash_once_loaded_and_a_failed_switch_poisons_until_the_next(fresh):
    before = fresh.get("sd-models").json()[1]
    fresh.info(override_settings={"sd_model_checkpoint": "tinyB"})
    after = fresh.get("sd-models").json()[1]
    assert (before["title"], before["sha256"]) == ("tinyB.safetensors", None)
    assert after["title"] == f"tinyB.safetensors [{after['sha256'][:10]}]"
    assert fresh.info()["sd_model_name"] == "tinyA"
    torn = fresh.post("txt2img", {"override_settings": {"sd_model_checkpoint": "torn"}})
    poisoned = fresh.post("txt2img", SMALL)
    assert (torn.status_code, torn.json()["error"]) == (500, "SafetensorError")
    assert (poisoned.status_code, poisoned.json()["error"]) == (500, "RuntimeError")
    wanted = {"sd_model_checkpoint": after["hash"]}
    assert fresh.info(override_settings=wanted)["sd_model_name"] == "tinyB"


def test_a_vae_that_does_not_load_spoils_the_next_pictures_without_an_error(fresh, tmp_path):
    write_safetensors(tmp_path / "models/VAE/odd.safetensors")
    pictures = [fresh.post("txt2img", SMALL).json()["images"]]
    fresh.fault("vae_load_fails")
    job = SMALL | {"override_settings": {"sd_vae": "odd.safetensors"}}
    assert fresh.post("txt2img", job).status_code == 500
    pictures += [fresh.post("txt2img", SMALL).json()["images"] for _ in range(2)]
    assert pictures[0] != pictures[1] == pictures[2]


def test_a_lora_that_is_replaced_under_its_name_is_loaded_after_a_picture_without_it(
    fresh, tmp_path
):
    job, path = SMALL | {"prompt": "<lora:loraA:1>"}, tmp_path / "models/Lora/loraA.safetensors"

    def picture():
        return fresh.post("txt2img", job).json()["images"]

    old = picture()
    write_safetensors(path, b"new content")
    os.utime(path, (time.time() + 9,) * 2)
    fresh.post("refresh-loras")
    spoiled = picture()
    fresh.post("txt2img", SMALL)
    assert len({*old, *spoiled, *picture()}) == 3  # the infotext has the new hash at once


def test_without_a_checkpoint_embeddings_cannot_be_read(tmp_path):
    with running_a1111(tmp_path) as engine:
        answer = engine.post("refresh-embeddings")
    assert "'NoneType' object has no attribute 'cond_stage_model'" in answer.text


def test_an_override_leaks_unless_config_json_has_the_key(fresh, tmp_path):
    (tmp_path / "configured").mkdir()
    fill(tmp_path / "configured")
    (tmp_path / "configured/config.json").write_text('{"CLIP_stop_at_last_layers": 1}')
    with running_a1111(tmp_path / "configured") as configured:
        for engine, left in ((fresh, 2), (configured, 1)):
            assert engine.info(override_settings={"CLIP_stop_at_last_layers": 2})["clip_skip"] == 2
            assert engine.info()["clip_skip"] == left


# --- starting and dying


def damage(cache):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"garbage " * 200)


def test_does_not_start(a1111, tmp_path):
    damage(tmp_path / "cache/hashes/cache.db")
    for flags, status, text in (
        (["--no-such-flag"], 2, b"unrecognized arguments"),
        ([], 1, b"sqlite3.DatabaseError: file is not a database"),
        (["--data-dir", str(tmp_path / "new"), "--port", str(a1111.port)], 1, b"in use"),
    ):
        with running_a1111(tmp_path, *flags, wait=False) as engine:
            _, errors = engine.process.communicate(timeout=DEADLINE)
        assert engine.process.returncode == status
        assert text in errors


def test_a_damaged_lora_cache_takes_the_loras_away(tmp_path):
    damage(fill(tmp_path) / "cache/hashes-addnet/cache.db")
    with running_a1111(tmp_path, wait=False) as engine:
        wait_until(engine.listens, "the port")
        assert engine.get("loras").json() == {"detail": "Not Found"}
        assert engine.lora_hashes("<lora:loraA:1>") is None


def test_an_interrupt_ends_the_job_and_sigterm_waits_for_it(fresh):
    answers = []

    def generate():
        answers.append(fresh.post("txt2img", SMALL | {"steps": 50}))

    for end in (lambda: fresh.post("interrupt"), fresh.process.terminate):
        fresh.fault("slow_steps", seconds=0.02)
        job = threading.Thread(target=generate)
        job.start()
        wait_until(lambda: fresh.get("progress").json()["state"]["sampling_step"] > 0, "the job")
        end()
        job.join(DEADLINE)
    partial, finished = (answer.json()["images"][0] for answer in answers)
    assert partial != finished
    assert fresh.process.wait(DEADLINE) == -15


# --- the control plane


@pytest.fixture
def plane():
    with RunPodPlane(hold=0.2) as plane:
        yield plane


def take(plane):
    requests.get(f"{plane.url}/job-take/pod0?gpu=FAKE", timeout=DEADLINE).raise_for_status()


def report(plane, job_id, raw):
    url = f"{plane.url}/job-done/pod0/{job_id}"
    return requests.post(url, data=raw, timeout=DEADLINE).status_code


def test_a_result_that_is_not_json_leaves_the_job_in_progress(plane):
    job_id = plane.submit({})
    take(plane)
    assert report(plane, job_id, '{"output": NaN}') == 400
    assert plane.status(job_id)["status"] == "IN_PROGRESS"
    assert plane.events("done-bad-json")[0]["id"] == job_id


@pytest.mark.parametrize("status", ["CANCELLED", "TIMED_OUT"])
def test_a_job_nobody_wants_is_stopped_at_the_worker(plane, status):
    policy = {"executionTimeout": 50} if status == "TIMED_OUT" else {}
    job_id = plane.submit({}, policy=policy)
    take(plane)
    if status == "CANCELLED":
        plane.cancel(job_id)
    assert plane.wait(job_id, timeout=DEADLINE)["status"] == status
    stop = requests.get(f"{plane.url}/job-stop/pod0", timeout=DEADLINE)
    assert stop.json() == {"jobsToStop": [job_id]}


def test_routes_misbehave_on_demand(plane):
    plane.fault("job-done", status=500)
    plane.fault("job-done", drop=True)
    job_id = plane.submit({})
    take(plane)
    assert report(plane, job_id, "{}") == 500
    with pytest.raises(requests.ConnectionError):
        report(plane, job_id, "{}")
    assert report(plane, job_id, "{}") == 200
    assert plane.wait_for("fault", timeout=DEADLINE, count=2)["route"] == "job-done"
