"""The parts of the start are timed, also those that fail."""

import threading

import pytest

from worker.startup import Startup, read_ahead


def test_each_part_is_timed_and_its_result_returned():
    startup = Startup()
    begun = threading.Event()

    beside = startup.beside("models", begun.wait)
    assert startup.run("engine", lambda: "ready") == "ready"
    begun.set()
    beside.join()

    timings = startup.finish()
    assert set(timings) == {"engine", "models", "total"}
    assert timings["total"] >= timings["models"] >= timings["engine"] >= 0


def test_a_part_that_fails_is_timed_too():
    startup = Startup()
    with pytest.raises(KeyError):
        startup.run("engine", lambda: {}["x"])

    assert "engine" in startup.timings


def test_reading_ahead_is_only_a_favour(tmp_path):
    (tmp_path / "file").write_bytes(bytes(1000))
    stopped = threading.Event()
    read_ahead(tmp_path / "file", stopped)
    read_ahead(tmp_path / "missing", stopped)
    stopped.set()
    read_ahead(tmp_path / "file", stopped)
