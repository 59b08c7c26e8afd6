"""What counts as an exhausted machine, and what becomes of a job that meets it."""

import asyncio
import errno

import pytest
from fakes.stub_engine import StubEngine, handler_with

from worker.errors import ModelFileInvalid
from worker.exhaustion import is_exhaustion
from worker.formats.model_file import ModelFile


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


def test_a_job_on_an_exhausted_machine_says_so_and_the_worker_is_replaced(
    catalog, tmp_path, monkeypatch
):
    def no_thread(*_):
        raise RuntimeError("can't start new thread")

    async def run():
        handler = handler_with(StubEngine(catalog, tmp_path), tmp_path)
        monkeypatch.setattr("worker.tasks.health.measure", no_thread)
        return await handler({"id": "1", "input": {"task": "health"}})

    answer = asyncio.run(run())
    assert answer["error"].startswith("MACHINE_EXHAUSTED: "), answer
    assert answer["refresh_worker"] is True


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
