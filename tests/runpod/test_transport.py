"""Jobs between the control plane and a handler: the real SDK with our transport in it.

benchmarks/runpod_transport.py does the same at length, and beside the plain SDK.
"""

import os
import signal
import time

import pytest
from fakes.a1111.process import wait_until
from fakes.hosts.slow_line import SlowLine
from fakes.runpod_plane import RunPodPlane
from fakes.sdk_worker import FAULTS, running_sdk_worker

FOREVER = -1
SOON = 30.0  # seconds; a busy machine is slow


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A worker that runs four jobs at once, for all tests after which it must still work."""
    with (
        RunPodPlane(hold=1.0) as plane,
        running_sdk_worker(tmp_path_factory.mktemp("sdk"), plane, CONCURRENCY="4") as worker,
    ):
        worker.plane = plane
        yield worker
        assert "fake-key" not in worker.log()


@pytest.fixture
def plane(shared):
    yield shared.plane
    assert finished(shared.plane, {"echo": 1})["status"] == "COMPLETED", shared.log()


@pytest.fixture
def own(tmp_path):
    """Start a worker of the test's own; with a long hold, so that nothing ends by itself."""
    with RunPodPlane(hold=60.0) as plane:
        yield plane, lambda **how: running_sdk_worker(tmp_path, plane, **how)


def finished(plane, job_input):
    return plane.wait(plane.submit(job_input), SOON)


def failed(job, code):
    assert job["status"] == "FAILED", job
    assert job["error"].startswith(f"{code}: "), job
    assert job["output"]["code"] == code
    return job["error"]


def posts(plane, job):
    return [event["body"] for event in plane.events("done") if event["id"] == job]


# Results --------------------------------------------------------------------------------------


def test_no_result_is_lost_whatever_happens_to_its_post(plane):
    for number, fault in enumerate(FAULTS * 12):
        plane.fault("job-done", job=f"faulty-{number}", **fault)
    for number, _ in enumerate(FAULTS * 12):
        plane.submit({"echo": number}, id=f"faulty-{number}")

    for number, fault in enumerate(FAULTS * 12):
        done = plane.wait(f"faulty-{number}", 60)
        if "times" in fault:
            assert done["output"]["echo"] == number
        else:
            assert f"(HTTP {fault['status']}" in failed(done, "RESULT_REFUSED")


@pytest.mark.parametrize("status", [400, 404, 413])
def test_a_refused_result_becomes_an_error_that_says_so(plane, status):
    plane.fault("job-done", status=status)
    said = failed(finished(plane, {"size": 2_000_000}), "RESULT_REFUSED")

    assert f"(HTTP {status}, 2.0 MB). Ask for fewer or smaller pictures" in said


def test_a_short_error_that_is_refused_is_posted_again(plane):
    plane.fault("job-done", status=400, times=3)

    failed(finished(plane, {}), "RESULT_REFUSED")


def test_a_result_that_is_no_json_is_told(plane):
    said = failed(finished(plane, {"not_json": True}), "INTERNAL_ERROR")

    assert "the result is no JSON" in said


@pytest.mark.parametrize("way", ["fail", "cancel"])
def test_a_handler_that_breaks_is_told_without_its_traceback(plane, shared, way):
    said = failed(finished(plane, {way: True}), "INTERNAL_ERROR")

    incident = said.split("id ")[1].split(".")[0]
    assert "Traceback" not in said
    assert f"internal error {incident}" in shared.log()


def test_progress_arrives_in_order_and_before_the_result(plane):
    job = plane.submit({"progress": 30})
    plane.wait(job, SOON)

    told = [event for event in plane.events() if event.get("id") == job]
    reports = [event["output"] for event in told if event["kind"] == "progress"]
    assert reports == list(range(30))
    assert not any(event["late"] for event in told if event["kind"] == "progress")


def test_a_progress_report_that_is_lost_costs_one_attempt(plane):
    plane.fault("job-done", status=500)
    before = len(plane.events("progress"))

    assert finished(plane, {"progress": 3})["status"] == "COMPLETED"
    assert [event["output"] for event in plane.events("progress")[before:]] == [1, 2]


# Taking ---------------------------------------------------------------------------------------


def test_jobs_run_side_by_side_up_to_the_concurrency(plane, shared):
    jobs = [plane.submit({"seconds": 2}) for _ in range(8)]
    for job in jobs:
        plane.wait(job, SOON)

    times = [row for row in shared.times() if row[0] in jobs]
    beside = [sum(began <= start < ended for _, began, ended in times) for _, start, _ in times]
    assert max(beside) == 4


def test_a_job_that_is_given_out_twice_runs_once(plane, shared):
    job = plane.submit({"seconds": 1})
    wait_until(lambda: plane.status(job)["status"] == "IN_PROGRESS", "its start")
    plane.again(job)
    plane.wait(job, SOON)

    assert [row[0] for row in shared.times()].count(job) == 1
    assert f"job {job} was given out twice" in shared.log()


def test_without_a_pause_between_jobs(plane):
    """The plain SDK looks for a free slot once a second: 200 jobs, four at a time, take 50 s."""
    started = time.monotonic()
    for job in [plane.submit({}) for _ in range(200)]:
        plane.wait(job, SOON)

    assert time.monotonic() - started < 20


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 401}, {"drop": True}])
def test_after_failed_takes_it_backs_off(plane, fault):
    """The plain SDK asks again at once: some thousand times a second."""
    plane.wait_for("take", SOON, count=len(plane.events("take")) + 1)
    plane.fault("job-take", times=FOREVER, **fault)
    plane.wait_for("fault", SOON, count=len(plane.events("fault")) + 1)
    before = len(plane.events("take"))
    time.sleep(3)
    asked = len(plane.events("take")) - before
    plane.no_faults()

    assert 1 <= asked <= 2 * 8  # a dropped poll is sent twice by the HTTP client


def test_an_empty_answer_at_once_is_not_asked_for_in_a_loop(plane):
    plane.fault("job-take", status=204, times=FOREVER)
    plane.wait_for("fault", SOON, count=len(plane.events("fault")) + 1)
    before = len(plane.events("take"))
    time.sleep(2)
    asked = len(plane.events("take")) - before
    plane.no_faults()

    assert 1 <= asked <= 11


# Stopping -------------------------------------------------------------------------------------


def test_a_cancelled_job_is_stopped_and_posts_nothing(plane, shared):
    job = plane.submit({"seconds": 600})
    wait_until(lambda: plane.status(job)["status"] == "IN_PROGRESS", "its start")
    plane.cancel(job)

    # not by the handler's own note: the stop may come before its first line
    wait_until(lambda: f"job {job} was stopped" in shared.log(), "its end")
    assert posts(plane, job) == []


def test_a_stop_that_comes_before_its_job_is_honoured(plane, shared):
    """The stop overtakes the answer with the job: the plain SDK drops it and runs the job."""
    plane.fault("job-take", late=1.5, times=2)  # the poll that is open has no fault yet
    finished(plane, {})
    job = plane.submit({"echo": "nobody wants this"})
    wait_until(lambda: plane.status(job)["status"] == "IN_PROGRESS", "its being given")
    plane.cancel(job)
    time.sleep(2)
    plane.no_faults()

    finished(plane, {})
    assert "was stopped before it began" in shared.log()
    assert job not in [row[0] for row in shared.times()]
    assert posts(plane, job) == []


def test_a_stop_for_a_job_that_is_over_does_not_stop_its_repetition(plane):
    """RunPod repeats a job under the same id."""
    job = plane.submit({"echo": 1})
    plane.wait(job, SOON)
    plane.stop(job)
    plane.again(job)

    assert plane.wait(job, SOON)["status"] == "COMPLETED"


# The end --------------------------------------------------------------------------------------


def test_sigterm_while_idle_ends_at_once_and_takes_no_job(own):
    plane, start = own
    with start() as worker:
        worker.process.send_signal(signal.SIGTERM)

        assert worker.process.wait(10) == 0  # the plain SDK waits for its poll: here 60 s
        job = plane.submit({})
        time.sleep(0.5)
        assert plane.status(job)["status"] == "IN_QUEUE"


@pytest.mark.parametrize("later", [0.22, 0.32])
def test_a_job_that_comes_after_sigterm_is_not_lost(own, tmp_path, later):
    """It comes while the worker waits for the end of its poll, over a line of 150 ms.

    A worker that went on listening would go before the later one arrives; one that polled again
    would take the earlier one.
    """
    plane, _ = own
    with (
        SlowLine(plane.port, delay=0.15) as line,
        running_sdk_worker(tmp_path, plane, line=line) as worker,
    ):
        time.sleep(0.4)  # until the poll is on its way
        worker.process.send_signal(signal.SIGTERM)
        time.sleep(later)
        job = plane.submit({})

        assert worker.process.wait(20) == 0
        assert plane.status(job)["status"] in {"IN_QUEUE", "COMPLETED"}, worker.log()


def test_a_job_that_is_on_its_way_when_sigterm_comes_is_run(own, tmp_path):
    """Over a line of 100 ms, where the job is given, and the answer under way, at SIGTERM."""
    plane, _ = own
    for number, lead in enumerate([0.0, 0.03, 0.08, 0.15]):
        with (
            SlowLine(plane.port, delay=0.1) as line,
            running_sdk_worker(tmp_path / str(number), plane, line=line) as worker,
        ):
            time.sleep(0.3)
            job = plane.submit({"echo": number})
            time.sleep(lead)
            worker.process.send_signal(signal.SIGTERM)

            assert worker.process.wait(20) == 0
            assert plane.status(job)["status"] == "COMPLETED", worker.log()


def test_sigterm_during_a_job_lets_it_finish(own):
    plane, start = own
    with start() as worker:
        job = plane.submit({"seconds": 2, "echo": "kept"})
        wait_until(lambda: plane.status(job)["status"] == "IN_PROGRESS", "its start")
        plane.fault("job-done", status=502, times=2)
        waiting = plane.submit({})
        for _ in range(2):
            worker.process.send_signal(signal.SIGTERM)

        assert worker.process.wait(20) == 0
        assert plane.status(job)["output"]["echo"] == "kept"
        assert plane.status(waiting)["status"] == "IN_QUEUE"


def test_a_cancelled_job_is_stopped_after_sigterm_too(own):
    plane, start = own
    with start() as worker:
        job = plane.submit({"seconds": 600})
        wait_until(lambda: plane.status(job)["status"] == "IN_PROGRESS", "its start")
        worker.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "SIGTERM" in worker.log(), "SIGTERM's arrival")
        plane.cancel(job)

        assert worker.process.wait(20) == 0


def test_a_result_that_retires_the_worker_is_its_last(own):
    plane, start = own
    with start(CONCURRENCY="2") as worker:
        beside = plane.submit({"seconds": 3})
        wait_until(lambda: plane.status(beside)["status"] == "IN_PROGRESS", "its start")
        last = plane.submit({"retire": True})
        plane.wait(last, SOON)
        waiting = plane.submit({})

        assert worker.process.wait(20) == 0
        assert posts(plane, last)[0]["stopPod"] is True
        assert plane.status(beside)["status"] == "COMPLETED"
        assert plane.status(waiting)["status"] == "IN_QUEUE"


def test_a_hanging_event_loop_ends_the_worker_and_its_pings(own):
    plane, start = own
    with start(WATCHDOG="1") as worker:
        plane.wait_for("ping", SOON)
        plane.submit({"hang": 600})

        assert worker.process.wait(20) == -signal.SIGKILL
        assert (
            "sdk_worker.py" in worker.log().split("Thread 0x")[-1] or "in handler" in worker.log()
        )
        with pytest.raises(ProcessLookupError):  # noqa: PT012 - it may take the kernel a moment
            for _ in range(50):
                os.killpg(worker.process.pid, 0)
                time.sleep(0.1)


# What the SDK still does ----------------------------------------------------------------------


def test_with_another_release_the_plain_sdk_works_and_a_warning_says_so(own):
    plane, start = own
    with start(OTHER_SDK="1") as worker:
        assert finished(plane, {"echo": 1, "progress": 1})["status"] == "COMPLETED"
        assert plane.events("progress") == []  # the plain SDK cannot order them

        assert (
            "the plain RunPod SDK takes and posts jobs, because it is runpod 1.12.0" in worker.log()
        )


def test_pings_name_the_jobs_that_run(plane):
    job = plane.submit({"seconds": 3})
    plane.wait(job, SOON)

    assert job in {event["query"].get("job_id") for event in plane.events("ping")}


def test_a_check_that_fails_ends_the_worker_before_it_takes_a_job(own):
    plane, start = own
    with start(wait=False, UNFIT="1") as worker:
        assert worker.process.wait(SOON) == 1

        report = plane.events("ping")[0]["query"]
        assert (report["status"], report["check"]) == ("unhealthy", "unfit")
        assert plane.events("take") == []
