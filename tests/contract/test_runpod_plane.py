"""The control plane against RunPod's own code: the plain SDK's worker, and RunPod's client.

What our worker does with these features is tested in tests/stories.
"""

import asyncio
import http.server
import socket
import threading

import pytest
import requests
import runpod
from fakes.runpod_plane import RunPodPlane
from fakes.runpod_plane.job import Job
from fakes.sdk_worker import running_sdk_worker

SOON = 60.0
MB = 1_000_000


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    """With the plain SDK's worker, whose handler is a generator."""
    folder = tmp_path_factory.mktemp("plain")
    with (
        RunPodPlane(hold=1.0) as plane,
        running_sdk_worker(folder, plane, PLAIN="1", YIELDS="1"),
    ):
        yield plane


@pytest.fixture
def idle():
    """A plane without a worker: what a job waits for does not come."""
    with RunPodPlane(hold=0.1, webhook_pause=0.0) as plane:
        yield plane


def post(plane, path, body=None):
    return requests.post(f"{plane.url}/{path}", json=body, timeout=SOON)


def get(plane, path):
    return requests.get(f"{plane.url}/{path}", timeout=SOON)


@pytest.mark.parametrize("steps", range(8))
def test_a_worker_that_ends_its_poll_is_given_a_job_only_if_it_still_gets_it(steps):
    """Both come at the same moment: the job is added some steps of the loop before the end."""
    with RunPodPlane(hold=SOON) as plane:
        line = socket.create_connection(("127.0.0.1", plane.port), SOON)
        line.sendall(b"GET /v2/ep0/job-take/pod0 HTTP/1.1\r\nHost: plane\r\n\r\n")
        plane.wait_for("take", SOON)
        plane._in_loop(add_and_end(plane, job := Job({"input": {}}), steps))
        with line, line.makefile("rb") as answer:
            is_sent = job.id.encode() in answer.read()
        assert (plane.status(job.id)["status"] == "IN_PROGRESS") == is_sent


async def add_and_end(plane, job, steps):
    await plane._jobs.add(job)
    for _ in range(steps):
        await asyncio.sleep(0)
    for connection in plane._runner.server.connections:
        connection.transport.close()  # what the loop does when it reads the end of the poll


# Streams ------------------------------------------------------------------------------------------


def test_runpods_client_reads_each_chunk_once_and_then_the_end(plane, monkeypatch):
    monkeypatch.setattr(runpod, "endpoint_url_base", plane.client_url)
    chunks = ["a", {"b": 1}, "ü" * 1000]
    job = runpod.Endpoint("ep0", api_key="a-key").run({"chunks": chunks})
    assert list(job.stream()) == chunks
    answer = get(plane, f"stream/{job.job_id}").json()
    assert answer == {"status": "COMPLETED", "stream": []}
    done = [one for one in plane.events("done") if one["id"] == job.job_id]
    assert [one["is_stream"] for one in done] == [True]


def test_a_chunk_over_1_mb_is_refused_and_one_below_it_is_not(plane):
    job = plane.submit({"chunks": ["x" * (MB - 2), "x" * (MB - 1)]})
    plane.wait(job, SOON)
    [chunk] = get(plane, f"stream/{job}").json()["stream"]
    assert len(chunk["output"]) == MB - 2


# One job ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [(10, "run"), (20, "runsync")])
def test_results_and_requests_over_the_routes_limit_are_refused(idle, limit):
    megabytes, route = limit
    assert post(idle, route, {"input": {"echo": "x" * megabytes * MB}}).status_code == 413
    job = post(idle, route, {"input": {}}).json()["id"]
    for size, status in ((megabytes * MB, 400), (1, 200)):
        assert post(idle, f"job-done/pod0/{job}", {"output": "x" * size}).status_code == status


def test_a_job_whose_ttl_ends_is_gone_and_a_running_one_is_stopped(idle):
    waits, runs, ended = (post(idle, "run", {"input": {}}).json()["id"] for _ in range(3))
    taken = get(idle, "job-take-batch/pod0?batch_size=3").json()
    assert [job["id"] for job in taken] == [waits, runs, ended]
    post(idle, f"job-done/pod0/{ended}", {"output": 1})
    for job in (runs, ended):
        idle.expire(job)
    assert get(idle, "job-stop/pod0").json() == {"jobsToStop": [runs]}
    assert get(idle, f"status/{runs}").status_code == 404
    assert get(idle, f"status/{ended}").json()["output"] == 1


def test_a_failed_job_is_retried_with_its_id_and_no_other_job_is(idle):
    job = post(idle, "run", {"input": {"n": 1}}).json()["id"]
    assert post(idle, f"retry/{job}").status_code == 400
    assert get(idle, "job-take/pod0").json()["id"] == job
    idle.time_out(job)
    assert get(idle, f"status/{job}").json()["status"] == "TIMED_OUT"
    assert post(idle, f"retry/{job}").json() == {"id": job, "status": "IN_QUEUE"}
    assert get(idle, "job-take/pod0").json()["input"] == {"n": 1}
    health = get(idle, "health").json()
    assert (health["jobs"]["retried"], health["workers"]["running"]) == (1, 1)


def test_a_webhook_is_posted_until_it_is_accepted_at_most_three_times(idle):
    answers = [500, 200, 500, 500, 500, 500]

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(answers.pop(0))
            self.end_headers()

        def log_message(self, *_):
            """Nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        idle.cancel(idle.submit({}, webhook=url))
        idle.wait_for("webhook", SOON, count=2)
        idle.cancel(idle.submit({}, webhook=url))
        idle.wait_for("webhook", SOON, count=5)
        server.shutdown()
    assert [event["status"] for event in idle.events("webhook")] == [500, 200, 500, 500, 500]


# Batches ------------------------------------------------------------------------------------------


def test_a_draft_can_be_changed_and_a_final_batch_cannot(idle):
    batch = post(idle, "batch", [{"input": {"n": 1}}]).json()
    assert batch.pop("status") == "DRAFT"
    path = f"batch/{batch['id']}"
    post(idle, f"{path}/requests", {"requests": [{"input": {"n": number}} for number in (2, 3)]})
    listed = get(idle, f"{path}/requests?offset=1&limit=1").json()
    assert (listed["total"], listed["offset"], listed["hasMore"]) == (3, 1, True)
    one = f"{path}/requests/{listed['requests'][0]['id']}"
    assert requests.delete(f"{idle.url}/{one}", timeout=SOON).json()["requestTotal"] == 2
    named = requests.put(f"{idle.url}/{path}", json={"name": "night"}, timeout=SOON).json()
    assert named["name"] == "night"
    assert get(idle, "job-take/pod0").status_code == 204
    assert post(idle, f"{path}/finalize").json()["status"] == "FINALIZED"
    refused = [post(idle, f"{path}/requests", {"requests": []}), post(idle, f"{path}/finalize")]
    assert [answer.status_code for answer in refused] == [400, 400]
    taken = [get(idle, "job-take/pod0").json() for _ in range(2)]
    assert [job["input"]["n"] for job in taken] == [1, 3]
    assert {job["batchId"] for job in taken} == {batch["id"]}
    assert get(idle, path).json()["requestInProgress"] == 2


def test_the_limits_of_batches(idle):
    assert post(idle, "batch", [{"input": {}}] * 5001).status_code == 400
    assert post(idle, "batch", [{"input": "x" * 11 * MB}]).status_code == 413
    assert post(idle, "batch", [{}]).status_code == 400
    ids = [post(idle, "batch", [{"input": {}}]).json()["id"] for _ in range(10)]
    assert post(idle, "batch", []).status_code == 400
    assert [one["id"] for one in get(idle, "batch").json()["batches"]] == ids[::-1]
    assert post(idle, f"batch/{ids[0]}/cancel").json()["status"] == "CANCELLED"
    assert post(idle, "batch", []).status_code == 200
