"""Everything around the workers of a campaign, and the workers: real processes on loopback."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from fakes.hosts.bucket import KEY_ID, NAME, SECRET
from fakes.hosts.model_hosts import ModelHosts
from fakes.hosts.put_host import PutHost
from fakes.hosts.volume_api import VolumeApi, volume_api
from fakes.model_store import environment_for
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import HANDLER, QUICK_HANDLER, WorkerProcess

from campaign.scenery import build

PATIENCE = 300.0  # seconds; ends only a campaign that would never go on
TICK = 0.05
VOLUME_BYTES = 8 << 30  # in memory, which only what is written uses; 2 GB must stay free
RUN_BYTES = 1 << 20
# A picture of the fake takes this long, so that a fault at a random moment meets one.
SLOW = {"fault": "slow_decoding", "seconds": 0.2, "times": -1}
F_SETPIPE_SZ, PIPE_BYTES = 1031, 4096


class Patience:
    """A deadline that does not run on while the campaign itself is stopped."""

    def __init__(self, seconds: float) -> None:
        self._left, self._last = seconds, time.monotonic()

    def is_over(self) -> bool:
        """Whether that many seconds have passed; call it often."""
        now = time.monotonic()
        self._left -= min(now - self._last, 1.0)
        self._last = now
        return self._left < 0


class LogPipe:
    """The reader of a worker's output: it can stop reading, or go away for good."""

    def __init__(self, file: Path) -> None:
        import fcntl

        self._file = file
        self._read, self.write = os.pipe()
        fcntl.fcntl(self._read, F_SETPIPE_SZ, PIPE_BYTES)
        self.reads = threading.Event()
        self.reads.set()
        self.is_closed = False
        threading.Thread(target=self._copy, daemon=True).start()

    def _copy(self) -> None:
        with self._file.open("ab", buffering=0) as file:
            while not self.is_closed and (data := os.read(self._read, PIPE_BYTES)):
                file.write(data)
                self.reads.wait()
        os.close(self._read)

    def close(self) -> None:
        """Nobody reads the log from its next line on."""
        self.is_closed = True
        self.reads.set()


class Worker(WorkerProcess):
    """A worker of the campaign; its output goes through a pipe."""

    def __init__(self, folder: Path, *args: Any) -> None:
        self.pipe: LogPipe | None = None
        self.name, self.jobs_done = folder.name, 0
        self.is_stopping = False  # by us
        super().__init__(folder, *args)

    @contextmanager
    def open_log(self) -> Iterator[int]:
        self.pipe = LogPipe(self.log_file)
        yield self.pipe.write
        os.close(self.pipe.write)

    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    @property
    def has_ended(self) -> bool:
        """Whether start.sh has ended."""
        return self.process.poll() is not None

    def processes(self) -> dict[int, str]:
        """Its living processes, by the environment that they inherit, and their commands."""
        mark, found = f"RUN_DIR={self.run_dir}".encode(), {}
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (path / "environ").read_bytes().split(b"\0"):
                    found[int(path.name)] = (
                        (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    )
        return found

    def pid_of(self, program: str) -> int | None:
        """The process that runs `handler.py`, and leads its group; or the engine."""
        if program == "engine":
            with suppress(OSError, ValueError, AssertionError):
                return self.engine_pid()
            return None
        for pid, line in self.processes().items():
            with suppress(OSError):
                if program in line and os.getpgid(pid) == pid:
                    return pid
        return None

    def signal(self, number: int, program: str = "") -> None:
        """Signal start.sh, or one of its programs if it runs."""
        if self.has_ended:  # its number may be another process's
            return
        pid = self.pid_of(program) if program else self.process.pid
        with suppress(ProcessLookupError):
            if pid:
                os.kill(pid, number)

    def signal_all(self, number: int) -> None:
        """Signal every process at once, start.sh first."""
        for pid in sorted(self.processes(), key=lambda pid: pid != self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


class World:
    """The plane, the hosts, the bucket, the volume, and the workers on it.

    Attributes:
        volume: the folder of all models; a small file system of its own if this user can mount.
        run: the place of RUN_DIR, the same.
        variants: path in the store -> which of its two contents is there.
        seen: the same, of every moment since the step began.
        left_out: why some faults cannot be made on this machine.
    """

    def __init__(self, folder: Path, engine: str, *, has_bucket: bool = True) -> None:
        self.folder, self.engine, self._has_bucket = folder, engine, has_bucket
        self.volume, self.run = folder / "volume", folder / "run"
        self.plane = RunPodPlane(hold=1.0, webhook_pause=0.2)
        self.workers: list[Worker] = []
        self.lead: Worker | None = None
        self.left_out = ""
        self.variants: dict[str, int] = {}
        self.seen: dict[str, set[int]] = {}
        self._started = 0
        self._mounted: list[Path] = []
        self._stack = ExitStack()

    def __enter__(self) -> "World":
        # A shell starts background programs with SIGINT ignored, which workers would inherit.
        for number in (signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_IGN:
                signal.signal(number, lambda *_: sys.exit(1))
        enter = self._stack.enter_context
        enter(self.plane)
        self.hosts = enter(ModelHosts())
        self.put = PutHost(self.hosts)
        # All S3 servers of a process have the same buckets, so only one world has one.
        self.s3: VolumeApi | None = enter(volume_api()) if self._has_bucket else None
        for path, size in ((self.volume, VOLUME_BYTES), (self.run, RUN_BYTES)):
            path.mkdir(parents=True)
            self._mount(path, size)
        self.scenery = build(self.engine, self.hosts)
        self.scenery.write_store(self.volume)
        self.variants = dict.fromkeys(self.scenery.variants, 0)
        self.forget_seen()
        return self

    def __exit__(self, *reason: object) -> None:
        try:
            for worker in self.workers:
                worker.signal_all(signal.SIGCONT)
                worker.signal_all(signal.SIGKILL)
                worker.process.wait()
            self.wait_until(lambda: not any(one.processes() for one in self.workers), "the end")
        finally:
            for path in self._mounted:
                subprocess.run(["umount", "-l", path], check=False)
            self._stack.__exit__(None, None, None)

    def _mount(self, path: Path, size: int) -> None:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "campaign", path]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            self.left_out = "this user cannot mount a small file system"
        else:
            self._mounted.append(path)

    def resize(self, path: Path, size: int) -> None:
        """Give a small file system another size; refused while more is used."""
        command = ["mount", "-o", f"remount,size={size}", path]
        subprocess.run(command, check=False, capture_output=True)

    @property
    def is_mounted(self) -> bool:
        """Whether the volume and RUN_DIR are file systems of their own."""
        return not self.left_out

    # Workers -------------------------------------------------------------------------------------

    @property
    def main(self) -> Worker:
        """The worker that the faults are about."""
        assert self.lead
        return self.lead

    def start(self, *, quick: bool = True, leads: bool = False, **settings: str) -> Worker:
        """Start another worker on the volume; see `wait_until_taking`.

        `quick` shortens the handler's waits for the engine; the other one is handler.py itself.
        """
        self._started += 1
        name = f"worker{self._started}"
        folder = self.folder / name
        (folder / "tmp").mkdir(parents=True)
        self.scenery.write_engine(folder / "webui")
        environ = environment_for(self.hosts, folder)
        environ |= {
            "MODELS_DIR": str(self.volume),
            "RUN_DIR": str(self.run / name),
            "TMPDIR": str(folder / "tmp"),
            "RUNPOD_POD_ID": name,
            "READY_TIMEOUT": str(PATIENCE),
            "JOB_TIMEOUT": "120",
            "SHUTDOWN_GRACE": "90",
            "OMP_NUM_THREADS": "1",
            "FAKE_A1111_FAULTS": json.dumps([SLOW] if self._has_bucket else []),
        }
        if self.s3:
            environ["TRUSTED_HOSTS"] += f",{self.s3.endpoint.removeprefix('http://')}"
            environ |= {
                "BUCKET_ENDPOINT_URL": self.s3.endpoint,
                "BUCKET_NAME": NAME,
                "BUCKET_ACCESS_KEY_ID": KEY_ID,
                "BUCKET_SECRET_ACCESS_KEY": SECRET,
            }
        if self.engine == "embedded":
            environ |= {"ENGINE": "embedded", "DEVICE": "cpu"}
        handler = QUICK_HANDLER if quick else HANDLER
        worker = Worker(folder, self.plane, environ | settings, handler, ())
        worker.run_dir = self.run / name
        self.workers.append(worker)
        if leads:
            self.lead = worker
        return worker

    def forget(self, worker: Worker) -> None:
        """A worker has ended, and nothing of it is needed any more."""
        self.workers.remove(worker)
        if self.lead is worker:
            self.lead = None
        worker.pipe.close()
        shutil.rmtree(worker.webui.parent, ignore_errors=True)
        shutil.rmtree(worker.run_dir, ignore_errors=True)

    def takes(self, worker: Worker) -> bool:
        """Whether it has asked for a job."""
        return any(one["worker"] == worker.name for one in self.plane.events("take"))

    def wait_until_taking(self, worker: Worker) -> None:
        """Wait until it asks for jobs, or ends."""
        self.wait_until(
            lambda: worker.has_ended or self.takes(worker), f"job-take of {worker.name}"
        )

    def wait_until(
        self, happened: Callable[[], Any], what: str, patience: float = PATIENCE
    ) -> None:
        """Wait for something, for minutes if the machine is busy."""
        waited = Patience(patience)
        while not happened():
            if waited.is_over():
                raise TimeoutError(f"{what} did not happen within {patience} s")
            time.sleep(TICK)

    def open_connections(self) -> int:
        """How many connections of workers the hosts have."""
        return self.hosts.open_connections

    # What a neighbour on the volume does -------------------------------------------------------

    @property
    def fetched(self) -> Path:
        """The store's folder of downloaded models."""
        return self.volume / "fetched"

    def forget_models(self) -> None:
        """Remove every downloaded model, as the eviction of another worker does."""
        for pattern in ("blobs/*", "references/*"):
            for path in self.fetched.glob(pattern):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def set_variant(self, path: str, number: int) -> None:
        """Put one of its contents at a path of the store."""
        from campaign.scenery import replace_file

        self.seen[path].add(number)
        replace_file(self.volume / path, self.scenery.variants[path][number])
        self.variants[path] = number

    def forget_seen(self) -> None:
        """A step begins: only what is there now can be drawn."""
        self.seen = {path: {number} for path, number in self.variants.items()}
