"""A process whose event loop hangs is ended with its group; one that is only slow is not."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from fakes.a1111.process import wait_until

from worker.config.settings import PROJECT
from worker.runpod import watchdog

PROGRAM = """
import asyncio, multiprocessing, time
from worker.runpod.watchdog import start_watchdog

async def main():
    start_watchdog(asyncio.get_running_loop(), silence=1.0)
    print(multiprocessing.active_children()[0].pid, flush=True)
    await asyncio.sleep(0.3)
    time.sleep(600)

def pings():
    time.sleep(600)

if __name__ == "__main__":
    child = multiprocessing.Process(target=pings, daemon=True)
    child.start()
    asyncio.run(main())
"""


def is_gone(pid):
    """Whether it has ended, though perhaps its status was not read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_in_another_processs_group_only_the_process_and_its_children_end():
    """As the leader of its group it ends the group: see test_worker.py."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    child = int(process.stdout.readline())
    try:
        _, log = process.communicate(timeout=60)

        assert process.returncode == 1
        assert "the event loop has been silent for 1 s" in log
        assert "in main" in log  # where it hangs
        wait_until(lambda: is_gone(child), "the child's end")
    finally:
        process.kill()
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


class Loop:
    """An event loop that answers each question after so many waits, and is closed after the last.

    It is the watchdog's `threading.Event` as well, so that its waits take no time.
    """

    def __init__(self, *waits, is_closed=False):
        self._waits = list(waits)
        self._is_closed = is_closed
        self._left = 0

    def call_soon_threadsafe(self, _answer):
        if not self._waits:
            raise RuntimeError("closed")
        self._left = self._waits.pop(0)

    def wait(self, _seconds):
        self._left -= 1
        return self._left < 0

    def set(self):
        pass

    def is_closed(self):
        return self._is_closed


@pytest.mark.parametrize(
    ("loop", "ends"),
    [
        (Loop(0, 0), False),
        (Loop(11, 11, 11), False),  # slow; and a container that was frozen: one wait took an hour
        (Loop(0, 12), True),
        (Loop(0, 12, is_closed=True), False),
    ],
)
def test_only_silence_in_every_part_of_the_time_is_a_hang(monkeypatch, loop, ends):
    ended = []
    monkeypatch.setattr(watchdog.threading, "Event", lambda: loop)
    monkeypatch.setattr(watchdog, "_end", ended.append)
    watchdog._watch(loop, 60.0)

    assert ended == [60.0] * ends
