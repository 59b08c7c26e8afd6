"""Stories about jobs side by side, and what is heard of them: queue, progress, cancel, health.

The real SDK, start.sh, handler and model manager; RunPod and the engine are fakes.
"""

import base64
import io
import itertools
import random
import re
import time

import pytest
from fakes.a1111.process import wait_until
from fakes.hosts.model_hosts import ModelHosts
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import running_worker
from PIL import Image

from tests.stories.test_models import environ, lora

SMALL = {"prompt": "a fox", "steps": 2, "width": 64, "height": 64, "seed": 1}
LONG = SMALL | {"steps": 150}
FOREVER = -1


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A worker that takes two jobs at once, and the hosts of its models."""
    folder = tmp_path_factory.mktemp("citizen")
    with (
        ModelHosts() as hosts,
        RunPodPlane(hold=1.0) as plane,
        running_worker(folder, plane, **environ(hosts, JOB_CONCURRENCY="2")) as worker,
    ):
        yield worker, hosts


@pytest.fixture
def hosts(shared):
    shared[1].no_faults()
    return shared[1]


@pytest.fixture
def worker(shared):
    """Its engine needs 0.1 s for a step; at the end it must still make a picture."""
    worker = shared[0]
    worker.fault("slow_steps", seconds=0.1, times=FOREVER)
    yield worker
    worker.no_faults()
    assert worker.run(SMALL)["status"] == "COMPLETED", worker.log()


def completed(job):
    assert job["status"] == "COMPLETED", job
    return job["output"]


def events_of(worker, job, kind):
    return [event for event in worker.plane.events(kind) if event["id"] == job]


# Side by side -------------------------------------------------------------------------------


def test_the_next_jobs_model_comes_while_this_one_generates(worker, hosts):
    model = hosts.add_model(
        version_id=71, model_id=71, data=lora(seed=71), name="next.safetensors", kind="LORA"
    )
    first = worker.plane.submit(SMALL | {"steps": 40})
    worker.wait_until_generating()
    second = worker.plane.submit(SMALL | {"loras": [model.download_url]})

    wait_until(lambda: "fetched 71" in worker.log(), "the second job's model")
    assert worker.plane.status(first)["status"] == "IN_PROGRESS"
    completed(worker.plane.wait(first, 30))
    output = completed(worker.plane.wait(second, 30))
    assert output["models"][1]["name"] == "next"
    assert output["timings"]["queue"] > 0


def test_a_waiting_job_that_is_cancelled_never_reaches_the_engine(worker):
    before = len(worker.requests())
    first = worker.plane.submit(SMALL | {"steps": 20})
    worker.wait_until_generating()
    second = worker.plane.submit(SMALL)
    wait_until(lambda: second in worker.log(), "the second job")
    worker.plane.cancel(second)

    completed(worker.plane.wait(first, 30))
    completed(worker.run(SMALL))
    assert len(worker.requests()) == before + 2
    assert events_of(worker, second, "done") == []


def test_a_waiting_jobs_deadline_says_that_it_waited(worker):
    first = worker.plane.submit(SMALL | {"steps": 40})
    worker.wait_until_generating()
    told = worker.run(SMALL | {"timeout": 1})

    assert told["status"] == "FAILED"
    assert "JOB_TIMEOUT: the engine was busy with other jobs; no picture within 1" in told["error"]
    assert told["output"]["timings"]["queue"] > 0
    completed(worker.plane.wait(first, 30))


# What is heard of a job -----------------------------------------------------------------------


def test_progress_tells_phase_step_and_time_left_in_order_and_never_behind_the_result(worker):
    job = worker.plane.submit(SMALL | {"steps": 110})  # the log gets a line every 10 s
    completed(worker.plane.wait(job, 60))

    assert re.search(rf"\[{job} generate\] step \d+ of 110\n", worker.log())
    reports = [event["output"] for event in events_of(worker, job, "progress")]
    steps = [report["step"] for report in reports if report["phase"] == "generate"]
    assert reports[0]["phase"] in {"validate", "resolve", "queue", "load"}
    assert len(steps) >= 2
    assert steps == sorted(steps)
    last = reports[-1]
    assert last["steps"] == 110
    assert 0 < last["percent"] < 100
    assert last["eta_seconds"] > 0
    # A cancelled job may report once more, until the worker hears of it.
    cancelled = {event["id"] for event in worker.plane.events("cancelled")}
    late = [event["id"] for event in worker.plane.events("progress") if event["late"]]
    assert set(late) <= cancelled
    times = [event["time"] for event in events_of(worker, job, "progress")]
    assert all(later - earlier > 0.5 for earlier, later in itertools.pairwise(times))


def test_a_job_that_wants_previews_gets_small_ones_and_the_next_job_none(worker):
    job = worker.plane.submit(SMALL | {"steps": 25, "output": {"preview": True}})
    completed(worker.plane.wait(job, 30))
    other = worker.plane.submit(SMALL | {"steps": 25})
    completed(worker.plane.wait(other, 30))

    first, second = (
        [event["output"].get("preview") for event in events_of(worker, one, "progress")]
        for one in (job, other)
    )
    shown = base64.b64decode(first[-1], validate=True)
    with Image.open(io.BytesIO(shown)) as image:
        assert (image.format, image.size) == ("JPEG", (256, 256))
    assert set(second) == {None}


def test_health_answers_at_once_while_a_job_runs(worker):
    worker.run(SMALL | {"steps": 0})  # fails
    job = worker.plane.submit(LONG)
    worker.wait_until_generating()
    health = completed(worker.run({"task": "health"}))

    running = {one["id"]: one for one in health["worker"]["jobs"]["running"]}
    assert list(running) == [job]
    assert running[job]["phase"] in {"load", "generate"}
    assert health["worker"]["jobs"]["failures"]["INVALID_INPUT"] >= 1
    assert health["engine"]["state"] == "running"
    assert health["engine"]["ready"] is True
    assert health["engine"]["restarts"] == 0
    assert health["engine"]["memory"]["ram"]["used"] > 0
    assert health["models"]["stored"]["checkpoints"]["count"] == 2
    worker.plane.cancel(job)
    wait_until(worker.engine_is_idle, "the end of the cancelled job")


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
