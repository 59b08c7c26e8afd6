"""What was fetched lies under its hash: right and whole, or not there at all."""

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fakes.model_files import safetensors, sha256
from fakes.model_store import PROJECT, about, add, files_below

from worker.errors import FetchStopped, StoreFull, StoreNotWritable
from worker.files import note_file
from worker.http.client import NO_CANCEL
from worker.models.store import blobs as blobs_module
from worker.models.store.blobs import Blobs

DATA = safetensors(number=1)
OTHER = safetensors(number=2)
DIGEST = sha256(DATA)


@pytest.fixture
def blobs(tmp_path):
    return Blobs(tmp_path / "fetched")


def again(blobs):
    """The same store as another process sees it."""
    return Blobs(blobs.root)


def link_of(blobs, stem, kind="Lora"):
    return blobs.root / kind / f"{stem}.safetensors"


def later(path, seconds=10):
    """Give the file another modification time."""
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


# Add and find.


def test_a_blob_is_found_by_its_hash_in_every_process(blobs):
    added = add(blobs, DATA, trained_words=("fox",), title="Detail")

    for store in (blobs, again(blobs)):
        found = store.find(DIGEST)
        assert found == added
        assert found.path.read_bytes() == DATA
        assert found.as_file().trained_words == ("fox",)
        assert [blob.sha256 for blob in store.all()] == [DIGEST]
    assert link_of(blobs, "detail").read_bytes() == DATA
    assert blobs.partials() == []


def test_an_unknown_hash_is_not_found(blobs):
    assert blobs.find(DIGEST) is None
    assert list(blobs.all()) == []


def test_only_its_own_files_are_blobs(blobs, tmp_path):
    added = add(blobs, DATA)

    assert blobs.blob_of(added.path) == DIGEST
    assert blobs.blob_of(tmp_path / "x.safetensors") is None


def test_a_store_behind_a_link_is_the_same_store(blobs, tmp_path):
    added = add(blobs, DATA)
    (tmp_path / "elsewhere").symlink_to(blobs.root)

    assert Blobs(tmp_path / "elsewhere").find(DIGEST) == added


def test_a_file_that_is_there_is_not_published_twice(blobs):
    first = add(blobs, DATA, "first")
    inode = first.path.stat().st_ino

    second = add(again(blobs), DATA, "second")

    assert second == first
    assert first.path.stat().st_ino == inode
    assert files_below(blobs.root) == [
        "Lora/first.safetensors",
        f"blobs/{DIGEST}.json",
        f"blobs/{DIGEST}.safetensors",
    ]


# Stems.


def test_two_blobs_of_one_stem_get_two_names(blobs):
    stems = [add(blobs, data, "fox").about.stem for data in (DATA, OTHER)]

    assert stems == ["fox", f"fox-{sha256(OTHER)[:10]}"]
    assert [link_of(blobs, stem).read_bytes() for stem in stems] == [DATA, OTHER]


def test_one_stem_serves_two_kinds(blobs):
    kinds = {"lora": DATA, "checkpoint": OTHER}
    assert [add(blobs, kinds[kind], "fox", kind).about.stem for kind in kinds] == ["fox", "fox"]


def test_the_operators_file_keeps_its_name(blobs):
    added = add(blobs, DATA, "fox", taken=lambda stem: stem == "fox")

    assert added.about.stem == f"fox-{DIGEST[:10]}"


def test_where_every_name_is_taken_the_hash_is_one(blobs):
    assert add(blobs, DATA, "fox", taken=lambda _: True).about.stem == DIGEST


@pytest.mark.parametrize("stem", ["x" * 170, "x" * 180, "я" * 90], ids=len)
def test_a_long_stem_with_a_piece_of_the_hash_is_found_in_every_process(blobs, stem):
    added = [add(blobs, data, stem) for data in (DATA, OTHER)]

    assert added[0].about.stem != added[1].about.stem
    assert added[1].about.stem.endswith(f"-{sha256(OTHER)[:10]}")
    assert [again(blobs).find(blob.sha256) for blob in added] == added
    assert again(blobs).leftovers() == []


def test_an_evicted_blob_gets_its_name_back(blobs):
    blobs.remove(add(blobs, DATA, "fox"))

    assert add(blobs, OTHER, "fox").about.stem == "fox"
    assert add(blobs, DATA, "fox").about.stem == f"fox-{DIGEST[:10]}"


def test_sixteen_threads_claim_sixteen_names(blobs):
    contents = [safetensors(number=number) for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        stems = list(pool.map(lambda data: add(again(blobs), data, "fox").about.stem, contents))

    assert len(set(stems)) == 16
    assert [link_of(blobs, stem).read_bytes() for stem in stems] == contents


# Crashes.

STEPS = ("mkdir", "symlink_to", "unlink", "write_bytes", "replace", "rename")


class Died(BaseException):
    """The process ended here."""


@contextlib.contextmanager
def dying_at(monkeypatch, step):
    """End the process at its nth change of the disk; yields what it has done until then."""
    done = []

    def wrap(name):
        real = getattr(Path, name)

        def change(self, *args, **kwargs):
            if len(done) == step:
                raise Died
            done.append(name)
            return real(self, *args, **kwargs)

        return change

    with monkeypatch.context() as patch:
        for name in STEPS:
            patch.setattr(Path, name, wrap(name))
        with contextlib.suppress(Died):
            yield done


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("step", range(11))
def test_a_crash_at_any_step_of_publishing_leaves_nothing_wrong(
    blobs, monkeypatch, tmp_path, step, foreign
):
    (blobs.root / "blobs").mkdir(parents=True)
    partial = tmp_path / "x.part"
    partial.write_bytes(DATA)
    note_file(partial).write_text("{}")
    if foreign:
        (blobs.root / "blobs" / f"{DIGEST}.safetensors").write_bytes(b"foreign")
    with dying_at(monkeypatch, step):
        blobs.add(partial, DIGEST, about(size=len(DATA)), lambda _: False)

    survivor = again(blobs)
    listed = [blob.path.read_bytes() for blob in survivor.all()]
    found = survivor.find(DIGEST)
    assert listed == [DATA] * len(listed)
    assert found is None or found.path.read_bytes() == DATA
    # What is right can be found: a blob without its metadata would take space for ever.
    assert DATA not in [path.read_bytes() for path in survivor.leftovers()]

    added = add(survivor, DATA)
    assert added.about.stem == "detail"
    assert link_of(blobs, "detail").read_bytes() == DATA


def test_the_steps_above_are_all_there_are(blobs, monkeypatch, tmp_path):
    partial = tmp_path / "x.part"
    partial.write_bytes(DATA)
    with dying_at(monkeypatch, 99) as done:
        blobs.add(partial, DIGEST, about(size=len(DATA)), lambda _: False)

    assert 6 < len(done) <= 11


@pytest.mark.parametrize("step", range(4))
def test_a_crash_at_any_step_of_removing_leaves_nothing_half(blobs, monkeypatch, step):
    added = add(blobs, DATA)
    with dying_at(monkeypatch, step):
        blobs.remove(added)

    survivor = again(blobs)
    found = survivor.find(DIGEST)
    assert (found is not None) == (step == 0)
    link = link_of(blobs, "detail")
    assert not link.exists() or link.read_bytes() == DATA
    assert add(survivor, DATA).about.stem == "detail"
    if step == 1:
        assert [path.name[:7] for path in survivor.leftovers()] == [".trash-"]


# Damage.


def truncate(path):
    path.write_bytes(DATA[:-1])


def extend(path):
    path.write_bytes(DATA + b"\0")


def flip(path):
    path.write_bytes(bytes([*DATA[:-1], DATA[-1] ^ 1]))
    later(path)


def empty(path):
    path.write_bytes(b"")


def replace_by_another(path):
    path.write_bytes(OTHER)
    later(path)


def remove(path):
    path.unlink()


DAMAGES = [truncate, extend, flip, empty, replace_by_another, remove]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_blob_is_never_found_and_can_be_replaced(blobs, damage, known):
    path = add(blobs, DATA).path
    damage(path)
    store = blobs if known else again(blobs)

    assert store.find(DIGEST) is None
    assert not path.exists()
    assert not link_of(blobs, "detail").exists()
    assert add(store, DATA) == again(blobs).find(DIGEST)
    assert link_of(blobs, "detail").read_bytes() == DATA


@pytest.mark.parametrize("damage", [flip, truncate])
def test_a_blob_that_another_worker_has_replaced_is_found(blobs, damage):
    path = add(blobs, DATA).path
    other = again(blobs)
    other.find(DIGEST)
    damage(path)
    blobs.find(DIGEST)
    add(blobs, DATA)
    later(path, -30)

    assert other.find(DIGEST).path.read_bytes() == DATA


def test_a_touched_blob_is_hashed_once_and_stays(blobs, monkeypatch):
    hashed = []
    real = blobs_module.file_sha256

    def count(path):
        hashed.append(path)
        return real(path)

    monkeypatch.setattr(blobs_module, "file_sha256", count)
    path = add(blobs, DATA).path
    later(path)

    for store in (blobs, again(blobs), blobs):
        assert store.find(DIGEST).path == path
    assert hashed == [path]


def test_a_time_without_fractions_is_the_same_time(blobs, monkeypatch):
    """Layers of images keep whole seconds: a baked blob need not be hashed at every start."""
    monkeypatch.setattr(blobs_module, "file_sha256", None)
    path = add(blobs, DATA).path
    seconds = path.stat().st_mtime_ns // 10**9
    os.utime(path, (seconds, seconds))

    assert again(blobs).find(DIGEST)


def test_a_foreign_file_in_a_blobs_place_is_not_found_and_is_replaced(blobs):
    path = blobs.root / "blobs" / f"{DIGEST}.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"foreign")

    assert blobs.find(DIGEST) is None
    assert add(blobs, DATA).path.read_bytes() == DATA


METADATA = [
    b"",
    b"{",
    b"[]",
    b'{"kind": "lora"}',
    b"\xff\xfe",
    b'{"kind":"lora","stem":"../../x","suffix":".safetensors","size":1,"mtime":1,"source":""}',
    b'{"kind":"lora","stem":"x","suffix":"/../x","size":1,"mtime":1,"source":""}',
]


@pytest.mark.parametrize("content", METADATA)
def test_damaged_metadata_hide_the_blob_until_it_is_fetched_again(blobs, content):
    blob = add(blobs, DATA)
    blob.path.with_suffix(".json").write_bytes(content)
    store = again(blobs)

    assert store.find(DIGEST) is None
    assert list(store.all()) == []
    assert store.leftovers() == [blob.path]
    assert add(store, DATA).path == blob.path  # its time may be that of the next second
    assert store.leftovers() == []


def test_a_blob_on_a_bad_disk_is_not_found(blobs, monkeypatch):
    later(add(blobs, DATA).path)

    def fail(_path):
        raise OSError(errno.EIO, "bad sector")

    monkeypatch.setattr(blobs_module, "file_sha256", fail)
    assert blobs.find(DIGEST) is None


# Read-only and full disks.


@pytest.fixture
def frozen(monkeypatch):
    """Nothing can be changed any more; root does not heed a folder's mode."""

    def freeze(number=errno.EROFS):
        def fail(*_args, **_kwargs):
            raise OSError(number, os.strerror(number))

        for name in STEPS:
            monkeypatch.setattr(Path, name, fail)
        monkeypatch.setattr(os, "utime", fail)

    return freeze


def test_a_read_only_store_can_be_read(blobs, frozen):
    added = add(blobs, DATA)
    frozen()
    store = again(blobs)

    assert store.find(DIGEST) == added
    store.mark_used(DIGEST)


def test_a_touched_blob_of_a_read_only_store_is_found(blobs, frozen):
    later(add(blobs, DATA).path)
    frozen()

    assert again(blobs).find(DIGEST).path.read_bytes() == DATA


def test_a_damaged_blob_of_a_read_only_store_is_not_found(blobs, frozen):
    flip(add(blobs, DATA).path)
    frozen()

    assert again(blobs).find(DIGEST) is None


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EROFS, StoreNotWritable),
        (errno.EACCES, StoreNotWritable),
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
    ],
)
def test_a_store_that_cannot_be_written_says_why(blobs, tmp_path, frozen, number, kind):
    partial = tmp_path / "x.part"
    partial.write_bytes(DATA)
    frozen(number)

    with pytest.raises(kind):
        blobs.add(partial, DIGEST, about(), lambda _: False)
    with pytest.raises(kind):
        blobs.partial(DIGEST)
    with pytest.raises(kind), blobs.lease("x", lambda: False, NO_CANCEL):
        pass


def test_what_cannot_be_removed_says_why(blobs, frozen):
    added = add(blobs, DATA)
    frozen()

    with pytest.raises(StoreNotWritable):
        blobs.remove(added)


# Use marks and removing.


def test_a_use_is_noted_for_every_worker(blobs):
    blob = add(blobs, DATA)
    os.utime(blob.path.with_suffix(".json"), (1, 1))
    assert blobs.last_used(blob) == 1

    again(blobs).mark_used(DIGEST)

    assert time.time() - blobs.last_used(blob) < 60


def test_a_second_use_within_a_minute_writes_nothing(blobs):
    blob = add(blobs, DATA)
    os.utime(blob.path.with_suffix(".json"), (1, 1))
    blobs.mark_used(DIGEST)

    assert blobs.last_used(blob) == 1


def test_a_removed_blob_leaves_nothing(blobs):
    blob = add(blobs, DATA)

    assert blobs.remove(blob) == len(DATA)
    assert files_below(blobs.root) == []
    assert (blobs.find(DIGEST), blobs.last_used(blob)) == (None, 0)


def test_two_workers_remove_the_same_blob(blobs):
    blob = add(blobs, DATA)
    other = again(blobs)
    other.find(DIGEST)

    assert blobs.remove(blob) == len(DATA)
    assert other.remove(blob) == 0
    assert other.find(DIGEST) is None


def test_removing_leaves_a_link_that_is_another_blobs(blobs):
    blob = add(blobs, DATA, "fox")
    link = link_of(blobs, "fox")
    link.unlink()
    link.symlink_to(add(blobs, OTHER, "other").path)

    blobs.remove(blob)

    assert link.read_bytes() == OTHER


# Partial files.


def test_a_partial_file_that_was_left_is_taken_over_with_its_note(blobs):
    first = blobs.partial("key")
    first.write_bytes(b"half")
    note_file(first).write_text("note")

    second = again(blobs).partial("key")

    assert second != first
    assert (second.read_bytes(), note_file(second).read_text()) == (b"half", "note")
    assert blobs.partials() == [second]


def test_of_two_left_over_the_one_with_more_data_is_kept(blobs):
    small, large = blobs.partial("key"), blobs.partial("key")
    for path, count in ((small, 1), (large, 100)):
        path.write_bytes(bytes(4096 * count))
        note_file(path).write_text(str(count))

    taken = blobs.partial("key")

    assert note_file(taken).read_text() == "100"
    assert blobs.partials() == [taken]


def test_a_partial_file_of_another_key_is_left_alone(blobs):
    other = blobs.partial("other")
    other.write_bytes(b"half")
    note_file(other).write_text("note")

    assert not blobs.partial("key").exists()
    assert blobs.partials() == [other]


# The lease.


def test_the_first_may_download(blobs):
    with blobs.lease("key", lambda: False, NO_CANCEL) as is_mine:
        assert is_mine
    assert files_below(blobs.root / "leases") == []


def test_who_finds_the_file_there_need_not_download(blobs):
    with blobs.lease("key", lambda: True, NO_CANCEL) as is_mine:
        assert not is_mine


def test_the_second_waits_until_the_file_is_there(blobs):
    there, entered = threading.Event(), threading.Event()

    def second():
        with again(blobs).lease("key", there.is_set, NO_CANCEL) as is_mine:
            entered.set()
            return is_mine

    with ThreadPoolExecutor(1) as pool, blobs.lease("key", lambda: False, NO_CANCEL):
        answer = pool.submit(second)
        assert not entered.wait(0.3)
        there.set()
        assert answer.result(timeout=10) is False


def test_the_second_downloads_if_the_first_has_failed(blobs):
    def second():
        with again(blobs).lease("key", lambda: False, NO_CANCEL) as is_mine:
            return is_mine

    with ThreadPoolExecutor(1) as pool:
        with contextlib.suppress(ValueError), blobs.lease("key", lambda: False, NO_CANCEL):
            answer = pool.submit(second)
            raise ValueError
        assert answer.result(timeout=10) is True


def test_another_file_need_not_wait(blobs):
    with (
        blobs.lease("one", lambda: False, NO_CANCEL) as first,
        blobs.lease("two", lambda: False, NO_CANCEL) as second,
    ):
        assert (first, second) == (True, True)


def test_waiting_ends_when_the_job_does(blobs):
    stop = threading.Event()

    def second():
        with again(blobs).lease("key", lambda: False, stop):
            raise AssertionError

    with ThreadPoolExecutor(1) as pool, blobs.lease("key", lambda: False, NO_CANCEL):
        answer = pool.submit(second)
        stop.set()
        with pytest.raises(FetchStopped):
            answer.result(timeout=10)


HOLDER = """
import sys, time
from pathlib import Path
from worker.models.store.blobs import Blobs
from worker.http.client import NO_CANCEL
with Blobs(Path(sys.argv[1])).lease("key", lambda: False, NO_CANCEL):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_holder_is_followed_at_once(blobs):
    arguments = [sys.executable, "-c", HOLDER, str(blobs.root)]
    with subprocess.Popen(arguments, cwd=PROJECT, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert files_below(blobs.root / "leases") == ["key.lock"]
    start = time.monotonic()

    with blobs.lease("key", lambda: False, NO_CANCEL) as is_mine:
        assert is_mine
    assert time.monotonic() - start < blobs_module.LEASE_SECONDS / 2


def test_a_lease_of_another_host_ends_without_a_sign_of_life(blobs, monkeypatch):
    monkeypatch.setattr(blobs_module, "LEASE_SECONDS", 1.0)
    lock = blobs.root / "leases" / "key.lock"
    with blobs.lease("key", lambda: False, NO_CANCEL):
        record = lock.read_text()
    assert socket.gethostname() in record
    lock.write_text(record.replace(socket.gethostname(), "another-worker"))

    with blobs.lease("key", lambda: False, NO_CANCEL) as is_mine:
        assert is_mine
