"""The real start.sh: signals, the handler's end, and start.sh as a container's first process."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from fakes.gpu import write_program
from fakes.supervised import (
    DEADLINE,
    DEAF_ENGINE,
    DEAF_HANDLER,
    LASTING_ENGINE,
    PARENT_ENGINE,
    START_SH,
    as_handler,
    kill_engine,
)

KILLED, STOPPED_EARLY = 128 + signal.SIGKILL, 143
ORDERLY_END = ["handler TERM", "handler stopped", "engine TERM", "engine stopped"]
AS_PID_1 = ("unshare", "--fork", "--pid", "--mount-proc", "--kill-child")
UNDER_TINI = (*AS_PID_1, "tini", "--")


# The handler's end ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "status"),
    [("me.crash(0)", 0), ("me.crash(3)", 3), ("import os; os.kill(os.getpid(), 9)", KILLED)],
)
def test_the_worker_ends_with_the_handler_and_its_status(new_worker, end, status):
    worker = new_worker(LASTING_ENGINE, f"me.wait(); {end}")
    worker.start()
    worker.await_event("engine started")
    worker.let_go_on()
    assert worker.end() == status
    assert worker.story()[-2:] == ["engine TERM", "engine stopped"]


def test_nothing_at_all_is_left_when_start_sh_has_ended(running):
    worker = running(PARENT_ENGINE, "me.have_child(); me.serve()")
    worker.process.terminate()
    worker.process.wait(DEADLINE)
    assert worker.processes() == []


def test_the_engine_ends_when_start_sh_and_the_handler_are_killed_together(running):
    worker = running()
    worker.process.send_signal(signal.SIGSTOP)  # so it cannot answer the handler's end
    os.kill(worker.noted("handler started")[0]["pid"], signal.SIGKILL)
    worker.process.kill()
    worker.process.wait(DEADLINE)
    worker.until(lambda: not worker.processes(), "the end of the engine")


def test_an_engine_is_not_started_when_start_sh_is_killed_at_that_moment(new_worker):
    """Before the kernel knows that the engine is to end with start.sh."""
    worker = new_worker(handler="me.wait()")
    forked = worker.folder / "forked"
    waits = f"{{ : >{forked}; while kill -0 $PPID; do sleep 0.02; done; }}"
    real = f'exec {shutil.which("setpriv")} "$@"'
    write_program(worker.folder / "bin" / "setpriv", f'[ "$3" = true ] || {waits}; {real}')
    worker.start()
    worker.until(forked.exists, "the fork of the engine")
    worker.process.kill()
    worker.process.wait(DEADLINE)
    worker.let_go_on()  # the handler, too, if it has begun
    worker.until(lambda: not worker.processes(), "the end of all processes")
    assert not worker.noted("engine started")


# Signals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_handler_first_and_then_the_engine(running, number):
    worker = running()
    assert worker.stop(number) == 0
    assert worker.story()[2:] == ORDERLY_END
    assert f"{number.name} received: stopping" in worker.log()


def test_it_stops_when_the_process_that_it_is_to_end_with_has_been_killed(new_worker):
    worker = new_worker()
    starter = subprocess.Popen(["sleep", "600"])
    worker.environ["END_WITH_PID"] = str(starter.pid)
    worker.start()
    worker.await_both()
    starter.kill()
    starter.wait()
    assert worker.end() == 0
    assert worker.story()[2:] == ORDERLY_END


def test_ctrl_c_in_a_terminal_is_the_same_and_the_status_the_handlers(running):
    worker = running(LASTING_ENGINE, "me.serve(status=3)")
    os.killpg(worker.process.pid, signal.SIGINT)
    assert worker.end() == 3
    assert worker.story()[2:] == ORDERLY_END


def test_a_deaf_handler_is_killed_and_the_engine_still_stops_in_order(running):
    worker = running(LASTING_ENGINE, DEAF_HANDLER, SHUTDOWN_GRACE="3")
    assert worker.stop() == KILLED
    assert worker.story()[2:] == ["handler TERM", "engine TERM", "engine stopped"]


def test_a_deaf_handler_and_a_deaf_engine_share_the_grace(running):
    worker = running(DEAF_ENGINE, DEAF_HANDLER, SHUTDOWN_GRACE="1")
    assert worker.stop() == KILLED
    waits = re.findall(r"did not stop within (\d+) ms", worker.log())
    assert [int(wait) for wait in waits] == [500, 500]


def test_many_signals_are_one(running):
    worker = running(LASTING_ENGINE, "me.serve(waits=True)")
    for _ in range(20):
        worker.process.send_signal(signal.SIGTERM)
        worker.process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    worker.let_go_on()
    assert worker.end() == 0
    assert worker.story()[2:] == ORDERLY_END


def test_a_log_that_nobody_reads_any_more_ends_nothing(new_worker):
    worker = new_worker()
    worker.start(under=("bash", "-c", 'exec "$0" "$@" > >(:) 2>&1'))
    worker.await_both()
    kill_engine(worker)
    worker.await_event("engine started", times=2)
    assert worker.stop() == 0
    assert worker.story()[-4:] == ORDERLY_END


def test_if_start_sh_fails_itself_nothing_of_it_is_left(new_worker):
    worker = new_worker(PARENT_ENGINE, DEAF_HANDLER)
    script = worker.folder / "start.sh"
    text = START_SH.read_text()
    script.unlink()
    script.write_text(text.replace("restart_on_request() {", "restart_on_request() {\n  false"))
    script.chmod(0o755)
    worker.start()
    worker.await_both()
    worker.process.send_signal(signal.SIGUSR1)
    assert worker.end() == 1


def test_a_signal_while_the_engine_boots_ends_everything(running):
    worker = running("me.serve()")
    assert worker.stop() == 0
    assert worker.noted("engine stopped")


def test_a_signal_before_anything_runs_starts_nothing(new_worker):
    worker = new_worker()
    worker.replace_model_manager("me.note('at work'); me.wait(); me.note('done')")
    worker.start()
    worker.await_event("model_manager at work")
    worker.process.send_signal(signal.SIGTERM)
    worker.let_go_on()
    assert worker.end() == STOPPED_EARLY
    assert "engine a1111 started" not in worker.log()
    assert worker.story() == ["model_manager at work", "model_manager done"]


@pytest.mark.parametrize("how", ["it dies", "it is restarted", "it is asked to restart"])
def test_the_last_job_does_not_wait_for_an_engine_that_is_not_started_again(running, how):
    """Its handler ends when it reads that."""
    worker = running(
        "me.ready(); me.serve(waits=True)", "me.serve(waits=True)", SHUTDOWN_GRACE="600"
    )
    if how == "it is restarted":
        as_handler(worker).request_restart("poisoned")
        worker.await_event("engine TERM")
    worker.process.send_signal(signal.SIGTERM)
    if how == "it is restarted":
        os.kill(worker.noted("engine started")[0]["pid"], signal.SIGKILL)
    worker.await_event("handler TERM")
    if how == "it dies":
        kill_engine(worker)
    if how == "it is asked to restart":
        as_handler(worker).request_restart("poisoned")
    worker.until(lambda: as_handler(worker).engine().is_gone, "the state for the handler")
    assert as_handler(worker).engine().cause == "this worker is stopping and starts no other engine"
    worker.let_go_on()
    assert worker.end() == 0


def test_ctrl_c_before_anything_runs_starts_nothing(new_worker):
    """It ends the program that prepares the start, too."""
    worker = new_worker()
    worker.replace_model_manager("me.note('at work'); me.wait()")
    worker.start()
    worker.await_event("model_manager at work")
    os.killpg(worker.process.pid, signal.SIGINT)
    assert worker.end() == STOPPED_EARLY
    assert worker.story() == ["model_manager at work"]
    assert "SIGINT received: nothing was started" in worker.log()


def test_a_signal_while_the_engine_is_restarted_ends_everything(running):
    worker = running("me.ready(); me.serve(waits=True)")
    as_handler(worker).request_restart("poisoned")
    worker.await_event("engine TERM")
    worker.process.send_signal(signal.SIGTERM)
    worker.let_go_on()
    assert worker.end() == 0
    assert worker.log().count("engine a1111 started") == 1


# As a container's first process ----------------------------------------------------------------


@pytest.fixture(params=[AS_PID_1, UNDER_TINI], ids=["alone", "under tini"])
def container(request, new_worker):
    """Start workers whose first process is that of a PID namespace."""
    if missing := next((it for it in ("unshare", *request.param[5:6]) if not shutil.which(it)), ""):
        pytest.skip(f"{missing} is not installed")
    probe = subprocess.run([*AS_PID_1, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"no PID namespaces here: {probe.stderr.strip()}")

    def run(*programs):
        worker = new_worker(*programs)
        worker.start(under=request.param)
        worker.await_both()
        (first,) = worker.children(worker.process.pid)
        return worker, first

    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_process_of_a_container_reaps_orphans_and_stops_on_a_signal(container, number):
    worker, first = container(PARENT_ENGINE, "me.have_child('sleep 0.1 &'); me.serve(status=3)")
    worker.until(lambda: not worker.children(first, "Z"), "the end of the zombies")
    os.kill(first, number)
    assert worker.end() == 3
    assert worker.story()[2:] == ORDERLY_END


def test_the_first_process_of_a_container_still_supervises(container):
    worker, _ = container()
    number = worker.await_event("engine started")["pid"]
    assert number < 1000, "the number is not one of the namespace"
    (engine,) = [pid for pid in worker.processes() if is_engine(pid)]
    os.kill(engine, signal.SIGKILL)
    worker.await_event("engine started", times=2)


def is_engine(pid):
    return b"webui.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
