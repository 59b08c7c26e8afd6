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
    assert error.details["timings"] == {"prepare": 7.25, "generate": 3, "total": 10.25}
    assert stopwatch.timings() == {"prepare": 7.25, "generate": 3, "total": 11.25}
    assert entered == ["prepare", "generate"]


def test_the_deadline_can_only_become_earlier(clock):
    stopwatch, left = Stopwatch(60, clock=clock), []
    for limit, passed in ((500, 0), (10, 0), (10, 30)):
        stopwatch.limit(limit)
        clock.now += passed
        left.append(stopwatch.left())
    assert left == [60, 10, 0]
