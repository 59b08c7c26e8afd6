import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from worker.errors import EngineNotReady
from worker.service.startup import boot, read_ahead


@pytest.mark.parametrize("boots", [True, False])
def test_background_work_is_timed_and_stopped_when_the_engine_does_not_boot(boots):
    begun, ended, states = threading.Event(), threading.Event(), []

    def boot_engine(timeout):
        begun.wait(30)
        if not boots:
            raise EngineNotReady(f"no picture within {timeout:g} s.")

    def models(stop, booted):
        begun.set()
        states.extend([booted.wait(30), stop.wait(0 if boots else 30)])
        ended.set()

    unready = pytest.raises(EngineNotReady, match="within 60 s")
    with nullcontext() if boots else unready:
        assert set(boot(boot_engine, 60, {"models": models})) == {"engine", "models", "total"}
        assert ended.is_set()  # it was waited for
    assert ended.wait(30)
    assert states == [True, not boots]


def test_reading_ahead_ends_with_the_file_or_when_it_is_stopped(tmp_path):
    """A test that hangs shows the fault: /dev/zero has no end."""
    (tmp_path / "file").write_bytes(bytes(1000))
    stopped = threading.Event()
    for name in ("file", "missing"):
        read_ahead(tmp_path / name, stopped)
    stopped.set()
    read_ahead(Path("/dev/zero"), stopped)
