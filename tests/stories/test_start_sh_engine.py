"""The real start.sh: the end of an engine, and restarts."""

import signal
import time

import pytest
from fakes.supervised import (
    DEAF_ENGINE,
    LASTING_ENGINE,
    PARENT_ENGINE,
    as_handler,
    kill_engine,
)

from worker.webui.supervisor import EngineProcess

NOT_READY, RESTARTS_USED_UP = 69, 70
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


def test_an_engine_that_could_not_boot_is_never_restarted_and_leaves_nothing(new_worker):
    worker = new_worker("me.have_child(); me.crash(0)", REPORTING_HANDLER)
    worker.start()
    assert worker.end() == NOT_READY
    assert as_handler(worker).engine() == EngineProcess("failed", status=0)
    assert worker.story().count("engine started") == 1
    assert "ended with status 0 before it was ready" in worker.log()


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
    assert as_handler(worker).engine() == EngineProcess("failed", status=139)


def test_requested_restarts_count_too(running):
    worker = running(LASTING_ENGINE, REPORTING_HANDLER, MAX_ENGINE_RESTARTS="1")
    as_handler(worker).request_restart("poisoned")
    worker.await_event("engine started", times=2)
    as_handler(worker).request_restart("poisoned")
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
