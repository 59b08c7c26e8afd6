"""RunPod's routes on this machine, called over HTTP as RunPod documents them."""

import http.server
import json
import re
import socket
import threading
from collections import Counter
from contextlib import contextmanager

import pytest
from fakes.a1111.process import wait_until
from fakes.gateway_worker import running_gateway_worker


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    with running_gateway_worker(tmp_path_factory.mktemp("worker")) as running:
        yield running


@pytest.fixture
def busy(worker, tmp_path):
    """A job that runs until `busy.release()`."""
    name = tmp_path.name
    job = worker.run({"echo": name, "until": str(tmp_path / "go")})
    worker.wait_for(f'began "{name}"')
    yield job
    (tmp_path / "go").touch()
    wait_until(lambda: worker.status(job)["status"] in ENDED, "the end of the job")


ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}


@pytest.mark.parametrize("base", ["", "/v2/any-endpoint"])
def test_a_job_goes_through_run_status_and_runsync(worker, base):
    queued = worker.post(f"{base}/run", {"input": {"echo": 1}}).json()
    assert (queued.keys(), queued["status"]) == ({"id", "status"}, "IN_QUEUE")
    wait_until(lambda: worker.status(queued["id"])["status"] == "COMPLETED", "the end of the job")
    ended = worker.get(f"{base}/status/{queued['id']}").json()
    assert ended["output"]["echo"] == 1
    assert {"delayTime", "executionTime", "workerId"} < ended.keys()
    synced = worker.post(f"{base}/runsync", {"input": {"echo": 2}}).json()
    assert (synced["status"], synced["output"]["echo"]) == ("COMPLETED", 2)
    failed = worker.post(f"{base}/runsync", {"input": {"error": "INVALID_INPUT: no."}}).json()
    assert (failed["status"], failed["error"]) == ("FAILED", "INVALID_INPUT: no.")
    assert failed["output"]["detail"] == failed["error"]


def test_runsync_returns_the_id_after_its_wait_and_the_job_goes_on(worker, busy):
    answer = worker.post("/runsync?wait=1", {"input": {"echo": 3}}).json()  # the least is 1000
    assert answer["status"] == "IN_QUEUE"
    waited = worker.get(f"/status-sync/{busy}?wait=1000").json()
    assert waited["status"] == "IN_PROGRESS"
    assert worker.status(answer["id"])["status"] == "IN_QUEUE"
    assert worker.post(f"/cancel/{answer['id']}").json()["status"] == "CANCELLED"


def test_cancel_purge_and_health_count_jobs(worker, busy):
    waiting = [worker.run({"echo": "waits"}) for _ in range(3)]
    health = worker.get("/health").json()
    assert (health["jobs"]["inQueue"], health["jobs"]["inProgress"]) == (3, 1)
    assert health["workers"].items() >= {"ready": 1, "running": 1, "idle": 0}.items()
    assert worker.post(f"/cancel/{waiting[0]}").json() == {"id": waiting[0], "status": "CANCELLED"}
    assert worker.post("/purge-queue").json() == {"removed": 2, "status": "completed"}
    assert {worker.status(job)["status"] for job in waiting} == {"CANCELLED"}
    assert worker.post(f"/cancel/{busy}").json()["status"] == "CANCELLED"
    wait_until(lambda: any("cancelled" in event for event in worker.events()), "the cancellation")
    assert not [event for event in worker.events() if "waits" in event]


def test_a_failed_job_can_be_retried_under_its_id_and_others_cannot(worker):
    job = worker.post("/runsync", {"input": {"error": "no", "echo": "again"}}).json()["id"]
    assert worker.post(f"/retry/{job}").json()["id"] == job
    wait_until(lambda: worker.events().count('ended "again"') == 2, "the second run")
    wait_until(lambda: worker.status(job)["status"] == "FAILED", "the second end")
    done = worker.post("/runsync", {"input": {}}).json()["id"]
    refused = worker.post(f"/retry/{done}")
    assert refused.status_code == 409
    assert "only FAILED and TIMED_OUT jobs" in refused.json()["error"]


def test_stream_returns_the_output_once(worker):
    job = worker.run({"echo": "streamed"})
    first, second = (worker.get(f"/stream/{job}").json() for _ in range(2))
    assert [chunk["output"]["echo"] for chunk in first["stream"]] == ["streamed"]
    assert (second["status"], second["stream"]) == ("COMPLETED", [])


REFUSED = [
    # method, path, body, status, a part of the sentence
    ("POST", "/run", {"prompt": "a fox"}, 400, "The body has no `input`: send"),
    ("POST", "/run", {"input": "a fox"}, 400, 'input = "a fox" is not an object'),
    ("POST", "/run", [1], 400, "The body is not a JSON object"),
    ("POST", "/runsync?wait=soon", {"input": {}}, 400, "wait = 'soon' must be milliseconds"),
    ("POST", "/run", {"input": {}, "policy": {"ttl": 1}}, 400, "policy.ttl = 1 must be"),
    ("POST", "/run", {"input": {}, "policy": {"ttl": True}}, 400, "policy.ttl = True must be"),
    ("POST", "/run", {"input": {}, "policy": {"tll": 1}}, 400, "policy.tll is not known"),
    ("POST", "/run", {"input": {}, "policy": 5}, 400, "policy must be an object"),
    ("POST", "/run", {"input": {}, "policy": {"lowPriority": 1}}, 400, "must be true or false"),
    ("POST", "/run", {"input": {}, "webhook": "http://example.com/"}, 400, "is not an https URL"),
    ("POST", "/run", {"input": {}, "webhook": "file:///etc/passwd"}, 400, "is not an https URL"),
    ("POST", "/run", {"input": {}, "webhook": 5}, 400, "webhook must be an https URL"),
    ("POST", "/run", {"input": {}, "s3_config": {}}, 400, "did you mean `s3Config`?"),
    ("POST", "/runsync", {"input": {}, "webHook": ""}, 400, "did you mean `webhook`?"),
    ("GET", "/status/none", None, 404, "There is no job 'none'"),
    ("POST", "/cancel/none", None, 404, "There is no job 'none'"),
    ("GET", "/stream/none", None, 404, "There is no job 'none'"),
    ("POST", "/retry/none", None, 404, "There is no job 'none'"),
    ("POST", "/batch", [{"input": {}}], 404, "exists only at https://api.runpod.ai/v2/ENDPOINT"),
    ("GET", "/v2/e1/batch/b1/requests", None, 404, 'one job: {"input": {"task": "batch"'),
    ("GET", "/nothing", None, 404, "GET /nothing: Not Found."),
    ("GET", "/run", None, 405, "GET /run: Method Not Allowed."),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "sentence"), REFUSED)
def test_wrong_requests_are_refused_with_a_sentence(worker, method, path, body, status, sentence):
    answer = worker.post(path, body) if method == "POST" else worker.get(path)
    assert answer.status_code == status
    assert sentence in answer.json()["error"]


class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.received.append(body)
        self.send_response(200 if len(self.server.received) > self.server.failures else 500)
        self.end_headers()

    def log_message(self, *_):
        """Nothing."""


@contextmanager
def hook(failures=0):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        server.received, server.failures = [], failures
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.url = f"http://127.0.0.1:{server.server_port}/done"
        yield server
        server.shutdown()


@pytest.mark.parametrize(("failures", "posts"), [(0, 1), (1, 2), (9, 3)])
def test_a_webhook_gets_the_job_and_is_posted_again_up_to_twice(worker, failures, posts):
    with hook(failures) as server:
        job = worker.run({"echo": "hook"}, webhook=server.url)
        wait_until(lambda: len(server.received) == posts, f"{posts} posts")
        # The worker is in order: what came after three posts would come before the next job's.
        worker.post("/runsync", {"input": {}, "webhook": server.url})
        wait_until(lambda: server.received[-1]["id"] != job, "the next job's post")
    mine = [one for one in server.received if one["id"] == job]
    assert len(mine) == posts
    assert (mine[0]["status"], mine[0]["output"]["echo"]) == ("COMPLETED", "hook")


def half_a_request(worker, body, path="/runsync"):
    """A connection that has sent a whole request and waits."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    line = socket.create_connection(("127.0.0.1", worker.port))
    line.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return line


@pytest.mark.parametrize("number", range(30))
def test_a_hang_up_before_the_answer_cancels_the_job_of_runsync(worker, tmp_path, number):
    name = f"hung-up-{number}"
    with half_a_request(worker, {"input": {"echo": name, "until": str(tmp_path / "never")}}):
        worker.wait_for(f'began "{name}"')
    worker.wait_for(f'cancelled "{name}"')
    health = worker.get("/health").json()["jobs"]
    assert (health["inQueue"], health["inProgress"]) == (0, 0)


def test_a_hang_up_leaves_a_job_with_a_webhook_alone(worker, tmp_path):
    with hook() as server:
        body = {"input": {"echo": "on", "until": str(tmp_path / "go")}, "webhook": server.url}
        with half_a_request(worker, body):
            worker.wait_for('began "on"')
        (tmp_path / "go").touch()
        wait_until(lambda: server.received, "the webhook")
    assert server.received[0]["status"] == "COMPLETED"


def metrics_of(worker):
    lines = worker.get("/metrics").text.splitlines()
    rows = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name.removeprefix("a1111_worker_"): float(value) for name, value in rows}


def outcomes(worker):
    """The number of ended jobs by outcome and code."""
    found = Counter()
    for name, value in metrics_of(worker).items():
        if labels := re.fullmatch(r'jobs_total\{code="(.*)",outcome="(.*)",task=".*"\}', name):
            found[labels[2], labels[1]] += value
    return found


def test_metrics_and_health_tell_the_same(worker):
    worker.post("/runsync", {"input": {"error": "no"}})
    found, jobs = outcomes(worker), worker.get("/health").json()["jobs"]
    assert found["completed", ""] == jobs["completed"]
    assert 0 < found["failed", "INVALID_INPUT"] == jobs["failed"]
    values = metrics_of(worker)
    assert 0 < values['phase_seconds_count{phase="generate"}'] <= sum(found.values())
    assert values["gpu_seconds_total"] >= 0
    expected = {"jobs_waiting", "jobs_running", "oldest_waiting_seconds", "engine_ready"}
    assert values.keys() >= expected | {"gpu_memory_used_bytes", "store_free_bytes"}


def test_each_job_that_ends_without_an_answer_is_counted_once(worker, tmp_path):
    before, never = outcomes(worker), {"until": str(tmp_path / "never")}
    running = worker.run(never | {"echo": "counted"})
    worker.wait_for('began "counted"')
    waiting = [worker.run({"echo": n}) for n in range(3)]
    assert metrics_of(worker)["jobs_waiting"] == 3
    assert metrics_of(worker)["oldest_waiting_seconds"] > 0
    worker.post(f"/cancel/{waiting[0]}")
    worker.post("/purge-queue")
    worker.post(f"/cancel/{running}")
    worker.wait_for('cancelled "counted"')
    wait_until(lambda: metrics_of(worker)["jobs_running"] == 0, "the end of the job")
    assert outcomes(worker) - before == {("cancelled", ""): 4}
