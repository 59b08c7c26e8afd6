"""The plan of an eviction, and the space of a store: least recently used models make room."""

import os
import time

import pytest
from fakes.model_files import safetensors, sha256
from fakes.model_store import add
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import StoreFull, StoreNotWritable
from worker.files import note_file
from worker.models.store.blobs import Blobs
from worker.models.store.space import (
    Candidate,
    EvictionPlan,
    SpaceBudget,
    SpaceLimits,
    bytes_to_free,
    free_bytes,
    plan_eviction,
)

SIZE = 100_000
DAY = 86_400
RESERVE = 5 * SIZE
LIMITS = SpaceLimits(reserve=RESERVE)

# The plan.


def model(name, size=10, last_used=0.0, pinned=None):
    return Candidate(name, name, size, last_used, pinned)


names = st.integers(0, 10**6).map(str)
sizes, times, pins = st.integers(0, 100), st.integers(0, 9), st.sampled_from([None, None, "in use"])
rows = st.lists(st.tuples(names, sizes, times, pins), max_size=12, unique_by=lambda one: one[0])


@given(rows, st.integers(-5, 700))
def test_a_plan_evicts_the_least_recently_used_and_no_more_than_needed_or_nothing(rows, to_free):
    candidates = [model(*row) for row in rows]
    made = plan_eviction(candidates, to_free)
    assert made == plan_eviction(reversed(candidates), to_free)  # also those of one moment
    can_go = [one for one in candidates if one.pinned is None]
    lacking = to_free - sum(one.size for one in can_go)
    if to_free <= 0 or lacking > 0:
        assert made == EvictionPlan(lacking=max(0, lacking))
    else:
        assert set(made.evict) <= set(can_go)
        used = [one.last_used for one in made.evict]
        assert used == sorted(one.last_used for one in can_go)[: len(used)]
        assert made.freed == sum(one.size for one in made.evict)
        assert made.freed - made.evict[-1].size < to_free <= made.freed


#    needed, used, budget, disk_free, reserve -> to free
NEEDS = [
    (10, 50, None, 15, 5, 0),
    (10, 50, None, 14, 5, 1),
    (10, 50, 60, 100, 5, 0),
    (10, 50, 59, 100, 5, 1),
    (10, 50, 59, 5, 5, 10),
    (10, 50, 40, 14, 5, 20),
    (0, 50, 40, 100, 0, 10),
    (0, 0, 0, 0, 0, 0),
]


@pytest.mark.parametrize(("needed", "used", "budget", "disk_free", "reserve", "expected"), NEEDS)
def test_how_much_must_be_freed(needed, used, budget, disk_free, reserve, expected):
    assert bytes_to_free(needed, used, budget, disk_free, reserve) == expected


@pytest.fixture
def blobs(tmp_path):
    return Blobs(tmp_path / "fetched")


@pytest.fixture
def disk():
    return {"free": 1 << 40}


@pytest.fixture
def space(blobs, disk, clock):
    """Make a budget for a number of models of `SIZE` bytes."""

    def make(models=None, blobs=blobs):
        budget = None if models is None else round(models * SIZE)
        return SpaceBudget(blobs, budget, LIMITS, clock=clock, disk_free=lambda _: disk["free"])

    return make


@pytest.fixture
def put(blobs):
    """Add a model of `SIZE` bytes that was last used some seconds ago."""

    def put(number, ago=9 * DAY):
        header = len(safetensors(number=number, size=10_000)) - 10_000
        blob = add(blobs, safetensors(number=number, size=SIZE - header), f"m{number}")
        assert blob.about.size == SIZE
        os.utime(blob.path.with_suffix(".json"), (time.time() - ago,) * 2)
        return blob

    return put


def stems(blobs):
    return sorted(blob.about.stem for blob in blobs.all())


@pytest.mark.parametrize(
    ("budget", "ages", "left"),
    [
        (2, {1: 9 * DAY}, ["m1"]),  # it fits
        (3, {1: DAY, 2: 9 * DAY, 3: 5 * DAY}, ["m1", "m3"]),  # the oldest is evicted
        (2, {1: DAY, 2: LIMITS.in_use - 60}, ["m2"]),  # used a moment ago
        (2, {0: 99 * DAY, 1: DAY}, ["m0"]),  # pinned, however old
    ],
)
def test_the_budget_decides_what_stays(blobs, put, space, budget, ages, left):
    added = {number: put(number, ago).sha256 for number, ago in ages.items()}
    budget = space(budget)
    budget.pinned = {added[0]} if 0 in added else set()
    budget.make("key", SIZE)
    assert stems(blobs) == left


def test_without_a_budget_the_disk_is_the_limit(blobs, put, space, disk):
    put(1, DAY), put(2)
    budget = space()
    disk["free"] = RESERVE + SIZE
    budget.make("one", SIZE)
    budget.done("one")
    assert stems(blobs) == ["m1", "m2"]
    disk["free"] -= 1
    budget.make("two", SIZE)
    assert stems(blobs) == ["m1"]
    budget.done("two")
    disk["free"] = RESERVE
    budget.evicts = False  # while an image is baked
    with pytest.raises(StoreFull):
        budget.make("key", SIZE)
    assert stems(blobs) == ["m1"]


def test_a_model_that_does_not_fit_is_rejected_with_numbers_and_nothing_is_evicted(
    blobs, put, space
):
    put(1), put(2, ago=0)
    with pytest.raises(StoreFull) as raised:
        space(2).make("key", 2 * 10**9)
    assert str(raised.value) == (
        "STORE_FULL: 2.00 GB do not fit: 2.00 GB are missing even if all models that are not in"
        " use are evicted (1099.51 GB of the disk are free, the budget is 0.2 MB)."
        " Raise MODELS_BUDGET_GB, or use a larger volume."
    )
    assert raised.value.details == {"needed": 2 * 10**9, "lacking": 2 * 10**9 - SIZE}
    assert stems(blobs) == ["m1", "m2"]


def test_running_downloads_count(blobs, put, space):
    put(1)
    budget = space(3)
    for key, left in (("one", ["m1"]), ("two", ["m1"]), ("three", []), ("three", [])):
        budget.make(key, SIZE)
        assert stems(blobs) == left
    with pytest.raises(StoreFull):
        budget.make("four", SIZE)
    budget.done("one")
    budget.make("four", SIZE)


@pytest.mark.parametrize(("models", "free"), [(None, RESERVE + 2 * SIZE), (2, 1 << 40)])
def test_bytes_that_have_arrived_count_once(blobs, space, disk, models, free):
    """They use the disk already, so they are not reserved any more."""
    budget = space(models)
    disk["free"] = free
    budget.make("one", SIZE)
    blobs.partial("one").write_bytes(bytes(SIZE))
    disk["free"] -= SIZE
    budget.left("one", 0)
    budget.make("two", SIZE // 2)
    with pytest.raises(StoreFull):
        budget.make("three", SIZE)


def test_partial_files_count_also_those_of_other_workers(blobs, put, space):
    put(1)
    Blobs(blobs.root).partial("key").write_bytes(bytes(SIZE * 9 // 10))
    space(1.5).make("key", SIZE // 10)
    assert stems(blobs) == []
    with pytest.raises(StoreFull):
        space(1).make("other", SIZE)


def test_a_plan_changes_nothing_until_it_is_carried_out(blobs, put, space):
    left, _ = put(1, DAY), put(2)
    budget = space()
    plan = budget.plan(budget=SIZE)
    assert [(one.name, one.size) for one in plan.evict] == [("lora m2", SIZE)]
    assert stems(blobs) == ["m1", "m2"]
    assert budget.carry_out(plan) == SIZE
    assert stems(blobs) == ["m1"]
    plan = space(0).plan()
    assert plan.freed == SIZE
    Blobs(blobs.root).remove(left)
    assert space(0).carry_out(plan) == 0, "another worker has evicted it"


def test_an_eviction_does_not_read_the_models_and_fails_if_it_cannot_remove_them(
    blobs, put, space, monkeypatch
):
    def fail(_blob):
        raise OSError(30, "Read-only file system")

    os.utime(put(1).path, (1, 1))
    monkeypatch.setattr("worker.models.store.blobs.file_sha256", None)
    other = Blobs(blobs.root)
    budget = space(0, other)
    with monkeypatch.context() as patch:
        patch.setattr(other, "_remove", fail)
        with pytest.raises(StoreNotWritable):
            budget.make("key", 0)
    assert budget.carry_out(budget.plan()) == SIZE


def test_old_downloads_and_files_that_no_lookup_finds_are_deleted(blobs, space, clock):
    partial = blobs.partial("key")
    partial.write_bytes(b"half")
    note_file(partial).write_text("{}")
    blob = add(blobs, safetensors())
    blob.path.with_suffix(".json").write_bytes(b"garbled")
    (blobs.root / "blobs" / ".trash-1").write_bytes(b"x")
    good = add(blobs, safetensors(number=2))
    clock.now += LIMITS.abandoned - 60
    assert (space().abandoned(), space().discard_abandoned()) == ([], 0)
    clock.now += 120
    assert space().abandoned()[0] == partial
    assert space().discard_abandoned() == 3
    assert blobs.partials() == []
    assert not note_file(partial).exists()
    assert [one.sha256 for one in blobs.all()] == [good.sha256]
    assert sha256(good.path.read_bytes()) == good.sha256


def test_abandoned_downloads_are_deleted_before_any_model(blobs, put, space, disk, clock):
    put(1)
    blobs.partial("key").write_bytes(bytes(SIZE))
    clock.now += LIMITS.abandoned + 60
    space(2).make("other", SIZE)
    assert stems(blobs) == ["m1"]
    disk["free"] = 0
    with pytest.raises(StoreFull):
        space(2).make("large", SIZE)
    assert blobs.partials() == []


def test_the_disk_is_measured_even_before_the_store_exists(tmp_path):
    assert 0 < free_bytes(tmp_path / "a" / "b") < 1 << 60
