"""Stories about jobs side by side, and their reports: queue, progress, cancel, health.

The real SDK, start.sh, handler and model manager; RunPod and the engine are fakes.
"""

import base64
import io
import random
import re
import time

import pytest
from fakes.a1111.picture import png
from fakes.a1111.process import wait_until
from fakes.hosts.model_hosts import ModelHosts
from fakes.model_files import safetensors
from fakes.runpod_plane import RunPodPlane
from fakes.runpod_plane.plane import POD
from fakes.worker_process import FOREVER, SMALL, completed, failed, running_worker
from PIL import Image

from worker.config.prices import DOLLARS_PER_SECOND

LONG = SMALL | {"steps": 150}


@pytest.fixture(scope="module")
def hosts():
    with ModelHosts() as hosts:
        yield hosts


@pytest.fixture(scope="module")
def shared(tmp_path_factory, hosts):
    """A worker that takes two jobs at once."""
    folder, two = tmp_path_factory.mktemp("concurrent"), {"JOB_CONCURRENCY": "2"}
    with RunPodPlane(hold=1.0) as plane, running_worker(folder, plane, hosts=hosts, **two) as it:
        yield it


@pytest.fixture
def worker(shared):
    """Its engine needs 0.1 s for a step; after each story it must still make a picture."""
    shared.fault("slow_steps", seconds=0.1, times=FOREVER)
    yield shared
    shared.no_faults()
    assert shared.run(SMALL)["status"] == "COMPLETED", shared.log()


def events_of(worker, job, kind):
    return [event for event in worker.plane.events(kind) if event["id"] == job]


def start_long(worker):
    job = worker.plane.submit(LONG)
    worker.wait_until_generating()
    return job


def cancel(worker, job):
    worker.plane.cancel(job)
    wait_until(worker.engine_is_idle, "the end of the cancelled job")


# Side by side -------------------------------------------------------------------------------


def test_the_next_jobs_model_is_fetched_while_this_job_generates(worker, hosts):
    model = hosts.add_model(version_id=71, data=safetensors(), name="next.safetensors", kind="LORA")
    first = start_long(worker)
    second = worker.plane.submit(SMALL | {"loras": [model.download_url]})
    wait_until(lambda: "fetched 71" in worker.log(), "the second job's model")
    assert worker.plane.status(first)["status"] == "IN_PROGRESS"
    cancel(worker, first)
    output = completed(worker.plane.wait(second, 60))
    assert output["models"][1]["name"] == "next"
    assert output["timings"]["queue"] > 0


def test_lists_and_png_info_do_not_wait_for_the_picture_that_is_drawn(worker):
    image = base64.b64encode(png(8, 8, b"\0\0\0", "a fox")).decode()
    first = start_long(worker)
    for job in ({"task": "models"}, {"task": "schedulers"}, {"task": "png_info", "image": image}):
        completed(worker.run(job))
    assert worker.plane.status(first)["status"] == "IN_PROGRESS"
    cancel(worker, first)


def test_a_waiting_job_that_is_cancelled_never_reaches_the_engine(worker):
    before = len(worker.requests())
    first = start_long(worker)
    second = worker.plane.submit(SMALL)
    wait_until(lambda: second in worker.log(), "the second job")
    worker.plane.cancel(second)
    wait_until(lambda: re.search(rf"\[{second}\b.*cancelled", worker.log()), "its end")
    cancel(worker, first)
    completed(worker.run(SMALL))
    assert len(worker.requests()) == before + 2
    assert events_of(worker, second, "done") == []


def test_the_error_of_a_job_that_waited_past_its_deadline_says_so(worker):
    first = start_long(worker)
    job = worker.run(SMALL | {"timeout": 1})
    message = failed(job, "JOB_TIMEOUT")
    assert "the engine was busy with other jobs; no result within 1" in message
    assert job["output"]["timings"]["queue"] > 0
    cancel(worker, first)


# Reports of a job -----------------------------------------------------------------------------


def test_progress_has_phase_step_and_time_left_in_order_and_never_after_the_result(worker):
    job = worker.plane.submit(SMALL | {"steps": 40})
    completed(worker.plane.wait(job, 60))
    assert re.search(rf"\[{job} generate\] step \d+ of 40\n", worker.log())
    reports = [event["output"] for event in events_of(worker, job, "progress")]
    generating = [report for report in reports if report["phase"] == "generate"]
    steps = [report["step"] for report in generating]
    assert reports[0]["phase"] in {"validate", "resolve", "queue", "load"}
    assert steps
    assert steps == sorted(steps)
    assert {report["steps"] for report in generating} == {40}
    assert all(0 < report["percent"] <= 100 for report in generating)
    assert all(report["eta_seconds"] >= 0 for report in generating)
    # A cancelled job may report once more, until the worker hears of it.
    cancelled = {event["id"] for event in worker.plane.events("cancelled")}
    late = [event["id"] for event in worker.plane.events("progress") if event["late"]]
    assert set(late) <= cancelled


def test_a_job_that_asks_for_previews_gets_small_ones_and_the_next_job_none(worker):
    previews = []
    for wanted in (True, False):
        job = worker.plane.submit(SMALL | {"steps": 25, "output": {"preview": wanted}})
        completed(worker.plane.wait(job, 60))
        reports = events_of(worker, job, "progress")
        previews.append([report["output"].get("preview") for report in reports])
    newest = [preview for preview in previews[0] if preview][-1]
    shown = base64.b64decode(newest, validate=True)
    with Image.open(io.BytesIO(shown)) as image:
        assert (image.format, image.size) == ("JPEG", (256, 256))
    assert set(previews[1]) == {None}


def test_health_is_answered_while_a_job_runs(worker):
    failed(worker.run(SMALL | {"steps": 0}), "INVALID_INPUT")
    job = start_long(worker)
    health = completed(worker.run({"task": "health"}))
    running = {one["id"]: one for one in health["worker"]["jobs"]["running"]}
    assert list(running) == [job]
    assert running[job]["phase"] in {"load", "generate"}
    assert health["worker"]["jobs"]["failures"]["INVALID_INPUT"] >= 1
    facts = {"state": "running", "ready": True, "restarts": 0}
    facts |= {"device": "cuda", "gpu": "NVIDIA GeForce RTX 4090", "attention": "xformers"}
    facts |= {"driver": "550.54.15"}
    assert health["engine"].items() >= facts.items()
    assert health["engine"]["memory"]["ram"]["used"] > 0
    assert health["models"]["stored"]["checkpoints"]["count"] == 2
    assert health["worker"]["place"].items() >= {"pod": POD, "endpoint": "ep0"}.items()
    assert health["worker"]["usd_per_second"] == DOLLARS_PER_SECOND["ADA_24"]
    cancel(worker, job)


def test_a_job_says_what_its_pictures_cost_and_a_batch_what_all_of_them_did(worker):
    part = SMALL | {"steps": 2}
    one = completed(worker.run(part | {"batch_size": 2}))["timings"]
    price = DOLLARS_PER_SECOND["ADA_24"]
    assert one["gpu_seconds"] == one["generate"]
    assert one["usd_per_picture"] == pytest.approx(
        price * (one["total"] - one["queue"]) / 2, abs=1e-7
    )
    wrong = {"task": "png_info", "image": "no picture"}
    batch = completed(worker.run({"task": "batch", "inputs": [part, part, wrong]}))
    drawn = [result["timings"] for result in batch["results"][:2]]
    whole = batch["timings"]
    parts = sum(one["gpu_seconds"] for one in drawn)
    assert whole["gpu_seconds"] == pytest.approx(parts, abs=0.002)
    cost = price * (whole["total"] - whole["queue"]) / 2
    assert whole["usd_per_picture"] == pytest.approx(cost, abs=1e-7)
    listed = completed(worker.run({"task": "models"}))["timings"]
    assert listed.keys() == {"total"}
    late = worker.run(SMALL | {"steps": 150, "timeout": 1.5})
    failed(late, "JOB_TIMEOUT")
    assert late["output"]["timings"]["gpu_seconds"] > 0


# Cancel --------------------------------------------------------------------------------------


def test_a_job_cancelled_at_any_moment_leaves_the_engine_idle_and_nothing_behind(worker):
    moments = random.Random(5)
    for _ in range(6):
        job = worker.plane.submit(LONG)
        time.sleep(moments.uniform(0, 1.0))
        worker.plane.cancel(job)
        output = completed(worker.run(SMALL | {"seed": 7}))
        assert output["parameters"]["seed"] == 7
        assert events_of(worker, job, "done") == []
        assert worker.engine_is_idle()
