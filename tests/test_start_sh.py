"""start.sh as it is: real bash, real processes, real signals."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import requests

from fakes.a1111_process import free_port, write_safetensors
from fakes.supervised import DEADLINE, LASTING_ENGINE, LASTING_HANDLER, PROJECT, REAL, Worker
from worker.supervisor import EngineProcess, Supervisor
from worker.webui_config import OVERRIDABLE, RELIED_ON

START_SH = PROJECT / "start.sh"
NOT_READY, RESTARTS_USED_UP, BAD_CONFIGURATION = 69, 70, 78
KILLED, TERMINATED = 128 + signal.SIGKILL, 128 + signal.SIGTERM

FAKE_A1111 = "from fakes.a1111 import main; main()"
DEAF_ENGINE = "me.ready(); me.serve(deaf=True)"
DEAF_HANDLER = "me.serve(deaf=True)"
PARENT_ENGINE = "me.have_child(); me.ready(); me.serve()"
ORDERLY_END = ["handler TERM", "handler stopped", "engine TERM", "engine stopped"]

REPORTING_HANDLER = "me.serve_while_there_is_an_engine(status=3)"

AS_PID_1 = ("unshare", "--fork", "--pid", "--mount-proc", "--kill-child")
UNDER_TINI = (*AS_PID_1, "tini", "--")


@pytest.fixture
def new_worker(tmp_path):
    """Make workers; nothing of them outlives the test."""
    workers = []

    def make(engine=LASTING_ENGINE, handler=LASTING_HANDLER, **environ):
        folder = tmp_path / str(len(workers))
        folder.mkdir()
        workers.append(Worker(folder, free_port(), engine, handler, **environ))
        if handler != REAL:
            workers[-1].replace_model_manager("")  # the real one takes its time
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


@pytest.fixture
def running(new_worker):
    """Start workers and wait for both of their programs."""

    def run(*programs, **environ):
        worker = new_worker(*programs, **environ)
        worker.start()
        worker.await_both()
        return worker

    return run


def as_handler(worker):
    """What the handler knows and can do."""
    return Supervisor(worker.run_dir, worker.process.pid)


def kill_engine(worker):
    """Kill the engine that runs now; its number."""
    pid = as_handler(worker).engine().pid
    os.kill(pid, signal.SIGKILL)
    return pid


def call(function, **environ):
    """One of start.sh's functions in a bash that has sourced it."""
    return subprocess.run(
        ["bash", "-c", f'source "{START_SH}"; {function}'],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


# --- bad configuration: 78, one sentence, and nothing is started


def without_webui(worker):
    (worker.webui / "webui.py").unlink()


def without_webui_python(worker):
    worker.environ["WEBUI_PYTHON"] = "venv/bin/python"


def with_a_file_as_run_dir(worker):
    worker.run_dir.write_text("")


def with_a_folder_that_cannot_be_prepared(worker):
    worker.replace_model_manager("sys.exit(1)")


def with_an_unknown_engine(worker):
    worker.environ["ENGINE"] = "comfy"


def with_an_open_quote(worker):
    worker.environ["WEBUI_ARGS"] = "--ckpt-dir '/a b"


def with_endless_grace(worker):
    worker.environ["SHUTDOWN_GRACE"] = "inf"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (without_webui, r"WEBUI_DIR=\S+ has no webui\.py: set it to"),
        (without_webui_python, r"WEBUI_PYTHON=\S+/venv/bin/python cannot be executed: set it to"),
        (with_a_file_as_run_dir, r"RUN_DIR=\S+ must be a folder"),
        (with_a_folder_that_cannot_be_prepared, r"WEBUI_DIR=\S+ "),
        (with_an_unknown_engine, r"ENGINE='comfy': must be 'a1111'"),
        (with_an_open_quote, r"WEBUI_ARGS=.*No closing quotation"),
        (with_endless_grace, r"SHUTDOWN_GRACE='inf': must be"),
    ],
)
def test_bad_configuration_starts_nothing(new_worker, spoil, sentence):
    worker = new_worker()
    spoil(worker)
    worker.start()
    assert (worker.end(), worker.story()) == (BAD_CONFIGURATION, [])
    assert re.search(sentence, worker.log())


@pytest.mark.parametrize("engine", ["a1111", "embedded"])
def test_a_port_that_is_in_use_starts_nothing(new_worker, engine):
    worker = new_worker(ENGINE=engine)
    with closing(socket.create_server(("127.0.0.1", worker.port))):
        worker.start()
        assert (worker.end(), worker.story()) == (BAD_CONFIGURATION, [])
    assert f"port {worker.port} of 127.0.0.1 is in use" in worker.log()


# --- what the programs are given

FULL, MINIMAL = "libtcmalloc.so.4", "libtcmalloc_minimal.so.4"
SECRETS = {
    "RUNPOD_AI_API_KEY": "1",
    "RUNPOD_WEBHOOK_GET_JOB": "2",
    "CIVITAI_TOKEN": "3",
    "CIVITAI_API_KEY_FILE": "4",
    "HF_TOKEN": "5",
    "AWS_SESSION_TOKEN": "6",
    "BUCKET_SECRET_ACCESS_KEY": "7",
    "DB_PASSWORD": "8",
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A worker that was started with everything, and what its two programs noted."""
    folder = tmp_path_factory.mktemp("given")
    worker = Worker(folder, free_port(), WEBUI_ARGS="--ckpt-dir '/a b' --medvram", **SECRETS)
    worker.has_tcmalloc(shutil.copy(a_library(), folder / MINIMAL))
    worker.start("--test_input", '{"input": {"prompt": "a  fox"}}')
    engine, handler = (worker.await_event(f"{it} started") for it in ("engine", "handler"))
    yield worker, engine, handler
    worker.close()


def a_library():
    """A real and harmless library to preload."""
    maps = Path("/proc/self/maps").read_text()
    return re.search(r"/\S+/lib[mc]\b\S*\.so\S*", maps)[0]


def test_a1111_gets_our_flags_and_then_the_operators_words(given):
    worker, engine, _ = given
    where = ["--server-name", "127.0.0.1", "--port", str(worker.port)]
    assert engine["arguments"][:7] == ["--api", "--nowebui", *where, "--xformers"]
    assert engine["arguments"][-3:] == ["--ckpt-dir", "/a b", "--medvram"]
    assert engine["folder"] == str(worker.webui)


def test_the_handler_gets_the_arguments_of_start_sh(given):
    _, _, handler = given
    assert handler["arguments"] == ["--test_input", '{"input": {"prompt": "a  fox"}}']


def test_secrets_reach_the_handler_and_not_the_engine(given):
    _, engine, handler = given
    assert handler["environ"].items() >= SECRETS.items()
    assert not engine["environ"].keys() & SECRETS.keys()


def test_each_program_has_a_process_group_of_its_own(given):
    _, engine, handler = given
    assert engine["group"] == engine["pid"]
    assert handler["group"] == handler["pid"]


def test_the_config_json_is_complete_before_a1111_starts(given):
    _, engine, _ = given
    assert json.loads(engine["options"]).keys() >= OVERRIDABLE.keys() | RELIED_ON.keys()


def test_the_handler_learns_who_supervises_which_engine(given):
    worker, engine, handler = given
    assert handler["environ"]["SUPERVISOR_PID"] == str(worker.process.pid)
    assert as_handler(worker).engine() == EngineProcess("running", pid=engine["pid"])
    assert worker.run_dir.stat().st_mode & 0o077 == 0


def test_tcmalloc_is_loaded_into_a1111_and_not_into_the_handler(given):
    _, engine, handler = given
    assert engine["has_tcmalloc"]
    assert not handler["has_tcmalloc"]


def test_the_embedded_engine_gets_its_address_and_its_folder(new_worker):
    worker = new_worker(ENGINE="embedded")
    worker.has_tcmalloc("/usr/lib/" + FULL)
    worker.start()
    engine = worker.await_event("engine started")
    address = ["--host", "127.0.0.1", "--port", str(worker.port)]
    assert engine["arguments"] == [*address, "--data-dir", str(worker.webui)]
    assert engine["folder"] == str(worker.folder)
    assert "LD_PRELOAD" not in engine["environ"]


def test_an_external_engine_is_not_started(new_worker):
    worker = new_worker(ENGINE="external")
    worker.start()
    worker.await_event("handler started")
    assert not as_handler(worker).can_restart
    assert worker.stop() == 0
    assert worker.story() == ["handler started", "handler TERM", "handler stopped"]


# --- tcmalloc


@pytest.mark.parametrize(
    ("libraries", "chosen"),
    [
        ([FULL], FULL),
        ([MINIMAL], MINIMAL),
        ([FULL, MINIMAL], FULL),
        ([MINIMAL, FULL], FULL),
        ([MINIMAL, "libtcmalloc_and_profiler.so.4", "libtcmalloc_minimal_debug.so.4"], MINIMAL),
    ],
)
def test_the_full_tcmalloc_is_preferred_to_the_minimal_one(new_worker, libraries, chosen):
    worker = new_worker()
    worker.has_tcmalloc(*(f"/usr/lib/{name}" for name in libraries))
    found = call('find_tcmalloc; echo "${preload[@]}"', PATH=worker.environ["PATH"])
    assert (found.stdout, found.stderr) == (f"LD_PRELOAD=/usr/lib/{chosen}\n", "")


@pytest.mark.parametrize("ldconfig", ["#!/bin/sh\n", "#!/bin/sh\nexit 127\n"])
def test_without_tcmalloc_a1111_starts_and_the_log_says_so(new_worker, ldconfig):
    worker = new_worker()
    worker.write_ldconfig(ldconfig)
    worker.start()
    assert "LD_PRELOAD" not in worker.await_event("engine started")["environ"]
    assert "no libtcmalloc or libtcmalloc_minimal found" in worker.log()


# --- the engine's end


def test_an_engine_that_was_ready_is_restarted_after_a_crash(running):
    worker = running()
    old = kill_engine(worker)
    new = worker.await_event("engine started", times=2)["pid"]
    assert new != old
    assert as_handler(worker).engine() == EngineProcess("running", pid=new)
    assert f"the engine ended with status {KILLED}: restarting it" in worker.log()
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
    assert f"restarted {limit} times in 900" in worker.log()
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


def test_a_window_below_a_second_is_a_window(new_worker):
    worker = new_worker("me.ready(); me.crash(1)", REPORTING_HANDLER, ENGINE_RESTART_WINDOW="0.9")
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


# --- restarts on request


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


def test_a_deaf_engine_is_killed_before_its_successor_starts(running):
    worker = running(DEAF_ENGINE)
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


# --- the handler's end


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("me.crash(0)", 0),
        ("me.crash(3)", 3),
        ("import os; os.kill(os.getpid(), 9)", KILLED),
    ],
)
def test_the_worker_ends_with_the_handler_and_its_status(new_worker, end, status):
    worker = new_worker(LASTING_ENGINE, f"import time; time.sleep(0.3); {end}")
    worker.start()
    assert worker.end() == status
    assert worker.story()[-2:] == ["engine TERM", "engine stopped"]


def test_nothing_at_all_is_left_when_start_sh_has_ended(running):
    worker = running(PARENT_ENGINE, "me.have_child(); me.serve()")
    worker.process.terminate()
    worker.process.wait(DEADLINE)
    assert worker.processes() == []


# --- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_handler_first_and_then_the_engine(running, number):
    worker = running(LASTING_ENGINE, "me.serve(stop_after=0.3)")
    assert worker.stop(number) == 0
    assert worker.story()[2:] == ORDERLY_END
    assert f"{number.name} received: stopping" in worker.log()


def test_ctrl_c_in_a_terminal_is_the_same_as_a_signal_to_start_sh(running):
    worker = running()
    os.killpg(worker.process.pid, signal.SIGINT)
    assert worker.end() == 0
    assert worker.story()[2:] == ORDERLY_END


def test_the_status_after_a_signal_is_the_handlers(running):
    assert running(LASTING_ENGINE, "me.serve(status=3)").stop() == 3


def test_a_deaf_handler_is_killed_and_the_engine_still_stops_in_order(running):
    worker = running(LASTING_ENGINE, DEAF_HANDLER, SHUTDOWN_GRACE="2")
    assert worker.stop() == KILLED
    assert worker.story()[2:] == ["handler TERM", "engine TERM", "engine stopped"]


def test_everything_is_gone_within_the_grace(running):
    worker = running(DEAF_ENGINE, DEAF_HANDLER, SHUTDOWN_GRACE="1")
    told = time.monotonic()
    assert worker.stop() == KILLED
    assert time.monotonic() - told < 1 + 0.7


def test_a_handler_has_its_whole_share_of_the_grace(running):
    """Late in a second of the clock, where whole seconds would cut the share short."""
    worker = running(LASTING_ENGINE, "me.serve(stop_after=1.5)", SHUTDOWN_GRACE="7")
    worker.until(lambda: time.time() % 1 > 0.8, "the end of a second")
    assert worker.stop() == 0


def test_many_signals_are_one(running):
    worker = running(LASTING_ENGINE, "me.serve(stop_after=0.5)")
    for _ in range(20):
        worker.process.send_signal(signal.SIGTERM)
        worker.process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    assert worker.end() == 0
    assert worker.story()[2:] == ORDERLY_END


def test_a_signal_while_the_engine_boots_ends_everything(running):
    worker = running("me.serve()")
    assert worker.stop() == 0
    assert worker.noted("engine stopped")


SLOW_MODEL_MANAGER = "import time; me.note('at work'); time.sleep(0.5); me.note('done')"


def test_a_signal_before_anything_runs_starts_nothing(new_worker):
    worker = new_worker()
    worker.replace_model_manager(SLOW_MODEL_MANAGER)
    worker.start()
    worker.await_event("model_manager at work")
    worker.stop()
    assert worker.story() == ["model_manager at work", "model_manager done"]


def test_a_signal_while_the_engine_is_restarted_ends_everything(running):
    worker = running("me.ready(); me.serve(stop_after=0.7)")
    as_handler(worker).request_restart("poisoned")
    worker.await_event("engine TERM")
    assert worker.stop() == 0
    assert worker.story().count("engine started") == 1


# --- as a container's first process


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
def test_the_first_process_of_a_container_stops_on_a_signal(container, number):
    worker, first = container(PARENT_ENGINE, "me.serve(status=3)")
    os.kill(first, number)
    assert worker.end() == 3
    assert worker.story()[2:] == ORDERLY_END


def test_the_first_process_of_a_container_reaps_orphans(container):
    worker, first = container(LASTING_ENGINE, "me.leave_orphan(); me.serve()")
    worker.until(lambda: not worker.children(first, "Z"), "the end of the zombies")


def test_the_first_process_of_a_container_still_supervises(container):
    worker, _ = container()
    number = worker.await_event("engine started")["pid"]
    assert number < 1000, "the number is not one of the namespace"
    (engine,) = [pid for pid in worker.processes() if is_engine(pid)]
    os.kill(engine, signal.SIGKILL)
    worker.await_event("engine started", times=2)


def is_engine(pid):
    return b"webui.py" in Path(f"/proc/{pid}/cmdline").read_bytes()


# --- with the fake A1111 and the real handler


def test_story_a_crash_between_two_pictures(new_worker):
    api = free_port()
    worker = new_worker(FAKE_A1111, REAL)
    write_safetensors(worker.folder / "models" / "Stable-diffusion" / "tiny.safetensors")
    worker.start("--rp_serve_api", "--rp_api_port", str(api))
    worker.until((worker.run_dir / "engine.ready").exists, "the first picture")
    worker.until(lambda: answers(api), "the RunPod API")
    assert picture(api)["status"] == "COMPLETED"
    old = kill_engine(worker)
    assert picture(api)["status"] == "COMPLETED"
    assert as_handler(worker).engine().pid not in {old, None}
    assert worker.stop() in {0, TERMINATED}


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def picture(port):
    job = {"input": {"prompt": "a fox", "steps": 1, "width": 64, "height": 64}}
    answer = requests.post(f"http://127.0.0.1:{port}/runsync", json=job, timeout=2 * DEADLINE)
    return answer.json()


def test_story_an_engine_that_cannot_boot(new_worker):
    faults = json.dumps([{"fault": "boot_crash", "status": 137}])
    worker = new_worker(FAKE_A1111, REAL, FAKE_A1111_FAULTS=faults)
    worker.start()
    assert worker.end() == NOT_READY
    assert "not enough memory for the checkpoint" in worker.log()
    assert worker.log().count("engine a1111 started") == 1


# --- the script itself


def test_the_header_lists_every_exit_status():
    text = START_SH.read_text()
    header = set(re.findall(r"^#   (\d+)  ", text, re.MULTILINE))
    constants = set(re.findall(r"\bEXIT_[A-Z_]+=(\d+)", text))
    assert header == constants == {"69", "70", "78", "143"}


def test_sourcing_it_runs_nothing():
    sourced = call("declare -F main")
    assert (sourced.returncode, sourced.stdout, sourced.stderr) == (0, "main\n", "")


def test_shellcheck_has_nothing_to_say():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    checked = subprocess.run([shellcheck, START_SH], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")
