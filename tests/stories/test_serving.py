"""The whole worker behind HTTP, started without arguments as the images are."""

import json
import socket
import threading
from contextlib import closing
from types import SimpleNamespace

import pytest
import requests
from fakes.a1111.process import free_port, wait_until
from fakes.runpod_plane import RunPodPlane
from fakes.served import served_worker
from fakes.worker_process import FOREVER, SMALL, completed, failed, png_size, running_worker

SLOW = {"fault": "slow_steps", "seconds": 0.3, "times": FOREVER}


NO_PLANE = SimpleNamespace(worker_env=dict)


def runsync(url, job_input, **how):
    return requests.post(f"{url}/runsync", json={"input": job_input}, timeout=100, **how).json()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worker")
    with served_worker(folder, by_port=True, RUNPOD_ENDPOINT_ID="ep0") as served:
        yield served.worker, served.url


def test_pictures_lists_and_failures_come_over_http(shared):
    _, url = shared
    assert png_size(completed(runsync(url, SMALL))["images"][0]) == (64, 64)
    assert completed(runsync(url, {"task": "models"}))["models"]
    answer = runsync(url, SMALL | {"steps": 0})
    assert answer["output"]["detail"] == failed(answer, "INVALID_INPUT")
    metrics = requests.get(f"{url}/metrics", timeout=30).text
    assert 'jobs_total{code="INVALID_INPUT",outcome="failed",task="txt2img"} 1.0' in metrics
    assert 'jobs_total{code="",outcome="completed",task="models"} 1.0' in metrics
    health = completed(runsync(url, {"task": "health"}))
    assert health["worker"]["place"]["endpoint"] == "ep0"
    assert health["worker"]["queue"] == {"waiting": 0, "oldest_seconds": 0}
    assert f"gpu_seconds_total {health['worker']['gpu_seconds']}" in metrics
    assert (
        f'store_bytes{{kind="loras"}} {health["models"]["stored"]["loras"]["total_size"]}'
        in metrics
    )


def test_a_host_name_of_the_internet_is_refused_unless_runpod_sends_it(shared, tmp_path):
    """RUNPOD_ENDPOINT_ID alone is also what callers of an endpoint set."""
    name = {"Host": "ep0.api.runpod.ai"}
    assert requests.get(f"{shared[1]}/health", headers=name, timeout=30).status_code == 421
    on_runpod = {"RUNPOD_POD_ID": "pod0", "RUNPOD_ENDPOINT_ID": "ep0"}
    with served_worker(tmp_path, by_port=True, **on_runpod) as served:
        assert requests.get(f"{served.url}/health", headers=name, timeout=30).status_code == 200


@pytest.mark.parametrize("number", range(30))
def test_a_client_that_hangs_up_leaves_an_idle_engine(shared, number):
    worker, url = shared
    drawn = len(worker.requests())
    worker.fault(**SLOW)
    body = json.dumps({"input": SMALL | {"steps": 150}})
    head = "POST /runsync HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    port = int(url.rpartition(":")[2])
    with closing(socket.create_connection(("127.0.0.1", port))) as line:
        line.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        worker.wait_until_generating()
    wait_until(worker.engine_is_idle, "the idle engine")
    worker.no_faults()
    assert len(worker.requests()) == drawn + 1
    assert worker.log().count("nobody waits for it any more") == number + 1


def test_sigterm_delivers_the_picture_of_the_running_job(tmp_path):
    answers = []
    with served_worker(tmp_path, by_port=True) as served:
        worker, url = served.worker, served.url
        worker.fault(**SLOW)
        call = threading.Thread(target=lambda: answers.append(runsync(url, SMALL | {"steps": 9})))
        call.start()
        worker.wait_until_generating()
        assert worker.stop() == 0
        call.join(30)
    assert png_size(completed(answers[0])["images"][0]) == (64, 64)


def test_requests_before_an_engine_that_never_gets_ready_get_the_reason(tmp_path):
    broken = {"fault": "internal_error", "times": FOREVER}
    how = {"faults": (broken,), "READY_TIMEOUT": "8", "wait_until_ready": False}
    with served_worker(tmp_path, by_port=True, **how) as served:
        failed(runsync(served.url, SMALL), "ENGINE_NOT_READY")
        assert served.worker.end() == 69


def test_a_taken_port_ends_with_71_before_anything_is_started(tmp_path):
    with closing(socket.create_server(("0.0.0.0", 0))) as taken:
        port = str(taken.getsockname()[1])
        with running_worker(tmp_path, NO_PLANE, wait=False, PORT=port) as worker:
            assert worker.end() == 71
            assert f"cannot listen on port {port} of 0.0.0.0" in worker.log()
            assert "engine a1111 started" not in worker.log()


def test_with_a_queue_of_runpod_the_port_of_the_image_is_not_used(tmp_path):
    port = free_port()
    with RunPodPlane(hold=1.0) as plane, running_worker(tmp_path, plane, PORT=str(port)) as worker:
        completed(worker.run(SMALL))
        with socket.socket() as line:
            assert line.connect_ex(("127.0.0.1", port)) != 0
