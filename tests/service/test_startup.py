"""What runs beside the engine's boot: timed, and only a favour."""

import threading
from pathlib import Path

from worker.service.startup import read_ahead, run_in_background
from worker.stopwatch import Stopwatch


def test_what_runs_beside_is_timed_while_it_runs_and_afterwards():
    stopwatch, go_on = Stopwatch(60), threading.Event()
    thread = run_in_background(stopwatch, "models", go_on.wait)
    while "models" not in stopwatch.timings():
        pass
    go_on.set()
    thread.join()

    timings = stopwatch.timings()
    assert set(timings) == {"models", "total"}
    assert timings["total"] >= timings["models"] >= 0


def test_reading_ahead_ends_with_the_file_or_when_it_is_told_to(tmp_path):
    """Both would go on for ever."""
    (tmp_path / "file").write_bytes(bytes(1000))
    read_ahead(tmp_path / "file", threading.Event())
    read_ahead(tmp_path / "missing", threading.Event())
    stopped = threading.Event()
    stopped.set()
    read_ahead(Path("/dev/zero"), stopped)
