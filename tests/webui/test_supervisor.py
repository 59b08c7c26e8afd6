import os
import signal

import pytest

from worker.webui.supervisor import UNKNOWN, EngineProcess, Supervisor
from worker.webui.timing import EngineTiming

RUNNING = EngineProcess("running", pid=123)


@pytest.fixture
def start_sh(tmp_path):
    """The files that this process, in the role of start.sh, found at each signal."""
    (tmp_path / "engine").write_text("running 123\n")
    found = []
    before = signal.signal(
        signal.SIGUSR1, lambda *_: found.append((tmp_path / "engine.restart").read_text())
    )
    yield found
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(
    ("line", "process"),
    [
        ("running 123\n", RUNNING),
        ("restarting 139\n", EngineProcess("restarting", status=139)),
        ("failed 1\n", EngineProcess("failed", status=1)),
        ("", UNKNOWN),
        ("garbage\n", UNKNOWN),
    ],
)
def test_the_line_of_start_sh_is_read(tmp_path, line, process):
    (tmp_path / "engine").write_text(line)

    supervisor = Supervisor(tmp_path, pid=1)
    assert supervisor.engine() == process
    assert supervisor.can_restart == (process != UNKNOWN)


def test_without_start_sh_the_process_is_unknown_and_no_file_is_written(tmp_path):
    (tmp_path / "engine").write_text("running 123\n")
    alone = Supervisor(tmp_path, pid=None)

    assert (alone.engine(), alone.can_restart) == (UNKNOWN, False)
    alone.request_restart("hung")
    assert [file.name for file in tmp_path.iterdir()] == ["engine"]


def test_readiness_is_written_for_start_sh_and_a_request_before_its_signal(tmp_path, start_sh):
    supervisor = Supervisor(tmp_path, pid=os.getpid())
    supervisor.mark_ready(RUNNING)
    supervisor.request_restart("damaged-cache")

    assert (tmp_path / "engine.ready").read_text() == "123\n"
    assert start_sh == ["damaged-cache\n"]


@pytest.mark.parametrize(
    ("restart_limit", "process"), [(60.0, EngineProcess("restarting")), (0.0, RUNNING)]
)
@pytest.mark.usefixtures("start_sh")
def test_a_process_whose_restart_was_requested_counts_as_gone_for_a_while(
    tmp_path, restart_limit, process
):
    timing = EngineTiming(restart_limit=restart_limit)
    supervisor = Supervisor(tmp_path, pid=os.getpid(), timing=timing)
    supervisor.request_restart("poisoned")

    assert supervisor.engine() == process
    assert supervisor.can_restart
    (tmp_path / "engine").write_text("running 124\n")
    assert supervisor.engine() == EngineProcess("running", pid=124)
