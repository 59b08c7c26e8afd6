"""The real start.sh: the end of an engine, and restarts."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from fakes.supervised import (
    DEAF_ENGINE,
    LASTING_ENGINE,
    LASTING_HANDLER,
    PARENT_ENGINE,
    as_handler,
    kill_engine,
)

from worker import kept_log
from worker.webui.supervisor import UNKNOWN, EngineProcess

NOT_READY, RESTARTS_USED_UP, NO_GPU = 69, 70, 71
KILLED = 128 + signal.SIGKILL
REPORTING_HANDLER = "me.serve(checks=True, status=3)"


# The engine's end -------------------------------------------------------------------------------


def test_an_engine_that_was_ready_is_restarted_after_a_crash_without_its_old_group(running):
    worker = running(PARENT_ENGINE)
    old = kill_engine(worker)
    new = worker.await_event("engine started", times=2)["pid"]
    assert new != old
    assert worker.members(old) == []
    assert as_handler(worker).engine() == EngineProcess("running", pid=new)
    assert f"the engine ended with status {KILLED}\n" in worker.log()
    assert worker.stop() == 0


@pytest.mark.parametrize(
    ("ended_with", "status", "text"),
    [
        (0, NOT_READY, "ended with status 0 before it was ready"),
        (NO_GPU, NO_GPU, "cannot use the GPU, as its last line explains"),
    ],
)
def test_an_engine_that_could_not_boot_is_never_restarted_and_leaves_nothing(
    new_worker, ended_with, status, text
):
    worker = new_worker(f"me.have_child(); me.crash({ended_with})", REPORTING_HANDLER)
    worker.start()
    assert worker.end() == status
    assert as_handler(worker).engine() == EngineProcess("failed", status=ended_with)
    assert worker.story().count("engine started") == 1
    assert text in worker.log()


def test_a_restarted_engine_that_cannot_boot_is_not_tried_again(running):
    worker = running("me.crash(1) if me.is_second() else me.ready(); me.serve()", REPORTING_HANDLER)
    kill_engine(worker)
    assert worker.end() == NOT_READY
    assert worker.story().count("engine started") == 2


def test_a_handler_that_does_not_report_a_failed_engine_is_stopped(new_worker):
    worker = new_worker("me.crash(1)")
    worker.shorten_waits()
    worker.start()
    assert worker.end() == NOT_READY
    assert worker.story()[-2:] == ["handler TERM", "handler stopped"]


@pytest.mark.parametrize(("limit", "window"), [(0, 900), (2, 900), (1, 0.9)])
def test_a_worker_whose_restarts_are_used_up_gives_up(new_worker, limit, window):
    """Also when the window is less than a second."""
    environ = {"MAX_ENGINE_RESTARTS": str(limit), "ENGINE_RESTART_WINDOW": str(window)}
    worker = new_worker("me.ready(); me.crash(139)", REPORTING_HANDLER, **environ)
    worker.start()
    assert worker.end() == RESTARTS_USED_UP
    if window == 900:
        assert worker.story().count("engine started") == 1 + limit
    assert f"no further restart: MAX_ENGINE_RESTARTS={limit} in {window}" in worker.log()
    engine = as_handler(worker).engine()
    assert (engine.state, engine.status) == ("failed", 139)
    assert engine.cause in worker.log()
    assert f"are used up ({'status 139, ' * limit}now status 139)" in engine.cause


@pytest.mark.parametrize("reason", ["poisoned", "damaged-cache"])
def test_requested_restarts_count_too_and_their_causes_are_named(running, reason):
    worker = running(LASTING_ENGINE, REPORTING_HANDLER, MAX_ENGINE_RESTARTS="1")
    as_handler(worker).request_restart(reason)
    worker.await_event("engine started", times=2)
    as_handler(worker).request_restart("poisoned")
    assert worker.end() == RESTARTS_USED_UP
    assert f"are used up ({reason}, now poisoned)" in worker.log()


@pytest.mark.parametrize("reason", ["bad-model", "hung", "out-of-memory", "replaced-model"])
def test_restarts_that_a_job_or_a_file_caused_do_not_count(running, reason):
    worker = running(MAX_ENGINE_RESTARTS="1")
    for number in range(2, 5):
        as_handler(worker).request_restart(reason)
        worker.await_event("engine started", times=number)
    kill_engine(worker)  # the one restart is still left
    worker.await_event("engine started", times=5)
    assert worker.stop() == 0


def test_such_a_restart_counts_if_the_engine_has_not_made_a_first_picture_in_between(running):
    """Otherwise it could go on for ever without progress."""
    worker = running("me.serve()", REPORTING_HANDLER, MAX_ENGINE_RESTARTS="1")
    as_handler(worker).request_restart("bad-model")
    worker.await_event("engine started", times=2)
    as_handler(worker).request_restart("bad-model")
    assert worker.end() == RESTARTS_USED_UP


def test_restarts_older_than_the_window_are_forgotten(running):
    worker = running(MAX_ENGINE_RESTARTS="1", ENGINE_RESTART_WINDOW="1")
    kill_engine(worker)
    worker.await_event("engine started", times=2)
    forgotten = time.monotonic() + 1.2
    worker.until(lambda: time.monotonic() > forgotten, "the end of the window")
    kill_engine(worker)
    worker.await_event("engine started", times=3)


# Restarts on request ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "reason", "is_removed"),
    [
        ("a1111", "poisoned", False),
        ("a1111", "damaged-cache", True),
        ("a1111", "replaced-model", True),  # it has the old hashes
        ("embedded", "damaged-cache", False),  # its folder named cache is not ours to remove
    ],
)
def test_only_a_damaged_cache_is_removed_and_only_while_a1111_is_down(
    new_worker, engine, reason, is_removed
):
    worker = new_worker(ENGINE=engine)
    cache = worker.webui / "cache" / "cache.db"
    cache.parent.mkdir()
    cache.touch()
    worker.start()
    worker.await_both()
    as_handler(worker).request_restart(reason)
    new = worker.await_event("engine started", times=2)
    if engine == "a1111":
        assert worker.await_event("engine started")["has_cache"]
        assert worker.await_event("engine stopped")["has_cache"]
        assert new["has_cache"] != is_removed
    assert cache.exists() != is_removed
    assert f"asks for a restart of the engine: {reason}" in worker.log()


def test_a_deaf_engine_is_killed_before_its_successor_starts(new_worker):
    worker = new_worker(DEAF_ENGINE)
    worker.shorten_waits()
    worker.start()
    worker.await_both()
    old = as_handler(worker).engine().pid
    as_handler(worker).request_restart("hung")
    worker.await_event("engine started", times=2)
    assert worker.members(old) == []
    assert "did not stop within" in worker.log()


def test_an_engine_that_still_boots_can_be_restarted_on_request(running):
    worker = running("me.serve()")
    as_handler(worker).request_restart("damaged-cache")
    worker.await_event("engine started", times=2)
    assert worker.stop() == 0


def test_a_signal_without_a_request_changes_nothing(running):
    worker = running()
    worker.process.send_signal(signal.SIGUSR1)
    assert worker.stop() == 0
    assert worker.story().count("engine started") == 1


# A damaged cache, and the default checkpoint -----------------------------------------------------

DIES_OF_ITS_CACHE = """
from pathlib import Path
if Path("cache/damaged").exists():
    me.crash(1)
me.ready(); me.serve()
"""


def damage_cache(worker):
    damaged = worker.webui / "cache" / "damaged"
    damaged.parent.mkdir(exist_ok=True)
    damaged.touch()


def test_an_engine_that_dies_of_its_cache_before_it_is_ready_is_started_once_more(new_worker):
    worker = new_worker(DIES_OF_ITS_CACHE, MAX_ENGINE_RESTARTS="0")
    damage_cache(worker)
    worker.start()
    worker.await_event("engine started", times=2)
    assert "may be damaged" in worker.log()
    assert worker.stop() == 0


def test_an_engine_whose_cache_is_damaged_while_it_runs_is_restarted_without_it(running):
    worker = running(DIES_OF_ITS_CACHE, MAX_ENGINE_RESTARTS="2")
    for number in (1, 2):  # the second time shows that the repair is possible again
        damage_cache(worker)
        kill_engine(worker)
        worker.await_event("engine started", times=1 + 2 * number)
    assert worker.stop() == 0


@pytest.mark.parametrize(
    ("engine", "status", "has_cache"),
    [("a1111", 1, False), ("a1111", 137, True), ("embedded", 1, True)],
)
def test_another_failed_start_is_not_repaired(new_worker, engine, status, has_cache):
    worker = new_worker(f"me.crash({status})", REPORTING_HANDLER, ENGINE=engine)
    if has_cache:
        damage_cache(worker)
    worker.start()
    assert worker.end() == NOT_READY
    assert worker.story().count("engine started") == 1
    assert (worker.webui / "cache").exists() == has_cache


def test_an_engine_that_dies_without_its_cache_too_is_not_started_a_third_time(new_worker):
    worker = new_worker("me.crash(1)", REPORTING_HANDLER)
    damage_cache(worker)
    worker.start()
    assert worker.end() == NOT_READY
    assert worker.story().count("engine started") == 2


def test_each_later_start_gets_the_checkpoint_that_the_handler_has_noted(running):
    worker = running()
    (worker.webui / "config.json").write_text('{"sd_vae": "x", "sd_model_checkpoint": "aaa"}')
    as_handler(worker).note_checkpoint("good one")
    kill_engine(worker)
    new = worker.await_event("engine started", times=2)
    assert json.loads(new["options"]) == {"sd_vae": "x", "sd_model_checkpoint": "good one"}


# RUN_DIR ------------------------------------------------------------------------------------------


def delete(run_dir):
    shutil.rmtree(run_dir)


def fill(run_dir):
    """Every write of start.sh fails as on a full disk, also for root."""
    (run_dir / ".engine.new").symlink_to("/dev/full")


def block(run_dir):
    """No write of start.sh succeeds, and what is there cannot be removed."""
    (run_dir / ".engine.new").mkdir()
    (run_dir / "engine").unlink()
    (run_dir / "engine").mkdir()


def confuse(run_dir):
    """A pipe, which nobody writes to, in the place of each file that start.sh reads."""
    for name in ("engine.checkpoint", "engine.restart"):
        os.mkfifo(run_dir / name)


@pytest.mark.parametrize("spoil", [delete, fill, block, confuse])
def test_an_engine_is_restarted_whatever_has_happened_to_run_dir(running, spoil):
    worker = running()
    pid = as_handler(worker).engine().pid
    spoil(worker.run_dir)
    os.kill(pid, signal.SIGKILL)
    worker.await_event("engine started", times=2)
    if spoil is not delete and spoil is not confuse:
        assert "RUN_DIR=" in worker.log()
        assert as_handler(worker).engine() == UNKNOWN
    assert worker.stop() == 0


def test_the_folder_of_a_killed_engine_is_removed(new_worker):
    folder = "import os, tempfile; tempfile.mkdtemp(prefix=f'{os.getpid()}-')"
    worker = new_worker(f"{folder}; me.ready(); me.serve()", ENGINE="embedded")
    worker.start()
    left = worker.run_dir / "engine.tmp"
    for restarts in range(2):
        pid = worker.await_event("engine started", times=restarts + 1)["pid"]
        worker.until(lambda: left.is_dir() and [*left.iterdir()], "the folder")
        if not restarts:
            os.kill(pid, signal.SIGKILL)
    assert [path.name.split("-")[0] for path in left.iterdir()] == [str(pid)]
    assert worker.stop() == 0
    assert not left.exists()


def test_the_handler_kills_an_engine_whose_restart_it_cannot_request(running):
    """start.sh sees its end."""
    worker = running()
    handler = as_handler(worker)
    handler.engine()
    (worker.run_dir / "engine.restart").mkdir()
    handler.request_restart("poisoned")
    worker.await_event("engine started", times=2)
    assert worker.stop() == 0


# The kept log -----------------------------------------------------------------------------------


def test_the_last_lines_of_start_sh_and_of_every_engine_are_kept_and_also_written(running):
    says = "print(f'I am engine {me.is_second()}', file=sys.stderr, flush=True);"
    worker = running(f"{says} {LASTING_ENGINE}", LASTING_HANDLER)
    kill_engine(worker)
    worker.await_event("engine started", 2)
    worker.stop()
    engine = kept_log.read(worker.run_dir / "log.engine").decode()
    assert engine.splitlines() == ["I am engine False", "I am engine True"]
    assert all(line in worker.log() for line in engine.splitlines())
    start_sh = [line for line in worker.log().splitlines() if " start.sh: " in line]
    assert (worker.run_dir / "log.start").read_text().splitlines() == start_sh
    assert "the engine ended with status 137" in "".join(start_sh)


def test_no_file_for_the_kept_lines_can_stop_the_worker(new_worker):
    worker = new_worker()
    worker.run_dir.mkdir(mode=0o700)
    for name in ("log.start", "log.engine"):
        os.mkfifo(worker.run_dir / name)
    worker.start()
    worker.await_both()
    assert worker.stop() == 0


def test_an_engine_whose_lines_nobody_keeps_any_more_is_replaced(running):
    """It would get an error for each line, and A1111 would fail its jobs."""
    worker = running()
    (keeper,) = (
        pid
        for pid in worker.children(worker.process.pid)
        if b"kept_log" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    os.kill(keeper, signal.SIGKILL)
    worker.await_event("engine started", 2)
    assert worker.stop() == 0
    assert "the engine ended with status 137" in worker.log()
