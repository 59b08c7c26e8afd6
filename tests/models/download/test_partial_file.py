import errno
import hashlib
import json
import os
import subprocess
import sys
import threading

import pytest
from fakes.a1111.process import wait_until

from worker.errors import StoreFull, StoreNotWritable
from worker.files import discard, note_file, storage_error
from worker.models.download import partial_file
from worker.models.download.partial_file import PartialFile
from worker.models.download.source import FileVersion

DATA = bytes(range(256)) * 40
SIZE = len(DATA)


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


def test_a_file_is_filled_and_its_hash_known(path):
    with PartialFile(path) as file:
        write(file, 0, 1000)
        write(file, 1000, SIZE)
        assert file.finish() == (SIZE, hashlib.sha256(DATA).hexdigest())
    assert path.read_bytes() == DATA


def test_a_closed_file_has_noted_what_is_here(path):
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


def test_a_later_run_goes_on_there(path):
    with PartialFile(path) as file:
        write(file, 0, 1000)
    with PartialFile(path) as file:
        assert (file.resumed, file.parts.size, file.parts.contiguous) == (1000, SIZE, 1000)
        write(file, 1000, SIZE)
        assert file.finish() == (SIZE, hashlib.sha256(DATA).hexdigest())


@pytest.mark.parametrize("size", [None, SIZE])
def test_what_a_later_run_could_not_use_is_not_left(path, size):
    with PartialFile(path) as file:
        file.parts.size = size
        file.note()
        assert files(path) == (["key.run.json", "key.run.part"] if size else ["key.run.part"])
    assert files(path) == []


def test_bytes_of_a_file_of_unknown_size_are_not_left(path):
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


def test_nobody_notes_after_the_end(path):
    """A connection that was broken off may come late, when the file is already discarded."""
    with PartialFile(path) as file:
        write(file, 0, 1000)
    discard(path)
    file.note()
    assert files(path) == []


def test_discard_leaves_nothing(path):
    leave(path, [])
    note_file(path).with_suffix(".new").write_text("half a no")
    discard(path)
    discard(path)
    assert files(path) == []


ODD_NOTES = {
    "nothing": "",
    "half": '{"size": 10240, "etag": null, "do',
    "garbled": "\0\0\0\0",
    "a list": "[]",
    "a number": "7",
    "too deep": "[" * 100_000,
    "foreign": '{"version": 1, "parts": []}',
    "no size": '{"size": null, "etag": null, "done": []}',
    "empty file": '{"size": 0, "etag": null, "done": []}',
    "negative size": '{"size": -5, "etag": null, "done": []}',
    "infinite size": '{"size": Infinity, "etag": null, "done": []}',
    "a huge size": '{"size": 1e999, "etag": null, "done": []}',
    "size is text": '{"size": "many", "etag": null, "done": []}',
    "done is no list": '{"size": 10240, "etag": null, "done": 5}',
    "done of three": '{"size": 10240, "etag": null, "done": [[0, 1, 2]]}',
    "done is reversed": '{"size": 10240, "etag": null, "done": [[10, 5]]}',
    "done is negative": '{"size": 10240, "etag": null, "done": [[-5, 5]]}',
    "done beyond the size": '{"size": 10240, "etag": null, "done": [[0, 10241]]}',
    "done is infinite": '{"size": 10240, "etag": null, "done": [[0, Infinity]]}',
}


@pytest.mark.parametrize("note", ODD_NOTES.values(), ids=ODD_NOTES)
def test_an_odd_note_counts_as_none(path, note):
    path.write_bytes(DATA)
    note_file(path).write_text(note)
    with PartialFile(path) as file:
        assert (file.resumed, file.parts.size, file.version) == (0, None, FileVersion())
        write(file, 0, SIZE)
        assert file.finish()[0] == SIZE
    assert path.read_bytes() == DATA


def test_a_note_of_bytes_that_no_text_has_counts_as_none(path):
    path.write_bytes(DATA)
    note_file(path).write_bytes(b"\xff\xfe\xfd")
    assert PartialFile(path).resumed == 0


@pytest.mark.parametrize("length", [0, 999, None])
def test_a_note_whose_file_is_shorter_or_gone_counts_as_none(path, length):
    leave(path, [[0, 1000]], length=length or 0)
    if length is None:
        path.unlink()
    assert PartialFile(path).resumed == 0


def test_a_note_with_odd_marks_of_the_version_is_good_without_them(path):
    leave(path, [[0, 1000]], etag=5, modified=["Mon"])
    assert (PartialFile(path).resumed, PartialFile(path).version) == (1000, FileVersion())


def test_the_version_is_noted_for_a_later_run(path):
    version = FileVersion('W/"e"', "Mon, 19 Jan 2026 10:00:00 GMT")
    with PartialFile(path) as file:
        file.version = version
        write(file, 0, 1000)
    assert PartialFile(path).version == version


def test_an_older_workers_note_says_nothing_of_the_modification(path):
    leave(path, [[0, 1000]])
    assert (PartialFile(path).resumed, PartialFile(path).version) == (1000, FileVersion('"e"'))


def test_a_note_whose_intervals_overlap_counts_each_byte_once(path):
    leave(path, [[500, 1500], [0, 1000], [1400, 1450]])
    assert PartialFile(path).resumed == 1500


def test_a_longer_file_is_cut(path):
    leave(path, [[0, SIZE]])
    with path.open("ab") as more:
        more.write(b"more")
    with PartialFile(path) as file:
        assert file.finish() == (SIZE, hashlib.sha256(DATA).hexdigest())
    assert path.read_bytes() == DATA


def test_the_start_is_given_when_it_is_here(path):
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


def test_an_error_that_the_disk_tells_once_is_not_lost(path, monkeypatch):
    """Linux reports a failed write-back to one call only; network volumes fail so."""
    full, told, real = threading.Event(), threading.Event(), os.fdatasync

    def broken(descriptor):
        if full.is_set() and not told.is_set():
            told.set()
            raise OSError(errno.ENOSPC, "no space left")
        real(descriptor)

    monkeypatch.setattr(partial_file, "SYNC_EVERY", 0.001)
    monkeypatch.setattr(os, "fdatasync", broken)
    with PartialFile(path) as file:
        write(file, 0, 1000)
        full.set()
        assert told.wait(5)
        wait_until(lambda: file._broken, "the error to reach the file")
        with pytest.raises(StoreFull):
            write(file, 1000, SIZE)
        with pytest.raises(StoreFull):
            file.finish()


def test_a_disk_that_takes_but_a_little_at_a_time_is_fine(path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, bytes(data[:7]), at))
    with PartialFile(path) as file:
        write(file, 0, SIZE)
        assert file.finish() == (SIZE, hashlib.sha256(DATA).hexdigest())
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


def test_a_folder_that_is_missing_is_not_writable(tmp_path):
    with pytest.raises(StoreNotWritable), PartialFile(tmp_path / "none" / "key.part"):
        pass


def test_a_folder_in_the_way_is_not_writable(tmp_path):
    (tmp_path / "key.part").mkdir()
    with pytest.raises(StoreNotWritable), PartialFile(tmp_path / "key.part"):
        pass


def test_the_error_says_what_the_system_says():
    assert "No space left" in str(storage_error(OSError(errno.ENOSPC, "No space left on device")))
    assert "Read-only" in str(storage_error(OSError(errno.EROFS, "Read-only file system")))


def test_a_file_that_shrinks_meanwhile_is_an_error(path):
    leave(path, [[0, SIZE]])
    with PartialFile(path) as file:
        os.truncate(path, 5)
        file._hash.position = 5  # whatever was followed before
        with pytest.raises(StoreNotWritable, match="ends at byte 5"):
            file.finish()


def test_no_thread_is_left(path):
    before = threading.active_count()
    with PartialFile(path) as file:
        write(file, 0, 1000)
        assert threading.active_count() == before + 2
    assert threading.active_count() == before
