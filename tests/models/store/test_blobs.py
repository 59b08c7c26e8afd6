"""A fetched file is stored under its hash: whole and verified, or not at all."""

import contextlib
import errno
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.model_files import safetensors, sha256
from fakes.model_store import about, add, files_below

from worker.errors import FetchStopped, MachineExhausted, StoreFull, StoreNotWritable
from worker.files import note_file
from worker.http.client import NO_CANCEL
from worker.models.store import blobs as blobs_module
from worker.models.store.about import ABOUT, UNKNOWN_TIME
from worker.models.store.blobs import Blobs, StoreTiming

DATA, OTHER = safetensors(number=1), safetensors(number=2)
DIGEST = sha256(DATA)
SHORT = sha256(OTHER)[:10]


@pytest.fixture
def blobs(tmp_path):
    return Blobs(tmp_path / "fetched")


def again(blobs):
    """The same store as another process sees it."""
    return Blobs(blobs.root)


def link_of(blobs, stem="detail", kind="Lora"):
    return blobs.root / kind / f"{stem}.safetensors"


def later(path, seconds=10):
    """Give the file another modification time."""
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def test_a_blob_is_found_by_its_hash_in_every_process(blobs, tmp_path):
    assert (blobs.find(DIGEST), list(blobs.all())) == (None, [])
    added = add(blobs, DATA, trained_words=("fox",), title="Detail")
    (tmp_path / "elsewhere").symlink_to(blobs.root)
    for store in (blobs, again(blobs), Blobs(tmp_path / "elsewhere")):
        found = store.find(DIGEST)
        assert found == added
        assert found.path.read_bytes() == DATA
        assert found.as_file().trained_words == ("fox",)
        assert [blob.sha256 for blob in store.all()] == [DIGEST]
    assert link_of(blobs).read_bytes() == DATA
    assert blobs.partials() == []
    assert blobs.blob_of(added.path) == DIGEST
    assert blobs.blob_of(tmp_path / "x.safetensors") is None
    inode = added.path.stat().st_ino  # the same content is not published twice
    assert add(again(blobs), DATA, "second") == added
    assert added.path.stat().st_ino == inode
    names = ["Lora/detail.safetensors", f"blobs/{DIGEST}.json", f"blobs/{DIGEST}.safetensors"]
    assert files_below(blobs.root) == names


def test_two_blobs_of_one_stem_get_two_names_unless_the_first_is_evicted(blobs):
    first = add(blobs, DATA, "fox")
    assert add(blobs, OTHER, "fox").about.stem == f"fox-{SHORT}"
    contents = [link_of(blobs, stem).read_bytes() for stem in ("fox", f"fox-{SHORT}")]
    assert contents == [DATA, OTHER]
    blobs.remove(first)
    assert add(blobs, safetensors(number=3), "fox").about.stem == "fox"
    assert add(blobs, safetensors(number=4), "fox", "vae").about.stem == "fox", "another kind"


@pytest.mark.parametrize(
    ("taken", "stem"), [({"fox"}, f"fox-{DIGEST[:10]}"), ({"fox", f"fox-{DIGEST[:10]}"}, DIGEST)]
)
def test_a_stem_of_the_operators_files_is_not_used(blobs, taken, stem):
    assert add(blobs, DATA, "fox", taken=taken.__contains__).about.stem == stem


@pytest.mark.parametrize("stem", ["x" * 170, "x" * 180, "я" * 90], ids=len)
def test_a_long_stem_with_a_piece_of_the_hash_is_found_in_every_process(blobs, stem):
    added = [add(blobs, data, stem) for data in (DATA, OTHER)]
    assert added[0].about.stem != added[1].about.stem
    assert added[1].about.stem.endswith(f"-{SHORT}")
    assert [again(blobs).find(blob.sha256) for blob in added] == added
    assert again(blobs).leftovers() == []


def test_sixteen_threads_claim_sixteen_names(blobs):
    contents = [safetensors(number=number) for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        stems = list(pool.map(lambda data: add(again(blobs), data, "fox").about.stem, contents))
    assert len(set(stems)) == 16
    assert [link_of(blobs, stem).read_bytes() for stem in stems] == contents


STEPS = ("mkdir", "symlink_to", "unlink", "write_bytes", "replace", "rename")


class Died(BaseException):
    """The process ends here."""


@contextlib.contextmanager
def dying_at(monkeypatch, step):
    """End the process at its nth change of the disk; yields the changes before."""
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
@pytest.mark.parametrize("step", range(9))
def test_a_crash_at_any_step_of_publishing_leaves_no_wrong_blob(
    blobs, monkeypatch, tmp_path, step, foreign
):
    (blobs.root / "blobs").mkdir(parents=True)
    partial = tmp_path / "x.part"
    partial.write_bytes(DATA)
    note_file(partial).write_text("{}")
    if foreign:
        (blobs.root / "blobs" / f"{DIGEST}.safetensors").write_bytes(b"foreign")
    with dying_at(monkeypatch, step) as done:
        blobs.add(partial, DIGEST, about(size=len(DATA)), lambda _: False)
    assert len(done) == min(step, 8), "8 steps are all there are"
    survivor = again(blobs)
    listed = [blob.path.read_bytes() for blob in survivor.all()]
    found = survivor.find(DIGEST)
    assert listed == [DATA] * len(listed)
    assert found is None or found.path.read_bytes() == DATA
    # A whole blob always has its metadata: without it, it would use space for ever.
    assert DATA not in [path.read_bytes() for path in survivor.leftovers()]
    assert add(survivor, DATA).about.stem == "detail"
    assert link_of(blobs).read_bytes() == DATA


@pytest.mark.parametrize("step", range(4))
def test_a_crash_at_any_step_of_removing_leaves_no_partial_file(blobs, monkeypatch, step):
    added = add(blobs, DATA)
    with dying_at(monkeypatch, step):
        blobs.remove(added)
    survivor = again(blobs)
    assert (survivor.find(DIGEST) is not None) == (step == 0)
    assert not link_of(blobs).exists() or link_of(blobs).read_bytes() == DATA
    assert add(survivor, DATA).about.stem == "detail"
    if step == 1:
        assert [path.name[:7] for path in survivor.leftovers()] == [".trash-"]


FLIPPED = bytes([*DATA[:-1], DATA[-1] ^ 1])
DAMAGES = {
    "truncated": DATA[:-1],
    "extended": DATA + b"\0",
    "empty": b"",
    "flipped": FLIPPED,
    "replaced": OTHER,
    "removed": None,
}


def damage(path, content):
    """Overwrite or remove the file; its time changes."""
    if content is None:
        path.unlink()
        return
    path.write_bytes(content)
    later(path)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_blob_is_never_found_and_can_be_replaced(blobs, content, known):
    path = add(blobs, DATA).path
    damage(path, content)
    store = blobs if known else again(blobs)
    assert store.find(DIGEST) is None
    assert not path.exists()
    assert not link_of(blobs).exists()
    assert add(store, DATA) == again(blobs).find(DIGEST)
    assert link_of(blobs).read_bytes() == DATA


@pytest.mark.parametrize("known", [True, False])
def test_damage_in_the_second_of_the_download_is_noticed(blobs, known):
    path = add(blobs, DATA).path
    time_ns = path.stat().st_mtime_ns
    path.write_bytes(FLIPPED)
    seconds, fraction = divmod(time_ns, 10**9)
    within = seconds * 10**9 + (fraction + 5 * 10**8) % 10**9
    os.utime(path, ns=(within, within))
    assert (blobs if known else again(blobs)).find(DIGEST) is None


@pytest.mark.parametrize("content", [FLIPPED, DATA[:-1]])
def test_a_blob_that_another_worker_has_replaced_is_found(blobs, content):
    path = add(blobs, DATA).path
    other = again(blobs)
    other.find(DIGEST)
    damage(path, content)
    blobs.find(DIGEST)
    add(blobs, DATA)
    later(path, -30)
    assert other.find(DIGEST).path.read_bytes() == DATA


@pytest.fixture
def hashed(monkeypatch):
    """The files that were hashed."""
    paths, real = [], blobs_module.file_sha256
    monkeypatch.setattr(blobs_module, "file_sha256", lambda path: paths.append(path) or real(path))
    return paths


def test_a_touched_blob_is_hashed_once_and_stays(blobs, hashed):
    path = add(blobs, DATA).path
    later(path)
    for store in (blobs, again(blobs), blobs):
        assert store.find(DIGEST).path == path
    assert hashed == [path]


@pytest.mark.parametrize("digits", [0, 3, 6, 7])
def test_a_copy_with_fewer_digits_of_the_time_is_not_hashed(blobs, hashed, digits):
    """Image layers keep whole seconds: a baked blob need not be hashed at every start."""
    path = add(blobs, DATA).path
    kept = path.stat().st_mtime_ns // 10 ** (9 - digits) * 10 ** (9 - digits)
    os.utime(path, ns=(kept, kept))
    assert again(blobs).find(DIGEST)
    assert hashed == []


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
def test_damaged_metadata_hides_the_blob_until_it_is_fetched_again(blobs, content):
    blob = add(blobs, DATA)
    blob.path.with_suffix(".json").write_bytes(content)
    store = again(blobs)
    assert (store.find(DIGEST), list(store.all())) == (None, [])
    assert store.leftovers() == [blob.path]
    assert add(store, DATA).path == blob.path  # its time may be that of the next second
    assert store.leftovers() == []


def fail(number):
    def fail(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    return fail


def test_a_blob_on_a_bad_disk_is_not_found(blobs, monkeypatch):
    later(add(blobs, DATA).path)
    monkeypatch.setattr(blobs_module, "file_sha256", fail(errno.EIO))
    assert blobs.find(DIGEST) is None


@pytest.fixture
def frozen(monkeypatch):
    """Make every change fail; for root a folder's mode is no hindrance."""

    def freeze(number=errno.EROFS):
        for name in STEPS:
            monkeypatch.setattr(Path, name, fail(number))
        monkeypatch.setattr(os, "utime", fail(number))

    return freeze


@pytest.mark.parametrize("touched", [None, DATA, FLIPPED])
def test_a_read_only_store_can_be_read_and_a_touched_blob_is_hashed(blobs, frozen, touched):
    added = add(blobs, DATA)
    if touched:
        damage(added.path, touched)
    frozen()
    store = again(blobs)
    found = store.find(DIGEST)
    assert (found and found.sha256) == (None if touched == FLIPPED else DIGEST)
    assert touched or found == added
    store.mark_used(DIGEST)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EROFS, StoreNotWritable),
        (errno.EACCES, StoreNotWritable),
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.EMFILE, MachineExhausted),
    ],
)
def test_a_store_that_cannot_be_written_names_the_reason(blobs, tmp_path, frozen, number, kind):
    added = add(blobs, OTHER)
    partial = tmp_path / "x.part"
    partial.write_bytes(DATA)
    frozen(number)
    with pytest.raises(kind):
        blobs.add(partial, DIGEST, about(), lambda _: False)
    with pytest.raises(kind):
        blobs.partial(DIGEST)
    with pytest.raises(kind), blobs.lease("x", lambda: False, NO_CANCEL):
        pass
    with pytest.raises(kind):
        blobs.remove(added)


def test_a_use_is_written_once_a_minute_for_every_worker(blobs):
    blob, now = add(blobs, DATA), 1_800_000_000.0
    times = iter([now, now + 59, now + 61])
    other = Blobs(blobs.root, clock=lambda: next(times))
    used = []
    for _ in range(3):
        other.mark_used(DIGEST)
        used.append(blobs.last_used(blob) - now)
    assert used == [0, 0, 61]


def test_a_removed_blob_leaves_nothing(blobs):
    blob = add(blobs, DATA)
    other = again(blobs)
    other.find(DIGEST)
    assert blobs.remove(blob) == len(DATA)
    assert other.remove(blob) == 0, "two workers remove the same blob"
    assert other.find(DIGEST) is None
    assert files_below(blobs.root) == []
    assert (blobs.find(DIGEST), blobs.last_used(blob)) == (None, 0)
    blob = add(blobs, DATA)
    link_of(blobs).unlink()
    link_of(blobs).symlink_to(add(blobs, OTHER, "other").path)
    blobs.remove(blob)
    assert link_of(blobs).read_bytes() == OTHER, "a link to another blob stays"


def test_a_partial_file_of_an_earlier_run_is_taken_over_with_its_note(blobs):
    """Of two, the one with more data; files of other keys stay."""
    small, large, other = blobs.partial("key"), blobs.partial("key"), blobs.partial("other")
    for path, count in ((small, 1), (large, 100), (other, 1)):
        path.write_bytes(bytes(4096 * count))
        note_file(path).write_text(str(count))
    taken = again(blobs).partial("key")
    assert taken not in {small, large}
    assert (taken.stat().st_size, note_file(taken).read_text()) == (409600, "100")
    assert blobs.partials() == sorted([taken, other])
    assert not blobs.partial("new").exists()


def test_a_partial_file_that_nobody_can_continue_is_removed(blobs):
    """Its process was killed before it wrote the first note."""
    blobs.partial("key").write_bytes(bytes(4096))
    assert not again(blobs).partial("key").exists()
    assert blobs.partials() == []


def lease(blobs, key="key", is_there=lambda: False, stop=NO_CANCEL, **timing):
    """Ask for a lease as another process does; the context is whether it may download."""
    return Blobs(blobs.root, StoreTiming(poll=0.01, **timing)).lease(key, is_there, stop)


def ask(blobs, **options):
    with lease(blobs, **options) as is_mine:
        return is_mine


def test_only_a_process_that_does_not_find_the_file_downloads_it(blobs):
    with lease(blobs) as first, lease(blobs, "other") as other:
        assert (first, other) == (True, True)
    assert not ask(blobs, is_there=lambda: True)
    assert files_below(blobs.root / "leases") == []
    there = threading.Event()  # the second waits until the file is there
    with ThreadPoolExecutor(1) as pool, lease(blobs):
        answer = pool.submit(ask, blobs, is_there=there.is_set)
        assert wait([answer], timeout=0.1).not_done
        there.set()
        assert answer.result(timeout=60) is False


def test_the_second_downloads_if_the_first_has_failed_and_ends_when_its_job_is_cancelled(blobs):
    with ThreadPoolExecutor(1) as pool:
        with contextlib.suppress(ValueError), lease(blobs):
            answer = pool.submit(ask, blobs)
            raise ValueError
        assert answer.result(timeout=60) is True
        stop = threading.Event()
        with lease(blobs):
            answer = pool.submit(ask, blobs, stop=stop)
            stop.set()
            with pytest.raises(FetchStopped):
                answer.result(timeout=60)


def test_a_lease_of_another_host_ends_without_a_sign_of_life(blobs):
    lock = blobs.root / "leases" / "key.lock"
    with lease(blobs, lease=0.5):
        record = lock.read_text()
    assert socket.gethostname() in record
    lock.write_text(record.replace(socket.gethostname(), "another-worker"))
    assert ask(blobs, lease=0.5)


@pytest.fixture
def lock_that_stays(blobs, monkeypatch):
    """The file of a lease that could not be removed at its end, as on a busy network volume."""

    def end(number):
        with monkeypatch.context() as patch:
            with blobs.lease("key", lambda: False, NO_CANCEL):
                patch.setattr(Path, "unlink", fail(number))
            assert lock.exists()
        return lock

    lock = blobs.root / "leases" / "key.lock"
    return end


def ask_without_waiting(blobs):
    stop = threading.Event()
    stop.set()
    with blobs.lease("key", lambda: False, stop) as is_mine:
        return is_mine


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EIO])
def test_a_process_does_not_wait_for_a_lease_that_it_could_not_remove(
    blobs, lock_that_stays, number
):
    lock = lock_that_stays(number)
    assert ask_without_waiting(blobs)
    assert not lock.exists()


def test_a_lease_that_another_worker_has_by_now_is_not_removed(blobs, lock_that_stays):
    lock_that_stays(errno.EBUSY).unlink()
    with ThreadPoolExecutor(1) as pool, lease(blobs), pytest.raises(FetchStopped):
        pool.submit(ask_without_waiting, blobs).result(timeout=60)


def test_metadata_that_no_descriptor_is_left_for_do_not_count_as_missing(blobs, monkeypatch):
    """A blob without metadata is removed."""
    add(blobs, DATA)
    monkeypatch.setattr(blobs_module, "read_small", fail(errno.EMFILE))
    with pytest.raises(OSError, match=r"\[Errno 24\]"):
        again(blobs).leftovers()
    monkeypatch.setattr(blobs_module, "read_small", fail(errno.EIO))
    assert len(again(blobs).leftovers()) == 1


# Blobs that were sent to the volume by `push`.


def pushed(blobs, data=DATA, stem="detail", size=None):
    """The files that `push` leaves: without a link, and with no time in the metadata."""
    folder = blobs.root / "blobs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{sha256(data)}.safetensors").write_bytes(data)
    metadata = replace(about(stem, size=size or len(data)), mtime=UNKNOWN_TIME)
    (folder / f"{sha256(data)}.json").write_bytes(ABOUT.dump_json(metadata))
    return sha256(data)


def test_a_pushed_file_is_taken_with_its_time_and_hashed_only_after_a_change(blobs, hashed):
    path = blobs.root / "blobs" / f"{pushed(blobs)}.safetensors"
    mtime = int(path.stat().st_mtime)
    assert [store.find(DIGEST).about.mtime for store in (blobs, again(blobs))] == [mtime] * 2
    assert hashed == []
    later(path)
    assert again(blobs).find(DIGEST)
    assert hashed == [path]


def test_a_pushed_file_of_another_size_is_removed(blobs):
    pushed(blobs, size=len(DATA) + 1)
    assert blobs.find(DIGEST) is None
    assert not (blobs.root / "blobs" / f"{DIGEST}.safetensors").exists()


def test_pushed_files_get_links_once_by_all_workers_together(blobs):
    operators = {("lora", "mine")}
    names = {pushed(blobs, safetensors(number=n), stem): stem for n, stem in enumerate(STEMS)}
    stores = [again(blobs) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        wait([pool.submit(store.add_links, lambda *one: one in operators) for store in stores])
    links = {link.name: link.resolve().stem for link in (blobs.root / "Lora").iterdir()}
    assert sorted(links.values()) == sorted(names)
    for digest, stem in names.items():
        found = again(blobs).find(digest)
        assert links[f"{found.about.stem}.safetensors"] == digest
        assert found.about.stem in {stem, f"{stem}-{digest[:10]}"}
    assert ("mine.safetensors" in links, "fox.safetensors" in links) == (False, True)
    before = {path: path.stat().st_mtime_ns for path in blobs.root.rglob("*.json")}
    again(blobs).add_links(lambda *one: one in operators)
    assert {path: path.stat().st_mtime_ns for path in blobs.root.rglob("*.json")} == before


STEMS = ("fox", "fox", "mine", "red")


def test_a_link_that_another_worker_removes_at_that_moment_is_no_error(blobs, monkeypatch):
    pushed(blobs)
    blobs.add_links(lambda *_: False)

    def gone(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "readlink", gone)
    again(blobs).add_links(lambda *_: False)
    assert again(blobs).find(DIGEST).sha256 == DIGEST


def test_a_pushed_file_on_a_read_only_volume_is_found_without_a_link(blobs, monkeypatch, hashed):
    pushed(blobs)

    def read_only(*_args, **_more):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "symlink_to", read_only)
    monkeypatch.setattr(blobs_module, "write_atomically", read_only)
    blobs.add_links(lambda *_: False)
    assert (again(blobs).find(DIGEST).sha256, hashed) == (DIGEST, [])
