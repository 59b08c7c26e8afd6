"""--start and `bridge`: what client.py starts, and that it leaves nothing running."""

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest

import client as program

from .conftest import CLIENT

# A start.sh whose worker is the fake endpoint. It leaves its process id in the file `pid`.
START = """#!/bin/sh
echo $$ >"${0%/*}/pid"
echo "the log of start.sh"
[ -z "$ENDING" ] || exit "$ENDING"
exec PYTHON -c '
import signal, sys
sys.path[:0] = PATHS
from fakes.runpod_endpoint import RunPodEndpoint, completed, progress
from tests.client.conftest import draws
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
states = lambda given: [progress()] if given["prompt"] == "endless" else draws(given)
with RunPodEndpoint(states, port=int(sys.argv[3])):
    signal.sigwait([signal.SIGTERM])
' "$@"
"""


@pytest.fixture
def project(client):
    """client.py in a folder of its own, beside this start.sh."""
    paths = repr([str(CLIENT.parent / "tests"), str(CLIENT.parent)]).replace("'", '"')
    script = client.folder / "start.sh"
    script.write_text(START.replace("PYTHON", sys.executable).replace("PATHS", paths))
    script.chmod(0o755)
    client.program = shutil.copy(CLIENT, client.folder)
    return client


def is_running(project):
    return Path("/proc", (project.folder / "pid").read_text().strip()).exists()


def test_start_draws_with_a_worker_that_ends_with_it(endpoint, project):
    status, out, err = project("a fox", "--start", "--out", "outputs/")
    assert (status, out) == (0, "outputs/a-red-fox-42.png\n")
    assert err.startswith("starting the worker on this machine\n")
    assert not is_running(project)
    assert endpoint.events() == [], "the endpoint of the environment is not used"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_job_and_stops_the_worker(number, project):
    process = project.start("endless", "--start")
    lines = iter(process.stderr)
    assert any(b"a worker has the job" in line for line in lines)
    process.send_signal(number)
    status, _, err = project.end(process)
    assert (status, "has accepted the cancel" in err) == (130, True)
    assert not is_running(project)


def test_a_worker_that_cannot_start_is_named_with_its_log(project):
    project.environ["ENDING"] = "78"
    status, _, err = project("a fox", "--start")
    assert (status, "start.sh ended with 78:\n  the log of start.sh" in err) == (1, True)


def test_the_packages_of_the_bridge_are_those_that_it_asks_for():
    lines = (CLIENT.parent / "requirements-bridge.txt").read_text().splitlines()
    names = {line.partition("==")[0].replace("-", "_") for line in lines if "==" in line}
    assert {"pillow" if name == "PIL" else name for name in program.BRIDGE_NEEDS} == names


BRIDGE = "import json, os, sys; print(json.dumps([sys.argv[1:], os.getcwd()]))"


def test_bridge_passes_its_arguments_on_to_the_gateway(project):
    status, _, err = project("bridge", "--port", "7860")
    assert (status, "needs the project's folder gateway/" in err) == (2, True)
    package = project.folder / "gateway"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(BRIDGE)
    arguments = ["bridge", "--endpoint", "ep0", "--port", "7860", "a b"]
    status, out, _ = project(*arguments)
    assert (status, json.loads(out)) == (0, [arguments, str(project.folder)])
    project.isolated = True  # a Python without the packages
    status, _, err = project(*arguments)
    assert status == 2
    assert "-m venv .venv\n" in err
    assert ".venv/bin/python -m pip install -r requirements-bridge.txt\n" in err
    (project.folder / ".venv/bin").mkdir(parents=True)
    own = project.folder / ".venv/bin/python"
    own.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    own.chmod(0o755)
    assert json.loads(project(*arguments)[1]) == [arguments, str(project.folder)]
