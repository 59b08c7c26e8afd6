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


def test_each_phase_and_the_total_are_timed_even_if_a_phase_fails(clock):
    stopwatch = Stopwatch(60, clock=clock)
    with stopwatch.phase("prepare"):
        clock.now += 1.5
    with suppress(KeyError), stopwatch.phase("generate"):
        clock.now += 2
        raise KeyError
    clock.now += 1

    assert stopwatch.timings() == {"prepare": 1.5, "generate": 2, "total": 4.5}


def test_the_deadline_can_only_become_earlier(clock):
    stopwatch = Stopwatch(60, clock=clock)
    stopwatch.limit(500)
    assert stopwatch.left() == 60
    stopwatch.limit(10)
    assert stopwatch.left() == 10
    clock.now += 30
    assert stopwatch.left() == 0


def test_the_error_for_a_passed_deadline_has_the_seconds_of_each_phase(clock):
    entered = []
    stopwatch = Stopwatch(10, entered.append, clock)
    with stopwatch.phase("prepare"):
        clock.now += 7.25
    with stopwatch.phase("generate"):
        clock.now += 3
        error = stopwatch.expired("no picture", hint="Ask for less.")

    message = "JOB_TIMEOUT: no picture within 10 s (prepare 7.2 s, generate 3.0 s). Ask for less."
    assert str(error) == message
    assert error.details["timings"] == {"prepare": 7.25, "generate": 3, "total": 10.25}
    assert entered == ["prepare", "generate"]
