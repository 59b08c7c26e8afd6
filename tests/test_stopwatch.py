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
    watch = Stopwatch(60, clock=clock)
    with watch.phase("prepare"):
        clock.now += 1.5
    clock.now += 1

    assert watch.timings() == {"prepare": 1.5, "total": 2.5}


def test_a_phase_that_fails_is_timed_too(clock):
    watch = Stopwatch(60, clock=clock)
    with suppress(KeyError), watch.phase("generate"):
        clock.now += 2
        raise KeyError

    assert watch.timings()["generate"] == 2


def test_the_deadline_only_moves_forward(clock):
    watch = Stopwatch(60, clock=clock)
    watch.limit(500)
    assert watch.left() == 60
    watch.limit(10)
    assert watch.left() == 10
    clock.now += 30
    assert watch.left() == 0


def test_a_passed_deadline_says_which_phase_took_how_long(clock):
    entered = []
    watch = Stopwatch(10, entered.append, clock)
    with watch.phase("prepare"):
        clock.now += 7.25
    with watch.phase("generate"):
        clock.now += 3
        error = watch.expired("no picture", hint="Ask for less.")

    said = "JOB_TIMEOUT: no picture within 10 s (prepare 7.2 s, generate 3.0 s). Ask for less."
    assert str(error) == said
    assert error.details["timings"] == {"prepare": 7.25, "generate": 3, "total": 10.25}
    assert entered == ["prepare", "generate"]
