"""A process whose event loop hangs is ended with its group; one that is only slow is not."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from fakes.a1111.process import wait_until

from worker.config.settings import PROJECT

PROGRAM = """
import asyncio, multiprocessing, sys, time
from worker.runpod.watchdog import start_watchdog

async def main():
    start_watchdog(asyncio.get_running_loop(), patience=1.0)
    print(multiprocessing.active_children()[0].pid, flush=True)
    await asyncio.sleep(0.3)
    {then}

def pings():
    time.sleep(600)

if __name__ == "__main__":
    child = multiprocessing.Process(target=pings, daemon=True)
    child.start()
    asyncio.run(main())
"""


@pytest.fixture
def start():
    started = []

    def begin(then, *, own_group=True):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(then=then)],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=own_group,
        )
        child = int(process.stdout.readline())
        started.append((process, child))
        return process, child

    yield begin
    for process, child in started:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        process.kill()
        process.communicate()


def is_gone(pid):
    """Ended, though perhaps nobody has asked for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_loop_that_hangs_ends_the_process_and_its_children(start):
    process, child = start("time.sleep(600)")
    _, said = process.communicate(timeout=30)

    assert process.returncode == -signal.SIGKILL
    assert "the event loop has been silent for 1 s" in said
    assert "in main" in said  # where it hangs
    wait_until(lambda: is_gone(child), "the child's end")


def test_in_somebody_elses_group_only_the_process_and_its_children_end(start):
    process, child = start("time.sleep(600)", own_group=False)
    process.communicate(timeout=30)

    assert process.returncode == 1
    wait_until(lambda: is_gone(child), "the child's end")


def test_work_in_threads_and_pauses_do_not_end_it(start):
    process, _ = start("await asyncio.to_thread(time.sleep, 2.5); time.sleep(0.5)")
    process.communicate(timeout=30)

    assert process.returncode == 0


def test_a_process_that_was_frozen_goes_on(start):
    """FlashBoot freezes a worker; while it could not run it was not silent."""
    process, _ = start("await asyncio.sleep(5)")
    for _ in range(2):
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.3)
    process.communicate(timeout=30)

    assert process.returncode == 0
