"""A new model gets its room from those that nobody has used for longest."""

import os
import time

import pytest
from fakes.model_files import safetensors, sha256
from fakes.model_store import add, files_below

from worker.errors import StoreFull, StoreNotWritable
from worker.files import note_file
from worker.models.store.blobs import Blobs
from worker.models.store.space import ABANDONED, IN_USE, RESERVE, SpaceBudget

SIZE = 100_000
DAY = 86_400


@pytest.fixture
def blobs(tmp_path):
    return Blobs(tmp_path / "fetched")


@pytest.fixture
def disk(monkeypatch):
    """Bytes that the disk has left, as a list of one."""
    free = [1 << 40]
    monkeypatch.setattr(SpaceBudget, "_disk_free", lambda _: free[0])
    return free


@pytest.fixture
def put(blobs):
    """Add a model of `SIZE` bytes that was last used some days ago."""

    def put(number, days):
        header = len(safetensors(number=number, size=10_000)) - 10_000
        data = safetensors(number=number, size=SIZE - header)
        blob = add(blobs, data, f"m{number}")
        assert blob.about.size == SIZE
        used(blob, days * DAY)
        return blob

    def used(blob, seconds):
        then = time.time() - seconds
        os.utime(blob.path.with_suffix(".json"), (then, then))

    put.used = used
    return put


def stems(blobs):
    return sorted(blob.about.stem for blob in blobs.all())


def space_of(blobs, count):
    return SpaceBudget(blobs, count * SIZE)


pytestmark = pytest.mark.usefixtures("disk")


def test_where_there_is_room_nothing_goes(blobs, put):
    put(1, days=9)
    space_of(blobs, 2).make("key", SIZE)

    assert stems(blobs) == ["m1"]


def test_from_what_is_baked_nothing_goes(blobs, put, disk):
    put(1, days=9)
    disk[0] = 0
    space = SpaceBudget(blobs, None)
    space.evicts = False

    with pytest.raises(StoreFull):
        space.make("key", SIZE)
    assert stems(blobs) == ["m1"]


def test_the_least_recently_used_goes_for_the_budget(blobs, put):
    put(1, days=1), put(2, days=9), put(3, days=5)
    space_of(blobs, 3).make("key", SIZE)

    assert stems(blobs) == ["m1", "m3"]


def test_without_a_budget_the_disk_is_the_limit(blobs, put, disk):
    put(1, days=1), put(2, days=9)
    space = SpaceBudget(blobs, None)
    disk[0] = RESERVE + SIZE
    space.make("one", SIZE)
    space.done("one")
    assert stems(blobs) == ["m1", "m2"]

    disk[0] -= 1
    space.make("two", SIZE)
    assert stems(blobs) == ["m1"]


def test_what_any_worker_used_a_moment_ago_stays(blobs, put):
    put(1, days=1)
    put.used(put(2, days=0), IN_USE - 60)
    space_of(blobs, 2).make("key", SIZE)

    assert stems(blobs) == ["m2"]


def test_what_this_worker_has_loaded_stays_however_long(blobs, put):
    loaded, _ = put(1, days=99), put(2, days=1)
    space = space_of(blobs, 2)
    space.pinned = {loaded.sha256}
    space.make("key", SIZE)

    assert stems(blobs) == ["m1"]


def test_a_model_without_room_is_told_with_numbers_and_nothing_goes(blobs, put):
    put(1, days=9)
    put.used(put(2, days=0), 0)

    with pytest.raises(StoreFull) as raised:
        space_of(blobs, 2).make("key", 2 * 10**9)
    assert str(raised.value) == (
        "STORE_FULL: 2.00 GB do not fit: 2.00 GB are lacking even when all that is not in use is"
        " evicted (1099.51 GB of the disk are free, the budget is 0.2 MB)."
        " Raise MODELS_BUDGET_GB, or use a larger volume."
    )
    assert raised.value.details == {"needed": 2 * 10**9, "lacking": 2 * 10**9 - SIZE}
    assert stems(blobs) == ["m1", "m2"]


def test_downloads_under_way_count(blobs, put):
    put(1, days=9)
    space = space_of(blobs, 3)
    space.make("one", SIZE)
    assert stems(blobs) == ["m1"]
    space.make("two", SIZE)
    assert stems(blobs) == ["m1"]
    space.make("three", SIZE)
    assert stems(blobs) == []
    with pytest.raises(StoreFull):
        space.make("four", SIZE)
    space.done("one")
    space.make("four", SIZE)


def test_a_download_that_starts_over_counts_once(blobs):
    space = space_of(blobs, 1)
    for _ in range(3):
        space.make("key", SIZE)


def test_what_has_arrived_counts_once(blobs, disk):
    """Its bytes take disk space already: they are not to come any more."""
    space = SpaceBudget(blobs, None)
    disk[0] = RESERVE + 2 * SIZE
    space.make("one", SIZE)
    blobs.partial("one").write_bytes(bytes(SIZE))
    disk[0] -= SIZE
    space.left("one", 0)

    space.make("two", SIZE)


def test_what_has_arrived_counts_for_the_budget(blobs):
    space = space_of(blobs, 2)
    space.make("one", SIZE)
    blobs.partial("one").write_bytes(bytes(SIZE))
    space.left("one", 0)

    with pytest.raises(StoreFull):
        space.make("two", 2 * SIZE)


def test_a_resumed_download_counts_whole(blobs, put):
    put(1, days=9)
    blobs.partial("key").write_bytes(bytes(SIZE * 9 // 10))
    space_of(blobs, 1.5).make("key", SIZE // 10)

    assert stems(blobs) == []


def test_another_workers_download_counts(blobs):
    Blobs(blobs.root).partial("theirs").write_bytes(bytes(SIZE))

    with pytest.raises(StoreFull):
        space_of(blobs, 1).make("ours", SIZE)


# Printing and pruning.


def test_a_plan_changes_nothing_until_it_is_carried_out(blobs, put):
    put(1, days=1), put(2, days=9)
    space = SpaceBudget(blobs, None)
    plan = space.plan(budget=SIZE)

    assert [(one.name, one.size) for one in plan.evict] == [("lora m2", SIZE)]
    assert stems(blobs) == ["m1", "m2"]
    assert space.carry_out(plan) == SIZE
    assert stems(blobs) == ["m1"]


def test_a_budget_of_nothing_evicts_all_that_is_not_in_use(blobs, put):
    put(1, days=1), put(2, days=9)

    assert SpaceBudget(blobs, 0).plan().freed == 2 * SIZE


def test_what_another_worker_has_evicted_meanwhile_is_fine(blobs, put):
    blob = put(1, days=1)
    space = SpaceBudget(blobs, 0)
    plan = space.plan()
    Blobs(blobs.root).remove(blob)

    assert space.carry_out(plan) == 0


def test_evicting_does_not_read_the_models(blobs, put, monkeypatch):
    os.utime(put(1, days=1).path, (1, 1))
    monkeypatch.setattr("worker.models.store.blobs.file_sha256", None)
    space = SpaceBudget(Blobs(blobs.root), 0)

    assert space.carry_out(space.plan()) == SIZE


def test_a_model_that_cannot_be_evicted_is_told(blobs, put, monkeypatch):
    put(1, days=9)

    def fail(_blob):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(blobs, "_remove", fail)
    with pytest.raises(StoreNotWritable):
        space_of(blobs, 1).make("key", SIZE)


# What nobody goes on with.


@pytest.fixture
def age(monkeypatch):
    """Let all that is there grow old."""

    def age(seconds):
        now = time.time() + seconds
        monkeypatch.setattr("worker.models.store.space.time.time", lambda: now)

    return age


def test_a_download_is_abandoned_after_a_day(blobs, age):
    partial = blobs.partial("key")
    partial.write_bytes(b"half")
    note_file(partial).write_text("{}")
    space = SpaceBudget(blobs, None)
    age(ABANDONED - 60)
    assert (space.abandoned(), space.discard_abandoned()) == ([], 0)
    age(ABANDONED + 60)
    assert space.abandoned() == [partial]
    assert space.discard_abandoned() == 1
    assert files_below(blobs.root) == []


def test_what_nobody_can_find_goes_too(blobs, age):
    blob = add(blobs, safetensors())
    blob.path.with_suffix(".json").write_bytes(b"garbled")
    (blobs.root / "blobs" / ".trash-1").write_bytes(b"x")
    good = add(blobs, safetensors(number=2))
    space = SpaceBudget(blobs, None)
    assert space.abandoned() == []
    age(ABANDONED + 60)

    assert space.discard_abandoned() == 2
    assert [one.sha256 for one in blobs.all()] == [good.sha256]
    assert sha256(good.path.read_bytes()) == good.sha256


def test_abandoned_downloads_go_before_any_model(blobs, put, disk, age):
    put(1, days=9)
    blobs.partial("key").write_bytes(bytes(SIZE))
    age(ABANDONED + 60)
    space = SpaceBudget(blobs, 2 * SIZE)
    space.make("other", SIZE)
    assert stems(blobs) == ["m1"]

    disk[0] = 0
    with pytest.raises(StoreFull):
        space.make("large", SIZE)
    assert blobs.partials() == []


def test_the_real_disk_is_asked_even_before_the_store_exists(tmp_path, monkeypatch):
    monkeypatch.undo()
    space = SpaceBudget(Blobs(tmp_path / "a" / "b"), None)

    assert space.plan(1).lacking == 0
    assert space.plan(1 << 60).lacking > 0
