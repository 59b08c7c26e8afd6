"""The long form: many inputs for each target, in a process of its own, with what was found.

With atheris the inputs are led by the lines of our code that they reach; without it they are drawn
at random. A process that hangs or crashes is a finding, too.
"""

import contextlib
import functools
import gc
import hashlib
import json
import logging
import mmap
import os
import random
import resource
import signal
import struct
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from tests.fuzz.target import CORPUS, Finding, Target, judged, kept_inputs, shrunk

SIZES = (0, 4, 16, 40, 120, 400, 1_000)  # bytes of a random input
LONGEST_INPUT = 1_000  # bytes, for atheris
SLOWER = {"atheris": 8.0, "random": 1.0}  # by how much, because the coverage is measured
STUCK = 60.0  # seconds of CPU that one input may take before its process is killed
_HEAD = struct.Struct("<QI")  # at the start of what both processes see: count, length of the input
MEMORY = 6 << 30  # bytes of a process
GROWTH = 64_000  # bytes that the same inputs may add to the memory in `REPEATS` rounds
REPEATS, REPEATED = 12, 40


@dataclass
class Result:
    """What the run of one target has shown."""

    target: str
    engine: str
    executions: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Executions a second."""
        return self.executions / self.seconds if self.seconds else 0.0


class Recorder:
    """Counts the inputs of a child process and writes down what it finds."""

    def __init__(self, one: Target, engine: str, seconds: float, file: Path, last: mmap.mmap):
        self._target, self._file, self._last = one, file, last
        self._result = Result(one.name, engine)
        self._factor, self._until = SLOWER[engine], time.monotonic() + seconds
        self._began, self._written, self._count = time.monotonic(), 0.0, 0

    def one(self, data: bytes) -> bool:
        """Run one input; false when the time is over."""
        self.tell(data)
        found = judged(self._target, data, self._factor)
        self._result.executions += 1
        if found:
            self._add(found)
        now = time.monotonic()
        if now - self._written > 1.0 or now >= self._until:
            self._write(now)
        return now < self._until

    def tell(self, data: bytes) -> None:
        """Show the parent process which input comes next."""
        self._count += 1
        kept = data[: len(self._last) - _HEAD.size]
        self._last.seek(0)
        self._last.write(_HEAD.pack(self._count, len(kept)) + kept)

    def _add(self, found: Finding) -> None:
        for known in self._result.findings:
            if known.place == found.place:
                known.times += 1
                return
        self._result.findings.append(found)

    def grown(self) -> None:
        """Add a finding if the same inputs take more memory each time."""
        if found := growth(self._target, self.tell):
            self._add(found)
        self._write(time.monotonic())

    def _write(self, now: float) -> None:
        self._written, self._result.seconds = now, now - self._began
        content = asdict(self._result)
        for one in content["findings"]:
            one["data"] = one["data"].hex()
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps(content))
        temporary.replace(self._file)


def growth(one: Target, tell: Callable[[bytes], None] = lambda _: None) -> Finding | None:
    """A finding if a target keeps memory of inputs that it has seen before."""
    generator = random.Random(1)
    inputs = [*kept_inputs(one.name)[:REPEATED]]
    inputs += [generator.randbytes(generator.choice(SIZES[2:6])) for _ in range(REPEATED)]
    before = 0
    tracemalloc.start()
    try:
        for number in range(REPEATS):
            for data in inputs:
                tell(data)
                judged(one, data, 50.0)
            if number == REPEATS // 3:  # until here libraries fill their caches
                before = _traced()
        grown = _traced() - before
    finally:
        tracemalloc.stop()
    if grown < GROWTH:
        return None
    rounds = REPEATS - REPEATS // 3
    text = f"{grown} bytes more after {rounds} rounds of the same {len(inputs)} inputs"
    return Finding(one.name, "memory grows", text, b"")


def _traced() -> int:
    """Bytes in use, without what caches of limited size hold.

    Such a cache fills during the run: a target writes its files under new names each time.
    """
    for one in gc.get_objects():
        if isinstance(one, functools._lru_cache_wrapper) and one.cache_parameters()["maxsize"]:
            one.cache_clear()
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


# The child processes ------------------------------------------------------------------------------


def _random_inputs(record: Recorder, one: Target, seed: int) -> None:
    generator, kept = random.Random(seed), kept_inputs(one.name)
    while True:
        data = generator.randbytes(generator.choice(SIZES))
        if kept and generator.random() < 0.3:
            part = bytearray(generator.choice(kept))
            for _ in range(generator.randrange(4)):
                part[generator.randrange(len(part) + 1) :][:0] = data[:4]
                if part:
                    part[generator.randrange(len(part))] = generator.randrange(256)
            data = bytes(part) + data[: generator.randrange(9)]
        if not record.one(data):
            return


def _led_inputs(record: Recorder, one: Target, seed: int) -> None:
    import atheris

    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    generator = random.Random(seed)
    first = [*kept_inputs(one.name), *(generator.randbytes(size) for size in SIZES[1:] * 8)]
    for number, data in enumerate(first):
        (folder / str(number)).write_bytes(data)

    def run(data: bytes) -> None:
        if not record.one(data):
            record.grown()
            os._exit(0)

    options = [f"-max_len={LONGEST_INPUT}", f"-seed={seed % 2**31}", "-rss_limit_mb=0"]
    options += ["-timeout=600", "-verbosity=0", f"-artifact_prefix={folder}/"]
    atheris.Setup(["fuzz", *options, str(folder)], run, enable_python_coverage=True)
    atheris.Fuzz()


def _child(
    one: Target, engine: str, seconds: float, seed: int, file: Path, last: mmap.mmap
) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY * 4, MEMORY * 4))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    record = Recorder(one, engine, seconds, file, last)
    if engine == "atheris":
        _led_inputs(record, one, seed)
    _random_inputs(record, one, seed)
    record.grown()


@dataclass
class Child:
    """A running child process."""

    one: Target
    engine: str
    pid: int
    file: Path
    last: mmap.mmap
    count: int = 0
    cpu: float = 0.0  # seconds that it had used when the count changed

    @classmethod
    def start(cls, one: Target, engine: str, seconds: float, seed: int, folder: Path) -> "Child":
        last, file = mmap.mmap(-1, _HEAD.size + LONGEST_INPUT), folder / f"{one.name}.json"
        pid = os.fork()
        if not pid:
            status = 1
            try:
                _child(one, engine, seconds, seed, file, last)
                status = 0
            finally:
                os._exit(status)
        return cls(one, engine, pid, file, last)

    def is_stuck(self) -> bool:
        """Whether one input takes too much CPU; a busy machine alone makes nothing stuck."""
        used = sum(psutil.Process(self.pid).cpu_times()[:2])
        count = _HEAD.unpack(self.last[: _HEAD.size])[0]
        if count != self.count or not self.cpu:
            self.count, self.cpu = count, used
        return used - self.cpu > STUCK

    def result(self) -> Result | None:
        """What it has found; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid and not self.is_stuck():
            return None
        if not pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        result = Result(self.one.name, self.engine)
        if self.file.exists():
            content = json.loads(self.file.read_text())
            for one in content["findings"]:
                one["data"] = bytes.fromhex(one["data"])
            result = Result(**{**content, "findings": [Finding(**o) for o in content["findings"]]})
        if not pid or status:
            size = _HEAD.unpack(self.last[: _HEAD.size])[1]
            place = f"the process ends with {os.waitstatus_to_exitcode(status)}" if pid else "hangs"
            last = self.last[_HEAD.size :][:size]
            result.findings.append(Finding(self.one.name, place, place, last))
        return result


def run(
    targets: list[Target],
    engine: str,
    seconds: float,
    seed: int,
    tell: Callable[[Result], None],
    at_once: int = os.cpu_count() or 1,
) -> list[Result]:
    """Run all targets, `seconds` for one with the share 1; findings are checked again here."""
    logging.getLogger().addHandler(logging.NullHandler())
    logging.lastResort = None
    warnings.simplefilter("ignore")
    waiting, running, results = list(targets), [], []
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    while waiting or running:
        while waiting and len(running) < at_once:
            one = waiting.pop(0)
            running.append(Child.start(one, engine, seconds * one.share, seed, folder))
        time.sleep(0.05)
        for child in list(running):
            if result := child.result():
                running.remove(child)
                result.findings = [f for f in map(_again, result.findings) if f]
                results.append(result)
                tell(result)
    return results


def _again(finding: Finding) -> Finding | None:
    """The finding with a shorter input; None if it was only slow where coverage is measured."""
    from tests.fuzz.target import TARGETS

    if finding.place in {"hangs", "memory grows"} or finding.place.startswith("the process"):
        return finding
    one = TARGETS[finding.target]
    with contextlib.redirect_stderr(None):
        found = judged(one, finding.data)
        if found is None:
            return None
        found.times, found.data = finding.times, shrunk(one, found)
    return found


def keep(finding: Finding) -> Path:
    """Put its input into the corpus, which `make test` replays."""
    place = CORPUS / finding.target
    place.mkdir(parents=True, exist_ok=True)
    path = place / hashlib.sha256(finding.data).hexdigest()[:8]
    path.write_bytes(finding.data)
    return path
