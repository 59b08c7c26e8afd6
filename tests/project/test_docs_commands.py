"""The commands in the documents that can run anywhere (```sh) are run, as they are printed.

Only the ports are others: tests run side by side.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager

import pytest
import requests
from fakes.a1111.process import free_port

from tests.project.test_docs import PAGES, TURKISH, answer_keys
from worker.config.settings import PROJECT

SERVE = "make serve"
BOOT = 90.0  # seconds

if not (PROJECT / ".venv" / ".ready").exists() or not shutil.which("curl"):
    pytest.skip("needs the environment that `make` sets up, and curl", allow_module_level=True)


def commands(page):
    """The lines of its ```sh blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


# The Turkish README has the same ones (test_docs.py).
PAGES_WITH_COMMANDS = [page for page in PAGES if page != TURKISH and commands(page)]


@contextmanager
def served(environ, port):
    """RunPod's local API, as long as the block lasts."""
    with subprocess.Popen(
        SERVE.split(), cwd=PROJECT, env=environ, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        deadline = time.monotonic() + BOOT
        while not answers(f"http://localhost:{port}"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def answers(url):
    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False


def run(line, environ):
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line],
        cwd=PROJECT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=BOOT * 2,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=lambda page: page.name)
def test_commands_run_as_printed(page, tmp_path):
    api, engine = free_port(), free_port()
    environ = {
        "HOME": str(tmp_path),
        "MODELS_DIR": str(tmp_path / "models"),
        "OMP_NUM_THREADS": "1",
        "PATH": os.environ["PATH"],
        "PORT": str(api),
        "RUN_DIR": str(tmp_path / "run"),
        "WEBUI_DIR": str(tmp_path / "webui"),
        "WEBUI_URL": f"http://127.0.0.1:{engine}",
    }
    lines = commands(page)
    before = lines[: lines.index(SERVE)] if SERVE in lines else lines
    after = lines[len(before) + 1 :]

    for line in before:
        run(line, environ)
    if after:
        with served(environ, api):
            for line in after:
                said = run(line.replace(":8000", f":{api}").replace(":3000", f":{engine}"), environ)
                said = json.loads(said)
                if "@test_input.json" in line:
                    assert set(said["output"]) == answer_keys()
                assert "error" not in said


def test_the_readme_has_the_commands_that_people_need():
    lines = "\n".join(commands(PROJECT / "README.md"))

    assert all(word in lines for word in ("make run", SERVE, "runsync", "sdapi/v1"))
