from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.http.backoff import LONGEST_WAIT, BackOff, backoff, retry_after


def test_pauses_double_up_to_the_longest_and_start_anew():
    back_off = BackOff(first=1.0, most=5.0)
    for most in (1, 2, 4, 5, 5):
        assert 0.75 * most <= back_off.pause() <= most
    back_off.reset()

    assert back_off.pause() <= 1


@pytest.mark.parametrize(("asked", "seconds"), [(7.0, 7.0), (1e9, LONGEST_WAIT)])
def test_what_the_host_asks_for_is_the_least(asked, seconds):
    assert BackOff(first=1.0).pause(asked) == seconds


def test_workers_do_not_come_back_in_step():
    assert len({BackOff().pause() for _ in range(20)}) > 15


@pytest.mark.parametrize(
    ("attempt", "asked", "seconds"),
    [
        (0, None, 0.5),
        (1, None, 1),
        (2, None, 2),
        (9, None, LONGEST_WAIT),
        (0, 0, 0),
        (5, 3, 3),
        (0, 1e9, LONGEST_WAIT),
    ],
)
def test_the_pauses_grow(attempt, asked, seconds):
    assert backoff(attempt, asked) == seconds


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("5", 5),
        ("0", 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),  # in the past
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("9" * 5000, None),
        ("Wed, 21 Oct 99999999999 07:28:00 GMT", None),
        ("Wed, 21 Oct 99999 07:28:00 GMT", None),
    ],
)
def test_retry_after_is_read_or_ignored(header, seconds):
    assert retry_after({} if header is None else {"Retry-After": header}) == seconds


def test_retry_after_may_be_a_date():
    then = datetime.now(timezone.utc) + timedelta(seconds=100)
    assert 80 < retry_after({"Retry-After": format_datetime(then, usegmt=True)}) <= 100


@given(st.text(st.characters(codec="latin-1"), max_size=40))
def test_no_retry_after_breaks_anything(value):
    seconds = retry_after({"Retry-After": value})
    assert seconds is None or seconds >= 0
