"""The real start.sh, with real processes: what it refuses and what it starts."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from fakes.a1111.process import free_port
from fakes.gpu import write_nvidia_smi
from fakes.supervised import DEADLINE, PROJECT, START_SH, Worker, as_handler

from worker.config.preflight import EXIT_UNFIT_MACHINE
from worker.config.webui_config import OVERRIDABLE, RELIED_ON
from worker.webui.supervisor import EngineProcess

UNFIT_MACHINE, BAD_CONFIGURATION = 71, 78


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


@pytest.mark.parametrize("ended", ["handler_pid", "engine_pid"])
def test_an_end_of_which_bash_does_not_know_any_more_is_noticed(ended):
    """A signal took its place in `wait`; here another `wait` did."""
    other = ({"handler_pid", "engine_pid"} - {ended}).pop()
    variables = "stop_requested='' restart_requested='' keeper_pid='' ticker='' END_WITH_PID=''"
    fakes = "stop_all() { echo handler; exit; }; engine_exited() { echo engine; exit; }"
    processes = (
        f"sleep 0 & {ended}=$!; wait ${ended}; sleep 9 >/dev/null 2>&1 & {other}=$!; ticker=''"
    )
    done = call(f"{variables}; {fakes}; {processes}; trap 'kill ${other}' EXIT; supervise")
    assert done.stdout == f"{ended.removesuffix('_pid')}\n"


# Bad configuration: 78, one sentence, and nothing is started -------------------------------------

SPOILED = {
    r"WEBUI_DIR=\S+ has no webui\.py: set it to": lambda w: (w.webui / "webui.py").unlink(),
    r"RUN_DIR=\S+ must be a folder": lambda w: w.run_dir.touch(),
    r"WEBUI_DIR=\S+ .*\(status 1\)": lambda w: w.replace_model_manager("sys.exit(1)"),
    r"WEBUI_DIR=\S+ .*\(status 137\)": lambda w: w.replace_model_manager("os.kill(os.getpid(), 9)"),
}
WRONG = {
    r"WEBUI_PYTHON=\S+/venv/bin/python cannot be executed": {"WEBUI_PYTHON": "venv/bin/python"},
    r"ENGINE='comfy': must be 'a1111'": {"ENGINE": "comfy"},
    r"WEBUI_ARGS=.*No closing quotation": {"WEBUI_ARGS": "--ckpt-dir '/a b"},
    r"SHUTDOWN_GRACE='inf': must be": {"SHUTDOWN_GRACE": "inf"},
}


@pytest.mark.parametrize("message", [*SPOILED, *WRONG])
def test_bad_configuration_starts_nothing(new_worker, message):
    worker = new_worker(**WRONG.get(message, {}))
    if message in SPOILED:
        SPOILED[message](worker)
    worker.start()
    assert (worker.end(), worker.story()) == (BAD_CONFIGURATION, [])
    assert re.search(message, worker.log())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_run_dir_of_another_user_starts_nothing(new_worker):
    """They could tell the handler which process the engine is, and it would be killed."""
    worker = new_worker()
    worker.run_dir.mkdir()
    os.chown(worker.run_dir, 1234, 1234)
    worker.start()
    assert worker.end() == 78
    assert "must be a folder that user 0 owns" in " ".join(worker.log().split())
    assert worker.story() == []


@pytest.mark.parametrize("engine", ["a1111", "embedded"])
def test_a_port_that_is_in_use_starts_nothing(new_worker, engine):
    worker = new_worker(ENGINE=engine)
    with closing(socket.create_server(("127.0.0.1", worker.port))):
        worker.start()
        assert (worker.end(), worker.story()) == (UNFIT_MACHINE, [])
    assert f"cannot listen on port {worker.port} of 127.0.0.1 (Address already" in worker.log()


@pytest.mark.parametrize("engine", ["a1111", "embedded"])
def test_a_gpu_that_cannot_be_used_starts_nothing_unless_the_operator_says_so(new_worker, engine):
    refused, started = new_worker(ENGINE=engine), new_worker(ENGINE=engine, DEVICE="cpu")
    for worker in (refused, started):
        text = "Failed to initialize NVML: Unknown Error"
        write_nvidia_smi(worker.folder / "bin", text, status=255)
        worker.start()
    assert (refused.end(), refused.story()) == (UNFIT_MACHINE, [])
    _, line = refused.log().splitlines()
    assert f"finds no usable GPU ({text}): install or repair the NVIDIA driver" in line
    arguments = started.await_event("engine started")["arguments"]
    on_cpu = ["--use-cpu", "all"] if engine == "a1111" else ["--device", "cpu"]
    assert " ".join(on_cpu) in " ".join(arguments)
    assert started.await_event("handler started")["environ"]["ENGINE_DEVICE"] == "cpu"
    assert "device cpu, attention sdp" in started.log()


# What the programs are given --------------------------------------------------------------------

FULL, MINIMAL = "libtcmalloc.so.4", "libtcmalloc_minimal.so.4"
SECRETS = dict.fromkeys(
    (
        "RUNPOD_AI_API_KEY",
        "RUNPOD_WEBHOOK_GET_JOB",
        "CIVITAI_TOKEN",
        "HF_TOKEN",
        "AWS_SESSION_TOKEN",
        "BUCKET_SECRET_ACCESS_KEY",
        "BUCKET_ACCESS_KEY_ID",
        "DB_PASS",
        "UNKNOWN",
    ),
    "1",
)
SECRETS |= {"CIVITAI_API_KEY_FILE": "/dev/null", "BUCKET_ENDPOINT_URL": "http://127.0.0.1:9/bucket"}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A worker that was started with everything, and what its two programs noted."""
    folder = tmp_path_factory.mktemp("given")
    flags = {"WEBUI_ARGS": "--ckpt-dir '/a b'", "COMMANDLINE_ARGS": "--medvram"}
    worker = Worker(folder, free_port(), **flags, **SECRETS)
    library = re.search(r"/\S+/lib[mc]\b\S*\.so\S*", Path("/proc/self/maps").read_text())[0]
    worker.has_tcmalloc(shutil.copy(library, folder / MINIMAL))  # real and harmless
    (folder / "model_manager.py").unlink()
    (folder / "model_manager.py").symlink_to(PROJECT / "model_manager.py")  # the real one
    worker.start("--test_input", '{"input": {"prompt": "a  fox"}}')
    engine, handler = (worker.await_event(f"{it} started") for it in ("engine", "handler"))
    yield worker, engine, handler
    worker.close()


def test_a1111_gets_our_flags_then_the_operators_words_and_a_complete_config_json(given):
    worker, engine, _ = given
    where = ["--server-name", "127.0.0.1", "--port", str(worker.port)]
    assert engine["arguments"][:7] == ["--api", "--nowebui", *where, "--xformers"]
    assert engine["arguments"][-3:] == ["--ckpt-dir", "/a b", "--medvram"]
    assert "COMMANDLINE_ARGS" not in engine["environ"]
    assert engine["folder"] == str(worker.webui)
    assert json.loads(engine["options"]).keys() >= OVERRIDABLE.keys() | RELIED_ON.keys()


def test_the_handler_gets_the_arguments_of_start_sh_and_knows_it_and_the_engine(given):
    worker, engine, handler = given
    assert handler["arguments"] == ["--test_input", '{"input": {"prompt": "a  fox"}}']
    assert handler["environ"]["SUPERVISOR_PID"] == str(worker.process.pid)
    assert as_handler(worker).engine() == EngineProcess("running", pid=engine["pid"])
    names = ("ENGINE_DEVICE", "ENGINE_GPU", "ENGINE_DRIVER", "ENGINE_ATTENTION")
    chosen = [handler["environ"][name] for name in names]
    card, driver = "NVIDIA GeForce RTX 4090", "550.54.15"
    assert chosen == ["cuda", card, driver, "xformers"]
    assert f"GPU {card}, driver {driver}; ready within" in worker.log().splitlines()[0]
    assert "device cuda (NVIDIA GeForce RTX 4090), attention xformers" in worker.log()
    assert worker.run_dir.stat().st_mode & 0o077 == 0


def test_secrets_reach_the_handler_and_tcmalloc_the_engine(given):
    _, engine, handler = given
    assert handler["environ"].items() >= SECRETS.items()
    assert not engine["environ"].keys() & SECRETS.keys()
    assert (engine["has_tcmalloc"], handler["has_tcmalloc"]) == (True, False)
    assert engine["environ"]["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"


def test_each_program_has_a_process_group_of_its_own(given):
    for program in given[1:]:
        assert program["group"] == program["pid"]


def test_the_embedded_engine_gets_its_address_and_its_folder(new_worker):
    worker = new_worker(ENGINE="embedded")
    worker.has_tcmalloc("/usr/lib/" + FULL)
    worker.start()
    engine = worker.await_event("engine started")
    address = ["--host", "127.0.0.1", "--port", str(worker.port)]
    data = ["--data-dir", str(worker.webui)]
    assert engine["arguments"] == ["--device", "cuda", *address, *data]
    assert engine["folder"] == str(worker.folder)
    assert "LD_PRELOAD" not in engine["environ"]


def test_an_external_engine_is_not_started(new_worker):
    worker = new_worker(ENGINE="external")
    worker.start()
    worker.await_event("handler started")
    assert not as_handler(worker).can_restart
    assert worker.stop() == 0
    assert worker.story() == ["handler started", "handler TERM", "handler stopped"]


# tcmalloc ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("libraries", "chosen"),
    [
        ([FULL, MINIMAL], FULL),
        ([MINIMAL, FULL], FULL),
        ([MINIMAL, "libtcmalloc_and_profiler.so.4", "libtcmalloc_minimal_debug.so.4"], MINIMAL),
    ],
)
def test_the_full_tcmalloc_is_preferred_to_the_minimal_one(new_worker, libraries, chosen):
    worker = new_worker()
    worker.has_tcmalloc(*(f"/usr/lib/{name}" for name in libraries))
    found = call(
        'look_for_tcmalloc; find_tcmalloc; echo "${preload[@]}"', PATH=worker.environ["PATH"]
    )
    assert (found.stdout, found.stderr) == (f"LD_PRELOAD=/usr/lib/{chosen}\n", "")


@pytest.mark.parametrize("ldconfig", ["", "exit 127"])
def test_without_tcmalloc_a1111_starts_with_a_warning(new_worker, ldconfig):
    worker = new_worker()
    worker.write_ldconfig(ldconfig)
    worker.start()
    assert "LD_PRELOAD" not in worker.await_event("engine started")["environ"]
    assert "no libtcmalloc or libtcmalloc_minimal found" in worker.log()


# The script itself ------------------------------------------------------------------------------


def test_the_header_lists_every_exit_status():
    text = START_SH.read_text()
    header = set(re.findall(r"^#   (\d+)  ", text, re.MULTILINE))
    constants = set(re.findall(r"\bEXIT_[A-Z_]+=(\d+)", text))
    assert str(EXIT_UNFIT_MACHINE) in constants
    constants.add("2")  # argparse's own
    assert header == constants == {"2", "69", "70", "71", "78", "143"}


def test_sourcing_it_runs_nothing():
    sourced = call("declare -F main")
    assert (sourced.returncode, sourced.stdout, sourced.stderr) == (0, "main\n", "")


def test_shellcheck_finds_nothing():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    checked = subprocess.run([shellcheck, START_SH], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")
