"""Records client.py in a terminal: `python -m docs.figures.record_terminal`, beside `make serve`.

terminal.py draws the recording: what the program wrote, and when.
"""

from __future__ import annotations

import json
import os
import pty
import shutil
import sys
import tempfile
import time
from pathlib import Path

from worker.config.settings import PROJECT

FILE = Path(__file__).with_name("terminal.json")
# What a person types after `python3 client.py`.
COMMANDS = (
    ["a red heart on a white background", "--seed", "7", "--out", "heart.png"],
    ["--like", "heart.png", "--lora", "striped:0.8", "--out", "striped.webp"],
)
ENVIRON = {"TERM": "xterm", "COLUMNS": "80", "LINES": "24", "PATH": os.environ["PATH"]}


def main() -> None:
    """Run the commands one after the other, in one folder, and write the file."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(PROJECT / "client.py", folder)
        os.chdir(folder)
        recorded = [{"command": command, "output": _run(command)} for command in COMMANDS]
    FILE.write_text(json.dumps(recorded, indent=1) + "\n")


def _run(command: list[str]) -> list[tuple[float, str]]:
    """What it writes to a terminal: seconds since its start, and the text."""
    start = time.monotonic()
    child, terminal = pty.fork()
    if child == 0:
        url = os.environ.get("RUNPOD_URL", "http://localhost:8000")
        program = ["python3", "client.py", *command]
        os.execve(sys.executable, program, {**ENVIRON, "RUNPOD_URL": url})  # noqa: S606
    written: list[tuple[float, str]] = []
    while True:
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:  # the program has ended
            data = b""
        if not data:
            break
        written.append((round(time.monotonic() - start, 2), data.decode()))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, written  # noqa: S101 - what fails is no recording
    return written


if __name__ == "__main__":
    main()
