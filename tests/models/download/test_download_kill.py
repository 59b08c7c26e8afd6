"""A download that is killed at any moment is resumed, and is never taken for a whole file."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from worker.files import discard, note_file

PROJECT = Path(__file__).resolve().parents[3]
KIB, MIB = 1 << 10, 1 << 20
SIZE = 12 * MIB + 12_345
DATA = random.Random(1).randbytes(SIZE)
SHA256 = hashlib.sha256(DATA).hexdigest()
BLOCK = 64 * KIB
CONNECTIONS = 6
LARGEST_PART = 512 * KIB
RATE = 1.5 * MIB  # of each connection: all of it takes about 1.5 s
LONGEST = 0.7  # seconds until a kill; more on a machine so busy that nothing arrives

# Starting Python takes longer than a run: this one process starts all runs as its children.
RUNS = f"""
import os, sys
from pathlib import Path
from worker.http.client import SafeHttpClient
from worker.models.download.download import download
from worker.models.download.limits import DownloadLimits
from worker.models.download.source import Source

url, trusted, sha256, folder = sys.argv[1:]
limits = DownloadLimits(
    block={BLOCK}, inspect_from={BLOCK}, first_part={256 * KIB}, smallest_part={128 * KIB},
    largest_part={LARGEST_PART}, settling=0.02, measuring=0.05, most_connections={CONNECTIONS}
)
client = SafeHttpClient(trusted.split(","))  # here, as it takes its time

def run():
    fetched = download(Source(client, url, None), Path(folder, "key.part"), sha256, limits=limits)
    fetched.path.rename(Path(folder, "final"))

for _ in sys.stdin:
    child = os.fork()
    if not child:
        try:
            run()
            os._exit(0)
        except BaseException as error:
            print("failed", repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Runs:
    """Downloads in processes of their own, one after the other."""

    def __init__(self, hosts, folder):
        url = hosts.add_model(version_id=1, data=DATA, require_auth=False).file_url
        arguments = [url, ",".join(hosts.netlocs), SHA256, str(folder)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", RUNS, *arguments],
            cwd=PROJECT,
            text=True,
            **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE),
        )

    def run(self, seconds=None):
        """Start one, and kill it after some seconds; returns its exit status."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        if seconds is not None:
            time.sleep(seconds)
            with suppress(ProcessLookupError):  # it was faster
                os.kill(child, signal.SIGKILL)
        return int(self._process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        assert self._process.communicate(timeout=30)[1] == ""  # no run logs anything


def noted(partial):
    """Bytes that the note lists; each of them must be in the file, and right."""
    with suppress(FileNotFoundError):
        note = json.loads(note_file(partial).read_text())
        assert note["size"] == SIZE
        held, position = partial.read_bytes(), 0
        for start, end in note["done"]:
            assert position <= start < end <= SIZE
            assert held[start:end] == DATA[start:end]
            position = end
        return sum(end - start for start, end in note["done"])
    return 0


def names(folder):
    """The files there, without unfinished notes of killed runs: `discard` removes them."""
    return {one.name for one in folder.iterdir() if not one.name.startswith(".key.json.")}


def sent(hosts):
    """Bytes that the storage has sent since the last call."""
    hosts.settle()
    count = hosts.bytes_sent("storage")
    hosts.forget_requests()
    return count


@pytest.mark.parametrize("count", [6, pytest.param(50, marks=pytest.mark.long)])
def test_kills_lose_only_unfinished_parts(hosts, tmp_path, count):
    hosts.throttle(RATE, ttfb=0.01)
    moments = random.Random(int.from_bytes(os.urandom(4), "big"))
    partial, final = tmp_path / "key.part", tmp_path / "final"
    kills = finished = before = kept = 0
    longest = LONGEST
    with Runs(hosts, tmp_path) as runs:
        while kills < count or before or not finished:
            status = runs.run(moments.uniform(0, longest) if kills < count else None)
            now = sent(hosts)
            assert now <= SIZE - before + BLOCK * CONNECTIONS
            if status == 0:
                assert final.read_bytes() == DATA
                assert names(tmp_path) <= {"final", "key.json"}
                final.unlink()
                discard(partial)
                assert list(tmp_path.iterdir()) == []
                finished, before = finished + 1, 0
                continue
            assert status == -signal.SIGKILL
            kills += 1
            assert not final.exists()
            assert names(tmp_path) <= {"key.part", "key.json"}
            here = noted(partial)
            assert here >= before  # what was here stays
            kept += here - before
            if not kept:
                longest *= 2
            # In flight: a part for each connection, and what lay in the kernel's buffers.
            assert now - (here - before) <= CONNECTIONS * (LARGEST_PART + 512 * KIB)
            before = here
    assert kept
