"""A process whose event loop hangs is ended with its children; one that is only slow is not.

test_worker.py shows it with a real worker, which is ended with its group.
"""

import multiprocessing
import os
import select
import signal
import subprocess
import sys

import pytest

from worker.runpod import watchdog


class Loop:
    """An event loop that answers each question after so many waits, and is closed after the last.

    It is the watchdog's `threading.Event` as well, so that its waits take no time.
    """

    set = staticmethod(lambda: None)

    def __init__(self, *waits, is_closed=False):
        self._waits, self._left = list(waits), 0
        self.is_closed = lambda: is_closed

    def call_soon_threadsafe(self, _answer):
        if not self._waits:
            raise RuntimeError("closed")
        self._left = self._waits.pop(0)

    def wait(self, _seconds):
        self._left -= 1
        return self._left < 0


@pytest.mark.parametrize(
    ("loop", "ends"),
    [
        (Loop(11, 11, 11), False),  # slow; and a container that was frozen: one wait took an hour
        *((Loop(0, 0), False), (Loop(0, 12), True), (Loop(0, 12, is_closed=True), False)),
    ],
)
def test_only_silence_in_every_part_of_the_time_is_a_hang(monkeypatch, loop, ends):
    ended = []
    monkeypatch.setattr(watchdog.threading, "Event", lambda: loop)
    monkeypatch.setattr(watchdog, "_end", ended.append)
    watchdog._watch(loop, 60.0)
    assert ended == [60.0] * ends


def test_in_another_processs_group_only_the_process_and_its_children_end(monkeypatch, capfd):
    """A process that kills a foreign group would end what started it."""
    ended, child = [], multiprocessing.Process()
    monkeypatch.setattr(child, "kill", lambda: ended.append("child"))
    monkeypatch.setattr(watchdog.multiprocessing, "active_children", lambda: [child])
    monkeypatch.setattr(watchdog.os, "getpgrp", lambda: 1)
    monkeypatch.setattr(watchdog.os, "killpg", lambda *_: ended.append("group"))
    monkeypatch.setattr(watchdog.os, "_exit", ended.append)
    monkeypatch.setattr(watchdog.signal, "setitimer", lambda *_: None)
    watchdog._end(60.0)
    assert ended == ["child", 1]
    assert "in test_in_another_process" in capfd.readouterr().err  # where each thread is


UNREAD = """
import os, sys, threading, time
from worker.runpod import watchdog
os.set_blocking(2, False)
try:
    while True:
        os.write(2, bytes(4096))
except BlockingIOError:
    os.set_blocking(2, True)
if sys.argv[2] == "closed":
    os.close(2)
    sys.stderr = None
watchdog._LAST_LINES = 0.1
if sys.argv[1] == "hangs":
    watchdog._end(60.0)
watchdog.end_within(0.1)
threading.Thread(target=threading.Event().wait).start()
"""


@pytest.mark.parametrize("stderr", ["unread", "closed"])
@pytest.mark.parametrize("handler", ["hangs", "does not end"])
def test_a_handler_ends_also_when_nobody_reads_its_log(handler, stderr):
    command = [sys.executable, "-c", UNREAD, handler, stderr]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        status = process.wait(30)
    is_group_ended = (handler, stderr) == ("hangs", "closed")
    assert -status == (signal.SIGKILL if is_group_ended else signal.SIGALRM)


# The forked process gets its first turn at once, or when the process that forked it has ended.
PARENT = """
import os, sys, time
from worker.runpod import watchdog
parent = os.getpid()
def wait():
    while sys.argv[1] == "late" and os.getppid() == parent:
        time.sleep(0.01)
os.register_at_fork(after_in_child=wait)
watchdog.end_forks_with_parent()
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("turn", ["at once", "late"])
def test_a_forked_process_ends_with_the_process_that_forked_it(turn):
    command = [sys.executable, "-c", PARENT, turn]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with parent:
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
        assert select.select([child], [], [], 30)[0], "the forked process goes on"
    os.close(child)
