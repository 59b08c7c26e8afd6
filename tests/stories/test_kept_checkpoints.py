"""Whole workers whose engine keeps several checkpoints; the fake A1111 keeps them as A1111 does."""

import os
import signal

import pytest
from fakes.a1111.process import write_safetensors
from fakes.model_files import sha256
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import SMALL, completed, running_worker

KEEPING = {"FAKE_A1111_PARTS": "checkpoints kept apart", "CHECKPOINTS_IN_MEMORY": "2"}


@pytest.fixture
def start(tmp_path):
    """Start a worker with two checkpoints; further settings can be given."""
    with RunPodPlane(hold=1.0) as plane:
        yield lambda **environ: running_worker(
            tmp_path, plane, checkpoints=("first", "second"), **environ
        )


def picture(worker, checkpoint, **job):
    return completed(worker.run(SMALL | {"checkpoint": checkpoint} | job))["images"][0]


def limit(worker):
    return completed(worker.run({"task": "health"}))["engine"]["checkpoints_limit"]


def test_a_kept_checkpoint_is_used_again_and_a_replaced_file_is_not(start):
    with start(**KEEPING) as worker:
        assert limit(worker) == 2
        first = [picture(worker, name) for name in ("first", "second")]
        assert [picture(worker, name) for name in ("first", "second")] == first
        assert "Using already loaded model second" in worker.log()
        write_safetensors(file := worker.store / "Stable-diffusion/second.safetensors", b"replaced")
        picture(worker, "first")
        result = completed(worker.run(SMALL | {"checkpoint": "second"}))
        assert result["images"][0] != first[1]
        assert result["models"][0]["sha256"] == sha256(file.read_bytes())


def test_an_engine_that_was_killed_keeps_only_one_from_then_on(start):
    with start(**KEEPING) as worker:
        before = picture(worker, "first")
        os.kill(worker.engine_pid(), signal.SIGKILL)
        assert picture(worker, "first") == before
        assert limit(worker) == 1
        assert "it once ended or ran out of memory with more" in worker.log()


@pytest.mark.parametrize("name", ["WEBUI_ARGS", "COMMANDLINE_ARGS"])
def test_an_engine_that_moves_parts_of_a_checkpoint_keeps_one(start, name):
    with start(**KEEPING, **{name: "--medvram"}) as worker:
        assert limit(worker) == 1
        assert "--medvram moves parts of one checkpoint" in worker.log()


def test_an_a1111_without_the_extension_keeps_one(start):
    with start(CHECKPOINTS_IN_MEMORY="2") as worker:
        assert limit(worker) == 1
        picture(worker, "first")
        picture(worker, "second")
        picture(worker, "first")
        assert "Using already loaded model" not in worker.log()
