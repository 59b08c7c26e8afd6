"""The plan: the least recently used goes first, what is pinned stays, nothing goes in vain."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.models.store.space import Candidate, EvictionPlan, bytes_to_free, plan_eviction


def model(name, size=10, last_used=0.0, pinned=None):
    return Candidate(name, name, size, last_used, pinned)


OLD, NEW, USED = model("old", 10, 1), model("new", 20, 2), model("used", 50, 0, "in use")

PLANS = [
    ([], 0, EvictionPlan()),
    ([OLD], 0, EvictionPlan()),
    ([OLD], -5, EvictionPlan()),
    ([NEW, OLD], 1, EvictionPlan((OLD,), 10)),
    ([NEW, OLD], 10, EvictionPlan((OLD,), 10)),
    ([NEW, OLD], 11, EvictionPlan((OLD, NEW), 30)),
    ([NEW, OLD], 30, EvictionPlan((OLD, NEW), 30)),
    ([NEW, OLD], 31, EvictionPlan(lacking=1)),
    ([USED, NEW, OLD], 30, EvictionPlan((OLD, NEW), 30)),
    ([USED, NEW, OLD], 31, EvictionPlan(lacking=1)),
    ([USED], 1, EvictionPlan(lacking=1)),
    ([], 7, EvictionPlan(lacking=7)),
    ([model("b"), model("a")], 10, EvictionPlan((model("a"),), 10)),
]


@pytest.mark.parametrize(("candidates", "to_free", "expected"), PLANS)
def test_a_plan(candidates, to_free, expected):
    assert plan_eviction(candidates, to_free) == expected
    assert plan_eviction(reversed(candidates), to_free) == expected


def test_a_plan_can_be_printed():
    assert "'old'" in str(plan_eviction([OLD], 1))


@given(
    st.lists(
        st.builds(
            Candidate,
            st.text(max_size=3),
            st.uuids().map(str),
            st.integers(0, 100),
            st.floats(0, 9),
            st.sampled_from([None, None, "in use", "loaded"]),
        ),
        max_size=12,
    ),
    st.integers(-5, 700),
)
def test_any_plan_is_right(candidates, to_free):
    made = plan_eviction(candidates, to_free)
    may_go = [one for one in candidates if one.pinned is None]

    assert not [one for one in made.evict if one.pinned]
    assert made.freed == sum(one.size for one in made.evict)
    if made.lacking:
        assert (made.evict, made.lacking) == ((), to_free - sum(one.size for one in may_go))
        return
    assert made.freed >= to_free or not made.evict
    stays = [one for one in may_go if one not in made.evict]
    if made.evict:
        assert made.freed - made.evict[-1].size < to_free
        latest = max(one.last_used for one in made.evict)
        assert all(one.last_used >= latest for one in stays)


#           needed, used, budget, disk_free, reserve -> to free
NEEDS = [
    (10, 50, None, 100, 5, 0),
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
def test_how_much_must_go(needed, used, budget, disk_free, reserve, expected):
    assert bytes_to_free(needed, used, budget, disk_free, reserve) == expected
