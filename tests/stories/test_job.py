"""Whole jobs: RunPod's control plane (fake), the real SDK, handler and start.sh, a fake A1111."""

import base64
import json
import os
import re
import signal

import pytest
from fakes.a1111.picture import png, png_text
from fakes.a1111.process import running_a1111, wait_until, write_safetensors
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import FOREVER, SMALL, completed, failed, png_size, running_worker

from worker.webui.timing import EngineTiming

PICTURE, WIDE = (
    base64.b64encode(png(width, 64, b"\xff\xff\xff", "")).decode() for width in (64, 96)
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One worker for all stories after which it must still work; at last it is stopped idle."""
    folder = tmp_path_factory.mktemp("worker")
    with (
        RunPodPlane(hold=1.0) as plane,
        running_worker(folder, plane, MAX_ENGINE_RESTARTS="50") as worker,
    ):
        yield worker
        assert_all_ends(worker)


@pytest.fixture
def worker(shared):
    """The shared worker without faults; after each story it must still make a picture."""
    shared.no_faults()
    yield shared
    shared.no_faults()
    assert shared.run(SMALL)["status"] == "COMPLETED", shared.log()


@pytest.fixture
def own(tmp_path):
    """Start a worker of the test's own."""
    with RunPodPlane(hold=1.0) as plane:
        yield lambda **how: running_worker(tmp_path, plane, **how)


def assert_all_ends(worker):
    engine = worker.engine_pid()
    assert worker.stop() == 0, worker.log()
    with pytest.raises(ProcessLookupError):
        os.kill(engine, 0)


# A good job ---------------------------------------------------------------------------------


def test_a_job_returns_a1111s_answer_and_our_details(worker):
    output = completed(worker.run(SMALL | {"batch_size": 2, "sampler_name": "DPM++ 2M Karras"}))
    assert [png_size(image) for image in output["images"]] == [(64, 64)] * 2
    assert output["parameters"]["sampler_name"] == "DPM++ 2M"
    assert json.loads(output["info"])["all_seeds"] == [1, 2]
    assert output["cache_info"]["checkpoints_cached"] >= 2
    assert output["cache_info"]["loras_cached"] == 1
    assert output["timings"]["total"] >= output["timings"]["generate"]
    assert output["warnings"] == []


def test_the_models_that_a_job_names_are_used_and_proven(worker):
    job = SMALL | {"checkpoint": "second.safetensors", "loras": [{"name": "detail", "scale": 0.5}]}
    output = completed(worker.run(job))
    info = json.loads(output["info"])
    checkpoint, lora = output["models"]
    assert info["prompt"] == "a fox <lora:detail:0.5>"
    assert (checkpoint["name"], checkpoint["source"]) == ("second", "job")
    assert checkpoint["sha256"].startswith(info["sd_model_hash"])
    assert lora["name"] == "detail"


def assert_clip_skip_is_for_one_job(worker):
    skipped, plain = (
        json.loads(completed(worker.run(SMALL | more))["info"])["infotexts"][0]
        for more in ({"clip_skip": 2}, {})
    )
    assert "Clip skip: 2" in skipped
    assert "Clip skip" not in plain


def test_clip_skip_is_for_one_job_also_in_an_external_engine_without_config_json(
    worker, own, tmp_path
):
    assert_clip_skip_is_for_one_job(worker)
    write_safetensors(tmp_path / "external/models/Stable-diffusion/first.safetensors")
    with running_a1111(tmp_path / "external") as engine:
        assert not (tmp_path / "external/config.json").exists()
        with own(ENGINE="external", WEBUI_URL=engine.url, checkpoints=(), loras=()) as external:
            assert_clip_skip_is_for_one_job(external)


def test_wildcards_are_chosen_by_the_seed_and_their_loras_are_proven(worker):
    folder = worker.store / "wildcards/style"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "looks.txt").write_text("# one\r\n{soft|warm} light <lora:detail:0.5>\r\n")
    job = SMALL | {"prompt": "a __style/looks__ fox", "wildcards": True, "seed": -1}
    first = completed(worker.run(job))
    again = completed(worker.run(job | {"seed": json.loads(first["info"])["seed"]}))
    assert first["resolved"] == again["resolved"]
    assert re.fullmatch("a (soft|warm) light <lora:detail:0.5> fox", first["resolved"]["prompt"])
    assert worker.requests()[-1]["body"]["prompt"] == first["resolved"]["prompt"]
    assert [model["name"] for model in first["models"]] == ["first", "detail"]
    assert "Did you mean __style/looks__?" in failed(
        worker.run(job | {"prompt": "__looks__"}), "INVALID_INPUT"
    )


FROM_PICTURE = SMALL | {"task": "img2img", "init_images": [PICTURE], "denoising_strength": 0.5}


def test_a_picture_is_drawn_anew_inside_its_mask(worker):
    masked = FROM_PICTURE | {"mask": PICTURE, "inpaint_full_res_padding": 8}
    output = completed(worker.run(masked | {"output": {"format": "png"}}))
    assert png_size(output["images"][0]) == (64, 64)
    (infotext,) = json.loads(output["info"])["infotexts"]
    assert "Inpaint area: Only masked, Masked area padding: 8, Masked content: fill" in infotext
    assert PICTURE[-60:] not in json.dumps(output["parameters"]) + worker.log()
    worker.fault("mask_ignored", times=FOREVER)
    assert "expected Mask blur 4" in failed(worker.run(masked), "WRONG_DRAWING")


def test_several_pictures_are_drawn_together_and_one_of_them_in_its_own_size(worker):
    together = completed(worker.run(FROM_PICTURE | {"init_images": [PICTURE, WIDE], "n_iter": 2}))
    assert [png_size(image) for image in together["images"]] == [(64, 64)] * 4
    alone = {name: FROM_PICTURE[name] for name in ("task", "steps")} | {"init_images": [WIDE]}
    assert png_size(completed(worker.run(alone))["images"][0]) == (96, 64)


# The caller's mistakes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job_input", "code", "message"),
    [
        (SMALL | {"sampler_name": "Eulr a"}, "INVALID_INPUT", "Did you mean 'Euler a'"),
        (SMALL | {"stepz": 9}, "INVALID_INPUT", "did you mean `steps`?"),
        (SMALL | {"steps": 0}, "INVALID_INPUT", "steps = 0"),
        (SMALL | {"checkpoint": "frist"}, "MODEL_NOT_FOUND", "Did you mean 'first'?"),
        (SMALL | {"prompt": "<lora:detial:1>"}, "MODEL_NOT_FOUND", "Did you mean 'detail'?"),
        (None, "INVALID_INPUT", "None, not an object"),
        (FROM_PICTURE | {"init_images": ["aGVsbG8="]}, "INVALID_INPUT", "init_images.0: it is"),
        (
            FROM_PICTURE | {"mask": WIDE},
            "INVALID_INPUT",
            "mask has 96 x 64 pixels, but init_",
        ),
        (
            FROM_PICTURE | {"sampler_name": "UniPC"},
            "INVALID_INPUT",
            "sampler 'UniPC' needs at",
        ),
    ],
)
def test_a_mistake_costs_no_engine_call(worker, job_input, code, message):
    before = len(worker.requests("img"))
    assert message in failed(worker.run(job_input), code)
    assert len(worker.requests("img")) == before


def test_of_models_that_are_added_while_the_worker_runs_a_damaged_one_is_refused(worker):
    folder = worker.store / "Stable-diffusion"
    write_safetensors(folder / "late.safetensors", b"latelate")
    (folder / "damaged.safetensors").write_bytes(b"<html>")
    assert completed(worker.run(SMALL | {"checkpoint": "late"}))["models"][0]["name"] == "late"
    failed(worker.run(SMALL | {"checkpoint": "damaged"}), "MODEL_FILE_INVALID")
    assert not (worker.webui / "models/Stable-diffusion/damaged.safetensors").exists()


# Wrong answers of the engine ------------------------------------------------------------------

WITH_MODELS = SMALL | {"checkpoint": "second", "loras": ["detail"]}


@pytest.mark.parametrize("fault", ["wrong_checkpoint", "missing_lora", "no_images"])
def test_another_prompt_is_sent_before_a_job_with_a_wrong_answer_is_repeated_once(worker, fault):
    """A1111 keeps the last prompt's conditioning: repeated at once, half of a LoRA would miss."""
    worker.fault(fault)
    before = len(worker.requests())
    output = completed(worker.run(WITH_MODELS))
    assert [model["name"] for model in output["models"]] == ["second", "detail"]
    prompts = [request["body"]["prompt"] for request in worker.requests()[before:]]
    assert prompts == ["a fox <lora:detail:1>", "", "a fox <lora:detail:1>"]


@pytest.mark.parametrize(
    ("fault", "code"),
    [("wrong_checkpoint", "WRONG_CHECKPOINT"), ("missing_lora", "LORA_NOT_APPLIED")],
)
def test_a_wrong_picture_is_never_delivered(worker, fault, code):
    worker.fault(fault, times=FOREVER)
    job = worker.run(WITH_MODELS)
    failed(job, code)
    assert "images" not in job["output"]
    assert job["output"]["attempts"] == 2


def test_the_engines_own_error_is_reported_and_the_job_not_repeated(worker):
    worker.fault("internal_error", error="ValueError", errors="something odd")
    before = len(worker.requests())
    assert "ValueError something odd" in failed(worker.run(SMALL), "ENGINE_ERROR")
    assert len(worker.requests()) == before + 1


# Recovery ---------------------------------------------------------------------------------------


def test_a_job_is_repeated_after_its_route_has_come_back(worker):
    """Repeated after 5 s, and here after the shorter wait of the tests."""
    worker.fault("no_route")
    before = len(worker.requests())
    completed(worker.run(SMALL))
    assert len(worker.requests()) >= before + 2
    assert EngineTiming().route_wait == 5.0


def test_a_worker_whose_route_stays_missing_gives_up_after_three_attempts(own):
    with own() as worker:
        worker.fault("no_route", times=FOREVER)
        job = worker.run(SMALL)
        assert "lists 2 checkpoints, but not this route" in failed(job, "ENGINE_ROUTE_MISSING")
        assert job["output"]["attempts"] == 3


def test_out_of_memory_names_a_smaller_size_and_keeps_the_worker(worker):
    worker.fault("out_of_memory")
    job = worker.run(SMALL | {"width": 1024, "height": 1024})
    assert "Try 704x704" in failed(job, "OUT_OF_MEMORY")
    assert not job["output"].get("refresh_worker")


@pytest.mark.parametrize(
    ("fault", "job", "failures"),
    [
        ({"fault": "poisoned"}, {}, []),
        ({"fault": "cuda_fault"}, {}, []),
        ({"fault": "device_mismatch"}, {}, []),
        ({"fault": "out_of_memory", "times": 2}, {}, ["OUT_OF_MEMORY"] * 2),
        # errors during a switch of checkpoints
        ({"fault": "out_of_memory"}, {"checkpoint": "second"}, ["OUT_OF_MEMORY"]),
        ({"fault": "internal_error"}, {"checkpoint": "second"}, ["ENGINE_ERROR"]),
    ],
)
def test_an_engine_that_is_broken_is_restarted(worker, fault, job, failures):
    """Before the job is repeated, or else before the next job."""
    pid = worker.engine_pid()
    worker.fault(**fault)
    for code in failures:
        failed(worker.run(SMALL | job), code)
    completed(worker.run(SMALL))
    assert worker.engine_pid() != pid


def test_a_damaged_cache_is_removed_while_the_engine_is_down(worker):
    stale = worker.webui / "cache" / "stale"
    stale.touch()
    worker.fault("sqlite")
    completed(worker.run(SMALL))
    assert not stale.exists()


def test_an_engine_killed_in_the_middle_of_a_job_is_replaced_and_the_job_repeated(worker):
    completed(worker.kill_engine_in_a_job())


def test_an_engine_that_dies_while_idle_is_ready_again_before_the_next_job(worker):
    ready = worker.run_dir / "engine.ready"
    for _ in range(2):  # the second time shows that start.sh knew the first one as ready
        killed = worker.engine_pid()
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda pid=killed: int(ready.read_text()) != pid, "the new engine's picture")
    completed(worker.run(SMALL))


def test_a_job_that_still_runs_after_a_lost_connection_is_stopped_before_it_is_repeated(worker):
    before = len(worker.requests(""))
    worker.fault("slow_steps", seconds=1)
    worker.fault("drop")
    completed(worker.run(SMALL | {"steps": 100}))
    sent = [(r["method"], r["path"].rsplit("/", 1)[1]) for r in worker.requests("")[before:]]
    first = sent.index(("POST", "txt2img"))
    assert ("POST", "interrupt") in sent[first : sent.index(("POST", "txt2img"), first + 1)]


# Other tasks ------------------------------------------------------------------------------------


def test_pictures_are_enlarged_and_described_by_the_engine(worker):
    drawn = completed(worker.run(SMALL))["images"][0]
    job = {"task": "upscale", "images": [drawn, drawn], "upscaler_1": "Lanczos"}
    enlarged = completed(worker.run(job | {"upscaling_resize": 1.5}))
    assert [png_size(image) for image in enlarged["images"]] == [(96, 96)] * 2
    flat = [base64.b64encode(png(*size, b"\0\0\0", "")).decode() for size in ((16, 8), (8, 16))]
    both = completed(worker.run(job | {"images": flat}))["images"]
    assert [png_size(image) for image in both] == [(32, 16), (16, 32)]  # A1111 may mix them up
    infotext = png_text(base64.b64decode(enlarged["images"][0]))
    assert infotext == png_text(base64.b64decode(drawn))
    worker.fault("out_of_memory")
    assert "Ask for a smaller size" in failed(worker.run(job), "OUT_OF_MEMORY")
    lost = {"task": "interrogate", "image": drawn}
    assert "BLIP" in failed(worker.run(lost), "ENGINE_MODEL_MISSING")
    read = completed(worker.run({"task": "png_info", "image": drawn}))
    assert (read["info"], read["parameters"]["Seed"]) == (infotext, "1")


def test_lists_name_what_the_engine_and_the_store_have(worker):
    models = completed(worker.run({"task": "models"}))["models"]
    assert {model["name"]: model["in_engine"] for model in models}["second.safetensors"]
    assert completed(worker.run({"task": "samplers", "search": "euler"}))["total"] == 2


# Jobs that are stopped --------------------------------------------------------------------------


def test_a_deadline_stops_the_engine_and_the_next_job_does_not_wait(worker):
    worker.fault("slow_steps", seconds=1)
    job = worker.run(SMALL | {"steps": 100, "timeout": 2})
    assert "no result within 2 s" in failed(job, "JOB_TIMEOUT")
    assert worker.engine_is_idle()


def test_an_engine_that_hangs_past_the_deadline_is_restarted(worker):
    pid = worker.engine_pid()
    worker.fault("hang", seconds=600)
    failed(worker.run(SMALL | {"timeout": 2}), "JOB_TIMEOUT")
    wait_until(lambda: "asks for a restart of the engine: hung" in worker.log(), "the request")
    os.kill(pid, signal.SIGKILL)  # instead of the 5 s that start.sh gives it after SIGTERM
    completed(worker.run(SMALL))
    assert worker.engine_pid() != pid


def test_a_cancelled_job_stops_the_engine_and_posts_nothing(worker):
    worker.fault("slow_steps", seconds=1)
    job = worker.plane.submit(SMALL | {"steps": 100})
    worker.wait_until_generating()
    worker.plane.cancel(job)
    wait_until(worker.engine_is_idle, "the end of the cancelled job")
    completed(worker.run(SMALL))
    assert [event["id"] for event in worker.plane.events("done")].count(job) == 0


# The start ---------------------------------------------------------------------------------------


def test_a_worker_without_models_and_with_a_damaged_cache_is_repaired_and_waits(own, tmp_path):
    """Its engine's LoRA cache is damaged, which hides the LoRAs."""
    damaged = tmp_path / "webui/cache/hashes-addnet/cache.db"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"garbage" * 100)
    with own(checkpoints=()) as poor:
        failed(poor.run(SMALL), "NO_CHECKPOINT")
        write_safetensors(poor.store / "Stable-diffusion/late.safetensors")
        completed(poor.run(SMALL | {"checkpoint": "late", "loras": ["detail"]}))
        assert "asks for a restart of the engine: damaged-cache" in poor.log()


def test_an_engine_that_cannot_boot_ends_the_worker_with_the_cause(own):
    with own(faults=({"fault": "boot_crash", "status": 137},), wait=False) as worker:
        assert worker.end() == 69
        assert "not enough memory for the checkpoint" in worker.log()
        assert worker.log().count("engine a1111 started") == 1


# The end -----------------------------------------------------------------------------------------


def test_when_no_restart_is_left_the_job_fails_with_the_cause_and_the_worker_ends(own):
    with own(MAX_ENGINE_RESTARTS="0") as worker:
        assert "not enough memory" in failed(worker.kill_engine_in_a_job(), "ENGINE_NOT_READY")
        assert worker.plane.events("done")[-1]["body"]["stopPod"]
        assert worker.end() == 70


def test_a_job_may_finish_after_sigterm(own):
    with own() as worker:
        worker.fault("slow_steps", seconds=0.3)
        job = worker.plane.submit(SMALL | {"steps": 10})
        worker.wait_until_generating()
        assert_all_ends(worker)
        completed(worker.plane.wait(job, 1))
