"""Stories about a job that is sent to the engine while the pictures of the one before are encoded.

The real SDK, start.sh and handler; RunPod and the engine are fakes. As A1111 does, the engine
encodes its answer after it has begun with the next request.
"""

import math
import os
import signal

import pytest
from fakes.a1111.process import wait_until
from fakes.hosts.model_hosts import ModelHosts
from fakes.model_files import safetensors
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import FOREVER, SMALL, completed, running_worker

JOB = SMALL | {"steps": 3}
DETAIL = {"loras": [{"name": "detail"}]}
ENCODING = 3.0  # seconds of a picture, so that much can happen after the next job's request
LONGEST = 50.0  # seconds until that request comes


@pytest.fixture(scope="module", params=["1", "2"])
def shared(request, tmp_path_factory):
    """A worker that takes the next job when the first one is nearly done, or two jobs at once."""
    folder, jobs = tmp_path_factory.mktemp("overlap"), {"JOB_CONCURRENCY": request.param}
    with (
        ModelHosts() as hosts,
        RunPodPlane(hold=1.0) as plane,
        running_worker(folder, plane, hosts=hosts, **jobs) as it,
    ):
        it.model_hosts = hosts
        yield it


@pytest.fixture
def worker(shared):
    """Its engine needs a while to encode a picture."""
    shared.fault("slow_steps", seconds=0.1, times=FOREVER)
    shared.fault("slow_encoding", seconds=ENCODING, times=FOREVER)
    yield shared
    shared.no_faults()
    assert shared.run(SMALL)["status"] == "COMPLETED", shared.log()


class Pair:
    """Two jobs, one after the other; what the engine received for them."""

    def __init__(self, worker, first=JOB, second=JOB):
        self.worker, self.wanted = worker, [first | {"seed": 11}, second | {"seed": 22}]
        self.before = {path: len(worker.requests(path)) for path in ("2img", "interrupt")}
        worker.fault("encoding_waits", seconds=LONGEST)  # however slow this machine is
        self.first = worker.plane.submit(self.wanted[0])
        wait_until(lambda: self.sent() == [11], "the first job's request")
        self.second = worker.plane.submit(self.wanted[1])

    def received(self, path="2img"):
        return self.worker.requests(path)[self.before[path] :]

    def sent(self):
        return [request["body"]["seed"] for request in self.received()]

    def wait_until_both_are_sent(self):
        wait_until(lambda: len(self.sent()) > 1, "the second job's request")
        first, second = self.received()
        assert second["time"] < first.get("answered", math.inf), "after the first job's answer"

    def outputs(self):
        return [completed(self.worker.plane.wait(job, 60)) for job in (self.first, self.second)]

    def check(self, *outputs):
        """The outputs must have the pictures of the jobs alone; None: the job was cancelled."""
        self.worker.no_faults()
        for wanted, output in zip(self.wanted, outputs, strict=True):
            if output is not None:
                assert output["images"] == completed(self.worker.run(wanted))["images"]


def ended(worker, job):
    return [event for event in worker.plane.events("done") if event["id"] == job]


@pytest.mark.parametrize("second", [JOB, JOB | {"checkpoint": "second"}, JOB | DETAIL])
def test_the_next_jobs_request_arrives_while_this_jobs_pictures_are_encoded(worker, second):
    pair = Pair(worker, second=second)
    pair.wait_until_both_are_sent()
    pair.check(*pair.outputs())
    assert pair.received("interrupt") == []


def test_a_lora_that_is_downloaded_meanwhile_is_there_for_the_next_jobs_picture(worker):
    hosts = worker.model_hosts
    file = {"data": safetensors(number=1), "name": "new.safetensors", "kind": "LORA"}
    lora = hosts.add_model(version_id=700, **file).download_url
    hosts.throttle(None, ttfb=1.0)  # longer than the first job is computed
    worker.no_faults()
    worker.fault("slow_steps", seconds=0.1, times=FOREVER)
    pair = Pair(worker, second=JOB | {"loras": [lora]})
    pair.wait_until_both_are_sent()
    first, second = pair.received()
    assert second["time"] > first["ended"]
    pair.check(*pair.outputs())


def test_a_job_that_is_cancelled_while_its_pictures_are_encoded_does_not_stop_the_next(worker):
    pair = Pair(worker, second=JOB | {"steps": 60})
    pair.wait_until_both_are_sent()
    worker.plane.cancel(pair.first)
    output = completed(worker.plane.wait(pair.second, 60))
    assert ended(worker, pair.first) == []
    assert pair.sent() == [11, 22]
    pair.check(None, output)


def test_a_job_that_is_cancelled_while_it_waits_in_the_engine_is_stopped_when_it_begins(worker):
    worker.fault("slow_decoding", seconds=2.0)
    pair = Pair(worker, second=JOB | {"steps": 150})
    pair.wait_until_both_are_sent()
    assert "answered" not in pair.received()[0]
    worker.plane.cancel(pair.second)
    output = completed(worker.plane.wait(pair.first, 60))
    wait_until(worker.engine_is_idle, "the end of the second job")
    interrupts = pair.received("interrupt")
    assert interrupts[0]["time"] > pair.received()[0]["answered"]
    assert ended(worker, pair.second) == []
    pair.check(output, None)


def test_when_the_engine_dies_both_jobs_get_their_own_pictures_from_the_next_one(worker):
    pair = Pair(worker, second=JOB | {"steps": 60})
    pair.wait_until_both_are_sent()
    os.kill(worker.engine_pid(), signal.SIGKILL)
    pair.check(*pair.outputs())


def test_a_picture_that_was_made_while_the_job_before_failed_is_made_again(worker):
    """The engine reuses what it computed from the same prompt without the LoRA."""
    worker.fault("missing_lora")
    pair = Pair(worker, JOB | DETAIL, JOB | DETAIL)
    pair.wait_until_both_are_sent()
    pair.check(*pair.outputs())


def test_the_inputs_of_a_batch_overlap(worker):
    inputs = [JOB | {"seed": seed} for seed in (1, 2)]
    before = len(worker.requests())
    worker.fault("encoding_waits", seconds=LONGEST)
    output = completed(worker.run({"task": "batch", "inputs": inputs}))
    first, second = worker.requests()[before:]
    assert second["time"] < first["answered"]
    worker.no_faults()
    for wanted, result in zip(inputs, output["results"], strict=True):
        assert result["images"] == completed(worker.run(wanted))["images"]


def test_the_job_after_a_streamed_one_overlaps_with_its_last_picture(worker):
    before = len(worker.requests())
    wanted = [JOB | {"seed": 1, "n_iter": 2, "output": {"stream": True}}, JOB | {"seed": 9}]
    jobs = [worker.plane.submit(wanted[0])]
    wait_until(lambda: worker.requests()[before:], "the first job's request")
    jobs.append(worker.plane.submit(wanted[1]))
    outputs = [completed(worker.plane.wait(job, 60)) for job in jobs]
    *_, last, other = worker.requests()[before:]
    assert [last["body"]["seed"], other["body"]["seed"]] == [2, 9]
    assert other["time"] < last["answered"]
    worker.no_faults()
    assert outputs[1]["images"] == completed(worker.run(wanted[1]))["images"]
