import os
import shutil
import signal
import subprocess

import pytest

from worker.webui.supervisor import ORPHANED, UNKNOWN, EngineProcess, Supervisor
from worker.webui.timing import EngineTiming

RUNNING = EngineProcess("running", pid=123)


@pytest.fixture
def start_sh(tmp_path):
    """The files that this process, in the role of start.sh, found at each signal."""
    (tmp_path / "engine").write_text("running 123\n")
    found, request = [], tmp_path / "engine.restart"
    before = signal.signal(signal.SIGUSR1, lambda *_: found.append(request.read_text()))
    yield found
    signal.signal(signal.SIGUSR1, before)


def test_the_line_of_start_sh_is_read(tmp_path):
    for line, process in {
        "running 123\n": RUNNING,
        "restarting 139\n": EngineProcess("restarting", status=139),
        "failed 1\n": EngineProcess("failed", status=1),
        "": UNKNOWN,
        "garbage\n": UNKNOWN,
        "failed 0 no restart left\n": EngineProcess("failed", status=0, cause="no restart left"),
        "running x\n": UNKNOWN,
        "running -1\n": UNKNOWN,
        f"running {'9' * 5000}\n": UNKNOWN,
        "dancing 5\n": UNKNOWN,
        "\udcff 5\n": UNKNOWN,
    }.items():
        (tmp_path / "engine").write_bytes(line.encode(errors="surrogateescape"))
        supervisor = Supervisor(tmp_path, pid=1)
        assert (supervisor.engine(), supervisor.can_restart) == (process, process != UNKNOWN)


def test_without_start_sh_the_process_is_unknown_and_no_file_is_written(tmp_path):
    (tmp_path / "engine").write_text("running 123\n")
    alone = Supervisor(tmp_path, pid=None)
    alone.request_restart("hung")
    assert (alone.engine(), alone.can_restart) == (UNKNOWN, False)
    assert [file.name for file in tmp_path.iterdir()] == ["engine"]


@pytest.mark.parametrize(
    ("restart_limit", "process"), [(60.0, EngineProcess("restarting")), (0.0, RUNNING)]
)
def test_start_sh_gets_files_and_a_signal_and_the_process_counts_as_gone_for_a_while(
    tmp_path, start_sh, restart_limit, process
):
    timing = EngineTiming(restart_limit=restart_limit)
    supervisor = Supervisor(tmp_path, pid=os.getpid(), timing=timing)
    supervisor.mark_ready(RUNNING)
    supervisor.request_restart("damaged-cache")
    assert (tmp_path / "engine.ready").read_text() == "123\n"
    assert start_sh == ["damaged-cache\n"]
    assert (supervisor.engine(), supervisor.can_restart) == (process, True)
    (tmp_path / "engine").write_text("running 124\n")
    assert supervisor.engine() == EngineProcess("running", pid=124)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("nowhere")])
def test_odd_files_in_run_dir_neither_block_nor_fail(tmp_path, caplog, make):
    for name in ("engine", "engine.ready", "engine.checkpoint"):
        make(tmp_path / name)
    supervisor = Supervisor(tmp_path, pid=1)
    assert (supervisor.engine(), supervisor.can_restart) == (UNKNOWN, False)
    supervisor.mark_ready(RUNNING)
    supervisor.note_checkpoint("x")
    assert make is not os.mkdir or caplog.text.count("cannot be written") == 2


def test_without_run_dir_the_engine_is_killed_and_nothing_fails(tmp_path, caplog):
    """start.sh then sees the engine's end."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as engine:
        (tmp_path / "engine").write_text(f"running {engine.pid}\n")
        supervisor = Supervisor(tmp_path, pid=os.getpid())
        assert supervisor.engine().pid == engine.pid
        shutil.rmtree(tmp_path)
        supervisor.mark_ready(RUNNING)
        supervisor.request_restart("poisoned")
        assert engine.wait(60) == -signal.SIGKILL
    assert "the engine is killed" in caplog.text


def test_the_engine_of_a_start_sh_that_has_ended_is_killed_and_counts_as_gone(tmp_path):
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as engine:
        (tmp_path / "engine").write_text(f"running {engine.pid}\n")
        supervisor = Supervisor(tmp_path, pid=os.getpid())  # not our parent
        assert supervisor.follow_start_sh()
        assert engine.wait(60) == -signal.SIGKILL
    assert supervisor.engine() == ORPHANED
    supervisor.request_restart("poisoned")  # sends no signal to a number that may be used again
    assert not Supervisor(tmp_path, pid=None).follow_start_sh()
