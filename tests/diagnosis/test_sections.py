import os
import re
import signal
import subprocess
import sys
import time

from worker.config.settings import PROJECT
from worker.diagnosis.sections import MOST, Section, gather


def fails():
    yield "before"
    raise ValueError("why")


def hangs():
    yield "before"
    while True:
        time.sleep(60)


def stands_still():
    yield "before"
    os.kill(os.getpid(), signal.SIGSTOP)


def has_a_child_that_keeps_the_pipe():
    yield "before"
    subprocess.Popen(["sleep", "60"], close_fds=False)
    time.sleep(60)


def crashes():
    yield "before"
    os.kill(os.getpid(), signal.SIGKILL)


def exits():
    yield "before"
    sys.exit("enough")


def never_ends():
    while True:
        yield "x" * 10_000


PROBLEMS = {
    fails: r"ValueError: why \(.*test_sections.py:\d+\)",
    hangs: "it did not end within 1 seconds",
    stands_still: "it did not end within 1 seconds",
    has_a_child_that_keeps_the_pipe: "it did not end within 1 seconds",
    crashes: "its process ended unexpectedly",
    exits: "SystemExit: enough",
    never_ends: "it has more than",
}


def test_no_part_loses_another_one_and_each_keeps_what_it_has_written():
    good = Section("good", lambda: iter(["one", "a \ud800 \0 two"]), 20)
    outcomes = gather([*(Section("bad", bad, 1) for bad in PROBLEMS), good])
    assert (outcomes[-1].text, outcomes[-1].problem) == ("one\na \\ud800  two\n", "")
    for bad, outcome in zip(PROBLEMS, outcomes, strict=False):
        assert re.match(PROBLEMS[bad], outcome.problem), outcome
        if bad is not never_ends:
            assert outcome.text == "before\n"
        assert len(outcome.text) <= MOST + (64 << 10)
    assert not _children()


def test_without_processes_or_descriptors_the_others_say_so(monkeypatch):
    def no_process():
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", no_process)
    (outcome,) = gather([Section("any", lambda: ["one"])])
    assert outcome.problem == "it could not be started: Resource temporarily unavailable"


def test_on_a_system_without_fork_a_failure_still_costs_only_its_part(monkeypatch):
    monkeypatch.setattr("worker.diagnosis.sections._IS_POSIX", False)
    bad, good = gather([Section("bad", fails), Section("good", lambda: ["one"])])
    assert (bad.text, bad.problem[:15]) == ("before", "ValueError: why")
    assert (good.text, good.problem) == ("one", "")


def test_the_diagnosis_needs_no_package():
    """A broken installation is a frequent reason for a report."""
    code = "import sys, worker.diagnosis.report; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded - set(sys.stdlib_module_names) <= {"worker", "__main__", "sitecustomize"}


def _children():
    """Of this process: all that were started are gone, or are being ended by the system."""
    time.sleep(0.2)
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return []
        if not pid:
            return ["one still runs"]
