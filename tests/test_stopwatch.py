from contextlib import suppress
from unittest.mock import Mock

import pytest

from worker.stopwatch import Stopwatch


@pytest.fixture
def clock():
    """Called, it returns `now`, which the test moves on."""
    clock = Mock(now=100.0)
    clock.side_effect = lambda: clock.now
    return clock


def test_phases_are_named_when_they_begin_and_timed_even_if_they_fail_or_last(clock):
    entered = []
    stopwatch = Stopwatch(10, entered.append, clock)
    with suppress(KeyError), stopwatch.phase("prepare"):
        clock.now += 7.25
        raise KeyError
    with stopwatch.phase("generate"):
        clock.now += 3
        error = stopwatch.expired("no picture", hint="Ask for less.")
    clock.now += 1
    message = "JOB_TIMEOUT: no picture within 10 s (prepare 7.2 s, generate 3.0 s). Ask for less."
    assert str(error) == message
    seconds = {"prepare": 7.25, "generate": 3, "gpu_seconds": 3}
    assert error.details["timings"] == seconds | {"total": 10.25}
    assert stopwatch.timings() == seconds | {"total": 11.25}
    assert entered == ["prepare", "generate"]


def test_seconds_in_which_the_engine_works_for_another_job_are_not_counted_twice(clock):
    stopwatch = Stopwatch(60, clock=clock)
    with stopwatch.phase("generate"):
        with suppress(KeyError), stopwatch.engine_busy():
            clock.now += 2
            raise KeyError
        clock.now += 3
    assert stopwatch.timings() == {"generate": 5, "gpu_seconds": 3, "total": 5}


def test_the_deadline_moves_on_while_the_engine_works_for_another_job(clock):
    """That of a part not beyond the deadline of the whole."""
    whole = Stopwatch(60, clock=clock)
    short, part = Stopwatch(10, clock=clock), whole.part(lambda _: None)
    with short.engine_busy(), part.engine_busy():
        clock.now += 50
        assert (short.left(), part.left()) == (10, 10)
    clock.now += 9
    assert (short.left(), part.left()) == (1, 1)


def test_the_deadline_can_only_become_earlier(clock):
    stopwatch, left = Stopwatch(60, clock=clock), []
    for limit, passed in ((500, 0), (10, 0), (10, 30)):
        stopwatch.limit(limit)
        clock.now += passed
        left.append(stopwatch.left())
    assert left == [60, 10, 0]


def test_a_picture_costs_all_seconds_but_those_in_the_queue(clock):
    stopwatch = Stopwatch(60, clock=clock, usd_per_second=0.0004)
    for phase, seconds in (("prepare", 1), ("queue", 5), ("generate", 6), ("deliver", 3)):
        with stopwatch.phase(phase):
            clock.now += seconds
    assert "usd_per_picture" not in stopwatch.timings()
    stopwatch.pictures = 4
    assert stopwatch.timings()["usd_per_picture"] == pytest.approx(0.0004 * 10 / 4)
    free = Stopwatch(60, clock=clock)
    free.pictures = 4
    assert free.timings() == {"total": 0}  # no price, and no engine


def test_the_parts_of_a_job_count_for_the_whole(clock):
    whole, entered = Stopwatch(60, clock=clock, usd_per_second=0.001), []
    assert "gpu_seconds" not in whole.timings()
    first, second, third = (whole.part(entered.append) for _ in range(3))
    for part, seconds in ((first, 2), (second, 4)):
        with part.phase("generate"):
            clock.now += seconds
    first.pictures = 3
    assert entered == ["generate"] * 2
    assert first.timings() == {
        "generate": 2,
        "gpu_seconds": 2,
        "total": 6,
        "usd_per_picture": 0.002,
    }
    assert "gpu_seconds" not in third.timings()
    assert whole.timings() == {"total": 6, "gpu_seconds": 6, "usd_per_picture": 0.002}
    clock.now += 10
    assert third.left() == whole.left() == 44
