"""The worker's own checks: each fails only if no job could succeed."""

import errno
import tempfile
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from worker.config.settings import Settings
from worker.errors import ConnectionLost, GpuNotUsed
from worker.runpod.fitness import Fitness

CUDA = {"system": {"free": 1, "used": 1, "total": 2}}
NO_CUDA = {"error": "unavailable"}


@pytest.fixture
def fitness(tmp_path):
    def make(cuda=CUDA, *, memory=None, **settings):
        settings = {"engine": "a1111", "models_dir": tmp_path, "engine_device": "cuda"} | settings
        engine = SimpleNamespace(memory=memory or (lambda: {"ram": {}, "cuda": cuda}))
        return Fitness(Settings(**settings), engine)

    return make


def test_a_good_worker_passes_and_each_check_has_a_name(fitness, tmp_path):
    for check in fitness().checks():
        check()
        assert check.__name__.isidentifier()  # the SDK reports it
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_is_gone_or_without_the_promised_gpu_fails(fitness):
    def gone():
        raise ConnectionLost("gone.")

    with pytest.raises(ConnectionLost):
        fitness(memory=gone).engine_answers()
    for how in ({}, {"engine_device": None, "runpod_gpu_count": "1"}):
        for engine in ("a1111", "embedded"):
            with pytest.raises(GpuNotUsed, match="cannot use CUDA"):
                fitness(cuda=NO_CUDA, engine=engine, **how).engine_has_the_gpu()


NO_FIGURE = {"cuda": {"error": "some figure is not available"}}


@pytest.mark.parametrize(
    "how",
    [
        *({"engine_device": None}, {"engine_device": None, "runpod_gpu_count": "0"}),
        *({"engine_device": "cpu", "runpod_gpu_count": "1"}, {"engine": "external"}),
        *({"webui_args": "--use-cpu all"}, {"device": "cpu"}, NO_FIGURE),
    ],
)
def test_a_gpu_that_is_not_needed_may_be_missing(fitness, how):
    fitness(**{"cuda": NO_CUDA} | how).engine_has_the_gpu()


FATAL = {errno.EIO, errno.ESTALE}


@pytest.mark.parametrize("code", [*FATAL, errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT])
def test_only_broken_storage_fails(fitness, monkeypatch, code):
    def fail(**_):
        raise OSError(code, "broken")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    with pytest.raises(OSError, match="broken") if code in FATAL else nullcontext():
        fitness().store_works()
