"""What counts as an exhausted machine, and what becomes of a job that meets it."""

import asyncio
import errno
import os
import resource

import pytest
from fakes.model_files import safetensors
from fakes.stub_engine import StubEngine, handler_with

from worker.errors import ModelFileInvalid, ModelHostFailed
from worker.exhaustion import is_exhaustion
from worker.files import storage_error
from worker.formats.model_file import ModelFile, check_with_safetensors


def raised_from(cause):
    error = ValueError("told otherwise")
    error.__cause__ = cause
    return error


def of_itself():
    error = ValueError("a circle")
    error.__cause__ = error
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (OSError(errno.EMFILE, "Too many open files"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (BlockingIOError(errno.EAGAIN, "fork"), True),
        (RuntimeError("can't start new thread"), True),
        (ImportError("x.so: failed to map segment from shared object"), True),
        (raised_from(MemoryError()), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("the engine is silent"), False),
        (ValueError("can't start new thread"), False),
        (of_itself(), False),
        (None, False),
    ],
)
def test_only_what_the_machine_lacks_is_exhaustion(error, expected):
    assert is_exhaustion(error) is expected


def too_many_files():
    return OSError(errno.EMFILE, "Too many open files")


def told_of_a_host():
    error = ModelHostFailed("the connection failed: Too many open files.", host="a")
    error.__cause__ = too_many_files()
    return error


@pytest.mark.parametrize("is_batch", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("can't start new thread"),
        storage_error(too_many_files()),
        told_of_a_host(),
    ],
)
def test_a_job_on_an_exhausted_machine_says_so_and_the_worker_is_replaced(
    catalog, tmp_path, monkeypatch, error, is_batch
):
    def fails(*_):
        raise error

    async def run():
        handler = handler_with(StubEngine(catalog, tmp_path), tmp_path)
        monkeypatch.setattr("worker.tasks.health.measure", fails)
        job = {"task": "health"}
        job = {"task": "batch", "inputs": [job, {"task": "templates"}]} if is_batch else job
        return await handler({"id": "1", "input": job})

    answer = asyncio.run(run())
    assert answer["refresh_worker"] is True
    answer = answer["results"][0] if is_batch else answer
    assert answer["error"].startswith("MACHINE_EXHAUSTED: the machine is exhausted: "), answer
    if isinstance(error, OSError | ModelHostFailed):
        assert "Too many open files" in answer["error"]
        assert answer["host"] == "a"


def test_too_many_open_files_says_nothing_about_a_model_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"x" * 100)

    def exhausted(_):
        raise OSError(errno.EMFILE, "Too many open files")

    file = ModelFile("lora", path, "a", 100)
    with pytest.raises(ModelFileInvalid):
        file.check()
    monkeypatch.setattr("worker.formats.model_file.open_regular", exhausted)
    path.write_bytes(b"x" * 101)
    with pytest.raises(OSError, match="Too many open files"):
        file.check()


def test_the_reason_is_told_why_the_safetensors_library_cannot_open_a_file(tmp_path):
    """It says of each file that it cannot open that there is no such file."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors())
    check_with_safetensors(path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.open(tmp_path, os.O_RDONLY)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        check_with_safetensors(path)
    except OSError as error:
        found = error
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert found.errno == errno.EMFILE
    with pytest.raises(FileNotFoundError) as missing:
        check_with_safetensors(tmp_path / "missing")
    assert missing.value.errno == errno.ENOENT
