"""The begin and the end of a worker that serves HTTP."""

import socket
import threading
from contextlib import suppress

import requests
from fakes.a1111.process import free_port, wait_until
from fakes.gateway_worker import running_gateway_worker

ENDING = "WORKER_ENDING: this worker is shutting down. Send the job again."


class Call(threading.Thread):
    """A request that waits for its answer in a thread."""

    def __init__(self, worker, job_input, path="/runsync"):
        super().__init__(daemon=True)
        self.worker, self.job_input, self.path = worker, job_input, path
        self.answer = None
        self.start()

    def run(self):
        self.answer = self.worker.post(self.path, {"input": self.job_input}).json()

    def result(self):
        self.join(30)
        return self.answer


def queue_lengths(worker):
    jobs = worker.get("/health").json()["jobs"]
    return jobs["inProgress"], jobs["inQueue"]


def test_jobs_wait_for_the_engine_and_ping_says_when_it_is_ready(tmp_path):
    ready = tmp_path / "ready"
    with running_gateway_worker(tmp_path, BOOT=str(ready)) as worker:
        assert worker.get("/ping").status_code == 204
        assert worker.get("/health").json()["workers"]["initializing"] == 1
        call = Call(worker, {"echo": "early"})
        wait_until(lambda: queue_lengths(worker) == (0, 1), "the job in the queue")
        ready.touch()
        assert call.result()["output"]["echo"] == "early"
        assert worker.get("/ping").status_code == 200
        worker.stop()
        assert worker.end() == 0


def test_a_signal_ends_the_wait_for_the_engine_and_each_waiting_job_gets_the_reason(tmp_path):
    with running_gateway_worker(tmp_path, BOOT=str(tmp_path / "ready")) as worker:
        calls = [Call(worker, {"echo": number}) for number in range(3)]
        wait_until(lambda: queue_lengths(worker) == (0, 3), "the jobs in the queue")
        worker.stop()
        answers = [call.result() for call in calls]
        assert {answer["status"] for answer in answers} == {"FAILED"}
        assert {answer["error"] for answer in answers} == {ENDING}
        assert worker.end() == 0


def test_an_engine_that_is_never_ready_ends_the_process_with_its_status(tmp_path):
    trigger = tmp_path / "trigger"
    with running_gateway_worker(tmp_path, BOOT=f"fails after {trigger}") as worker:
        call = Call(worker, {"echo": 1})
        wait_until(lambda: queue_lengths(worker) == (0, 1), "the job in the queue")
        trigger.touch()
        assert call.result()["error"] == "ENGINE_NOT_READY: no picture within 1 s."
        assert worker.end() == 69


def test_sigterm_ends_running_jobs_with_their_answers_and_waiting_ones_with_the_reason(tmp_path):
    with running_gateway_worker(tmp_path) as worker:
        runs = Call(worker, {"echo": "runs", "until": str(worker.go)})
        worker.wait_for('began "runs"')
        waits, polled = Call(worker, {"echo": "waits"}), worker.run({"echo": "polled"})
        wait_until(lambda: queue_lengths(worker) == (1, 2), "the jobs in the queue")
        worker.stop()
        assert waits.result()["error"] == ENDING
        assert worker.status(polled)["status"] == "FAILED"
        refused = worker.post("/run", {"input": {}})
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "30")
        assert "is shutting down" in refused.json()["error"]
        assert worker.get("/ping").status_code == 503
        worker.stop()  # a second signal changes nothing
        worker.go.touch()
        assert runs.result()["output"]["echo"] == "runs"
        assert worker.end() == 0


def test_an_answer_of_run_can_be_fetched_after_sigterm(tmp_path):
    with running_gateway_worker(tmp_path, {"patience": 30}) as worker:
        job = worker.run({"echo": "fetched", "until": str(worker.go)})
        worker.wait_for('began "fetched"')
        worker.stop()
        wait_until(lambda: worker.get("/ping").status_code == 503, "the drain")
        worker.go.touch()
        worker.wait_for('ended "fetched"')
        assert worker.status(job)["output"]["echo"] == "fetched"
        assert worker.end() == 0


def test_a_job_that_outlasts_the_grace_fails_with_the_reason(tmp_path):
    with running_gateway_worker(tmp_path, {"grace": 0.2, "patience": 0.2}) as worker:
        call = Call(worker, {"echo": "long", "until": str(worker.go)})
        worker.wait_for('began "long"')
        worker.stop()
        assert call.result()["error"] == ENDING
        assert worker.end() == 0
        assert 'cancelled "long"' in worker.events()


def test_an_answer_that_retires_the_worker_is_delivered_and_ends_it_with_75(tmp_path):
    with running_gateway_worker(tmp_path) as worker:
        last = Call(worker, {"echo": "last", "until": str(worker.go), "retire": True})
        worker.wait_for('began "last"')
        next_one = Call(worker, {"echo": "next"})
        wait_until(lambda: queue_lengths(worker) == (1, 1), "the next job in the queue")
        worker.go.touch()
        assert last.result()["output"]["echo"] == "last"
        assert next_one.result()["error"] == ENDING.replace("shutting down", "being replaced")
        assert worker.end() == 75


def test_the_health_port_answers_only_ping(tmp_path):
    port = free_port()
    with running_gateway_worker(tmp_path, {"health_port": port}) as worker:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: worker.get("/ping").status_code == 200, "the engine")
        assert requests.get(f"{url}/ping", timeout=30).status_code == 200
        for path in ("/", "/health", "/metrics", "/status/x"):
            assert requests.get(url + path, timeout=30).status_code == 404
        assert requests.post(f"{url}/run", json={"input": {}}, timeout=30).status_code == 404


def test_runsync_returns_the_id_before_the_platform_ends_the_request(tmp_path):
    with running_gateway_worker(tmp_path, {"longest_request": 0.2}) as worker:
        answer = worker.post("/runsync", {"input": {"echo": 1, "until": str(worker.go)}}).json()
        assert answer["status"] in {"IN_QUEUE", "IN_PROGRESS"}
        assert "cancelled 1" not in worker.events()
        worker.go.touch()
        wait_until(lambda: worker.status(answer["id"])["status"] == "COMPLETED", "the end")


def test_a_picture_that_takes_too_long_for_the_platform_ends_before_with_a_sentence(tmp_path):
    never = str(tmp_path / "never")
    with running_gateway_worker(tmp_path, {"longest_request": 0.2}, UNTIL=never) as worker:
        answer = worker.post("/v1/images/generations", {"prompt": "a fox"})
        assert answer.status_code == 504
        assert "send the job to /run" in answer.text
        worker.wait_for("cancelled null")


def test_connections_without_a_request_are_closed(tmp_path):
    with running_gateway_worker(tmp_path, LIMITS='{"head": 0.3}') as worker:
        lines = [socket.create_connection(("127.0.0.1", worker.port)) for _ in range(20)]
        for line in lines[10:]:
            line.sendall(b"POST /run HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        for line in lines:
            line.settimeout(30)
            with suppress(ConnectionResetError):
                assert line.recv(100) == b""
            line.close()
        assert worker.get("/ping").status_code == 200


def test_more_connections_than_allowed_get_503_and_the_others_go_on(tmp_path):
    with running_gateway_worker(tmp_path, LIMITS='{"count": 10}') as worker:
        lines = [socket.create_connection(("127.0.0.1", worker.port)) for _ in range(10)]
        assert worker.get("/ping").status_code == 503
        for line in lines:
            line.close()
        wait_until(lambda: worker.get("/ping").status_code == 200, "free connections")


def test_an_endless_head_is_cut(tmp_path):
    with running_gateway_worker(tmp_path) as worker:
        with socket.create_connection(("127.0.0.1", worker.port)) as line:
            line.settimeout(30)
            line.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\nX-Long: ")
            with suppress(ConnectionError):
                while True:  # it would have no end
                    line.sendall(b"a" * 65536)
        assert worker.get("/ping").status_code == 200
