"""The worker's own checks: each fails only where no job could succeed."""

import errno
import tempfile

import pytest
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import running_worker

from worker.config.settings import Settings
from worker.errors import ConnectionLost, EngineFault
from worker.runpod.fitness import Fitness


class Engine:
    """What the checks ask of a WebUI."""

    def __init__(self, cuda):
        self._cuda = cuda

    def memory(self):
        if self._cuda is None:
            raise ConnectionLost("gone.")
        return {"ram": {}, "cuda": self._cuda}


CUDA = {"system": {"free": 1, "used": 1, "total": 2}}
NONE = {"error": "unavailable"}


@pytest.fixture
def fitness(tmp_path):
    def make(cuda=CUDA, *, has_gpu=True, **settings):
        settings = {"engine": "a1111", "models_dir": tmp_path / "models"} | settings
        return Fitness(Settings(**settings), Engine(cuda), has_gpu=has_gpu)

    return make


def test_a_good_worker_passes_and_each_check_has_a_name(fitness):
    for check in fitness().checks():
        check()
        assert check.__name__.isidentifier()  # the SDK reports it


def test_an_engine_that_is_gone_fails(fitness):
    with pytest.raises(ConnectionLost):
        fitness(cuda=None).engine_answers()


def test_a1111_without_the_gpu_that_is_there_fails(fitness):
    with pytest.raises(EngineFault, match="cannot use CUDA"):
        fitness(cuda=NONE).engine_has_the_gpu()


@pytest.mark.parametrize(
    "how",
    [
        {"has_gpu": False},
        {"engine": "embedded"},
        {"engine": "external"},
        {"webui_args": "--use-cpu all"},
        {"cuda": {"error": "some figure cannot be had"}},
    ],
)
def test_where_a_gpu_is_not_sure_to_be_used_it_may_be_missing(fitness, how):
    fitness(**{"cuda": NONE} | how).engine_has_the_gpu()


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_storage_that_is_broken_fails(fitness, monkeypatch, code):
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", failing(code))
    with pytest.raises(OSError, match="broken"):
        fitness().store_works()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT])
def test_a_full_or_read_only_store_still_has_models(fitness, monkeypatch, code):
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", failing(code))

    fitness().store_works()


def test_the_check_of_the_store_leaves_nothing_behind(fitness, tmp_path):
    (tmp_path / "models").mkdir()
    fitness().store_works()

    assert list((tmp_path / "models").iterdir()) == []


def failing(code):
    def fail(**_):
        raise OSError(code, "broken")

    return fail


def test_a_worker_that_is_unfit_tells_runpod_and_ends(tmp_path):
    """The fake A1111 has no GPU; RunPod says that there is one."""
    with (
        RunPodPlane() as plane,
        running_worker(tmp_path, plane, wait=False, RUNPOD_GPU_COUNT="1") as worker,
    ):
        assert worker.process.wait(60) == 1

        report = plane.events("ping")[0]["query"]
        assert (report["status"], report["check"]) == ("unhealthy", "engine_has_the_gpu")
        assert plane.events("take") == []
