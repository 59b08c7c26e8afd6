"""Whole jobs: RunPod's control plane (fake), the real SDK, handler and start.sh, a fake A1111."""

import json
import os
import signal
import time

import pytest
from fakes.a1111.process import running_a1111, wait_until, write_safetensors
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import png_size, running_worker

SMALL = {"prompt": "a fox", "steps": 2, "width": 64, "height": 64, "seed": 1}
FOREVER = -1


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One worker for all stories after which it must still work."""
    with (
        RunPodPlane(hold=1.0) as plane,
        running_worker(
            tmp_path_factory.mktemp("worker"), plane, MAX_ENGINE_RESTARTS="50"
        ) as worker,
    ):
        yield worker


@pytest.fixture
def worker(shared):
    """The shared worker without faults; at the end it must still make a picture."""
    shared.no_faults()
    yield shared
    shared.no_faults()
    assert shared.run(SMALL)["status"] == "COMPLETED", shared.log()


@pytest.fixture
def own(tmp_path):
    """Start a worker of the test's own."""
    with RunPodPlane(hold=1.0) as plane:
        yield lambda **how: running_worker(tmp_path, plane, **how)


def completed(job):
    assert job["status"] == "COMPLETED", job
    return job["output"]


def failed(job, code):
    assert job["status"] == "FAILED", job
    assert job["error"].startswith(f"{code}: "), job["error"]
    assert job["output"]["code"] == code
    assert job["output"]["message"] == "Failed to process inference request"
    return job["error"]


# A good job ---------------------------------------------------------------------------------


def test_a_job_returns_a1111s_answer_and_an_account_of_it(worker):
    output = completed(worker.run(SMALL | {"batch_size": 2, "sampler_name": "DPM++ 2M Karras"}))

    assert [png_size(image) for image in output["images"]] == [(64, 64)] * 2
    assert output["parameters"]["sampler_name"] == "DPM++ 2M"
    assert json.loads(output["info"])["all_seeds"] == [1, 2]
    assert output["cache_info"]["checkpoints_cached"] == 2
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


def test_a_model_that_came_later_is_found(worker):
    write_safetensors(worker.store / "Stable-diffusion/late.safetensors", b"latelate")

    assert completed(worker.run(SMALL | {"checkpoint": "late"}))["models"][0]["name"] == "late"


def test_one_jobs_clip_skip_does_not_reach_the_next(worker):
    skipped = completed(worker.run(SMALL | {"clip_skip": 2}))
    plain = completed(worker.run(SMALL))

    assert "Clip skip: 2" in json.loads(skipped["info"])["infotexts"][0]
    assert "Clip skip" not in json.loads(plain["info"])["infotexts"][0]


# The caller's mistakes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job_input", "code", "said"),
    [
        (SMALL | {"sampler_name": "Eulr a"}, "INVALID_INPUT", "Did you mean 'Euler a'"),
        (SMALL | {"num_inference_steps": 9}, "INVALID_INPUT", "did you mean `steps`?"),
        (SMALL | {"steps": 0}, "INVALID_INPUT", "steps = 0"),
        (SMALL | {"checkpoint": "frist"}, "MODEL_NOT_FOUND", "Did you mean 'first'?"),
        (SMALL | {"prompt": "<lora:detial:1>"}, "MODEL_NOT_FOUND", "Did you mean 'detail'?"),
        (None, "INVALID_INPUT", "None, not an object"),
    ],
)
def test_a_mistake_costs_no_engine_call(worker, job_input, code, said):
    before = len(worker.requests())

    assert said in failed(worker.run(job_input), code)
    assert len(worker.requests()) == before


def test_a_damaged_model_file_never_reaches_the_engine(worker):
    damaged = worker.store / "Stable-diffusion/damaged.safetensors"
    damaged.write_bytes(b"<html>")

    failed(worker.run(SMALL | {"checkpoint": "damaged"}), "MODEL_FILE_INVALID")
    assert not (worker.webui / "models/Stable-diffusion/damaged.safetensors").exists()


# The engine's faults --------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["wrong_checkpoint", "missing_lora", "no_images"])
def test_a_silent_wrong_answer_is_repeated_once(worker, fault):
    worker.fault(fault)
    job = SMALL | {"checkpoint": "second", "loras": ["detail"]}
    output = completed(worker.run(job))

    assert [model["name"] for model in output["models"]] == ["second", "detail"]


def test_another_prompt_comes_before_the_repetition_of_a_missing_lora(worker):
    """A1111 keeps the last prompt's conditioning: repeated at once, half of the LoRA would miss."""
    worker.fault("missing_lora")
    before = len(worker.requests())
    completed(worker.run(SMALL | {"loras": ["detail"]}))

    prompts = [request["body"]["prompt"] for request in worker.requests()[before:]]
    assert prompts == ["a fox <lora:detail:1>", "", "a fox <lora:detail:1>"]


@pytest.mark.parametrize(
    ("fault", "code"),
    [("wrong_checkpoint", "WRONG_CHECKPOINT"), ("missing_lora", "LORA_NOT_APPLIED")],
)
def test_a_wrong_picture_is_never_delivered(worker, fault, code):
    worker.fault(fault, times=FOREVER)
    job = worker.run(SMALL | {"checkpoint": "second", "loras": ["detail"]})

    failed(job, code)
    assert "images" not in job["output"]
    assert job["output"]["attempts"] == 2


def test_a_route_that_comes_back_costs_a_wait_of_five_seconds(worker):
    worker.fault("no_route")
    started = time.monotonic()

    completed(worker.run(SMALL))
    assert time.monotonic() - started >= 5


def test_out_of_memory_names_a_smaller_size_and_keeps_the_worker(worker):
    worker.fault("out_of_memory")
    job = worker.run(SMALL | {"width": 1024, "height": 1024})

    assert "Try 704x704" in failed(job, "OUT_OF_MEMORY")
    assert not job["output"].get("refresh_worker")


def test_a_second_out_of_memory_in_a_row_restarts_the_engine(worker):
    pid = worker.engine_pid()
    worker.fault("out_of_memory", times=2)
    for _ in range(2):
        failed(worker.run(SMALL), "OUT_OF_MEMORY")

    completed(worker.run(SMALL))
    assert worker.engine_pid() != pid


def test_an_engine_whose_switch_failed_is_restarted_before_the_next_job(worker):
    pid = worker.engine_pid()
    worker.fault("internal_error", error="RuntimeError", errors="size mismatch")
    failed(worker.run(SMALL | {"checkpoint": "second"}), "ENGINE_ERROR")

    completed(worker.run(SMALL))
    assert worker.engine_pid() != pid


def test_the_engines_own_error_is_told_and_not_repeated(worker):
    worker.fault("internal_error", error="ValueError", errors="something odd")
    before = len(worker.requests())

    assert "ValueError something odd" in failed(worker.run(SMALL), "ENGINE_ERROR")
    assert len(worker.requests()) == before + 1


@pytest.mark.parametrize("fault", ["poisoned", "cuda_fault", "device_mismatch"])
def test_a_poisoned_engine_is_restarted_and_the_job_repeated(worker, fault):
    pid = worker.engine_pid()
    worker.fault(fault)

    completed(worker.run(SMALL))
    assert worker.engine_pid() != pid


def test_a_damaged_cache_is_removed_while_the_engine_is_down(worker):
    stale = worker.webui / "cache" / "stale"
    stale.touch()
    worker.fault("sqlite")

    completed(worker.run(SMALL))
    assert not stale.exists()


# Stories that restart the engine often: each has a worker of its own ---------------------------


def test_an_engine_killed_in_the_middle_of_a_job_is_replaced_and_the_job_repeated(own):
    with own() as worker:
        worker.fault("slow_steps", seconds=0.5)
        job = worker.plane.submit(SMALL | {"steps": 20})
        worker.wait_until_generating()
        os.kill(worker.engine_pid(), signal.SIGKILL)

        completed(worker.plane.wait(job, 30))
        completed(worker.run(SMALL))


def test_an_engine_that_dies_while_idle_is_ready_again_before_the_next_job(own):
    with own() as worker:
        for _ in range(2):  # the second time shows that start.sh knew the first one as ready
            worker.kill_engine_and_wait_for_the_next()

        completed(worker.run(SMALL))


def test_a_job_that_goes_on_behind_a_lost_connection_is_not_sent_twice_at_once(own):
    with own() as worker:
        worker.fault("slow_steps", seconds=0.3, times=FOREVER)
        worker.fault("drop", running=True)
        completed(worker.run(SMALL | {"steps": 10}))

        sent = [(r["method"], r["path"].rsplit("/", 1)[1]) for r in worker.requests("")]
        first = sent.index(("POST", "txt2img"), sent.index(("GET", "prompt-styles")) + 2)
        assert ("POST", "interrupt") in sent[first : sent.index(("POST", "txt2img"), first + 1)]


def test_a_deadline_stops_the_engine_and_the_next_job_does_not_wait(own):
    with own() as worker:
        worker.fault("slow_steps", seconds=0.3)
        job = worker.run(SMALL | {"steps": 100, "timeout": 2})

        assert "no picture within 2 s" in failed(job, "JOB_TIMEOUT")
        assert worker.engine_is_idle()
        completed(worker.run(SMALL))


def test_an_engine_that_hangs_past_the_deadline_is_restarted(own):
    with own() as worker:
        pid = worker.engine_pid()
        worker.fault("hang", seconds=60)

        failed(worker.run(SMALL | {"timeout": 2}), "JOB_TIMEOUT")
        completed(worker.run(SMALL))
        assert worker.engine_pid() != pid


def test_a_cancelled_job_stops_the_engine_and_posts_nothing(own):
    with own() as worker:
        worker.fault("slow_steps", seconds=0.3)
        job = worker.plane.submit(SMALL | {"steps": 100})
        worker.wait_until_generating()
        worker.plane.cancel(job)

        wait_until(worker.engine_is_idle, "the end of the cancelled job")
        completed(worker.run(SMALL))
        assert [event["id"] for event in worker.plane.events("done")].count(job) == 0


def test_a_worker_without_its_route_gives_up_after_three_attempts(own):
    with own() as worker:
        worker.fault("no_route", times=FOREVER)
        job = worker.run(SMALL)

        assert "lists 2 checkpoints, but not this route" in failed(job, "ENGINE_ROUTE_MISSING")
        assert job["output"]["attempts"] == 3


def test_when_the_restarts_are_used_up_the_job_is_told_and_the_worker_ends(own):
    with own(MAX_ENGINE_RESTARTS="0") as worker:
        worker.fault("slow_steps", seconds=0.5)
        job = worker.plane.submit(SMALL | {"steps": 20})
        worker.wait_until_generating()
        os.kill(worker.engine_pid(), signal.SIGKILL)

        told = failed(worker.plane.wait(job, 30), "ENGINE_NOT_READY")
        assert "not enough memory" in told
        assert worker.plane.events("done")[-1]["body"]["stopPod"]
        assert worker.process.wait(20) == 70


def test_without_any_model_the_worker_waits_for_a_job_that_names_one(own):
    with own(checkpoints=()) as worker:
        failed(worker.run(SMALL), "NO_CHECKPOINT")
        write_safetensors(worker.store / "Stable-diffusion/late.safetensors")

        completed(worker.run(SMALL | {"checkpoint": "late"}))


def test_a_cache_that_hides_the_loras_is_repaired_at_boot(own, tmp_path):
    damaged = tmp_path / "webui/cache/hashes-addnet/cache.db"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"garbage" * 100)
    with own(wait=False) as worker:
        worker.plane.wait_for("take", 40)

        completed(worker.run(SMALL | {"loras": ["detail"]}))


def test_a_foreign_engine_without_config_json_keeps_no_jobs_settings(own, tmp_path):
    write_safetensors(tmp_path / "foreign/models/Stable-diffusion/first.safetensors")
    with running_a1111(tmp_path / "foreign") as engine:
        assert not (tmp_path / "foreign/config.json").exists()
        with own(ENGINE="external", WEBUI_URL=engine.url, checkpoints=(), loras=()) as worker:
            skipped = completed(worker.run(SMALL | {"clip_skip": 2}))
            plain = completed(worker.run(SMALL))

    assert "Clip skip: 2" in json.loads(skipped["info"])["infotexts"][0]
    assert "Clip skip" not in json.loads(plain["info"])["infotexts"][0]


# The end ---------------------------------------------------------------------------------------


def test_sigterm_during_a_job_lets_it_finish(own):
    with own() as worker:
        engine = worker.engine_pid()
        worker.fault("slow_steps", seconds=0.3)
        job = worker.plane.submit(SMALL | {"steps": 10})
        worker.wait_until_generating()

        assert worker.stop(timeout=20) == 0
        completed(worker.plane.wait(job, 1))
        with pytest.raises(ProcessLookupError):
            os.kill(engine, 0)


def test_sigterm_while_idle_ends_everything(own):
    with own() as worker:
        engine = worker.engine_pid()

        assert worker.stop(timeout=20) == 0
        with pytest.raises(ProcessLookupError):
            os.kill(engine, 0)


def test_an_engine_that_cannot_boot_ends_the_worker_with_the_cause(own):
    with own(faults=({"fault": "boot_crash", "status": 137},), wait=False) as worker:
        assert worker.process.wait(20) == 69
        assert "not enough memory" in worker.log()
        assert worker.log().count("engine a1111 started") == 1
