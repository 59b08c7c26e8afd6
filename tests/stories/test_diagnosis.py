"""A diagnosis beside a real worker, and after its death."""

import os
import re
import signal
import subprocess
import sys

from fakes import worker_process
from fakes.a1111.process import wait_until
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import SMALL, completed, failed, running_worker

from worker.config.settings import PROJECT

SECRET = "hf_xyzzyabcdefghijklmnop"


def diagnosis(**environ):
    """As a second terminal gets it, which knows at most where RUN_DIR is."""
    done = subprocess.run(
        [PROJECT / "start.sh", "--diagnose", "-"],
        env={"PATH": os.environ["PATH"], "PYTHON": sys.executable, **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "xyzzy" not in done.stdout
    return done.stdout


def test_it_shows_a_running_worker_and_a_killed_one(tmp_path):
    with (
        RunPodPlane(hold=1.0) as plane,
        running_worker(tmp_path, plane, HF_TOKEN=SECRET, JOB_TIMEOUT="77") as worker,
    ):
        completed(worker.run(SMALL))
        failed(worker.run(SMALL | {"stepz": SECRET}), "INVALID_INPUT")
        run_dir = str(worker.run_dir)
        alive = diagnosis(RUN_DIR=run_dir)
        assert re.search(r"the settings of the running handler, process \d+\n", alive), alive
        assert "\nJOB_TIMEOUT: 77.0\n" in alive
        assert re.search("secrets that are set: .*HF_TOKEN", alive)
        assert "in the kept lines: 1 done, 1 INVALID_INPUT\n" in alive
        assert re.search(r'"failures": \{\s+"INVALID_INPUT": 1', alive)
        assert '"state": "running"' in alive
        assert f"\nengine: running {worker.engine_pid()}\n" in alive
        assert re.search(r"GET /sdapi/v1/sd-models: \n +after \S+ s: 2 entries", alive)
        assert f"\n{worker.engine_pid()} " in alive

        handler = re.search(r"running handler, process (\d+)", alive)[1]
        os.kill(int(handler), signal.SIGSTOP)  # it hangs: nothing of the above needs its help
        assert "in the kept lines: 1 done, 1 INVALID_INPUT\n" in diagnosis(RUN_DIR=run_dir)

        os.kill(worker.process.pid, signal.SIGKILL)
        for group in (int(handler), worker.engine_pid()):
            os.killpg(group, signal.SIGKILL)
        wait_until(lambda: worker.process.poll() is not None, "its end")
    dead = diagnosis(RUN_DIR=run_dir)
    assert "the settings of this process\n" in dead
    assert "in the kept lines: 1 done, 1 INVALID_INPUT\n" in dead
    assert re.search(r'"failures": \{\s+"INVALID_INPUT": 1', dead)
    assert "start.sh: engine a1111 started (pid" in dead
    assert "GET /sdapi" not in dead


def test_it_hides_the_passwords_of_the_engines_flags(tmp_path, monkeypatch):
    flags = "--medvram --gradio-auth 'user:xyzzy-gradio'"
    tells = "import sys\n\nprint('it reads', sys.argv[-1].split(':')[1], 'here')\n"
    monkeypatch.setattr(worker_process, "WEBUI_PY", tells + worker_process.WEBUI_PY)
    with (
        RunPodPlane(hold=1.0) as plane,
        running_worker(tmp_path, plane, WEBUI_ARGS=flags) as worker,
    ):
        text = diagnosis(RUN_DIR=str(worker.run_dir))
    assert "it reads *** here\n" in text
    assert "\nWEBUI_ARGS: --medvram --gradio-auth ***\n" in text


def test_the_bridge_has_one_too(tmp_path):
    environ = {"RUNPOD_ENDPOINT_ID": "ep0", "RUNPOD_API_KEY": "rpa_xyzzyabcdefgh"}
    environ["RUN_DIR"] = str(tmp_path / "run")  # or it would find the worker of another test
    done = subprocess.run(
        [PROJECT / "start.sh", "bridge", "--diagnose", tmp_path / "it.md"],
        env={"PATH": os.environ["PATH"], "PYTHON": sys.executable, **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "the diagnosis is in" in done.stderr
    text = (tmp_path / "it.md").read_text()
    assert "RUNPOD_ENDPOINT_ID: ep0\n" in text
    assert "secrets that are set: RUNPOD_API_KEY\n" in text
    assert "xyzzy" not in text
