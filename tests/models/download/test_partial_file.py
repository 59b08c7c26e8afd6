import errno
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
from itertools import pairwise

import pytest
from fakes.a1111.process import wait_until
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import StoreFull, StoreNotWritable
from worker.files import discard, note_file
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


def test_a_closed_file_has_a_note_of_its_bytes(path):
    with PartialFile(path) as file:
        file.version = FileVersion('"e"', "Mon")
        write(file, 0, 1000)
    assert json.loads(note_file(path).read_text()) == {
        "size": SIZE,
        "etag": '"e"',
        "modified": "Mon",
        "done": [[0, 1000]],
    }
    assert files(path) == ["key.run.json", "key.run.part"]


def test_a_later_run_resumes_the_file(path):
    with PartialFile(path) as file:
        write(file, 0, 1000)
    with PartialFile(path) as file:
        assert (file.resumed, file.parts.size, file.parts.contiguous) == (1000, SIZE, 1000)
        write(file, 1000, SIZE)
        assert file.finish() == WHOLE
    assert path.read_bytes() == DATA


@pytest.mark.parametrize("size", [None, SIZE])
def test_a_file_that_no_later_run_could_resume_is_removed(path, size):
    with PartialFile(path) as file:
        file.parts.size = size
        file.note()
        assert files(path) == (["key.run.json", "key.run.part"] if size else ["key.run.part"])
    assert files(path) == []


def test_a_file_of_unknown_size_is_removed(path):
    with PartialFile(path) as file:
        part = file.parts.take(1)
        file.write(part, DATA[:1000])
        assert file.parts.fetched() == 1000
    assert files(path) == []


def test_the_note_is_replaced_in_one_step(path, monkeypatch):
    leave(path, [[0, 1000]])
    before = note_file(path).read_text()
    with PartialFile(path) as file:
        write(file, 1000, 2000)
        with monkeypatch.context() as patched:
            patched.setattr(type(path), "replace", lambda *_: (_ for _ in ()).throw(OSError(28)))
            with pytest.raises(StoreNotWritable):
                file.note()
        assert note_file(path).read_text() == before


def test_no_note_is_written_after_the_end(path):
    """A connection that was cut may end late, when the file is already discarded."""
    with PartialFile(path) as file:
        write(file, 0, 1000)
    discard(path)
    file.note()
    assert files(path) == []


def test_discard_leaves_nothing(path):
    leave(path, [])
    discard(path)
    discard(path)
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


@pytest.mark.parametrize("length", [0, 999, None])
def test_a_note_whose_file_is_shorter_or_gone_is_ignored(path, length):
    leave(path, [[0, 1000]], length=length or 0)
    if length is None:
        path.unlink()
    assert PartialFile(path).resumed == 0


def test_odd_marks_of_the_version_are_ignored(path):
    leave(path, [[0, 1000]], etag=5, modified=["Mon"])
    assert (PartialFile(path).resumed, PartialFile(path).version) == (1000, FileVersion())


def test_a_note_of_an_older_worker_has_no_modification_time(path):
    leave(path, [[0, 1000]])
    assert (PartialFile(path).resumed, PartialFile(path).version) == (1000, FileVersion('"e"'))


def test_a_note_whose_intervals_overlap_counts_each_byte_once(path):
    leave(path, [[500, 1500], [0, 1000], [1400, 1450]])
    assert PartialFile(path).resumed == 1500


def test_a_longer_file_is_truncated(path):
    leave(path, [[0, SIZE]])
    with path.open("ab") as more:
        more.write(b"more")
    with PartialFile(path) as file:
        assert file.finish() == WHOLE
    assert path.read_bytes() == DATA


def test_the_start_is_returned_when_it_has_arrived(path):
    with PartialFile(path) as file:
        assert file.start(10) is None
        write(file, 0, 1000)
        assert file.start(1000) == DATA[:1000]
        assert file.start(1001) is None
        write(file, 1000, SIZE)
        assert file.start(SIZE + 1) == DATA


# A store that cannot be written.


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.EROFS, StoreNotWritable),
        (errno.EACCES, StoreNotWritable),
        (errno.EIO, StoreNotWritable),
        (errno.EFBIG, StoreNotWritable),
    ],
)
@pytest.mark.parametrize("call", ["pwrite", "fsync", "ftruncate"])
def test_a_full_or_broken_disk_has_its_own_error(path, monkeypatch, call, number, kind):
    def broken(*_):
        raise OSError(number, os.strerror(number))

    def write_all(file):
        write(file, 0, SIZE)
        file.finish()

    monkeypatch.setattr(os, call, broken)
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


LIMITED = """
import resource, signal, sys
from pathlib import Path
from worker.models.download.partial_file import PartialFile
from worker.models.download.source import FileVersion
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
with PartialFile(Path(sys.argv[1])) as file:
    file.parts.learn_size(10240)
    part = file.parts.take(1)
    try:
        file.write(part, bytes(10240))
    except Exception as error:
        print(error.code, part.position)
    file.parts.give_back(part)
"""


def test_a_file_size_limit_is_an_error_and_no_byte_counts(path):
    """A real failure of a write in its middle: the kernel takes 5000 bytes and no more."""
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["STORE_NOT_WRITABLE", "0"]
    assert files(path) == []


def test_dev_full_is_a_full_store(tmp_path):
    path = tmp_path / "key.run.part"
    path.symlink_to("/dev/full")
    with PartialFile(path) as file, pytest.raises(StoreFull):
        write(file, 0, SIZE)
    discard(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["missing/key.part", "folder"])
def test_a_path_that_cannot_be_opened_is_not_writable(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreNotWritable), PartialFile(tmp_path / name):
        pass


def test_a_file_that_shrinks_during_the_download_is_an_error(path):
    leave(path, [[0, SIZE]])
    with PartialFile(path) as file:
        os.truncate(path, 5)
        file._hash.position = 5  # as if it had been followed before
        with pytest.raises(StoreNotWritable, match="ends at byte 5"):
            file.finish()


def test_no_thread_is_left(path):
    before = threading.active_count()
    with PartialFile(path) as file:
        write(file, 0, 1000)
        assert threading.active_count() == before + 2
    assert threading.active_count() == before


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


def test_only_bytes_up_to_the_end_are_followed(descriptor):
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
        """The thread that had the lock before has hashed the block."""

        def __enter__(self):
            following._lock = lock
            following.follow(3)

        def __exit__(self, *_):
            pass

    following._lock = Busy()
    following.offer(0, b"abc")
    assert (following.position, following.hexdigest()) == (3, digest(b"abc"))


def test_a_file_that_has_shrunk_is_an_error(descriptor):
    os.pwrite(descriptor, b"abc", 0)
    with pytest.raises(OSError, match="ends at byte 3, before 4"):
        FollowingHash(descriptor).follow(4)


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


def test_it_follows_while_others_offer(descriptor):
    """Two threads write, and one follows the bytes without a hole, as in a download."""
    data, step = random.Random(1).randbytes(4 << 20), 1 << 14
    following, lock, written = FollowingHash(descriptor), threading.Lock(), set()

    def write(first):
        for start in range(first, len(data), 2 * step):
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

    threads = [threading.Thread(target=write, args=[first]) for first in (0, step)]
    threads.append(threading.Thread(target=follow))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert following.position == len(data)
    assert following.hexdigest() == digest(data)
