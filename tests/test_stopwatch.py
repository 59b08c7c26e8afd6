from contextlib import suppress

import pytest

from worker.stopwatch import Stopwatch


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_phases_and_total_are_timed(clock):
    stopwatch = Stopwatch(60, clock=clock)
    with stopwatch.phase("prepare"):
        clock.now += 1.5
    clock.now += 1

    assert stopwatch.timings() == {"prepare": 1.5, "total": 2.5}


def test_a_phase_that_fails_is_timed_too(clock):
    stopwatch = Stopwatch(60, clock=clock)
    with suppress(KeyError), stopwatch.phase("generate"):
        clock.now += 2
        raise KeyError

    assert stopwatch.timings()["generate"] == 2


def test_the_deadline_only_moves_forward(clock):
    stopwatch = Stopwatch(60, clock=clock)
    stopwatch.limit(500)
    assert stopwatch.left() == 60
    stopwatch.limit(10)
    assert stopwatch.left() == 10
    clock.now += 30
    assert stopwatch.left() == 0


def test_a_passed_deadline_says_which_phase_took_how_long(clock):
    entered = []
    stopwatch = Stopwatch(10, entered.append, clock)
    with stopwatch.phase("prepare"):
        clock.now += 7.25
    with stopwatch.phase("generate"):
        clock.now += 3
        error = stopwatch.expired("no picture", hint="Ask for less.")

    said = "JOB_TIMEOUT: no picture within 10 s (prepare 7.2 s, generate 3.0 s). Ask for less."
    assert str(error) == said
    assert error.details["timings"] == {"prepare": 7.25, "generate": 3, "total": 10.25}
    assert entered == ["prepare", "generate"]
