"""Faults of the machine: processes, disks, limits of processes, and the log's reader."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from campaign.catalogue import GONE, HANDLER_KILLED, LOST, RETIRED, VANISHED, Fault, Heal, Inject
from campaign.world import RUN_BYTES, VOLUME_BYTES, World

DISK = frozenset({"STORE_FULL", "STORE_NOT_WRITABLE", "MODEL_HOST_FAILED"})
EXHAUSTED = frozenset({"MACHINE_EXHAUSTED"})
SCARCE = (
    DISK
    | EXHAUSTED
    | LOST
    | {"ENGINE_ERROR", "IMAGE_HOST_FAILED", "DELIVERY_FAILED", "INVALID_INPUT"}
)
LEFT_BYTES = 64 << 10
LONG_FREEZE = 75.0  # seconds: longer than the watchdog's silence

# Processes ---------------------------------------------------------------------------------------


def _signal(number: int, program: str = "", then: int | None = None) -> Inject:
    def inject(world: World, _rng: random.Random) -> Heal | None:
        worker = world.main
        worker.is_stopping = worker.is_stopping or (number in STOPS and not program)
        worker.signal(number, program)
        return (lambda: worker.signal(then, program)) if then else None

    return inject


STOPS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def _freeze(world: World, _rng: random.Random) -> Heal:
    """Stop every process, as FlashBoot freezes a worker; their clocks jump when they go on."""
    worker = world.main
    worker.signal_all(signal.SIGSTOP)

    def thaw() -> None:
        worker.signal_all(signal.SIGCONT)
        worker.signal(signal.SIGCONT, "handler.py")

    return thaw


def _kill_all(world: World, _rng: random.Random) -> None:
    """The machine loses power."""
    world.main.signal_all(signal.SIGKILL)


def _kill_both(world: World, _rng: random.Random) -> None:
    """So neither of them can stop the engine; in a container, the kernel does."""
    worker = world.main
    handler = worker.pid_of("handler.py")
    worker.signal(signal.SIGSTOP)
    with suppress(ProcessLookupError):
        if handler:
            os.kill(handler, signal.SIGKILL)
    worker.signal(signal.SIGKILL)


def _many_workers(world: World, rng: random.Random) -> Heal:
    """Three more workers share the volume; one of them is killed, the others end when healed."""
    others = [world.start() for _ in range(3)]
    for worker in others:
        world.wait_until_taking(worker)
    victim = rng.choice(others)
    time.sleep(rng.uniform(0.0, 1.5))
    victim.signal_all(signal.SIGKILL)

    def heal() -> None:
        for worker in others:
            worker.is_stopping = True
            worker.signal(signal.SIGTERM)

    return heal


def _busy_machine(_world: World, _rng: random.Random) -> Heal:
    """Other programs use all cores."""
    command = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(command) for _ in range(os.cpu_count() or 2)]

    def heal() -> None:
        for process in busy:
            process.kill()
            process.wait()

    return heal


# Disks -------------------------------------------------------------------------------------------


def _fill(folder: Callable[[World], Path], leave: int, size: int) -> Inject:
    """Let at most `leave` bytes be free on a file system of this size."""

    def inject(world: World, rng: random.Random) -> Heal:
        path = folder(world)
        found = os.statvfs(path)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        world.resize(path, used + rng.randrange(leave + 1))
        return lambda: world.resize(path, size)

    return inject


def _read_only(folder: Callable[[World], Path]) -> Inject:
    def inject(world: World, _rng: random.Random) -> Heal:
        remount = ["mount", "-o", "remount"]
        # Refused while a file is open for writing; then there is no fault.
        subprocess.run([*remount, "-r", folder(world)], check=False, capture_output=True)

        def heal() -> None:
            subprocess.run([*remount, "-w", folder(world)], check=True)

        return heal

    return inject


# Limits of the handler ---------------------------------------------------------------------------


def _limit(what: int, value: Callable[[int, random.Random], int]) -> Inject:
    """Lower a limit of the handler's process while it runs."""

    def inject(world: World, rng: random.Random) -> Heal | None:
        pid = world.main.pid_of("handler.py")
        if pid is None:
            return None
        soft, hard = resource.prlimit(pid, what)
        with suppress(ProcessLookupError):
            resource.prlimit(pid, what, (value(pid, rng), hard))

        def heal() -> None:
            with suppress(ProcessLookupError):
                resource.prlimit(pid, what, (soft, hard))

        return heal

    return inject


def _few_files(pid: int, rng: random.Random) -> int:
    numbers = [int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()]
    return max(numbers, default=20) + 1 + rng.randrange(6)


def _little_memory(pid: int, rng: random.Random) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    return pages * resource.getpagesize() + rng.randrange(32 << 20)


# The log -----------------------------------------------------------------------------------------


def _log_full(world: World, _rng: random.Random) -> Heal:
    """Nobody reads the log for a moment, and the pipe is full."""
    pipe = world.main.pipe
    pipe.reads.clear()
    return pipe.reads.set


def _log_closed(world: World, _rng: random.Random) -> None:
    """Nobody reads the log any more."""
    world.main.pipe.close()


def _volume(world: World) -> Path:
    return world.volume


def _run(world: World) -> Path:
    return world.run


NEW = {"fetches": True}
HANDLER = frozenset({HANDLER_KILLED})
KILLED = frozenset({GONE, HANDLER_KILLED, 0})
STOPPED = frozenset({0, 143, 130, 129})

FAULTS = [
    Fault("handler: killed", _signal(signal.SIGKILL, "handler.py"), LOST, HANDLER, loses=True),
    Fault("handler: stopped and continued", _signal(signal.SIGSTOP, "handler.py", signal.SIGCONT)),
    Fault("start.sh: killed", _signal(signal.SIGKILL), LOST, KILLED, loses=True),
    Fault("start.sh: stopped and continued", _signal(signal.SIGSTOP, "", signal.SIGCONT)),
    Fault("worker: frozen and thawed", _freeze, weight=2),
    Fault(
        "worker: frozen for longer than the watchdog's silence",
        _freeze,
        frozenset({"JOB_TIMEOUT"}) | LOST,
        hold=(LONG_FREEZE, LONG_FREEZE + 5),
        weight=0.3,
        is_long=True,
    ),
    Fault("worker: start.sh and handler killed", _kill_both, LOST, KILLED, loses=True),
    Fault("worker: all processes killed", _kill_all, LOST, KILLED, loses=True),
    Fault("worker: SIGTERM", _signal(signal.SIGTERM), LOST, STOPPED, weight=2),
    Fault("worker: SIGINT", _signal(signal.SIGINT), LOST, STOPPED),
    Fault("worker: SIGHUP", _signal(signal.SIGHUP), LOST, STOPPED),
    Fault("volume: four workers, one killed", _many_workers, LOST, loses=True, fetches=True),
    Fault("machine: all cores busy", _busy_machine),
    Fault("disk: volume full", _fill(_volume, LEFT_BYTES, VOLUME_BYTES), DISK, **NEW, mounts=True),
    Fault("disk: volume read-only", _read_only(_volume), DISK, **NEW, mounts=True),
    Fault("disk: RUN_DIR full", _fill(_run, 0, RUN_BYTES), LOST, RETIRED, mounts=True),
    Fault("disk: RUN_DIR read-only", _read_only(_run), LOST, RETIRED, mounts=True),
    Fault(
        "limit: file size, as by a quota",
        _limit(resource.RLIMIT_FSIZE, lambda _pid, rng: rng.randrange(200_000)),
        DISK | {"INVALID_INPUT"},
        RETIRED,
        fetches=True,
    ),
    Fault("limit: file descriptors", _limit(resource.RLIMIT_NOFILE, _few_files), SCARCE, RETIRED),
    Fault("limit: memory", _limit(resource.RLIMIT_AS, _little_memory), SCARCE | VANISHED, RETIRED),
    Fault("log: nobody reads, the pipe is full", _log_full),
    Fault("log: closed", _log_closed),
]
