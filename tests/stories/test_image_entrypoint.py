"""The image's entry point, in real bash; setpriv, find and tini are small programs here.

`make image-test` runs it with the real ones, in the images.
"""

import os
import shutil
import subprocess
import sys

import pytest
from fakes.gpu import write_program

from worker.config.settings import PROJECT

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give root up")

MAY_CHANGE = 'while [ "$1" != -- ]; do shift; done; shift; echo "setpriv $1" >>"$SEEN"; exec "$@"'
FIND = shutil.which("find")
TINI = "tini -s -- ./start.sh --test_input {}"


@pytest.fixture
def start(tmp_path):
    """Run it; returns its messages, and the programs that it ran."""

    def start(setpriv=MAY_CHANGE, closed="", **environ):
        scripts = {
            "setpriv": setpriv,
            "find": f'case "$*" in *-user*) exec {FIND} "$@" ;; esac\n{closed}',
            "chown": '[ "$1" != -h ] || echo "chown $*" >>"$SEEN"',
            "tini": 'echo "tini $*" >>"$SEEN"',
        }
        for name, script in scripts.items():
            write_program(tmp_path / "bin" / name, script)
        environ = {
            "WEBUI_DIR": str(tmp_path),
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "MODELS_DIR": str(tmp_path / "models"),
            "OUTPUT_DIR": str(tmp_path / "outputs"),
            "PYTHON": sys.executable,
            "SEEN": str(tmp_path / "seen"),
            **environ,
        }
        command = [PROJECT / "image" / "entrypoint.sh", "--test_input", "{}"]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr, (tmp_path / "seen").read_text().splitlines()

    return start


def test_the_user_changes_before_tini_and_arguments_are_kept(start, tmp_path):
    messages, seen = start()
    assert messages == ""
    assert seen[-2:] == ["setpriv tini", TINI]
    assert (tmp_path / "models").is_dir()
    assert (tmp_path / "outputs").is_dir()


@pytest.mark.parametrize(
    ("how", "because"),
    [
        ({"closed": "echo /models/blobs"}, "user 1000 cannot write /models/blobs"),
        ({"setpriv": "exit 1"}, "this container may not change its user\n"),
    ],
)
def test_it_stays_root_where_the_user_cannot_change_and_says_why(start, how, because):
    messages, seen = start(**how)
    assert messages.startswith(f"entrypoint.sh: stays root, because {because}")
    assert len(messages.splitlines()) == 1
    assert seen[-1] == TINI
    assert "setpriv tini" not in seen


def test_a_start_that_stays_root_takes_the_folder_of_an_earlier_start(start, tmp_path):
    """`docker restart` after root has made a folder on the volume: start.sh needs its own."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "engine").touch()
    (run / "of another user").touch()
    for path, user in ((run, 1000), (run / "engine", 1000), (run / "of another user", 1001)):
        os.chown(path, user, user)
    _, seen = start(closed="echo /models/blobs", RUN_DIR=str(run))
    assert [line for line in seen if line.startswith("chown")] == [
        f"chown -h root:root -- {run} {run}/engine"
    ]
    assert seen[-1] == TINI


def test_files_that_an_earlier_start_made_as_root_become_the_workers(start, tmp_path):
    """`docker restart` after the volume was opened to user 1000, as the entry point advises."""
    run, webui = tmp_path / "run", tmp_path / "webui"
    _, seen = start(RUN_DIR=str(run), WEBUI_DIR=str(tmp_path))
    assert not [line for line in seen if line.startswith("chown")]
    for folder in (run, webui / "cache"):
        folder.mkdir(parents=True)
    (webui / "of another user").touch()
    os.chown(webui / "of another user", 1000, 1000)
    messages, seen = start(RUN_DIR=str(run), WEBUI_DIR=str(webui))
    assert messages == ""
    assert f"chown -h worker:worker -- {run} {webui} {webui}/cache" in seen
    assert seen[-1] == TINI


def test_a_diagnosis_needs_no_right_settings_and_gives_up_nothing(tmp_path):
    environ = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "ENGINE": "comfy"}
    environ["RUN_DIR"] = str(tmp_path / "run")  # or it would find the worker of another test
    command = [PROJECT / "image" / "entrypoint.sh", "--diagnose", tmp_path / "it.md"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert f"the diagnosis is in {tmp_path / 'it.md'}" in done.stderr
    assert "WRONG: ENGINE='comfy'" in (tmp_path / "it.md").read_text()
