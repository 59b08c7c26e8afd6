"""Jobs between the control plane and a handler: the real SDK with our transport in it.

benchmarks/rows/gap.py does some of it beside the plain SDK.
"""

import os
import signal
from contextlib import suppress

import pytest
from fakes.a1111.process import wait_until
from fakes.runpod_plane import RunPodPlane
from fakes.sdk_worker import running_sdk_worker
from fakes.worker_process import running_worker

SOON = 60.0  # seconds; a busy machine is slow
QUICK = {"first_post_pause": 0.01, "longest_post_pause": 0.1}
QUICK |= {"longest_take_pause": 0.2, "between_stops": 0.1}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A worker that runs four jobs at once, for all tests after which it must still work."""
    folder = tmp_path_factory.mktemp("sdk")
    with (
        RunPodPlane(hold=1.0) as plane,
        running_sdk_worker(folder, plane, timing=QUICK, CONCURRENCY="4") as worker,
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
    """Start a worker for this test alone; with a long hold, so that no poll ends by itself.

    The plane answers the end of a poll at once, or on a busy machine as late as it likes.
    """
    timing = QUICK | {"ended_poll": 2 * SOON}
    with RunPodPlane(hold=60.0) as plane:
        yield plane, lambda **how: running_sdk_worker(tmp_path, plane, timing=timing, **how)


def finished(plane, job_input):
    return plane.wait(plane.submit(job_input), SOON)


def end(worker):
    """SIGTERM, until the worker has noticed it."""
    worker.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "SIGTERM: this worker takes no more" in worker.log(), "SIGTERM's arrival")


def test_after_dropped_polls_jobs_are_taken_again(plane, shared):
    plane.fault("job-take", times=4, drop=True)  # the HTTP client sends each poll twice
    wait_until(lambda: shared.log().count("taking a job failed (no answer") >= 2, "failed polls")


def test_pings_name_the_running_jobs(plane, tmp_path):
    gate = tmp_path / "gate"
    job = plane.submit({"until": str(gate)})

    def named():
        return "".join(event["query"].get("job_id", "") for event in plane.events("ping"))

    wait_until(lambda: job in named(), "its ping")
    gate.touch()
    plane.wait(job, SOON)


# The end ------------------------------------------------------------------------------------------


def test_sigterm_while_idle_ends_the_open_poll(own):
    """The plain SDK waits for its poll, which RunPod holds for longer than this test waits."""
    _, start = own
    with start() as worker:
        end(worker)
        assert worker.process.wait(SOON - 10) == 0, worker.log()


def test_sigterm_during_a_job_lets_it_finish(own, tmp_path):
    plane, start = own
    with start() as worker:
        gate = tmp_path / "gate"
        job = plane.wait_until_taken(plane.submit({"until": str(gate), "echo": "kept"}))
        plane.fault("job-done", status=502, times=2)
        waiting = plane.submit({})
        end(worker)
        worker.process.send_signal(signal.SIGTERM)
        gate.touch()
        assert worker.process.wait(SOON) == 0
        assert plane.status(job)["output"]["echo"] == "kept"
        assert plane.status(waiting)["status"] == "IN_QUEUE"


def test_a_cancelled_job_is_stopped_also_after_sigterm(own):
    plane, start = own
    with start() as worker:
        job = plane.wait_until_taken(plane.submit({"seconds": 600}))
        end(worker)
        plane.fault("job-stop", status=500)
        plane.cancel(job)
        assert worker.process.wait(SOON) == 0
        assert f"job {job} was stopped" in worker.log()
        assert plane.events("done") == []


def test_a_hanging_event_loop_ends_the_worker_and_its_pings(tmp_path):
    with (
        RunPodPlane() as plane,
        running_sdk_worker(tmp_path, plane, timing={"silence": 2.0}) as worker,
    ):
        plane.wait_for("ping", SOON)
        plane.submit({"hang": 600})
        assert worker.process.wait(SOON) == -signal.SIGKILL
        assert "in handler" in worker.log()

        def are_gone():
            with suppress(ProcessLookupError):
                os.killpg(worker.process.pid, 0)
                return False
            return True

        wait_until(are_gone, "the end of the pings")


def test_a_thread_that_never_ends_does_not_keep_a_worker_that_has_ended(tmp_path):
    with (
        RunPodPlane() as plane,
        running_sdk_worker(tmp_path, plane, timing={"silence": 2.0}) as worker,
    ):
        assert finished(plane, {"thread": 1})["status"] == "COMPLETED"
        worker.process.terminate()
        assert worker.process.wait(SOON) == 1
        assert "threading.py" in worker.log()  # where each thread is


# What the SDK still does --------------------------------------------------------------------------


def test_with_another_release_the_plain_sdk_runs_and_a_warning_is_logged(own):
    plane, start = own
    with start(OTHER_SDK="1") as worker:
        assert finished(plane, {"echo": 1, "progress": 1})["status"] == "COMPLETED"
        assert plane.events("progress") == []  # the plain SDK cannot order them
        assert "the plain RunPod SDK takes and posts jobs, because it is runpod" in worker.log()


@pytest.mark.parametrize("environ", [{"RUNPOD_WEBHOOK_POST_STREAM": ""}, {"OTHER_SDK": "1"}, {}])
def test_chunks_are_posted_only_where_runpod_has_named_the_route(own, environ):
    plane, start = own
    with start(**environ):
        job = {"echo": 1, "chunks": [{"type": "picture", "number": 1}]}
        assert finished(plane, job)["status"] == "COMPLETED"
        assert len(plane.events("chunk")) == (environ == {})
        assert plane.events("done")[0]["is_stream"] is (environ == {})


def test_a_post_whose_answer_is_lost_is_sent_again_so_a_piece_may_come_twice(own):
    plane, start = own
    pieces = [{"type": "picture", "number": 1, "part": part} for part in (1, 2)]
    for route in ("job-stream", "job-done"):
        plane.fault(route, drop=True, is_done=True)
    with start() as worker:
        job = finished(plane, {"echo": 1, "chunks": pieces})
        end(worker)
        assert worker.process.wait(SOON) == 0
    assert [event["output"]["part"] for event in plane.events("chunk")] == [1, 1, 2]
    assert [event["late"] for event in plane.events("done")] == [False, True]
    assert (job["status"], job["output"]) == ("COMPLETED", {"echo": 1})


TEST_INPUT = ("--test_input", '{"input": {"prompt": "a fox"}}')


@pytest.mark.parametrize("arguments", [(), TEST_INPUT, ("--rp_serve_api",)])
def test_a_worker_whose_engine_does_not_use_the_gpu_ends_with_71_and_reports_it(
    tmp_path, arguments
):
    """The whole worker: nvidia-smi lists a GPU, and the fake A1111 has no CUDA."""
    with (
        RunPodPlane() as plane,
        running_worker(
            tmp_path, plane, wait=False, arguments=arguments, FAKE_A1111_CUDA=""
        ) as worker,
    ):
        assert worker.process.wait(SOON) == 71
        assert "would compute on the CPU, although this machine has a GPU" in worker.log()
        assert plane.events("take") == []
        report = plane.events("ping")[0]["query"]
        assert (report["status"], report["check"]) == ("unhealthy", "engine_has_the_gpu")
