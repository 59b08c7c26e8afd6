import hashlib
import os
import random
import tempfile
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.models.download import following_hash
from worker.models.download.partial_file import FollowingHash


@pytest.fixture
def descriptor(tmp_path):
    opened = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield opened
    os.close(opened)


def digest(data):
    return hashlib.sha256(data).hexdigest()


def test_blocks_in_order_are_never_read_back(descriptor, monkeypatch):
    monkeypatch.setattr(os, "preadv", None)
    following = FollowingHash(descriptor)

    for start, block in ((0, b"ab"), (2, b"c"), (3, b"def")):
        following.offer(start, block)
    following.follow(6)

    assert (following.position, following.hexdigest()) == (6, digest(b"abcdef"))


def test_a_block_out_of_order_is_read_back_later(descriptor):
    following = FollowingHash(descriptor)
    os.pwrite(descriptor, b"def", 3)
    following.offer(3, b"def")
    assert following.position == 0
    os.pwrite(descriptor, b"abc", 0)
    following.offer(0, b"abc")
    assert following.position == 3
    following.follow(6)

    assert following.hexdigest() == digest(b"abcdef")


def test_only_what_is_there_is_followed(descriptor):
    following = FollowingHash(descriptor)
    os.pwrite(descriptor, b"abcdef", 0)
    following.follow(4)
    assert (following.position, following.hexdigest()) == (4, digest(b"abcd"))
    following.follow(2)
    assert following.position == 4


def test_a_block_that_was_followed_while_waiting_is_not_hashed_twice(descriptor):
    following = FollowingHash(descriptor)
    os.pwrite(descriptor, b"abc", 0)
    lock = following._lock

    class Busy:
        """Whoever had the lock before has hashed the block."""

        def __enter__(self):
            following._lock = lock
            following.follow(3)

        def __exit__(self, *_):
            pass

    following._lock = Busy()
    following.offer(0, b"abc")
    assert (following.position, following.hexdigest()) == (3, digest(b"abc"))


def test_nothing_has_the_digest_of_nothing(descriptor):
    following = FollowingHash(descriptor)
    following.follow(0)
    assert following.hexdigest() == digest(b"")


def test_a_file_that_has_shrunk_is_told(descriptor):
    os.pwrite(descriptor, b"abc", 0)
    with pytest.raises(OSError, match="ends at byte 3, before 4"):
        FollowingHash(descriptor).follow(4)


@given(data=st.binary(max_size=400), cuts=st.sets(st.integers(1, 399)), order=st.randoms())
def test_any_order_of_blocks_gives_the_digest(data, cuts, order):
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    blocks = [(start, data[start:end]) for start, end in pairwise(edges)]
    order.shuffle(blocks)
    with tempfile.TemporaryFile() as file, pytest.MonkeyPatch.context() as patched:
        patched.setattr(following_hash, "READ_BACK", 32)
        following = FollowingHash(file.fileno())
        written = [False] * len(data)
        for start, block in blocks:
            following.offer(start, block)
            os.pwrite(file.fileno(), block, start)
            written[start : start + len(block)] = [True] * len(block)
            if order.random() < 0.3:
                following.follow((*written, False).index(False))
        following.follow(len(data))
    assert following.hexdigest() == digest(data)


def test_it_follows_while_others_offer(descriptor):
    """Two threads write, one follows what has no hole; as a download does."""
    data = random.Random(1).randbytes(4 << 20)
    following, lock, written = FollowingHash(descriptor), threading.Lock(), set()
    step = 1 << 14
    halves = [range(0, len(data), 2 * step), range(step, len(data), 2 * step)]

    def write(starts):
        for start in starts:
            block = data[start : start + step]
            following.offer(start, block)
            os.pwrite(descriptor, block, start)
            with lock:
                written.add(start)

    def follow():
        end = 0
        while end < len(data):
            with lock:
                while end in written:
                    end += step
            following.follow(end)

    threads = [threading.Thread(target=write, args=[half]) for half in halves]
    threads.append(threading.Thread(target=follow))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert following.position == len(data)
    assert following.hexdigest() == digest(data)
