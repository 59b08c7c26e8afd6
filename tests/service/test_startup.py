"""What is done while the engine boots."""

import threading
from pathlib import Path

import pytest

from worker.errors import EngineNotReady
from worker.service.startup import boot, read_ahead


def test_background_work_is_timed_and_learns_when_the_engine_has_booted():
    begun, states = threading.Event(), []

    def models(stop, booted):
        begun.set()
        states.append(booted.wait(30))
        states.append(stop.is_set())

    timings = boot(lambda _timeout: begun.wait(30), 60, {"models": models})

    assert set(timings) == {"engine", "models", "total"}
    assert states == [True, False]


def test_background_work_is_stopped_when_the_engine_does_not_boot():
    stopped = threading.Event()

    def boot_engine(timeout):
        raise EngineNotReady(f"no picture within {timeout:g} s.")

    def models(stop, _booted):
        if stop.wait(30):
            stopped.set()

    with pytest.raises(EngineNotReady, match="within 60 s"):
        boot(boot_engine, 60, {"models": models})
    assert stopped.wait(30)


def test_reading_ahead_ends_with_the_file_or_when_it_is_stopped(tmp_path):
    """A test that hangs shows the fault: /dev/zero has no end."""
    (tmp_path / "file").write_bytes(bytes(1000))
    read_ahead(tmp_path / "file", threading.Event())
    read_ahead(tmp_path / "missing", threading.Event())
    stopped = threading.Event()
    stopped.set()
    read_ahead(Path("/dev/zero"), stopped)
