from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.http.backoff import LONGEST_WAIT, Backoff, retry_after


def test_pauses_double_up_to_the_longest_and_begin_again_after_a_success():
    backoff = Backoff(first=1.0, most=5.0, jitter=0)
    assert [backoff.pause() for _ in range(5)] == [1, 2, 4, 5, 5]
    assert backoff.failures == 5
    logged = [number for number in range(6, 40) if backoff.pause() and backoff.is_worth_a_line]
    assert logged == [8, 16, 32]
    backoff.reset()
    assert (backoff.failures, backoff.pause()) == (0, 1)


@pytest.mark.parametrize(
    ("asked_for", "pause"), [(None, 1), (0, 1), (0.5, 1), (7.0, 7.0), (1e9, LONGEST_WAIT)]
)
def test_a_pause_is_at_least_as_long_as_the_host_asks_up_to_a_limit(asked_for, pause):
    assert Backoff(first=1.0, jitter=0).pause(asked_for) == pause


def test_the_pauses_of_two_workers_differ():
    pauses = {Backoff(first=1.0).pause() for _ in range(20)}
    assert len(pauses) > 15
    assert all(0.75 <= pause <= 1 for pause in pauses)


IGNORED = ["-5", "1.5", "soon", "", "9" * 5000, "Wed, 21 Oct 99999 07:28:00 GMT"]
IGNORED += ["Wed, 21 Oct 99999999999 07:28:00 GMT"]


def test_retry_after_is_seconds_or_a_date_and_anything_else_is_ignored():
    found = [retry_after({"Retry-After": value}) for value in ("5", "0", *IGNORED)]
    assert found == [5, 0] + [None] * len(IGNORED)
    assert retry_after({}) is None
    assert retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0  # in the past
    then = datetime.now(timezone.utc) + timedelta(seconds=1000)
    assert 0 < retry_after({"Retry-After": format_datetime(then, usegmt=True)}) <= 1000


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        ('"resolvers";r=0;t=25', 25),  # Hugging Face's
        ('"api"; r=5; t=300, "resolvers"; r=0; t=25', 25),
        ('"a";r=0;t=7,"b";r=0;t=9', 9),
        ('"resolvers";r=3;t=25', None),  # something remains
        ('"resolvers";r=0', None),
        ('"resolvers";r=0;t=-1', None),
        ('"resolvers";r=0;t=2.5', None),
        ("limit=100, remaining=0, reset=9", None),
        ("", None),
        (";r=0" * 10_000, None),
    ],
)
def test_a_limit_that_is_used_up_says_when_it_is_reset(limits, seconds):
    assert retry_after({"RateLimit": limits}) == seconds
    assert retry_after({"RateLimit": limits, "Retry-After": "3"}) == 3


@settings(max_examples=50)
@given(st.text(st.characters(codec="latin-1"), max_size=40))
@pytest.mark.parametrize("header", ["Retry-After", "RateLimit"])
def test_any_header_is_read_or_ignored(header, value):
    seconds = retry_after({header: value})
    assert seconds is None or seconds >= 0
