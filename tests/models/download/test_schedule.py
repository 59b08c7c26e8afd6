import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.models.download.limits import MIB, DownloadLimits
from worker.models.download.schedule import Connections, Part, Parts, Running

SMALL = DownloadLimits(first_part=16, early_part=20, smallest_part=7, largest_part=40)
FEWEST, MOST = DownloadLimits.fewest_connections, DownloadLimits.most_connections


def small_parts(size=None, done=()):
    return Parts(size, done, SMALL)


def fetch(part, count):
    part.position += count


def spans(part):
    return part.position, part.end


# Parts.


@pytest.mark.parametrize(
    ("size", "begun", "connections", "length"),
    [
        (1000, 0, 10, 20),
        (1000, 100, 10, 30),  # and a share of what has begun
        (1000, 500, 10, 40),  # no part is larger
        (200, 0, 10, 10),  # a small file: two parts for each connection
        (200, 150, 10, 10),  # two shares of what is left
        (200, 180, 10, 7),  # no part is smaller
        (5, 0, 1, 5),  # the last one may be smaller
    ],
)
def test_parts_grow_at_the_beginning_and_shrink_towards_the_end(size, begun, connections, length):
    parts = small_parts(size, [(0, begun)] if begun else [])
    assert spans(parts.take(connections)) == (begun, begun + length)


class Model:
    """The same as `Parts`, byte by byte."""

    def __init__(self, size, done):
        self.parts = small_parts(size, done)
        self.here = [any(start <= at < end for start, end in done) for at in range(size)]
        self.held: list[Part] = []

    def missing(self):
        return [at for at, here in enumerate(self.here) if not here]

    def take(self, number):
        held = {at for part in self.held for at in range(part.position, part.end)}
        free = [at for at in self.missing() if at not in held]
        assert self.parts.has_free is bool(free)
        part = self.parts.take(1 + number % 24)
        assert (part and part.position) == (free[0] if free else None)
        if part:
            assert part.position < part.end
            assert set(range(*spans(part))) <= set(free)
            self.held.append(part)

    def progress(self, number):
        if self.held:
            part = self.held[number % len(self.held)]
            end = min(part.end, part.position + number)
            assert not any(self.here[part.position : end])
            self.here[part.position : end] = [True] * (end - part.position)
            fetch(part, end - part.position)

    def give_back(self, number):
        if self.held:
            self.parts.give_back(self.held.pop(number % len(self.held)))

    def check(self):
        missing = self.missing()
        assert self.parts.contiguous == (missing[0] if missing else len(self.here))
        assert self.parts.fetched() == sum(self.here)
        assert self.parts.is_complete is not bool(missing)
        listed = [False] * len(self.here)
        for start, end in self.parts.done():
            assert start < end
            assert not any(listed[max(0, start - 1) : end])  # neither overlapping nor touching
            listed[start:end] = [True] * (end - start)
        assert listed == self.here


@given(
    size=st.integers(1, 300),
    done=st.lists(st.tuples(st.integers(0, 299), st.integers(1, 60)), max_size=5),
    steps=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50)), max_size=60),
)
def test_every_byte_is_fetched_once_whatever_happens(size, done, steps):
    model = Model(size, [(at, min(size, at + length)) for at, length in done if at < size])
    model.check()
    for action, number in steps:
        [model.take, model.progress, model.give_back][action](number)
        model.check()
    while not model.parts.is_complete:
        model.take(0)
        model.progress(50)
        model.give_back(0)
    model.check()
    assert model.parts.done() == [(0, size)]


@given(size=st.integers(0, 100), taken=st.integers(1, 3), fetched=st.integers(0, 16))
def test_a_size_that_is_known_late_loses_nothing(size, taken, fetched):
    parts = small_parts()
    held = [parts.take(1) for _ in range(taken)]
    assert (parts.size, *map(spans, held)) == (None, (0, 16), (16, 32), (32, 48))[: taken + 1]
    fetch(held[0], min(fetched, size))
    parts.learn_size(size)
    assert [part.end for part in held] == [min(end, size) for end in (16, 32, 48)[:taken]]
    assert parts.has_free is (size > 16 * taken)
    for part in held:
        parts.give_back(part)
    assert parts.contiguous == min(fetched, size)
    while part := parts.take(2):
        fetch(part, part.end - part.position)
        parts.give_back(part)
    assert (parts.is_complete, parts.fetched()) == (True, size)


@given(size=st.integers(0, 20_000 * MIB), connections=st.integers(1, 24))
def test_a_large_file_has_few_parts_of_sensible_size(size, connections):
    parts = Parts(size)
    lengths = [end - at for at, end in map(spans, iter(lambda: parts.take(connections), None))]
    assert sum(lengths) == size
    assert all(length <= 16 * MIB for length in lengths)
    assert all(length >= 2 * MIB for length in lengths[:-1])


# Connections.

STEP = 0.02  # seconds
LARGE = 1 << 40  # bytes


def simulate(rate, seconds=10.0, complaint=None):
    """The number of connections at each step, for `rate` (connections -> bytes per second)."""
    connections, fetched, seen = Connections(0.0, LARGE, rate(1)), 0.0, []
    for step in range(1, int(seconds / STEP) + 1):
        fetched += rate(connections.allowed) * STEP
        connections.update(step * STEP, int(fetched), connections.allowed)
        if complaint and step == int(complaint / STEP):
            connections.host_complained(step * STEP)
        seen.append(connections.allowed)
    return seen


def usual(seen):
    return sorted(seen)[len(seen) // 2]


def test_a_host_that_limits_each_connection_gets_many():
    assert set(simulate(lambda count: count * 20e6)) == {MOST}


@pytest.mark.parametrize(
    ("left", "rate", "allowed"),
    [
        (LARGE, 20e6, MOST),
        (LARGE, None, MOST),  # an earlier run has fetched the first bytes
        (20e6, 40e6, 10),  # the first connection alone would need ten times as long as is short
        (20e6, 50e6, 8),
        (LARGE, 100e6, FEWEST),  # a fast host
        (0, 20e6, FEWEST),
    ],
)
def test_the_first_connection_decides_how_many_follow_at_once(left, rate, allowed):
    assert Connections(0.0, left, rate).allowed == allowed


@pytest.mark.parametrize(
    ("received", "seconds", "shown"),
    [(MIB, 0.001, True), (MIB - 1, 0.019, False), (1, 0.02, True)],
)
def test_the_first_connection_shows_its_rate_after_a_mib_or_a_moment(received, seconds, shown):
    running = Running(Part(10, 1 << 30), now=1.0)
    fetch(running.part, received)
    assert running.shows_rate(1.0 + seconds) is shown


def test_a_worker_at_its_limit_keeps_few_and_a_link_is_filled():
    assert set(simulate(lambda _: 900e6, 5.0)) == {FEWEST}  # one connection alone is as fast
    seen = simulate(lambda count: min(count * 300e6, 900e6))
    assert sum(count > FEWEST for count in seen) * STEP <= 2.0  # seconds of ten: now and then
    assert usual(seen) == FEWEST
    assert usual(simulate(lambda count: min(count * 20e6, 110e6))) == MOST


def test_a_host_that_sends_only_its_first_bytes_fast_gets_many():
    connections = Connections(0.0, LARGE, rate=200e6)
    for step in range(1, 30):
        fetched = int(connections.allowed * 20e6 * step * STEP)
        connections.update(step * STEP, fetched, connections.allowed)
    assert connections.allowed > FEWEST


def test_a_host_that_recovers_is_tried_again():
    slow = iter(range(400))  # steps; 8 seconds
    seen = simulate(lambda count: 40e6 if next(slow, None) is not None else count * 20e6, 20)
    assert usual(seen[:400]) == FEWEST
    assert seen[-1] == MOST


def test_a_complaint_leaves_one_connection_less_for_good():
    seen = simulate(lambda count: count * 20e6, complaint=5.0)
    assert max(seen[:245]) == MOST
    assert set(seen[-100:]) == {MOST - 1}


@pytest.mark.parametrize(("answered", "left"), [(0, 1), (1, 1), (4, 4), (31, 31), (32, 31)])
def test_after_a_complaint_there_are_as_many_connections_as_the_host_has_answered(answered, left):
    """It answers half of them in time, and the others while no request is sent."""
    connections = Connections(0.0, LARGE, rate=20e6)
    quiet_until = connections.host_complained(5.0)
    assert connections.host_complained(5.5) == quiet_until  # another connection's: the same
    for moment, delivering in ((5.2, answered // 2), (5.8, answered), (quiet_until, 0)):
        assert connections.allowed == MOST
        connections.update(moment, 0, delivering)
    assert connections.allowed == left
    for moment in (30.0, 31.0, 40.0):
        connections.update(moment, int(moment * 1e9), left)
    assert connections.allowed == left


def test_a_complaint_to_the_only_connection_changes_nothing():
    connections = Connections(0.0, LARGE, rate=20e6)
    quiet_until = connections.host_complained(5.0)
    connections.update(quiet_until, 0, 1)
    assert connections.host_complained(9.0) == 9.0
