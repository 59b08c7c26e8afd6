"""The fakes behave as the originals: checked against answers recorded from A1111 v1.9.3."""

import base64
import json
import struct
import threading

import pytest
import requests
from fakes.a1111.picture import png_text
from fakes.a1111.process import DEADLINE, SMALL, running_a1111, wait_until, write_safetensors
from fakes.a1111.shape import shape_error
from fakes.recorded import FOLDER, recorded
from fakes.runpod_plane import RunPodPlane


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

ERRORS = sorted(path.stem for path in FOLDER.glob("err_*.json"))


@pytest.mark.parametrize("name", [name for name in ERRORS if name != "err_no_checkpoint_loaded"])
def test_refuses_as_recorded(a1111, name):
    record = recorded(name)
    request = record["request"]
    answer = requests.request(
        request["method"], a1111.url + request["path"], json=request["body"], timeout=DEADLINE
    )
    assert (answer.status_code, answer.json()) == (record["status"], record["response"])


def test_without_any_checkpoint_it_serves_and_refuses_as_recorded(tmp_path):
    record = recorded("err_no_checkpoint_loaded")
    with running_a1111(tmp_path, "--ckpt-dir", str(tmp_path / "more")) as engine:
        answer = engine.post("txt2img", record["request"]["body"])
        assert engine.get("sd-models").json() == []
    text = record["response"]["errors"].replace("/x/data/ckpts", str(tmp_path / "more"))
    expected = record["response"] | {"errors": text.replace("/x/webui", str(tmp_path))}
    assert (answer.status_code, answer.json()) == (500, expected)


@pytest.mark.parametrize(
    "name",
    ["post_txt2img_lora_checkpoint", "post_txt2img_unknown_checkpoint_and_lora_silent_200"],
)
def test_answers_as_recorded(a1111, name):
    expected = recorded(name)
    answer = a1111.post("txt2img", expected["parameters"]).json()
    info, expected_info = json.loads(answer["info"]), json.loads(expected["info"])
    assert answer.keys() == expected.keys()
    assert answer["parameters"] == expected["parameters"]
    assert info.keys() == expected_info.keys()
    assert info["sd_model_name"] == expected_info["sd_model_name"]
    assert info["extra_generation_params"].keys() == expected_info["extra_generation_params"].keys()
    same = info["infotexts"][0].partition("Model hash")[0]
    assert same == expected_info["infotexts"][0].partition("Model hash")[0]
    assert png_text(base64.b64decode(answer["images"][0])) == info["infotexts"][0]


@pytest.mark.parametrize(
    ("route", "record"),
    [("sd-models", "get_sd-models_two"), ("loras", "get_loras_two")],
)
def test_lists_as_recorded(a1111, route, record):
    assert a1111.get(route).json()[0].keys() == recorded(record)[0].keys()


@pytest.mark.parametrize("route", ["progress", "options", "cmd-flags", "memory", "samplers"])
def test_reports_as_recorded(a1111, route):
    found, expected = a1111.get(route).json(), recorded(f"get_{route}")
    assert list(found) == list(expected)


# --- the shape of a request

SHAPES = [
    ({"steps": "64", "width": 100.7, "unknown": 1, "seed": None}, None),
    ([], None),
    ({"scheduler": "no such", "styles": ["no such"]}, None),
    ({"enable_hr": True, "denoising_strength": 0.4, "hr_upscaler": "Latent"}, None),
    ({"steps": 0}, "ZeroDivisionError"),
    ({"n_iter": -1}, "IndexError"),
    ({"batch_size": -1, "n_iter": -1}, "IndexError"),
    ({"width": 4}, "RuntimeError"),
    ({"height": -64}, "RuntimeError"),
    ({"seed": 2**64}, "RuntimeError"),
    ({"seed": 2**64 - 1, "n_iter": 2}, "RuntimeError"),
    ({"cfg_scale": 1e30}, "NansException"),
    ({"cfg_scale": float("nan")}, "NansException"),
    ({"prompt": None}, "AssertionError"),
    ({"width": None}, "TypeError"),
    ({"enable_hr": True}, "TypeError"),
    ({"enable_hr": True, "denoising_strength": 1, "hr_upscaler": "no such"}, "Exception"),
    ({"refiner_checkpoint": "no such"}, "Exception"),
    ({"override_settings": {"CLIP_stop_at_last_layers": "2"}}, "TypeError"),
    ({"override_settings": {"CLIP_stop_at_last_layers": 99}}, "IndexError"),
    ({"override_settings": {"no_such": 1}}, "KeyError"),
]


@pytest.mark.parametrize(("payload", "error"), SHAPES)
def test_shape(payload, error):
    found = shape_error(payload)
    assert (found and (found[0], found[1]["error"])) == (error and (500, error))


def test_sizes_are_rounded_down_and_reported_as_requested(a1111):
    answer = a1111.post("txt2img", SMALL | {"width": 100.7, "height": "71"}).json()
    width, height = struct.unpack(">II", base64.b64decode(answer["images"][0])[16:24])
    info = json.loads(answer["info"])
    assert (width, height, info["width"], info["height"]) == (96, 64, 100, 71)


def test_saves_a_grid_in_front(a1111):
    answer = a1111.post("txt2img", SMALL | {"n_iter": 2, "save_images": True}).json()
    info = json.loads(answer["info"])
    assert (len(answer["images"]), info["index_of_first_image"]) == (3, 1)
    assert info["all_seeds"] == [1, 2]


# --- models and options

HASH_A, HASH_B = "8f8ee6334ab2", "f05376020754"  # sha256 of the bytes after the header


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
        ("a # <lora:loraA:1>", None),
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


def test_a_title_gains_its_hash_once_loaded(fresh):
    before = fresh.get("sd-models").json()[1]
    fresh.info(override_settings={"sd_model_checkpoint": "tinyB"})
    after = fresh.get("sd-models").json()[1]
    assert (before["title"], before["sha256"]) == ("tinyB.safetensors", None)
    assert after["title"] == f"tinyB.safetensors [{after['sha256'][:10]}]"
    wanted = {"sd_model_checkpoint": after["hash"]}
    assert fresh.info(override_settings=wanted)["sd_model_name"] == "tinyB"


@pytest.mark.parametrize(("config", "left"), [({}, 2), ({"CLIP_stop_at_last_layers": 1}, 1)])
def test_an_override_leaks_unless_config_json_has_the_key(tmp_path, config, left):
    fill(tmp_path).joinpath("config.json").write_text(json.dumps(config))
    with running_a1111(tmp_path) as engine:
        assert engine.info(override_settings={"CLIP_stop_at_last_layers": 2})["clip_skip"] == 2
        assert engine.info()["clip_skip"] == left


def test_a_failed_switch_poisons_until_another_checkpoint_loads(fresh):
    torn = fresh.post("txt2img", {"override_settings": {"sd_model_checkpoint": "torn"}})
    after = fresh.post("txt2img", SMALL)
    assert (torn.status_code, torn.json()["error"]) == (500, "SafetensorError")
    assert (after.status_code, after.json()["error"]) == (500, "RuntimeError")
    wanted = {"sd_model_checkpoint": "tinyB"}
    assert fresh.info(override_settings=wanted)["sd_model_name"] == "tinyB"


# --- starting and dying


@pytest.mark.parametrize(
    ("prepare", "flags", "status", "text"),
    [
        (None, ["--no-such-flag"], 2, b"unrecognized arguments"),
        ("cache/hashes/cache.db", [], 1, b"sqlite3.DatabaseError: file is not a database"),
        ("config.json", [], 1, b"FileNotFoundError"),
    ],
)
def test_does_not_start(tmp_path, prepare, flags, status, text):
    if prepare:
        damaged = tmp_path / prepare
        damaged.parent.mkdir(parents=True, exist_ok=True)
        damaged.write_bytes(b"garbage " * 200)
    with running_a1111(tmp_path, *flags, wait=False) as engine:
        _, errors = engine.process.communicate(timeout=DEADLINE)
    assert engine.process.returncode == status
    assert text in errors


def test_a_busy_port_ends_it(a1111, tmp_path):
    with running_a1111(tmp_path, "--port", str(a1111.port), wait=False) as second:
        assert second.process.wait(DEADLINE) == 1


def test_a_damaged_lora_cache_takes_the_loras_away(tmp_path):
    damaged = fill(tmp_path) / "cache/hashes-addnet/cache.db"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"garbage " * 200)
    with running_a1111(tmp_path, wait=False) as engine:
        wait_until(engine.listens, "the port")
        assert engine.get("loras").json() == {"detail": "Not Found"}
        assert engine.lora_hashes("<lora:loraA:1>") is None


def test_ui_mode_has_no_api_at_first_and_may_end_at_a_request(tmp_path):
    ui_mode = {"fault": "ui_mode", "seconds": 60}
    with running_a1111(tmp_path, faults=(ui_mode,), wait=False) as engine:
        wait_until(engine.listens, "the port")
        assert engine.post("txt2img", SMALL).json() == {"detail": "Not Found"}
    with running_a1111(tmp_path, faults=(ui_mode | {"fatal": True},), wait=False) as engine:
        wait_until(engine.listens, "the port")
        with pytest.raises(requests.ConnectionError):
            engine.get("loras")
        assert engine.process.wait(DEADLINE) == 1


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


# --- faults of a request

REQUEST_FAULTS = [
    ("no_route", 404, '{"detail":"Not Found"}'),
    ("out_of_memory", 500, "CUDA out of memory"),
    ("cuda_fault", 500, "illegal memory access"),
    ("device_mismatch", 500, "cuda:0 and cpu"),
    ("sqlite", 500, "OperationalError"),
    ("internal_error", 500, "RuntimeError"),
    ("bad_json", 200, '{"images": ['),
    ("html", 200, "<!doctype html>"),
    ("no_images", 200, '{"images":[]'),
    ("wrong_checkpoint", 200, r"\"sd_model_name\": \"tinyB\""),
]


@pytest.mark.parametrize(("name", "status", "text"), REQUEST_FAULTS)
def test_fault_for_one_request(a1111, name, status, text):
    a1111.fault(name)
    answer = a1111.post("txt2img", SMALL)
    assert (answer.status_code, text in answer.text) == (status, True), answer.text[:500]
    assert a1111.info()["sd_model_name"] == "tinyA"


def test_missing_lora_is_silent(a1111):
    a1111.fault("missing_lora", name="loraA")
    assert a1111.lora_hashes("<lora:loraA:1><lora:loraB:1>") == f"loraB: {HASH_B}"


def test_drop_closes_the_connection_and_the_process_lives(a1111):
    a1111.fault("drop")
    with pytest.raises(requests.ConnectionError):
        a1111.post("txt2img", SMALL | {"prompt": "dropped"})
    assert a1111.info()["seed"] == 1
    prompts = [entry["body"]["prompt"] for entry in a1111.log()[-2:]]
    assert prompts == ["dropped", "a fox"]


def test_poisoned_stays_until_a_restart(fresh):
    fresh.fault("poisoned")
    texts = [fresh.post("txt2img", SMALL).json()["errors"] for _ in range(2)]
    assert texts == ["'NoneType' object has no attribute 'lowvram'"] * 2


# --- the control plane


@pytest.fixture
def plane():
    with RunPodPlane(hold=0.2) as plane:
        yield plane


def take(plane):
    answer = requests.get(f"{plane.url}/job-take/pod0?gpu=FAKE", timeout=DEADLINE)
    return answer.json() if answer.status_code == 200 else answer.status_code


def report(plane, job_id, raw):
    url = f"{plane.url}/job-done/pod0/{job_id}"
    return requests.post(url, data=raw, timeout=DEADLINE).status_code


def test_a_job_goes_to_the_worker_and_back(plane):
    assert take(plane) == 204
    job_id = plane.submit({"prompt": "x"})
    assert take(plane) == {"id": job_id, "input": {"prompt": "x"}, "webhook": None}
    assert report(plane, job_id, '{"status": "IN_PROGRESS", "output": 1}') == 200
    assert plane.status(job_id)["status"] == "IN_PROGRESS"
    assert report(plane, job_id, '{"output": {"images": []}}') == 200
    assert plane.wait(job_id, timeout=DEADLINE)["output"] == {"images": []}
    assert len(plane.events("progress")) == 1


def test_an_error_is_a_failed_job(plane):
    job_id = plane.submit({})
    take(plane)
    report(plane, job_id, '{"error": "bad_request: no"}')
    ended = plane.wait(job_id, timeout=DEADLINE)
    assert (ended["status"], ended["error"]) == ("FAILED", "bad_request: no")


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


def test_waiting_has_a_deadline(plane):
    with pytest.raises(TimeoutError, match="no the end of"):
        plane.wait(plane.submit({}), timeout=0.01)
