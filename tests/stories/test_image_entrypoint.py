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
MAY_NOT = "exit 1"
FIND = shutil.which("find")


@pytest.fixture
def start(tmp_path):
    """Run it; returns its messages, and the programs that it ran."""

    def start(setpriv=MAY_CHANGE, closed=(), **environ):
        programs = tmp_path / "bin"
        write_program(programs / "setpriv", setpriv)
        found = "\n".join(f"echo {folder}" for folder in closed)
        write_program(programs / "find", f'case "$*" in *-user*) exec {FIND} "$@" ;; esac\n{found}')
        write_program(programs / "chown", '[ "$1" != -h ] || echo "chown $*" >>"$SEEN"')
        write_program(programs / "tini", 'echo "tini $*" >>"$SEEN"')
        seen = tmp_path / "seen"
        done = subprocess.run(
            [PROJECT / "image" / "entrypoint.sh", "--test_input", "{}"],
            env={
                "PATH": f"{programs}:{os.environ['PATH']}",
                "MODELS_DIR": str(tmp_path / "models"),
                "OUTPUT_DIR": str(tmp_path / "outputs"),
                "PYTHON": sys.executable,
                "SEEN": str(seen),
                **environ,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr, seen.read_text().splitlines()

    return start


def test_the_user_changes_before_tini_and_arguments_are_kept(start, tmp_path):
    messages, seen = start()

    assert messages == ""
    assert seen[-2:] == ["setpriv tini", "tini -s -- ./start.sh --test_input {}"]
    assert (tmp_path / "models").is_dir()
    assert (tmp_path / "outputs").is_dir()


def test_the_first_folder_that_cannot_be_written_is_named(start):
    messages, seen = start(closed=["/models/blobs", "/models/leases"])

    assert messages.startswith(
        "entrypoint.sh: stays root, because user 1000 cannot write /models/blobs"
    )
    assert seen[-1].startswith("tini -s")
    assert "setpriv tini" not in seen


def test_without_the_right_to_change_users_it_stays_root(start):
    messages, seen = start(setpriv=MAY_NOT)

    assert messages == "entrypoint.sh: stays root, because this container may not change its user\n"
    assert seen == ["tini -s -- ./start.sh --test_input {}"]


def test_files_that_an_earlier_start_made_as_root_become_the_workers(start, tmp_path):
    """`docker restart` after the volume was opened to user 1000, as the entry point advises."""
    run, webui = tmp_path / "run", tmp_path / "webui"
    for folder in (run, webui / "cache"):
        folder.mkdir(parents=True)
    (webui / "of another user").touch()
    os.chown(webui / "of another user", 1000, 1000)
    messages, seen = start(RUN_DIR=str(run), WEBUI_DIR=str(webui))

    assert messages == ""
    assert f"chown -h worker:worker -- {run} {webui} {webui}/cache" in seen
    assert seen[-1].startswith("tini -s")


def test_a_first_start_changes_no_owner(start, tmp_path):
    _, seen = start(RUN_DIR=str(tmp_path / "run"), WEBUI_DIR=str(tmp_path))

    assert not [line for line in seen if line.startswith("chown")]
