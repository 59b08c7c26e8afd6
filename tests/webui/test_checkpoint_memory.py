"""How many checkpoints the engine keeps: the formula, and what lowers it."""

import itertools

import pytest

from worker.webui.checkpoint_memory import (
    GB,
    KEEPS_APART,
    MOST,
    NO_COPIES,
    SDXL,
    CheckpointMemory,
    Machine,
    fitting,
)

A1111, EMBEDDED = [KEEPS_APART], [KEEPS_APART, NO_COPIES]


@pytest.mark.parametrize(
    ("available", "largest", "on_cpu", "copies", "kept", "expected"),
    [
        (26, 7, False, 2, 1, 1),  # 32 GB beside a GPU: with a LoRA each takes 14 GB
        (31, 7, False, 2, 1, 2),
        (60, 7, False, 2, 1, 4),
        (60, 2, False, 2, 1, MOST),
        (26, 7, False, 1, 1, 3),  # the embedded engine makes no copies
        (20, 2, True, 2, 1, 2),  # single precision
        (20, 2, True, 1, 1, 5),
        (1, 7, True, 2, 1, 1),
        (0, 7, False, 2, 3, 1),  # less than nothing is left
    ],
)
def test_so_many_fit(available, largest, on_cpu, copies, kept, expected):
    assert fitting(Machine(available * GB, largest * GB, on_cpu, copies), kept) == expected


def decided(wanted=None, available=31, parts=A1111, **more):
    left = [available * GB]
    memory = CheckpointMemory(wanted, False, lambda: left[0], lambda: 7 * GB, **more)
    memory.begin("first", parts)
    return memory, left


@pytest.mark.parametrize(
    ("decision", "limit"),
    [
        ({}, 2),
        ({"parts": EMBEDDED}, 4),
        ({"parts": []}, 1),
        ({"parts": [], "wanted": 3}, 1),
        ({"wanted": 3, "available": 1}, 3),
        ({"why_one": "--medvram", "wanted": 3}, 1),
        ({"available": 1}, 1),
    ],
)
def test_the_limit_and_its_reason_are_logged_once(caplog, decision, limit):
    caplog.set_level("INFO")
    assert decided(**decision)[0].limit == limit
    assert [f"in memory: {limit} (" in record.getMessage() for record in caplog.records] == [True]


def test_an_unknown_largest_checkpoint_is_taken_for_one_of_sdxl():
    memory = CheckpointMemory(None, False, lambda: 31 * GB, lambda: 0)
    memory.begin(None, A1111)
    assert memory.limit == fitting(Machine(31 * GB, SDXL, False), 0)


def test_less_memory_lowers_the_limit_before_another_checkpoint_is_loaded():
    memory, left = decided(available=60)
    assert memory.limit == 4
    left[0] = 17 * GB
    assert not memory.before(["first"])  # it is there already
    assert memory.before(["second"])
    assert memory.limit == 1
    left[0] = 90 * GB
    assert not memory.before(["third"])  # it is not raised again
    assert memory.limit == 1


def test_the_operators_number_is_not_lowered_by_the_memory_but_by_its_end():
    memory, left = decided(wanted=3)
    left[0] = 0
    assert not memory.before(["second"])
    assert memory.ran_out()
    assert not memory.ran_out()
    memory.begin("first", A1111)  # the next process
    assert memory.limit == 1


def test_it_knows_which_checkpoints_are_kept():
    memory, _ = decided(available=40, parts=EMBEDDED)
    memory.limit = 3
    for used in (["a"], ["b"], ["first", "refiner"], ["b"]):
        memory.after(used)
    assert memory.kept == ["first", "refiner", "b"]


def test_ever_less_memory_never_raises_the_limit():
    limits = [fitting(Machine(available * GB, 7 * GB, on_cpu=False), 1) for available in range(90)]
    assert all(less <= more for less, more in itertools.pairwise(limits))
    assert limits[0] == 1


@pytest.mark.parametrize("available", [31, 1])
def test_the_next_job_may_ask_for_room_while_the_last_picture_is_decoded(available):
    kept = []
    for is_early in (False, True):
        memory, left = decided(available=60)
        memory.after(["second"])
        left[0] = available * GB
        steps = [(memory.after, ["first"]), (memory.before, ["third"])]
        for step, checkpoints in reversed(steps) if is_early else steps:
            step(checkpoints)
        memory.after(["third"])
        kept.append((memory.limit, memory.kept))
    assert kept[0] == kept[1]
