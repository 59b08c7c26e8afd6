import errno
import gc
import hashlib
import json
import os
import tempfile
import threading
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import pytest
from fakes.a1111.process import wait_until
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import StoreFull, StoreNotWritable
from worker.files import discard, note_file
from worker.models.download import partial_file
from worker.models.download.limits import DownloadLimits
from worker.models.download.partial_file import FollowingHash, PartialFile
from worker.models.download.source import FileVersion

DATA = bytes(range(256)) * 40
SIZE = len(DATA)
WHOLE = (SIZE, hashlib.sha256(DATA).hexdigest())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "key.run.part"


def files(path):
    return sorted(one.name for one in path.parent.iterdir())


def write(file, start, end):
    with file.lock:
        if file.parts.size is None:
            file.parts.learn_size(SIZE)
        part = file.parts.take(1)
    assert part.position == start
    part.end = max(part.end, end)
    file.write(part, DATA[start:end])
    with file.lock:
        file.parts.give_back(part)


def leave(path, done, *, length=SIZE, size=SIZE, etag='"e"', **more):
    path.write_bytes(DATA[:length])
    note = {"size": size, "etag": etag, "done": done, **more}
    note_file(path).write_text(json.dumps(note))


def test_a_closed_file_has_a_note_of_its_bytes_and_a_later_run_resumes_it(path):
    before = threading.active_count()
    with PartialFile(path) as file:
        file.version = FileVersion('"e"', "Mon")
        write(file, 0, 1000)
        assert threading.active_count() == before + 2
    assert threading.active_count() == before
    note = {"size": SIZE, "etag": '"e"', "modified": "Mon", "done": [[0, 1000]]}
    assert json.loads(note_file(path).read_text()) == note
    assert files(path) == ["key.run.json", "key.run.part"]
    with PartialFile(path) as file:
        assert (file.resumed, file.parts.size, file.parts.contiguous) == (1000, SIZE, 1000)
        assert file.version == FileVersion('"e"', "Mon")
        write(file, 1000, SIZE)
        assert file.finish() == WHOLE
    assert path.read_bytes() == DATA


@pytest.mark.parametrize(("size", "fetched"), [(None, 0), (SIZE, 0), (None, 1000)])
def test_a_file_that_no_later_run_could_resume_is_removed(path, size, fetched):
    with PartialFile(path) as file:
        file.parts.size = size
        file.write(file.parts.take(1), DATA[:fetched])
        assert file.parts.fetched() == fetched
        file.note()
        assert files(path) == (["key.run.json", "key.run.part"] if size else ["key.run.part"])
    assert files(path) == []


def test_the_note_is_replaced_in_one_step(path, monkeypatch):
    leave(path, [[0, 1000]])
    before = note_file(path).read_text()
    with PartialFile(path) as file:
        write(file, 1000, 2000)
        monkeypatch.setattr(type(path), "replace", lambda *_: os.open("/nowhere/x", 0))
        with pytest.raises(StoreNotWritable):
            file.note()
        assert note_file(path).read_text() == before


def test_discard_leaves_nothing_and_no_note_is_written_after_the_end(path):
    """A connection that was cut may end late, when the file is already discarded."""
    with PartialFile(path) as file:
        write(file, 0, 1000)
    for _ in range(2):
        discard(path)
    file.note()
    assert files(path) == []


def note_with(size="10240", done="[]"):
    return f'{{"size": {size}, "etag": null, "done": {done}}}'


ODD_NOTES = [
    *("", '{"size": 10240, "etag": null, "do', "\0\0\0\0", "[]", "7", "[" * 100_000),
    *(b"\xff\xfe\xfd", '{"version": 1, "parts": []}'),
    *map(note_with, ("null", "0", "-5", "Infinity", "1e999", '"many"')),
    *(note_with(done=done) for done in ("5", "[[0, 1, 2]]", "[[10, 5]]", "[[-5, 5]]")),
    *(note_with(done=done) for done in ("[[0, 10241]]", "[[0, Infinity]]")),
]


@pytest.mark.parametrize("note", ODD_NOTES)
def test_an_odd_note_is_ignored(path, note):
    path.write_bytes(DATA)
    note_file(path).write_bytes(note if isinstance(note, bytes) else note.encode())
    with PartialFile(path) as file:
        assert (file.resumed, file.parts.size, file.version) == (0, None, FileVersion())
        write(file, 0, SIZE)
        assert file.finish()[0] == SIZE
    assert path.read_bytes() == DATA


@pytest.mark.parametrize(
    ("left", "resumed", "version"),
    [
        ({"length": 0}, 0, FileVersion()),
        ({"length": 999}, 0, FileVersion()),  # shorter than noted
        ({"etag": 5, "modified": ["Mon"]}, 1000, FileVersion()),
        ({}, 1000, FileVersion('"e"')),  # the note of an older worker has no modification time
        ({"done": [[500, 1500], [0, 1000], [1400, 1450]]}, 1500, FileVersion('"e"')),
    ],
)
def test_what_a_sound_note_says_is_resumed(path, left, resumed, version):
    leave(path, **{"done": [[0, 1000]]} | left)
    file = PartialFile(path)
    assert (file.resumed, file.version) == (resumed, version)
    path.unlink()
    assert PartialFile(path).resumed == 0


# A store that cannot be written.


FULL = [errno.ENOSPC, errno.EDQUOT]
BROKEN = [errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG]


@pytest.mark.parametrize("number", FULL + BROKEN)
@pytest.mark.parametrize("call", ["pwrite", "fsync", "ftruncate"])
def test_a_full_or_broken_disk_has_its_own_error(path, monkeypatch, call, number):
    def broken(*_):
        raise OSError(number, os.strerror(number))

    def write_all(file):
        write(file, 0, SIZE)
        file.finish()

    monkeypatch.setattr(os, call, broken)
    kind = StoreFull if number in FULL else StoreNotWritable
    with PartialFile(path) as file, pytest.raises(kind, match=os.strerror(number)):
        write_all(file)


def test_an_error_that_the_disk_reports_once_is_not_lost(path, monkeypatch):
    """Linux reports a failed write-back to one call only; network volumes fail so."""
    full, reported, real = threading.Event(), threading.Event(), os.fdatasync

    def broken(descriptor):
        if full.is_set() and not reported.is_set():
            reported.set()
            raise OSError(errno.ENOSPC, "no space left")
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", broken)
    with PartialFile(path, DownloadLimits(sync_every=0.001)) as file:
        write(file, 0, 1000)
        full.set()
        assert reported.wait(30)
        wait_until(lambda: file._broken, "the error to reach the file")
        with pytest.raises(StoreFull):
            write(file, 1000, SIZE)
        with pytest.raises(StoreFull):
            file.finish()


def test_a_disk_that_writes_a_few_bytes_at_a_time_is_good(path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, bytes(data[:7]), at))
    with PartialFile(path) as file:
        write(file, 0, SIZE)
        assert file.finish() == WHOLE
    assert path.read_bytes() == DATA


def test_no_byte_of_a_write_that_fails_in_its_middle_counts(path, monkeypatch):
    """As with a limit on the size of files: the kernel takes 5000 bytes and no more."""
    real = os.pwrite

    def pwrite(descriptor, data, at):
        if at >= 5000:
            raise OSError(errno.EFBIG, "File too large")
        return real(descriptor, bytes(data[: 5000 - at]), at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with PartialFile(path) as file, pytest.raises(StoreNotWritable):
        write(file, 0, SIZE)
    assert (file.parts.fetched(), files(path)) == (0, [])


@pytest.mark.parametrize("name", ["missing/key.part", "folder"])
def test_a_path_that_cannot_be_opened_is_not_writable(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreNotWritable), PartialFile(tmp_path / name):
        pass


def open_descriptors():
    gc.collect()  # files of other tests
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_nothing_is_left_if_the_second_thread_cannot_be_started(path, monkeypatch, error):
    """A thread that waits for ever would keep the process from its end."""
    threads, descriptors = threading.enumerate(), open_descriptors()
    real, started = threading.Thread.start, []

    def start(thread):
        if started:
            raise error
        started.append(thread)
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(type(error)), PartialFile(path):
        pass
    assert started
    assert threading.enumerate() == threads
    assert open_descriptors() == descriptors
    assert not files(path)


def test_nothing_is_left_if_there_is_no_memory_for_the_hash(path, monkeypatch):
    descriptors = open_descriptors()
    monkeypatch.setattr(partial_file, "FollowingHash", Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError), PartialFile(path):
        pass
    assert open_descriptors() == descriptors
    assert not files(path)


def test_a_file_that_shrinks_during_the_download_is_an_error(path):
    leave(path, [[0, SIZE]])
    with PartialFile(path) as file:
        os.truncate(path, 5)
        file._hash.position = 5  # as if it had been followed before
        with pytest.raises(StoreNotWritable, match="ends at byte 5"):
            file.finish()


# The hash.


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


@pytest.mark.parametrize("late", ["offer", "follow"])
def test_a_block_that_the_other_thread_has_hashed_is_not_hashed_twice(descriptor, late):
    following = FollowingHash(descriptor)
    os.pwrite(descriptor, b"abc", 0)
    hash_it = {"offer": lambda: following.offer(0, b"abc"), "follow": lambda: following.follow(3)}
    lock = following._lock

    class Busy:
        """The thread that had the lock before has hashed the block."""

        def __enter__(self):
            following._lock = lock
            hash_it.pop("follow" if late == "offer" else "offer")()

        def __exit__(self, *_):
            pass

    following._lock = Busy()
    hash_it.pop(late)()
    assert (following.position, following.hexdigest()) == (3, digest(b"abc"))


@given(data=st.binary(max_size=400), cuts=st.sets(st.integers(1, 399)), order=st.randoms())
def test_any_order_of_blocks_gives_the_digest(data, cuts, order):
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    blocks = [(start, data[start:end]) for start, end in pairwise(edges)]
    order.shuffle(blocks)
    with tempfile.TemporaryFile() as file:
        following = FollowingHash(file.fileno(), read_back=32)
        written = [False] * len(data)
        for start, block in blocks:
            following.offer(start, block)
            os.pwrite(file.fileno(), block, start)
            written[start : start + len(block)] = [True] * len(block)
            if order.random() < 0.3:
                following.follow((*written, False).index(False))
        following.follow(len(data))
    assert following.hexdigest() == digest(data)
