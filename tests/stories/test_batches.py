"""Stories about what RunPod offers around a job: batches, execution policies, retry.

The real SDK, start.sh, handler and model manager; RunPod and the engine are fakes.
"""

import pytest
import requests
from fakes.a1111.process import wait_until
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import FOREVER, SMALL, completed, failed, running_worker

SOON = 60.0
LONG = SMALL | {"steps": 150}
# What may stand beside a job's input, today or one day.
BESIDE = {
    "a batch": {"batchId": "batch_1"},
    "empty values": {"s3Config": None, "webhook": None, "batchId": None},
    "unknown keys": {"policy": {"lowPriority": True}, "newKey": [{"a": 1}], "id2": 5},
}


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    with (
        RunPodPlane(hold=1.0) as plane,
        running_worker(tmp_path_factory.mktemp("batches"), plane) as worker,
    ):
        yield worker


@pytest.fixture
def slow(worker):
    """Its engine needs 0.1 s for a step; after the story it must still make a picture."""
    worker.fault("slow_steps", seconds=0.1, times=FOREVER)
    yield worker
    worker.no_faults()
    completed(worker.run(SMALL))


def call(worker, path, body=None, method="POST"):
    answer = requests.request(method, f"{worker.plane.url}/{path}", json=body, timeout=SOON)
    answer.raise_for_status()
    return answer.json()


def finalized(worker, inputs):
    """The path of a batch of these inputs, which RunPod has begun to run."""
    batch = call(worker, "batch", [{"input": job_input} for job_input in inputs[:2]])
    path = f"batch/{batch['id']}"
    call(worker, f"{path}/requests", {"requests": [{"input": one} for one in inputs[2:]]})
    assert call(worker, path, method="GET")["status"] == "DRAFT"
    call(worker, f"{path}/finalize")
    return path


def wait_for_end(worker, path):
    def is_over():
        seen = call(worker, path, method="GET")
        return seen["requestCompleted"] + seen["requestFailed"] == seen["requestTotal"]

    wait_until(is_over, "the end of the batch", SOON)


def test_a_batch_runs_each_request_and_one_that_fails_stops_no_other(worker):
    inputs = [SMALL | {"seed": seed} for seed in range(5)]
    inputs[2]["steps"] = 0
    path = finalized(worker, inputs)
    wait_for_end(worker, path)
    first, rest = (
        call(worker, f"{path}/requests?offset={offset}&limit=3", method="GET") for offset in (0, 3)
    )
    assert (first["hasMore"], rest["hasMore"], rest["total"]) == (True, False, 5)
    answers = first["requests"] + rest["requests"]
    wrong = answers.pop(2)
    assert wrong["error"].startswith("INVALID_INPUT: steps = 0")
    assert [one["output"]["parameters"]["seed"] for one in answers] == [0, 1, 3, 4]
    assert call(worker, path, method="GET")["status"] == "FINALIZED"  # RunPod has no other end


def test_a_cancelled_batch_lets_the_running_request_end_and_starts_no_other(slow):
    path = finalized(slow, [SMALL | {"steps": 20, "seed": seed} for seed in range(3)])
    slow.wait_until_generating()
    assert call(slow, f"{path}/cancel")["status"] == "FINALIZED"
    wait_until(lambda: call(slow, path, method="GET")["status"] == "CANCELLED", "its end", SOON)
    states = [one["status"] for one in call(slow, f"{path}/requests", method="GET")["requests"]]
    assert sorted(states) == ["CANCELLED", "CANCELLED", "COMPLETED"]


@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE)
def test_a_job_runs_whatever_stands_beside_its_input(worker, beside):
    job = worker.plane.submit(SMALL, extra=beside)
    assert completed(worker.plane.wait(job, SOON))["parameters"]["seed"] == SMALL["seed"]


@pytest.mark.parametrize("ending", ["expire", "time_out"])
def test_a_job_that_outlives_its_ttl_or_execution_timeout_stops_the_engine(slow, ending):
    job = slow.plane.submit(LONG)
    slow.wait_until_generating()
    getattr(slow.plane, ending)(job)
    wait_until(lambda: f"[{job} generate] cancelled" in slow.log(), "the end of the job")
    assert slow.engine_is_idle()
    assert job not in {event["id"] for event in slow.plane.events("done")}


def test_the_jobs_own_timeout_ends_it_before_runpods_and_says_why(slow):
    policy = {"executionTimeout": 60_000, "ttl": 120_000}
    job = slow.plane.submit(LONG | {"timeout": 1}, policy=policy)
    assert "no result within 1 s" in failed(slow.plane.wait(job, SOON), "JOB_TIMEOUT")


def test_a_failed_job_that_is_retried_runs_again_with_its_id(slow):
    job = slow.plane.submit(SMALL | {"steps": 40, "timeout": 1, "seed": 3})
    failed(slow.plane.wait(job, SOON), "JOB_TIMEOUT")
    slow.no_faults()
    assert call(slow, f"retry/{job}") == {"id": job, "status": "IN_QUEUE"}
    assert completed(slow.plane.wait(job, SOON))["parameters"]["seed"] == 3
