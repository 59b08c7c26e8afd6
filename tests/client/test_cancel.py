"""Ctrl-C, SIGTERM and --timeout cancel the job that costs money, and say what became of it."""

import os
import signal

import pytest
from fakes.runpod_endpoint import completed, progress, queued


@pytest.fixture(autouse=True)
def _endless_job(endpoint):
    endpoint.states = lambda _: [queued(), progress(phase="generate", percent=5.0)]


def await_line(process, text):
    """Read standard error until it has a line with this text."""
    assert any(text in line.decode() for line in process.stderr), text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("seen", [1, 3])  # in the queue, at work
def test_a_signal_cancels_the_job_and_says_so(number, seen, endpoint, client):
    process = client.start("a fox")
    endpoint.wait_for("status", count=seen)
    process.send_signal(number)
    status, out, err = client.end(process)
    (job_id,) = endpoint.job_ids
    assert (status, out, endpoint.status(job_id)) == (130, "", "CANCELLED")
    assert err.endswith(f"Cancelled: the endpoint has accepted the cancel of the job {job_id}.\n")
    assert client.files() == []


def test_a_job_whose_id_is_still_on_the_way_is_cancelled_when_it_has_come(endpoint, client):
    endpoint.fault("run", hold=True)
    process = client.start("a fox")
    endpoint.wait_for("run")
    process.send_signal(signal.SIGINT)
    await_line(process, "cancelling the job")
    endpoint.release()
    assert client.end(process)[0] == 130
    (job_id,) = endpoint.job_ids
    assert endpoint.status(job_id) == "CANCELLED"


@pytest.mark.parametrize("route", ["run", "cancel"])
def test_a_second_signal_ends_at_once(route, endpoint, client):
    endpoint.fault(route, hold=True)
    process = client.start("a fox")
    endpoint.wait_for("run" if route == "run" else "status")
    process.send_signal(signal.SIGINT)
    await_line(process, "cancelling the job")
    endpoint.wait_for(route)
    process.send_signal(signal.SIGINT)
    status, _, err = client.end(process)
    assert status == 130
    assert "Ended without waiting for the cancel." in err
    assert (f"--cancel {endpoint.job_ids[0]}" if route == "cancel" else "may have been") in err


def test_a_cancel_that_fails_is_repeated_and_then_named(endpoint, client):
    endpoint.fault("cancel", status=500, times=2)
    process = client.start("a fox")
    endpoint.wait_for("status")
    process.send_signal(signal.SIGINT)
    assert client.end(process)[0] == 130
    assert len(endpoint.events("cancel")) == 3
    endpoint.fault("cancel", status=500, times=9)
    process = client.start("a fox")
    endpoint.wait_for("status", count=9)
    process.send_signal(signal.SIGINT)
    status, _, err = client.end(process)
    assert (status, "The cancel was not accepted:" in err) == (130, True)
    assert f"client.py --cancel {endpoint.job_ids[1]}" in err


def test_a_job_that_ended_meanwhile_is_named_with_the_way_to_its_pictures(endpoint, client):
    endpoint.states = lambda _: [progress(), completed(images=[])]
    endpoint.fault("status", hold=True, times=1)
    process = client.start("a fox")
    endpoint.wait_for("status")
    (job_id,) = endpoint.job_ids
    endpoint._jobs[job_id].advance()
    endpoint._jobs[job_id].advance()
    process.send_signal(signal.SIGINT)
    status, _, err = client.end(process)
    assert (status, "was already over (COMPLETED)" in err) == (130, True)
    assert f"client.py --fetch {job_id}" in err


def test_a_busy_endpoint_is_left_alone_after_a_signal(endpoint, client):
    endpoint.fault("run", status=429, times=99)
    process = client.start("a fox", quick="client.PAUSES = (60.0,)")
    endpoint.wait_for("run")
    process.send_signal(signal.SIGINT)
    status, _, err = client.end(process)
    assert (status, "Cancelled before a job was accepted." in err) == (130, True)


def test_the_time_of_timeout_is_over(endpoint, client):
    status, _, err = client("a fox", "--timeout", "0.5")
    assert (status, "not done within --timeout. Cancelled:" in err) == (1, True)
    assert endpoint.status(endpoint.job_ids[0]) == "CANCELLED"


def test_a_signal_before_a_job_is_sent(endpoint, client):
    os.mkfifo(client.folder / "job.json")
    # a signal between the opening of a file and its `with` leaves a warning
    process = client.start("--job", "job.json", warnings="ignore")
    with (client.folder / "job.json").open("wb"):  # it is reading
        process.send_signal(signal.SIGINT)
        status, _, err = client.end(process)
    assert (status, "Stopped. No job was sent." in err) == (130, True)
    assert endpoint.events() == []


def test_a_signal_while_pictures_are_fetched(endpoint, client):
    endpoint.states = lambda _: [completed(images=[f"{endpoint.url}/bucket/fox.png"])]
    endpoint.fault("bucket", hold=True)
    process = client.start("a fox")
    endpoint.wait_for("bucket")
    process.send_signal(signal.SIGINT)
    status, _, err = client.end(process)
    assert (status, f"client.py --fetch {endpoint.job_ids[0]}" in err) == (130, True)
    assert client.files() == []
