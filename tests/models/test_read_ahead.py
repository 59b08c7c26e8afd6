"""Reading ahead: what is read, what is left out, and when it ends. Clock and memory are handed in.

The tests count the bytes that are read; none depends on how fast this machine is.
"""

import itertools
import os
import threading
import time

import pytest

from worker.models import read_ahead
from worker.models.read_ahead import FOUND_FAST, ReadAhead, ReadAheadLimits

SIZE, CHUNK = 100_000, 4096
LIMITS = ReadAheadLimits(smallest=10_000, fast=1e6, reserve=1000, streams=3, chunk=CHUNK, samples=2)
SLOW_THEN_CACHED = (1.0, 1e-6)  # seconds of the first samples, and of the same ones again


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def offsets(monkeypatch):
    """The offsets that were read, in order."""
    found, preadv = [], os.preadv

    def counted(file, buffers, offset):
        found.append(offset)
        return preadv(file, buffers, offset)

    monkeypatch.setattr(read_ahead.os, "preadv", counted)
    return found


def reader(seconds=SLOW_THEN_CACHED, memory=lambda: 10 * SIZE, limits=LIMITS):
    """A reader whose clock says that the samples took these seconds, then one second a reading."""
    lengths = itertools.chain(seconds, itertools.repeat(1.0))
    times = itertools.accumulate(part for length in lengths for part in (0, length))
    return ReadAhead(limits, memory, lambda: next(times))


def in_streams(offsets):
    """The offsets after the samples, which are read twice."""
    return sorted(offsets[2 * LIMITS.samples :])


def test_a_slow_file_is_read_once_and_completely(path, offsets):
    done = reader().read(path, threading.Event())
    assert in_streams(offsets) == list(range(0, SIZE, CHUNK))
    assert "with 3 streams" in done


@pytest.mark.parametrize(
    ("reading", "why"),
    [
        ({"seconds": (1e-6,)}, FOUND_FAST),
        ({"seconds": (1.0, 1.0)}, "keeps nothing"),
        ({"memory": lambda: SIZE}, "do not fit"),
        ({"limits": ReadAheadLimits(smallest=SIZE + 1)}, FOUND_FAST),
    ],
)
def test_a_file_is_left_alone_where_reading_it_does_not_pay(path, offsets, reading, why):
    assert why in reader(**reading).read(path, threading.Event())
    assert in_streams(offsets) == []


@pytest.mark.parametrize("ending", ["stopped", "deleted", "memory"])
def test_it_ends_with_the_next_chunk_when_it_is_of_no_use(path, offsets, ending):
    stop, left = threading.Event(), [10 * SIZE]

    def memory():  # asked before each chunk
        if len(offsets) > 2 * LIMITS.samples + 3:
            if ending == "stopped":
                stop.set()
            elif ending == "deleted":
                path.unlink(missing_ok=True)
            else:
                left[0] = 0
        return left[0]

    done = reader(memory=memory).read(path, stop)
    assert 0 < len(in_streams(offsets)) < SIZE // CHUNK
    assert f"of {SIZE / 1e9:.1f} GB" in done


def test_files_beside_a_job_are_read_one_after_the_other_until_it_ends(path, tmp_path, offsets):
    other = tmp_path / "other.safetensors"
    other.write_bytes(bytes(SIZE))
    ahead = reader((1.0, 1e-6, 1.0, 1.0, 1e-6))
    with ahead.beside([path, other]):
        whole = 2 * (2 * LIMITS.samples + len(range(0, SIZE, CHUNK)))
        while len(offsets) < whole:
            time.sleep(0.001)
    assert ahead.beside([]).__enter__() is None


def test_it_does_nothing_for_a_job_that_has_ended_and_for_what_is_no_file(path, tmp_path, offsets):
    stop = threading.Event()
    os.mkfifo(tmp_path / "fifo")
    for name in ("missing", "fifo", "."):
        assert "cannot be read" in reader().read(tmp_path / name, stop)
    stop.set()
    reader().read(path, stop)
    assert offsets == []
