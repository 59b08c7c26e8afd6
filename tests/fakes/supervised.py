"""start.sh under test, with small real programs in the places of the engine and the handler.

A test uses `Worker`. Its programs are a few lines of Python in which `me` is a `Program`, such as
`me.ready(); me.serve()`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from fakes.gpu import (
    RTX_4090,
    write_nvidia_smi,
    write_program,
    write_webui_python,
    write_worker_python,
)

TESTS = Path(__file__).resolve().parents[1]
PROJECT = TESTS.parent
START_SH = PROJECT / "start.sh"
DEADLINE = 60.0  # ends only a test that would never end
TICK = 0.02

LASTING_ENGINE = "me.ready(); me.serve()"
LASTING_HANDLER = "me.serve()"
DEAF_ENGINE = "me.ready(); me.serve(deaf=True)"
DEAF_HANDLER = "me.serve(deaf=True)"
PARENT_ENGINE = "me.have_child(); me.ready(); me.serve()"

# The engine gets only the variables that an engine needs, and those that are named.
OF_TESTS = ["RUN_DIR", "STUB_LOG"]
OF_TESTS += [f"FAKE_A1111_{name}" for name in ("CUDA", "EXTENSIONS", "FAULTS", "PARTS")]

# What start.sh gets from the real model_manager.py.
CHECK = "from worker.config import preflight\nif status := preflight.main(): sys.exit(status)\n"
PROGRAM = """\
import os, sys
sys.path.append({tests!r})
from fakes.supervised import Program
me = Program({name!r})
{body}
"""


class Program:
    """The actions of a test's engine and handler; each noted event is a line in STUB_LOG."""

    def __init__(self, name: str) -> None:
        self._name = name

    def note(self, event: str, **facts: Any) -> None:
        """Write an event down for the test."""
        line = json.dumps({"event": f"{self._name} {event}", "pid": os.getpid(), **facts})
        with Path(os.environ["STUB_LOG"]).open("a") as log:
            log.write(f"{line}\n")

    def ready(self) -> None:
        """Report, in place of the handler, that this engine has made its first picture."""
        mark = Path(os.environ["RUN_DIR"], "engine.ready")
        new = mark.with_suffix(".new")
        new.write_text(f"{os.getpid()}\n")
        new.replace(mark)

    def wait(self) -> None:
        """Wait until the test lets the programs go on."""
        while not Path(f"{os.environ['STUB_LOG']}.go").exists():
            time.sleep(TICK)

    def serve(
        self, *, waits: bool = False, status: int = 0, deaf: bool = False, checks: bool = False
    ) -> NoReturn:
        """Live until TERM, and with `waits` until the test lets it go on; if deaf, until KILL.

        With `checks` it ends as the real handler does when start.sh writes that the engine is gone.
        """

        def stop(_number: int, _frame: Any) -> None:
            self.note("TERM")
            if waits:
                self.wait()
            if not deaf:
                self.note("stopped", has_cache=Path("cache").exists())
                os._exit(status)

        def check(_number: int, _frame: Any) -> None:
            if Path(os.environ["RUN_DIR"], "engine").read_text().startswith("failed"):
                os._exit(status)

        signal.signal(signal.SIGTERM, stop)
        if checks:
            signal.signal(signal.SIGALRM, check)
            signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
        self._note_start()
        while True:
            signal.pause()

    def is_second(self) -> bool:
        """Whether this program was started before; call it once."""
        mark = Path(f"{os.environ['STUB_LOG']}.{self._name}")
        was_there = mark.exists()
        mark.touch()
        return was_there

    def crash(self, status: int) -> NoReturn:
        """End at once."""
        self._note_start()
        sys.exit(status)

    def have_child(self, script: str = "trap '' TERM INT; while :; do sleep 60; done") -> None:
        """Start a process of our group, by default one that does not stop for TERM."""
        subprocess.Popen(["sh", "-c", script])

    def _note_start(self) -> None:
        self.note(
            "started",
            arguments=sys.argv[1:],
            environ=dict(os.environ),
            folder=str(Path.cwd()),
            group=os.getpgrp(),
            has_cache=Path("cache").exists(),
            has_tcmalloc="libtcmalloc" in Path("/proc/self/maps").read_text(),
            options=Path("config.json").read_text() if Path("config.json").exists() else "",
        )


def link_project(folder: Path, *names: str) -> None:
    """Make a folder in which start.sh runs as in the project, with these programs of the project.

    start.sh takes the programs beside it, so that a test can put others there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("start.sh", "worker", *names):
        (folder / name).symlink_to(PROJECT / name)


def environment(folder: Path, port: int) -> dict[str, str]:
    """The settings of a worker whose folders are below `folder`, and a GPU for it."""
    write_nvidia_smi(folder / "bin", RTX_4090)
    return {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHON": str(write_worker_python(folder / "worker-python")),
        "ENGINE": "a1111",
        "FAKE_A1111_CUDA": "1",
        "ENGINE_VARIABLES": " ".join(OF_TESTS),
        "WEBUI_URL": f"http://127.0.0.1:{port}",
        "WEBUI_DIR": str(folder / "webui"),
        "WEBUI_PYTHON": str(write_webui_python(folder / "a1111")),
        "MODELS_DIR": str(folder / "models"),
        "BAKED_MODELS_DIR": str(folder / "baked"),
        "DEFAULT_TEMPLATE": "none",
        "RUN_DIR": str(folder / "run"),
    }


class Worker:
    """A project folder with the real start.sh, and the processes that it starts."""

    def __init__(
        self,
        folder: Path,
        port: int,
        engine: str = LASTING_ENGINE,
        handler: str = LASTING_HANDLER,
        **environ: str,
    ) -> None:
        self.folder, self.port = folder, port
        self.webui, self.run_dir = folder / "webui", folder / "run"
        self._log, self._events = folder / "log", folder / "events"
        self.process: subprocess.Popen[bytes] | None = None
        self.environ = environment(folder, port) | {"STUB_LOG": str(self._events)} | environ
        link_project(folder)
        self._write_program(folder / "handler.py", "handler", handler)
        self._write_program(self.webui / "webui.py", "engine", engine)
        self._write_program(folder / "engine" / "__main__.py", "engine", engine)
        self.replace_model_manager("")  # the real one takes its time
        self.has_tcmalloc()

    def _write_program(self, path: Path, name: str, body: str) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(PROGRAM.format(tests=str(TESTS), name=name, body=body))

    def replace_model_manager(self, body: str) -> None:
        """Put a program in the place of model_manager.py: the check of the machine, and this."""
        self._write_program(self.folder / "model_manager.py", "model_manager", CHECK + body)

    def shorten_waits(self) -> None:
        """Let start.sh wait 0.5 s instead of 5 s, for programs that do not end by themselves."""
        script = START_SH.read_text()
        assert "=5000" in script
        (self.folder / "start.sh").unlink()
        (self.folder / "start.sh").write_text(script.replace("=5000", "=500"))
        (self.folder / "start.sh").chmod(0o755)

    def let_go_on(self) -> None:
        """End the waiting of programs."""
        Path(f"{self._events}.go").touch()

    def has_tcmalloc(self, *libraries: str) -> None:
        """Let `ldconfig -p` list these libraries and no others."""
        lines = [f"echo '\t{Path(it).name} (libc6,x86-64) => {it}'" for it in libraries]
        self.write_ldconfig("\n".join(["echo '9 libs found in `/etc/ld.so.cache'", *lines]))

    def write_ldconfig(self, script: str) -> None:
        """Replace the system's ldconfig."""
        write_program(self.folder / "bin" / "ldconfig", script)

    def start(self, *arguments: str, under: tuple[str, ...] = ()) -> None:
        """Run start.sh, with `under` in front of it."""
        with self._log.open("w") as output:
            self.process = subprocess.Popen(
                [*under, str(self.folder / "start.sh"), *arguments],
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def end(self) -> int:
        """Wait until start.sh and both groups are gone; its exit status as in a shell's `$?`."""
        self.until(lambda: self.process.poll() is not None, "the end of start.sh")
        self.until(lambda: not self._others(), "the end of every process")
        status = self.process.returncode
        return status if status >= 0 else 128 - status

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send start.sh a signal and wait for its end."""
        self.process.send_signal(number)
        return self.end()

    def until(self, happened: Callable[[], Any], what: str) -> None:
        """Wait for something with a deadline."""
        deadline = time.monotonic() + DEADLINE
        while not happened():
            late = f"{what} did not happen within {DEADLINE} s: {self.story()}\n{self.log()}"
            assert time.monotonic() < deadline, late
            time.sleep(TICK)

    def noted(self, event: str) -> list[dict[str, Any]]:
        """The events of this name so far."""
        return [line for line in self._lines() if line["event"] == event]

    def await_event(self, event: str, times: int = 1) -> dict[str, Any]:
        """The facts of an event, once it has happened that often."""
        self.until(lambda: len(self.noted(event)) >= times, f"{event} (number {times})")
        return self.noted(event)[times - 1]

    def await_both(self) -> None:
        """Wait until the engine and the handler have started."""
        self.await_event("engine started")
        self.await_event("handler started")

    def story(self) -> list[str]:
        """The names of the events in their order."""
        return [line["event"] for line in self._lines()]

    def log(self) -> str:
        """The output of start.sh and its programs."""
        return self._log.read_text() if self._log.exists() else ""

    def processes(self) -> list[int]:
        """All living processes of this worker, recognized by the environment that they inherit."""
        mark = f"STUB_LOG={self._events}".encode()
        return [pid for pid, _, _ in _all_processes() if mark in _read_environ(pid)]

    def children(self, pid: int, state: str = "RSDZ") -> list[int]:
        """The child processes of a process that are in one of these states."""
        return [it for it, its, parent in _all_processes() if parent == pid and its in state]

    def members(self, group: int) -> list[int]:
        """The living processes of a group."""
        return [pid for pid in self.processes() if _group(pid) == group]

    def close(self) -> None:
        """Kill all that the test has left."""
        while left := self.processes():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(TICK)
        if self.process:
            self.process.wait()

    def _others(self) -> list[int]:
        """All but start.sh's own group, which contains nothing but its ticker."""
        return [pid for pid in self.processes() if _group(pid) not in {self.process.pid, None}]

    def _lines(self) -> list[dict[str, Any]]:
        if not self._events.exists():
            return []
        whole, _, _ = self._events.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]


def as_handler(worker: Worker) -> Any:
    """The handler's view of start.sh: its `Supervisor`."""
    # Not at the top: the small programs import this module too, without the project's folder.
    from worker.webui.supervisor import Supervisor

    return Supervisor(worker.run_dir, worker.process.pid)


def kill_engine(worker: Worker) -> int:
    """Kill the engine that runs now; returns its process number."""
    pid: int | None = as_handler(worker).engine().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


def _all_processes() -> Iterator[tuple[int, str, int]]:
    """Number, state and parent of each process."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        yield int(path.parent.name), fields[0], int(fields[1])


def _read_environ(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""


def _group(pid: int) -> int | None:
    with suppress(ProcessLookupError):
        return os.getpgid(pid)
    return None
