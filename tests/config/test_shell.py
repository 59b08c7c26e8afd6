"""The shell scripts have no defaults of their own: they get those of worker/config."""

import http.server
import os
import shutil
import stat
import subprocess
import sys
import threading

import pytest
from fakes.gpu import write_program
from fakes.hub_cache import read_only

from worker.config.gpu import Compute
from worker.config.settings import PROJECT, Settings
from worker.config.shell import assignments, for_start_sh

ENVIRON = {"PATH": os.environ["PATH"], "PYTHON": sys.executable}


@pytest.fixture
def project(tmp_path):
    """A copy of the project's scripts and settings, for a test to change a default in."""
    for name in ("worker", "image"):
        ignored = shutil.ignore_patterns("__pycache__", "*.lock", "tests")
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=ignored)
    for name in ("start.sh", "model_manager.py"):
        shutil.copy2(PROJECT / name, tmp_path)
    return tmp_path


def change(project, file, old, new):
    path = project / "worker" / "config" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def bash(script, **environ):
    return subprocess.run(
        ["bash", "-euc", script], env=ENVIRON | environ, capture_output=True, text=True, check=False
    )


def start_sh(project, functions, **environ):
    """Call functions of start.sh after it has read the settings; what they print."""
    script = f'source "{project}/start.sh"; find_python; prepare_start; {functions}'
    done = bash(script, ENGINE="external", RUN_DIR=str(project / "run"), **environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_bash_reads_back_the_values_that_python_wrote():
    environ = {"WEBUI_DIR": "/x y/$(HOME);z", "ENGINE_RESTART_WINDOW": "0.5"}
    environ["WEBUI_ARGS"] = "--medvram 'a b' \"$(exit 1)\""
    compute = Compute("cuda", "sdp", "an 'RTX'", "570", ("CUDA_VISIBLE_DEVICES=1",))
    shell = for_start_sh(Settings.from_environ(environ), compute, environ)
    shell += assignments({"none": None})
    names = '"$WEBUI_DIR" "$WEBUI_PYTHON" "$ENGINE_RESTART_WINDOW_MS" "$NONE" "$ENGINE_GPU"'
    names += ' "${ENGINE_FLAGS[@]}" "${ENGINE_ENVIRONMENT[@]}"'
    read = bash(f'{shell}printf "%s\\n" {names}')

    texts = ["/x y/$(HOME);z", "/x y/$(HOME);z/venv/bin/python", "500", "", "an 'RTX'"]
    assert read.stdout.splitlines() == [
        *(*texts, "--medvram", "a b", "$(exit 1)", "CUDA_VISIBLE_DEVICES=1")
    ]


def test_a_changed_list_of_the_engines_variables_reaches_start_sh(project):
    change(project, "credentials.py", 'r"PATH|HOME', 'r"WHISPER|PATH|HOME')
    environ = {"WHISPER": "1", "HF_TOKEN": "2", "RUNPOD_POD_ID": "3", "MINE": "4"}
    shown = 'printf "%s\\n" "${HIDDEN_FROM_ENGINE[@]}"'
    hidden = set(start_sh(project, shown, **environ, ENGINE_VARIABLES="MINE").split())
    assert hidden & environ.keys() == {"HF_TOKEN", "RUNPOD_POD_ID"}


def test_all_programs_get_the_store_that_start_sh_has_tried(project):
    """The volume may be written again when the next program starts; it keeps the decision."""
    change(project, "store_settings.py", 'Path("/runpod-volume")', f'Path("{project}/volume")')
    change(project, "store_settings.py", 'Path("/models")', f'Path("{project}/disk")')
    for name in ("volume", "disk"):
        (project / name).mkdir()
    with read_only(project / "volume") as is_read_only:
        exported = start_sh(project, "env | grep -aE '^(READ_ONLY_MODELS|MODELS)_DIR=|^SUPERV'")
    environ = dict(line.split("=", 1) for line in exported.splitlines())
    assert "SUPERVISOR_PID" in environ  # so the next programs try nothing
    program = f'cd "{project}"; "$PYTHON" -m worker.config.shell MODELS_DIR READ_ONLY_MODELS_DIR'
    if is_read_only:
        stores = f"MODELS_DIR={project}/disk\nREAD_ONLY_MODELS_DIR={project}/volume/models\n"
        assert bash(program, **environ).stdout == stores


@pytest.mark.parametrize(("given", "read"), [("no", "False"), ("1", "True"), ("", "True")])
def test_the_engine_gets_the_checked_setting_of_the_speedups(project, given, read):
    names = start_sh(project, "env | grep -a ^A1111_SPEEDUPS= || true", A1111_SPEEDUPS=given)
    assert names == f"A1111_SPEEDUPS={read}\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give root up")
def test_a_changed_default_reaches_the_entry_point_which_ends_with_a_wrong_setting(project):
    change(project, "store_settings.py", 'Path("/runpod-volume")', f'Path("{project}/volume")')
    (project / "volume").mkdir()
    write_program(project / "bin/setpriv", 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"')
    for name in ("chown", "find", "tini"):
        write_program(project / "bin" / name, "exit 0")
    environ = {"PATH": f"{project / 'bin'}:{os.environ['PATH']}", "RUN_DIR": str(project / "run")}
    done = bash(f"{project}/image/entrypoint.sh", **environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert (project / "volume/models").is_dir()

    done = bash(f"{project}/image/entrypoint.sh", READY_TIMEOUT="soon", **environ)
    assert done.returncode == 78
    assert done.stderr.startswith("BAD_CONFIGURATION: READY_TIMEOUT='soon'")


# The health check --------------------------------------------------------------------------------


class Engine(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.requestline.split()[1]  # self.path has lost slashes, which count
        self.send_response(200 if path.startswith("/sdapi/v1/progress?") else 404)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def engine_url():
    with http.server.HTTPServer(("127.0.0.1", 0), Engine) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def check_health(run_dir, **environ):
    done = bash(f"{PROJECT}/image/healthcheck.sh", RUN_DIR=str(run_dir), **environ)
    return done.returncode, done.stdout.strip()


def test_a_changed_default_reaches_the_health_check(project, engine_url):
    assert check_health(project / "run") == (1, "start.sh has not started an engine yet")

    change(project, "settings.py", "http://127.0.0.1:3000", engine_url)
    start_sh(project, "prepare_run_dir")
    assert check_health(project / "run") == (0, "")


@pytest.mark.parametrize(
    ("path", "health"), [("", (0, "")), ("//", (0, "")), ("/other", (1, "the engine does not"))]
)
def test_the_health_check_asks_the_url_that_the_worker_uses(project, engine_url, path, health):
    start_sh(project, "prepare_run_dir", WEBUI_URL=engine_url + path)
    status, reason = check_health(project / "run")
    assert (status, reason[: len(health[1])]) == health


def test_the_health_check_does_not_ask_a_proxy_for_the_engine(project, engine_url):
    """Docker sets these variables in every container if `~/.docker/config.json` has proxies."""
    start_sh(project, "prepare_run_dir", WEBUI_URL=engine_url)
    names = ("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY")
    dead = dict.fromkeys(names, "http://127.0.0.1:9")
    assert check_health(project / "run", **dead) == (0, "")


def test_other_users_cannot_read_the_engines_url(project):
    address = project / "run" / "engine.address"
    address.parent.mkdir(mode=0o755)
    address.write_text("left by an earlier start\n")

    start_sh(project, "prepare_run_dir", WEBUI_URL="http://me:swordfish@gpu.example")

    assert address.read_text() == "external http://me:swordfish@gpu.example\n"
    assert stat.filemode(address.stat().st_mode) == "-rw-------"


NOT_READY = (1, "the engine is not ready yet")
FAILED = (1, "the engine is not running: failed")


@pytest.mark.parametrize(
    ("engine", "ready", "health"),
    [
        *(("running 7", "7", (0, "")), ("running 7", "6", NOT_READY), ("failed 1", "7", FAILED)),
        (None, None, (1, "start.sh has not started an engine yet")),
    ],
)
def test_only_an_engine_that_made_a_picture_is_healthy(tmp_path, engine_url, engine, ready, health):
    (tmp_path / "engine.address").write_text(f"a1111 {engine_url}\n")
    for name, content in (("engine", engine), ("engine.ready", ready)):
        if content:
            (tmp_path / name).write_text(f"{content}\n")
    assert check_health(tmp_path) == health


@pytest.mark.parametrize(("size", "is_cut"), [(4000, False), (4001, True), (99_999, True)])
def test_a_message_of_start_sh_stays_below_runpods_limit(size, is_cut):
    done = bash(f'source "{PROJECT}/start.sh"; log "a$(printf %{size - 2}s)z"')
    assert len(done.stderr) < 4096
    assert done.stderr.endswith("z\n")
    assert ("characters left out" in done.stderr) == is_cut
