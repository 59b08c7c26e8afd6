"""Worker processes that fetch a model all at the same moment.

    python -m fakes.fetching COUNT REF     each prints its pid when it is ready, and fetches when
                                           standard input ends

They are forked from one process that has imported everything, and has checked a LoRA (safetensors
imports numpy for the first file), so that they start at once.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fakes.model_files import safetensors
from fakes.model_store import PROJECT, full_environment
from model_manager import ModelManager
from worker.config.settings import Settings
from worker.formats.model_file import ModelFile
from worker.job.reference import Wanted, parse_reference


class Fetching:
    """Some processes that are ready to fetch; `pids` are theirs."""

    def __init__(self, hosts: Any, folder: Path, ref: str, count: int) -> None:
        environ = full_environment(hosts, folder)
        environ["PYTHONPATH"] = f"{PROJECT}:{PROJECT / 'tests'}"
        command = [sys.executable, "-m", "fakes.fetching", str(count), ref]
        pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
        self._parent = subprocess.Popen(
            command, cwd=PROJECT, env=environ, text=True, start_new_session=True, **pipes
        )
        self.pids = [int(self._parent.stdout.readline()) for _ in range(count)]

    def __enter__(self) -> "Fetching":
        return self

    def __exit__(self, *_: object) -> None:
        with self._parent:
            if self._parent.poll() is None:
                os.killpg(self._parent.pid, signal.SIGKILL)

    def go(self) -> None:
        self._parent.stdin.close()

    def results(self) -> list[dict[str, Any]]:
        """The file that each process has."""
        lines = self._parent.stdout.read().splitlines()
        assert self._parent.wait() == 0
        return [json.loads(line) for line in lines]


def fetch(ref: str) -> None:
    manager = ModelManager(Settings.from_environ(os.environ))
    os.write(1, b"%d\n" % os.getpid())
    sys.stdin.buffer.read()
    (file,) = manager.ensure([Wanted(parse_reference(ref))])
    file.check()
    os.write(1, json.dumps({"path": str(file.path), "stem": file.stem}).encode() + b"\n")


def check_one() -> None:
    """Check a small LoRA, as a worker does before it needs a new one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.safetensors"
        size = path.write_bytes(safetensors())
        ModelFile("lora", path, path.stem, size).check()


if __name__ == "__main__":
    check_one()
    for _ in range(int(sys.argv[1])):
        if os.fork() == 0:
            try:
                fetch(sys.argv[2])
            finally:
                os._exit(0)
    for _ in range(int(sys.argv[1])):
        os.wait()  # a killed child must not stay a zombie, which looks alive
