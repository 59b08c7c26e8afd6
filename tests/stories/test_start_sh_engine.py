"""The real start.sh: the end of an engine, and restarts."""

import signal
import time

import pytest
from fakes.supervised import (
    DEAF_ENGINE,
    LASTING_ENGINE,
    LASTING_HANDLER,
    PARENT_ENGINE,
    as_handler,
    kill_engine,
)

from worker.webui.supervisor import EngineProcess

NOT_READY, RESTARTS_USED_UP = 69, 70
KILLED = 128 + signal.SIGKILL
REPORTING_HANDLER = "me.serve_while_there_is_an_engine(status=3)"


# The engine's end -------------------------------------------------------------------------------


def test_an_engine_that_was_ready_is_restarted_after_a_crash(running):
    worker = running()
    old = kill_engine(worker)
    new = worker.await_event("engine started", times=2)["pid"]
    assert new != old
    assert as_handler(worker).engine() == EngineProcess("running", pid=new)
    assert f"the engine ended with status {KILLED}\n" in worker.log()
    assert worker.stop() == 0


def test_an_engine_that_could_not_boot_is_never_restarted(new_worker):
    worker = new_worker("me.crash(0)", REPORTING_HANDLER)
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
    worker = new_worker("me.crash(1)", LASTING_HANDLER)
    worker.shorten_waits()
    worker.start()
    assert worker.end() == NOT_READY
    assert worker.story()[-2:] == ["handler TERM", "handler stopped"]


@pytest.mark.parametrize("limit", [0, 2])
def test_a_worker_whose_restarts_are_used_up_gives_up(new_worker, limit):
    worker = new_worker(
        "me.ready(); me.crash(139)", REPORTING_HANDLER, MAX_ENGINE_RESTARTS=str(limit)
    )
    worker.start()
    assert worker.end() == RESTARTS_USED_UP
    assert worker.story().count("engine started") == 1 + limit
    assert f"no further restart: MAX_ENGINE_RESTARTS={limit} in 900" in worker.log()
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


def test_a_window_of_less_than_a_second_limits_restarts_too(new_worker):
    """The second crash that comes within 0.9 s of the one before it ends the worker."""
    few = {"ENGINE_RESTART_WINDOW": "0.9", "MAX_ENGINE_RESTARTS": "1"}
    worker = new_worker("me.ready(); me.crash(1)", REPORTING_HANDLER, **few)
    worker.start()
    assert worker.end() == RESTARTS_USED_UP


def test_the_group_of_a_crashed_engine_is_gone_before_its_successor_starts(running):
    worker = running(PARENT_ENGINE)
    old = kill_engine(worker)
    worker.await_event("engine started", times=2)
    assert worker.members(old) == []


def test_nothing_is_left_of_the_group_of_an_engine_that_could_not_boot(new_worker):
    worker = new_worker("me.have_child(); me.crash(1)", REPORTING_HANDLER)
    worker.start()
    assert worker.end() == NOT_READY


# Restarts on request ----------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["poisoned", "damaged-cache"])
def test_only_a_damaged_cache_is_removed_and_only_while_the_engine_is_down(new_worker, reason):
    worker = worker_with_cache(new_worker)
    as_handler(worker).request_restart(reason)
    new = worker.await_event("engine started", times=2)
    assert worker.await_event("engine started")["has_cache"]
    assert worker.await_event("engine stopped")["has_cache"]
    assert new["has_cache"] == (reason != "damaged-cache")
    assert f"asks for a restart of the engine: {reason}" in worker.log()


def test_the_embedded_engines_folder_named_cache_is_not_ours_to_remove(new_worker):
    worker = worker_with_cache(new_worker, ENGINE="embedded")
    as_handler(worker).request_restart("damaged-cache")
    worker.await_event("engine started", times=2)
    assert (worker.webui / "cache" / "cache.db").exists()


def worker_with_cache(new_worker, **environ):
    worker = new_worker(**environ)
    cache = worker.webui / "cache" / "cache.db"
    cache.parent.mkdir()
    cache.touch()
    worker.start()
    worker.await_both()
    return worker


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
