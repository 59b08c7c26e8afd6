"""Runs the JavaScript clients of tests/clients/node, which `make test` installs."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "clients" / "node"


def run_script(name: str, *arguments: str) -> Any:
    """The JSON on the last line that a script prints.

    The test is skipped where `make test` could not install the clients.
    """
    if not (shutil.which("node") and (FOLDER / "node_modules" / ".package-lock.json").exists()):
        pytest.skip("needs node, and the clients: npm ci --ignore-scripts in tests/clients/node")
    command = ["node", FOLDER / name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
