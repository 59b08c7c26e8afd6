"""Whole jobs that stream: every picture arrives once, in order, before the result."""

import base64
import os
import signal
from collections import defaultdict

import pytest
from fakes.a1111.picture import png
from fakes.a1111.process import wait_until
from fakes.hosts.bucket import s3_server
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import FOREVER, SMALL, completed, failed, running_worker

STREAM = {"output": {"stream": True}}
FOUR = SMALL | {"n_iter": 4, "subseed": 5}
SLOW = {"seconds": 0.3, "times": FOREVER}


@pytest.fixture(scope="module")
def bucket():
    with s3_server() as server:
        yield server


@pytest.fixture(scope="module")
def shared(tmp_path_factory, bucket):
    folder, environ = tmp_path_factory.mktemp("stream"), bucket.environ()
    with (
        RunPodPlane(hold=1.0) as plane,
        running_worker(folder, plane, JOB_CONCURRENCY="2", **environ) as worker,
    ):
        yield worker


@pytest.fixture
def worker(shared):
    yield shared
    shared.no_faults()


def chunks(worker, job, kind="picture"):
    events = (event for event in worker.plane.events("chunk") if event["id"] == job)
    return [event["output"] for event in events if event["output"]["type"] == kind]


def pictures(worker, job):
    """The streamed pictures by their (input and) number; each piece must have come once."""
    found = defaultdict(dict)
    for chunk in worker.plane.events("chunk"):
        piece = chunk["output"]
        if chunk["id"] == job and piece["type"] == "picture":
            place = (piece["input"], piece["number"]) if "input" in piece else piece["number"]
            assert piece.get("part") not in found[place]
            found[place][piece.get("part")] = piece.get("data") or piece["url"]
            assert not chunk["late"]
    return {place: "".join(parts.values()) for place, parts in found.items()}


def slow_after(worker, pictures, **slow):
    """Let the engine draw some pictures, and then be so slow that a test comes in between."""
    worker.fault("slow_steps", seconds=0.1, times=pictures)
    worker.fault("slow_steps", **slow)


def done(worker, job):
    (event,) = (event for event in worker.plane.events("done") if event["id"] == job)
    return event


def test_each_picture_goes_out_when_it_is_drawn_and_all_are_those_of_the_job_without_stream(worker):
    whole = worker.run(FOUR | {"output": {"preview": True}})
    assert not done(worker, whole["id"])["is_stream"]
    assert not chunks(worker, whole["id"])
    before = len(worker.requests())
    worker.fault("slow_steps", **SLOW)
    job = worker.plane.submit(FOUR | {"output": {"stream": True, "preview": True}})
    wait_until(lambda: chunks(worker, job), "the first picture")
    assert worker.plane.status(job)["status"] == "IN_PROGRESS"
    output = completed(worker.plane.wait(job, 60))
    assert len(worker.requests()) == before + 4
    assert output["images"] == completed(whole)["images"]
    assert list(pictures(worker, job).values()) == output["images"]
    assert [chunk["seed"] for chunk in chunks(worker, job)] == [1, 2, 3, 4]
    assert {chunk["pictures"] for chunk in chunks(worker, job)} == {4}
    assert done(worker, job)["is_stream"]
    reports = chunks(worker, job, "progress")
    assert [one for one in reports if one.get("preview")]
    percents = [one["percent"] for one in reports if "percent" in one]
    assert percents == sorted(percents)
    assert output["parameters"] == whole["output"]["parameters"]
    assert output["warnings"] == []


@pytest.mark.parametrize(
    "fault", [{"status": 500, "times": 2}, {"status": 429}, {"drop": True, "times": 2}]
)
def test_a_chunk_is_posted_again_after_a_temporary_failure(worker, fault):
    name, seen = "".join(map(str, fault.values())), len(worker.plane.events("fault"))
    worker.plane.fault("job-stream", job=name, **fault)
    job = worker.plane.submit(FOUR | STREAM, id=name)
    output = completed(worker.plane.wait(job, 60))
    assert len(worker.plane.events("fault")) > seen
    assert (list(pictures(worker, job).values()), output["warnings"]) == (output["images"], [])


def test_a_refused_picture_is_named_in_the_answer_and_the_others_arrive(worker):
    slow_after(worker, 1, seconds=2, times=1)
    job = worker.plane.submit(FOUR | STREAM)
    wait_until(lambda: len(chunks(worker, job)) == 1, "the first picture")
    worker.plane.fault("job-stream", status=400, times=FOREVER, job=job)
    wait_until(lambda: "a picture's chunk was lost: HTTP 400" in worker.log(), "the refusal")
    worker.plane._faults.clear()
    output = completed(worker.plane.wait(job, 60))
    lost = sorted({1, 2, 3, 4} - set(pictures(worker, job)))
    assert lost
    named = f"output.stream: RunPod has not accepted all of picture {', '.join(map(str, lost))}."
    assert output["warnings"] == [named]
    assert len(output["images"]) == 4


def test_an_engine_that_is_killed_between_two_pictures_draws_no_picture_twice(worker):
    worker.fault("slow_steps", **SLOW)
    job = worker.plane.submit(FOUR | STREAM)
    wait_until(lambda: len(chunks(worker, job)) == 2, "two pictures")
    os.kill(worker.engine_pid(), signal.SIGKILL)
    output = completed(worker.plane.wait(job, 60))
    assert list(pictures(worker, job).values()) == output["images"]
    assert output["images"] == completed(worker.run(FOUR))["images"]


def test_pictures_before_the_deadline_are_on_the_stream_of_the_failed_job(worker):
    slow_after(worker, 2, seconds=60, times=FOREVER)
    job = worker.plane.submit(FOUR | STREAM | {"timeout": 10})
    failed(worker.plane.wait(job, 60), "JOB_TIMEOUT")
    assert set(pictures(worker, job)) >= {1, 2}
    assert done(worker, job)["is_stream"]


def test_a_cancelled_job_streams_no_more(worker):
    slow_after(worker, 1, seconds=60, times=FOREVER)
    job = worker.plane.submit(FOUR | STREAM)
    wait_until(lambda: chunks(worker, job), "the first picture")
    worker.plane.cancel(job)
    wait_until(worker.engine_is_idle, "the end of the job")
    worker.no_faults()
    completed(worker.run(SMALL))
    assert len(pictures(worker, job)) < 4
    assert [event for event in worker.plane.events("done") if event["id"] == job] == []


def test_with_a_bucket_each_url_goes_out_at_once_and_is_the_one_of_the_result(worker):
    job = worker.run(FOUR | {"output": {"stream": True, "delivery": "s3", "format": "webp"}})
    output = completed(job)
    assert list(pictures(worker, job["id"]).values()) == output["images"]
    assert output["delivery"]["keys"] == [f"{job['id']}/{number}.webp" for number in range(4)]
    assert output["warnings"] == []


def test_inputs_of_a_batch_and_enlarged_pictures_are_streamed_too(worker):
    picture = base64.b64encode(png(8, 8, b"\0\0\0", "a fox")).decode()
    inputs = [
        SMALL | STREAM | {"n_iter": 2},
        SMALL,
        {"task": "upscale", "image": picture, "upscaler_1": "Lanczos"} | STREAM,
    ]
    job = worker.run({"task": "batch", "inputs": inputs})
    results = completed(job)["results"]
    streamed = pictures(worker, job["id"])
    assert set(streamed) == {(1, 1), (1, 2), (3, 1)}
    assert [streamed[1, 1], streamed[1, 2]] == results[0]["images"]
    assert [streamed[3, 1]] == results[2]["images"]


def test_two_jobs_stream_side_by_side(worker):
    jobs = [worker.plane.submit(FOUR | STREAM | {"seed": seed}) for seed in (10, 20)]
    for job in jobs:
        images = completed(worker.plane.wait(job, 60))["images"]
        assert list(pictures(worker, job).values()) == images


def test_a_result_that_is_too_large_leaves_its_pictures_on_the_stream(tmp_path):
    large = FOUR | STREAM | {"width": 1024, "height": 1024}
    with (
        RunPodPlane(hold=1.0) as plane,
        running_worker(tmp_path, plane, RESULT_LIMIT_MB="0.05") as worker,
    ):
        failed(worker.run(large | {"output": {}}), "RESULT_TOO_LARGE")
        worker.fault("slow_steps", **SLOW)
        job = worker.plane.submit(large)
        wait_until(lambda: chunks(worker, job), "the first picture")
        worker.stop()  # SIGTERM: the job that runs ends, with all that it streams
        output = completed(plane.wait(job, 60))
        assert (output["images"], output["delivery"]["method"]) == ([], "stream")
        assert "the result has no pictures: they are on /stream only." in output["warnings"]
        assert len(pictures(worker, job)) == 4
