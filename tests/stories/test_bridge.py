"""Stories about a gateway in front of an endpoint.

The real SDK, start.sh, handler and model manager; RunPod and the engine are fakes.
"""

import socket
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from fakes.a1111.process import wait_until
from fakes.gateway_server import served_endpoint
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import FOREVER, SMALL, running_worker

LONG = SMALL | {"steps": 150}


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bridge")
    with RunPodPlane(hold=1.0) as plane, running_worker(folder, plane) as it:
        yield it


@pytest.fixture(scope="module")
def gateway(worker):
    with served_endpoint(worker.plane.url) as running:
        yield running


def run(gateway, job_input):
    return requests.post(f"{gateway.url}/runsync", json={"input": job_input}, timeout=60).json()


def test_a_job_is_drawn_and_a_refused_one_has_the_workers_sentence(gateway):
    drawn = run(gateway, SMALL)
    assert (drawn["status"], len(drawn["output"]["images"])) == ("COMPLETED", 1)
    refused = run(gateway, SMALL | {"stepz": 3})
    assert refused["status"] == "FAILED"
    assert "stepz" in refused["error"]


def test_the_engine_is_idle_after_each_of_30_clients_that_hang_up(gateway, worker):
    """Some jobs run when their client goes, the others wait; then the engine draws again."""
    worker.fault("slow_steps", seconds=0.1, times=FOREVER)
    before = len(worker.plane.events("submit"))

    def hang_up(number):
        prepared = requests.Request(
            "POST", f"{gateway.url}/runsync", json={"input": LONG}
        ).prepare()
        head = "".join(f"{name}: {value}\r\n" for name, value in prepared.headers.items())
        with socket.create_connection(("127.0.0.1", gateway.port), 30) as line:
            host = f"POST /runsync HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}\r\n"
            line.sendall(host.encode() + prepared.body)
            worker.plane.wait_for("submit", 60, count=before + number + 1)
            if number % 10 == 0:
                worker.wait_until_generating()
            if number % 2:  # as the system does for a killed program
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with ThreadPoolExecutor(10) as clients:
        list(clients.map(hang_up, range(30)))
    worker.plane.wait_for("cancelled", 60, count=30)
    wait_until(worker.engine_is_idle, "the end of the cancelled jobs")
    worker.no_faults()
    assert run(gateway, SMALL)["status"] == "COMPLETED"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "127.1", "2130706433"]
)
def test_a_job_does_not_reach_the_engine_by_a_url(gateway, worker, host):
    """Neither does it fetch pictures from the gateway itself."""
    engine = int(worker.engine_url.rpartition(":")[2])
    for port in (engine, gateway.port):
        for scheme in ("http", "https"):
            url = f"{scheme}://{host}:{port}/sdapi/v1/cmd-flags"
            answer = run(gateway, {"task": "img2img", "prompt": "x", "init_images": [url]})
            assert answer["status"] == "FAILED"
            assert "init_images" in answer["error"]
    assert worker.requests("progress")  # the engine notes such requests
    assert worker.requests("cmd-flags") == []
