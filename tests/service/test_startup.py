import threading
from contextlib import nullcontext

import pytest

import handler
from worker.errors import EngineNotReady
from worker.service.startup import boot


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
        seconds = boot(boot_engine, 60, {"models": models}, threading.Event())
        assert set(seconds) == {"engine", "models", "total"}
        assert ended.is_set()  # it was waited for
    assert ended.wait(30)
    assert states == [True, not boots]


def test_work_that_takes_longer_than_the_boot_may_goes_on_until_the_process_ends():
    stop, ended = threading.Event(), threading.Event()

    def models(stop, _booted):
        stop.wait(30)
        ended.set()

    boot(lambda _timeout: None, 0.01, {"models": models}, stop)
    assert not ended.is_set()
    stop.set()
    assert ended.wait(30)


def test_the_work_of_the_start_ends_with_the_process(tmp_path, monkeypatch):
    """A download would go on otherwise, and Python waits for its threads."""
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    monkeypatch.setenv("WEBUI_DIR", str(tmp_path))
    monkeypatch.setenv("ENGINE", "external")
    monkeypatch.setattr("sys.argv", ["handler.py"])
    ran = []
    monkeypatch.setattr(handler, "run", lambda one, *_: ran.append((one, one.ending.is_set())) or 0)
    assert handler.main() == 0
    [(one, was_ending)] = ran
    assert (was_ending, one.ending.is_set()) == (False, True)
