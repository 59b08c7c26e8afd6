"""A client that closes its connection no longer pays for its picture."""

import http.client
import json

import pytest
import requests
from fakes.a1111.process import wait_until
from fakes.worker_process import FOREVER, SMALL

LONG = SMALL | {"steps": 150}  # with the slow steps below, longer than any wait of a test


@pytest.fixture
def slow(worker):
    worker.worker.fault("slow_steps", seconds=0.5, times=FOREVER)
    yield worker.worker
    worker.worker.no_faults()


def posted(url, route="/sdapi/v1/txt2img", body=LONG):
    """A connection that waits for the answer to its POST."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request("POST", route, json.dumps(body), {"Content-Type": "application/json"})
    return connection


def waiting(url):
    return requests.get(f"{url}/health", timeout=30).json()["jobs"]["inQueue"]


def test_thirty_of_thirty_clients_that_hang_up_leave_an_idle_engine(worker, slow):
    before = len(slow.requests())
    for number in range(30):
        connection = posted(worker.url)
        slow.wait_until_generating()
        connection.close()
        wait_until(slow.engine_is_idle, f"an idle engine after hang-up {number + 1}")
    assert len(slow.requests()) == before + 30
    assert worker.worker.log().count("nobody waits for it any more") >= 30


def test_a_client_of_an_endpoint_that_hangs_up_cancels_the_job_there(url, slow):
    connection = posted(url)
    slow.wait_until_generating()
    connection.close()
    wait_until(slow.engine_is_idle, "an idle engine")


def test_a_job_that_waits_is_never_begun_when_its_client_hangs_up(worker, slow):
    before = len(slow.requests())
    first = posted(worker.url)
    slow.wait_until_generating()
    second = posted(worker.url, body=LONG | {"prompt": "never drawn"})
    wait_until(lambda: waiting(worker.url) == 1, "the second job in the queue")
    second.close()
    wait_until(lambda: waiting(worker.url) == 0, "an empty queue")
    first.close()
    wait_until(slow.engine_is_idle, "an idle engine")
    assert len(slow.requests()) == before + 1
