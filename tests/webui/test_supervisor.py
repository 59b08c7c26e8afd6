import os
import signal

import pytest

from worker.webui.supervisor import UNKNOWN, EngineProcess, Supervisor
from worker.webui.timing import EngineTiming

WRITTEN = [
    ("running 123\n", EngineProcess("running", pid=123)),
    ("restarting 139\n", EngineProcess("restarting", status=139)),
    ("failed 1\n", EngineProcess("failed", status=1)),
    ("", UNKNOWN),
    ("garbage\n", UNKNOWN),
]


@pytest.mark.parametrize(("line", "process"), WRITTEN)
def test_what_start_sh_wrote_is_read(tmp_path, line, process):
    (tmp_path / "engine").write_text(line)

    assert Supervisor(tmp_path, pid=1).engine() == process


def test_without_start_sh_nothing_is_known_and_nothing_done(tmp_path):
    (tmp_path / "engine").write_text("running 123\n")
    alone = Supervisor(tmp_path, pid=None)

    assert alone.engine() == UNKNOWN
    assert not alone.can_restart
    alone.request_restart("hung")
    assert [file.name for file in tmp_path.iterdir()] == ["engine"]


def test_with_a_foreign_engine_there_is_nothing_to_restart(tmp_path):
    assert not Supervisor(tmp_path, pid=1).can_restart


def test_readiness_is_left_for_start_sh(tmp_path):
    Supervisor(tmp_path, pid=1).mark_ready(EngineProcess("running", pid=123))

    assert (tmp_path / "engine.ready").read_text() == "123\n"


def test_a_request_is_left_before_the_signal(tmp_path):
    seen = []
    before = signal.signal(
        signal.SIGUSR1, lambda *_: seen.append((tmp_path / "engine.restart").read_text())
    )
    try:
        Supervisor(tmp_path, pid=os.getpid()).request_restart("damaged-cache")
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert seen == ["damaged-cache\n"]


def test_an_engine_that_was_asked_to_go_is_not_used_until_start_sh_has_another(tmp_path):
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    told = tmp_path / "engine"
    told.write_text("running 123\n")
    supervisor = Supervisor(tmp_path, pid=os.getpid())
    try:
        supervisor.request_restart("poisoned")
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert supervisor.engine() == EngineProcess("restarting")
    assert supervisor.can_restart
    told.write_text("running 124\n")
    assert supervisor.engine() == EngineProcess("running", pid=124)


def test_an_engine_that_does_not_go_is_used_again_after_a_while(tmp_path):
    (tmp_path / "engine").write_text("running 123\n")
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    supervisor = Supervisor(tmp_path, pid=os.getpid(), timing=EngineTiming(restart_limit=0.0))
    try:
        supervisor.request_restart("poisoned")
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert supervisor.engine() == EngineProcess("running", pid=123)
