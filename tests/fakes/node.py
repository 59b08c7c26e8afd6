"""Runs the JavaScript clients of tests/clients/node, which npm installs once."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

FOLDER = Path(__file__).resolve().parents[1] / "clients" / "node"


def run_script(name: str, *arguments: str) -> Any:
    """The JSON on the last line that a script prints.

    The test is skipped without Node, npm or its registry.
    """
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs node and npm")
    _install()
    command = ["node", FOLDER / name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _install() -> None:
    wanted = (FOLDER / "package-lock.json").read_text()
    installed = FOLDER / "node_modules" / "installed-lock.json"
    with FileLock(FOLDER / "node_modules.lock"):
        if installed.exists() and installed.read_text() == wanted:
            return
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(
            command, cwd=FOLDER, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode:
            pytest.skip(f"npm cannot install the clients: {done.stderr[-300:]}")
        installed.write_text(wanted)
