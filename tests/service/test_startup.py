import threading
from contextlib import nullcontext

import pytest

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
        assert set(boot(boot_engine, 60, {"models": models})) == {"engine", "models", "total"}
        assert ended.is_set()  # it was waited for
    assert ended.wait(30)
    assert states == [True, not boots]
